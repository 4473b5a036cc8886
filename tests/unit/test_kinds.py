# SPDX-License-Identifier: Apache-2.0
"""Kinds of images: which there are, what can be in them, and the head that tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.cli.main import main
from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.augment import Augmentation
from kprism_model.data.building import build_store
from kprism_model.data.kinds import kind_name, kind_names, possible_kinds
from kprism_model.data.slices import SliceStore
from kprism_model.image_kind import NONE, ImageKind
from kprism_model.losses import kind_loss
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kinds import POSSIBLE
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.kinds import fit_kinds, with_kinds
from kprism_model.training.weights import average_weights, warm_start
from tests.unit.dataset_files import write_dataset

SIZE = 64
CLASSES = ("stripe", "spot", "taught")
LOOKS = {"fine": "ultrasound", "coarse": "X-ray", "dots": "fundus photography"}


@dataclass
class Images:
    modality: str
    anatomy: str
    classes: dict[int, str]


CHEST_CT = Images("CT", "lung", {1: "lung tumour"})
ABDOMEN_CT = Images("CT", "abdomen", {1: "Spleen"})
SPINE_MRI = Images("MRI", "lumbar spine", {1: "vertebra"})
BRAIN_MRI = Images("MRI", "hippocampus", {1: "anterior hippocampus"})
TISSUE = Images("histopathology", "prostate", {1: "nucleus"})
SETS = [CHEST_CT, ABDOMEN_CT, SPINE_MRI, BRAIN_MRI, TISSUE]


def picture(look: str, number: int) -> np.ndarray:
    """A texture (row, column, 3) that another number moves and noise covers; dots are red."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + number
    wave = {"fine": np.sin(2 * rows), "coarse": np.sin(rows / 5), "dots": np.sin(rows / 4) * np.sin(columns / 4)}[look]
    noise = np.random.default_rng(number).normal(0, 10, (SIZE, SIZE))
    colour = (1.0, 0.2, 0.1) if look == "dots" else (1.0, 1.0, 1.0)
    return np.clip((128 + 100 * wave + noise)[..., None] * colour, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[10:30, 10:30] = 1
    folder = tmp_path_factory.mktemp("sets")
    return [
        write_dataset(
            folder / look,
            [label] * 8,
            images=[picture(look, number) for number in range(8)],
            classes=["spot" if look == "dots" else "stripe"],
            modality=modality,
        )
        for look, modality in LOOKS.items()
    ]


@pytest.fixture(scope="module")
def store(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return build_store(folders, tmp_path_factory.mktemp("slices"), size=SIZE, progress=False)


def network() -> KPrism:
    torch.manual_seed(0)
    return KPrism(KPrismConfig.tiny(num_classes=len(CLASSES), native_size=SIZE)).eval()


@pytest.fixture(scope="module")
def fitted(store: SliceStore) -> KPrism:
    model = with_kinds(network(), ClassRegistry(CLASSES), store)
    fit_kinds(model, store, seed=0, images=32, augmentation=Augmentation.none(), progress=False)
    return model


def test_a_kind_is_modality_and_region() -> None:
    assert kind_names(SETS) == ("CT, abdomen", "CT, chest", "MRI, hippocampus", "MRI, spine", "histopathology")
    assert kind_name(Images("MRI", "heart", {})) == "MRI, chest"
    assert kind_name(Images("ultrasound", "", {})) == "ultrasound"


def test_a_class_can_be_where_its_part_of_the_body_is_shown_in_a_modality_that_has_it() -> None:
    possible = possible_kinds(SETS)
    assert possible["spleen"] == {"CT, abdomen", "CT, chest"}  # not in MRI of the spine, where nobody has seen it
    assert possible["vertebra"] == {"MRI, spine"}
    assert possible["anterior hippocampus"] == {"MRI, hippocampus"}
    assert possible["nucleus"] == {"histopathology"}


@pytest.mark.parametrize(
    ("images", "unknown"), [(CHEST_CT, {"vertebra", "Spleen", "lung tumour"}), (BRAIN_MRI, {"anterior hippocampus"})]
)
def test_what_may_be_there_unlabelled_is_not_foreign(images: Images, unknown: set[str]) -> None:
    names = {name for one in SETS for name in one.classes.values()}
    assert set(foreign_classes(images, SETS)) == names - unknown


def test_kinds_that_were_fitted_are_told_apart(fitted: KPrism) -> None:
    predictor = Predictor(fitted, ClassRegistry(CLASSES))
    for look, modality in LOOKS.items():
        [embedding] = predictor.embed([picture(look, 8) / 255.0])
        kind = predictor.image_kind([embedding])
        assert kind is not None and kind.name == modality
        assert sum(kind.probabilities.values()) == pytest.approx(1, abs=1e-5)
        known = "spot" if look == "dots" else "stripe"
        assert set(kind.possible(CLASSES, 0.5)) == {known, "taught"}  # no set says where "taught" can be
        assert kind.likeliest == pytest.approx(kind.prior[known])


@pytest.mark.parametrize("looks", [["fine"], ["dots"], ["fine", "fine"]])
def test_a_single_set_and_two_of_one_kind_are_fitted(looks: list[str], tmp_path: Path) -> None:
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[10:30, 10:30] = 1
    sets = [
        write_dataset(
            tmp_path / f"set{place}",
            [label] * 4,
            images=[picture(look, 10 * place + number) for number in range(4)],
            classes=["stripe"],
            modality=LOOKS[look],
        )
        for place, look in enumerate(looks)
    ]
    store = build_store(sets, tmp_path / "slices", size=SIZE, progress=False)
    model = with_kinds(network(), ClassRegistry(CLASSES), store)
    fit_kinds(model, store, seed=0, images=16, augmentation=Augmentation.none(), progress=False)
    assert model.kind_head is not None
    assert all(bool(value.isfinite().all()) for value in model.kind_head.state_dict().values())
    [embedding] = Predictor(model, ClassRegistry(CLASSES)).embed([picture(looks[0], 8) / 255.0])
    kind = Predictor(model, ClassRegistry(CLASSES)).image_kind([embedding])
    assert kind is not None and kind.name == LOOKS[looks[0]]


def test_a_kind_has_a_centre_for_each_of_its_sets(folders: list[Path], store: SliceStore, tmp_path: Path) -> None:
    """Two sets of one modality that look different are one kind, and an image of either is told to be of it."""
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[10:30, 10:30] = 1
    images = [255 - picture("dots", number) for number in range(8)]
    other = write_dataset(tmp_path / "other", [label] * 8, images=images, classes=["spot"], modality="X-ray")
    both = build_store([*folders, other], tmp_path / "slices", size=SIZE, progress=False)
    model = with_kinds(network(), ClassRegistry(CLASSES), both)
    assert model.config.kinds == ("X-ray", "fundus photography", "ultrasound")
    assert model.config.kind_centres == (2, 1, 1)
    with pytest.raises(ValueError, match="knows the kinds"):
        fit_kinds(model, store, seed=0)  # which lacks a set
    fit_kinds(model, both, seed=0, images=32, augmentation=Augmentation.none(), progress=False)
    predictor = Predictor(model, ClassRegistry(CLASSES))
    for image in (picture("coarse", 9), 255 - picture("dots", 9)):
        kind = predictor.image_kind(predictor.embed([image / 255.0]))
        assert kind is not None and kind.name == "X-ray"


def test_possible_classes_weigh_by_the_likeliest_one() -> None:
    prior = {"spleen": 0.4, "disc": 0.3, "polyp": 0.1, "taught": 1.0}
    kind = ImageKind({"CT": 0.4, "MRI": 0.3, "endoscopy": 0.1, NONE: 0.2}, prior, likeliest=0.4)
    assert kind.possible(list(prior)) == {"spleen": 1.0, "disc": pytest.approx(0.75), "taught": 1.0}
    assert kind.possible(["spleen"], 0.5) == {}
    nothing = ImageKind({"CT": 0.0, NONE: 1.0}, {"spleen": 0.0, "taught": 1.0}, likeliest=0.0)
    assert nothing.possible(["spleen", "taught"]) == {"taught": 1.0}  # what a site labels is asked for in any image


def test_an_image_unlike_all_others_is_none_of_the_kinds(fitted: KPrism) -> None:
    predictor = Predictor(fitted, ClassRegistry(CLASSES))
    strange = np.zeros((SIZE, SIZE, 3))
    strange[:, ::2, 0] = 1
    kind = predictor.image_kind(predictor.embed([strange]))
    assert kind is not None and kind.name == NONE
    assert set(kind.possible(CLASSES, 0.5)) == {"taught"}


def test_slices_weigh_as_told(fitted: KPrism) -> None:
    predictor = Predictor(fitted, ClassRegistry(CLASSES))
    slices = predictor.embed([picture("fine", 1) / 255.0, picture("dots", 1) / 255.0])
    names = [predictor.image_kind(slices, weights).name for weights in ([3.0, 1.0], [1.0, 3.0])]  # type: ignore[union-attr]
    assert names == ["ultrasound", "fundus photography"]


def test_a_fit_changes_no_mask(store: SliceStore, fitted: KPrism) -> None:
    old, new = network().state_dict(), fitted.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    assert set(new) - set(old) == {name for name in new if name.startswith("kind_head.")}


def test_a_store_of_other_kinds_is_refused(store: SliceStore) -> None:
    with pytest.raises(ValueError, match=r"knows the kinds \['CT'\], not \['X-ray', "):
        fit_kinds(KPrism(KPrismConfig.tiny(num_classes=3, kinds=("CT",))), store, seed=0)


def test_weights_without_kinds_tell_none() -> None:
    predictor = Predictor(network(), ClassRegistry(CLASSES))
    assert predictor.image_kind(predictor.embed([picture("dots", 1) / 255.0])) is None


def test_a_checkpoint_gets_its_kinds_by_command(folders: list[Path], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "old", network(), ClassRegistry(CLASSES), metadata={"name": "old"})
    data = [str(folder) for folder in folders]
    told = ["--slices", str(tmp_path / "slices"), "--out", str(tmp_path / "new"), "--images", "32"]
    assert main(["fit-kinds", "--checkpoint", str(tmp_path / "old"), "--data", *data, *told]) == 0
    loaded = load_checkpoint(tmp_path / "new")
    assert loaded.model.config.kinds == ("X-ray", "fundus photography", "ultrasound")
    assert loaded.metadata["name"] == "old" and loaded.metadata["kinds"]["known"] > 0.5
    predictor = Predictor(loaded.model, loaded.registry)
    kind = predictor.image_kind(predictor.embed([picture("dots", 3) / 255.0]))
    assert kind is not None and kind.probabilities["fundus photography"] > 0.4


def test_new_classes_can_be_everywhere_and_old_ones_keep_their_places(fitted: KPrism) -> None:
    registry = ClassRegistry(CLASSES)
    grown = KPrism(KPrismConfig.tiny(num_classes=4, native_size=SIZE, kinds=fitted.config.kinds))
    source = type("Source", (), {"model": fitted, "registry": registry, "path": Path("source")})
    warm_start(grown, registry.add(["new"]), source)  # type: ignore[arg-type]
    table = grown.state_dict()[POSSIBLE]
    assert table[3].all() and torch.equal(table[:3], fitted.state_dict()[POSSIBLE])
    mean, _ = average_weights([(grown, registry.add(["new"])), (fitted, registry)])
    assert torch.equal(mean.state_dict()[POSSIBLE], table)


def test_the_loss_knows_kinds_and_none() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
    assert kind_loss(logits, ["CT", "", "unheard of"], ["CT", "MRI"]) < 0.01
    assert kind_loss(logits, ["MRI", "", "CT"], ["CT", "MRI"]) > 5
    assert kind_loss(logits, ["unheard of"] * 3, ["CT", "MRI"]) == 0
