# SPDX-License-Identifier: Apache-2.0
"""The app in this process, with seeded random weights: one network behind all models, caches, memory, references."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from main import KPrismApp
from PIL import Image

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.config import KPrismConfig
from kprism_model.network import KPrism
from lib.errors import RequestError
from lib.infers.base import Source

CLASSES = ("polyp", "lungs")
ALL = {
    "semantic": {},
    "in_context": {"presence": 0},
    "interactive": {"thing": [[20, 30, 0]]},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    network = KPrism(KPrismConfig.tiny(num_classes=len(CLASSES))).eval()
    save_checkpoint(folder / "random", network, ClassRegistry(CLASSES), metadata={})
    return folder / "random.safetensors"


@pytest.fixture
def app(weights: Path, tmp_path: Path, repository: Path) -> KPrismApp:
    """An app on three pictures, of which two are labelled."""
    studies = tmp_path / "studies"
    shutil.copytree(repository / "sample-datastore", studies, ignore=shutil.ignore_patterns("pyradiomics*", "*.nii.gz"))
    return make_app(studies, weights)


def make_app(studies: Path, weights: Path, **conf: str) -> KPrismApp:
    app_dir = studies.parent / "app"
    app_dir.mkdir(exist_ok=True)
    return KPrismApp(str(app_dir), str(studies), {"model_path": str(weights), **conf})


def ask(app: KPrismApp, model: str, image: Any, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """The mask (i, j) of a picture and the JSON."""
    result = app.infer({"model": model, "image": image, "result_extension": ".png", **params})
    path = Path(result["file"])
    with Image.open(path) as picture:
        mask = np.array(picture).T
    path.unlink()
    return mask, result["params"]


def test_all_models_share_one_network(app: KPrismApp) -> None:
    gc.collect()
    before = sum(isinstance(thing, KPrism) for thing in gc.get_objects())
    for model, params in ALL.items():
        ask(app, model, "mni152_axial72", **params)
    gc.collect()
    assert sum(isinstance(thing, KPrism) for thing in gc.get_objects()) == before + 1
    engines = {id(task.house.engine) for task in app._infers.values()}
    assert engines == {id(app.engine)}
    assert app.engine.network() is app.engine.network()
    assert set(app._infers) == {"semantic", "in_context", "interactive", "scribbles"}


def test_a_start_loads_no_weights(app: KPrismApp) -> None:
    assert app.info()["models"]["semantic"]["labels"] == {"polyp": 1, "lungs": 2}
    assert app.engine._network is None


def test_a_slice_is_encoded_once_for_all_models(app: KPrismApp) -> None:
    passes = [ask(app, model, "mni152_axial72", **params)[1]["encoder_passes"] for model, params in ALL.items()]
    assert passes == [1, 5, 0]  # in_context encodes its references: two structures in two pictures, one in one
    assert ask(app, "in_context", "mni152_axial72", presence=0)[1]["encoder_passes"] == 0


def test_a_small_cache_changes_costs_and_no_answer(app: KPrismApp, weights: Path) -> None:
    forgetful = make_app(Path(app.studies), weights, cache_mb="0")
    for model, params in ALL.items():
        mask, _ = ask(app, model, "mni152_axial72", **params)
        again, answer = ask(forgetful, model, "mni152_axial72", **params)
        np.testing.assert_array_equal(again, mask)
        assert answer["encoder_passes"] >= 1
    assert len(forgetful.engine.cache) == 0


def test_a_changed_file_is_read_again(app: KPrismApp) -> None:
    first, _ = ask(app, "interactive", "mni152_axial72", thing=[[100, 100]])
    path = Path(app.studies) / "mni152_axial72.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels[::-1]).save(path)
    second, answer = ask(app, "interactive", "mni152_axial72", thing=[[100, 100]])
    assert answer["encoder_passes"] == 1
    assert (first != second).any()


def test_clients_do_not_see_each_others_masks(app: KPrismApp) -> None:
    ask(app, "semantic", "mni152_axial72", client_id="a", structures="polyp", presence=0)
    mine, _ = ask(app, "interactive", "mni152_axial72", client_id="a", polyp=[[100, 100]])
    theirs, _ = ask(app, "interactive", "mni152_axial72", client_id="b", polyp=[[100, 100]])
    fresh, _ = ask(app, "interactive", "mni152_axial72", client_id="c", polyp=[[100, 100]], start_from="nothing")
    np.testing.assert_array_equal(theirs, fresh)
    assert (mine != theirs).any()


def test_use_class_changes_the_answer_for_a_known_class_only(app: KPrismApp) -> None:
    for name, changes in (("polyp", True), ("something else", False)):
        params = {name: [[100, 100]], "start_from": "nothing"}
        plain, _ = ask(app, "interactive", "mni152_axial72", **params)
        with_class, _ = ask(app, "interactive", "mni152_axial72", **params, use_class=True)
        assert (plain != with_class).any() == changes


def test_many_clicks_cost_few_passes(app: KPrismApp) -> None:
    clicks = [[20 + 7 * number, 100] for number in range(20)]
    _, answer = ask(app, "interactive", "mni152_axial72", thing=clicks)
    assert answer["decoder_passes"] == 9
    _, answer = ask(app, "interactive", "mni152_axial72", thing=[*clicks, [100, 20]])
    assert answer["decoder_passes"] == 1


def test_clicked_pixels_are_as_clicked(app: KPrismApp) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.permutation([(i, j) for i in range(20, 180, 9) for j in range(20, 220, 9)])[:40].tolist()
    mask, answer = ask(app, "interactive", "mni152_axial72", thing=voxels[:20], background=voxels[20:])
    assert all(mask[tuple(voxel)] == 1 for voxel in voxels[:20])
    assert all(mask[tuple(voxel)] == 0 for voxel in voxels[20:])
    assert answer["clicks_overruled"] > 0  # random weights do not follow clicks


def test_references_hold_the_structure_and_are_never_the_case_itself(app: KPrismApp) -> None:
    _, answer = ask(app, "in_context", "mni152_axial60", structures="white matter")
    assert answer["references"] == {"white matter": [{"image": "mni152_axial85", "slices": [0]}]}
    with pytest.raises(RequestError, match="'mni152_axial60' is the image itself"):
        ask(app, "in_context", "mni152_axial60", references="mni152_axial60")


def test_the_same_picture_under_another_name_is_no_reference(app: KPrismApp) -> None:
    copy = Path(app.studies) / "mni152_axial60.png"
    source = Source(copy, "an upload")
    _, answer = ask(app, "in_context", source, structures="grey matter")
    assert [use["image"] for use in answer["references"]["grey matter"]] == ["mni152_axial85"]


def test_no_labelled_case(weights: Path, tmp_path: Path, repository: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    shutil.copy(repository / "sample-datastore" / "mni152_axial72.png", studies)
    with pytest.raises(RequestError, match="no labelled case"):
        ask(make_app(studies, weights), "in_context", "mni152_axial72")


def test_names_by_hand_serve_as_names(weights: Path, tmp_path: Path, repository: Path) -> None:
    samples, studies = repository / "sample-datastore", tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for name in ("mni152_axial72.png", "mni152_axial60.png"):
        shutil.copy(samples / name, studies)
    shutil.copy(samples / "labels" / "final" / "mni152_axial60.png", studies / "labels" / "final")
    with pytest.raises(RequestError, match=r"labels\.json"):
        ask(make_app(studies, weights), "in_context", "mni152_axial72")
    (studies / "labels.json").write_text('{"labels": {"2": "white matter"}}')
    app = make_app(studies, weights)
    _, answer = ask(app, "in_context", "mni152_axial72")
    assert answer["references"] == {"white matter": [{"image": "mni152_axial60", "slices": [0]}]}
    assert app.info()["models"]["in_context"]["labels"] == {"polyp": 1, "lungs": 2, "white matter": 3}


def test_reference_slices_spread_over_a_volume(weights: Path, tmp_path: Path, repository: Path) -> None:
    samples, studies = repository / "sample-datastore", tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for name in ("pyradiomics_brain1.nii.gz", "pyradiomics_brain2.nii.gz"):
        nibabel.save(nibabel.load(samples / name).slicer[70:190, 60:160], studies / name)
    label = nibabel.load(samples / "labels" / "final" / "pyradiomics_brain1.nii.gz").slicer[70:190, 60:160]
    nibabel.save(label, studies / "labels" / "final" / "pyradiomics_brain1.nii.gz")
    (studies / "labels.json").write_text('{"labels": {"1": "tumour"}}')
    request = {"model": "in_context", "image": "pyradiomics_brain2", "reference_slices": 4}
    result = make_app(studies, weights).infer(request)
    mask = nibabel.load(result["file"])
    Path(result["file"]).unlink()
    assert mask.shape == (120, 100, 23)
    [used] = result["params"]["references"]["tumour"]
    areas = (np.asanyarray(label.dataobj) > 0).sum((0, 1))
    assert len(set(used["slices"])) == 4
    assert all(areas[number] >= 0.2 * areas.max() for number in used["slices"])


def test_extra_labels_can_be_offered(app: KPrismApp, weights: Path) -> None:
    offered = make_app(Path(app.studies), weights, labels="cyst, Polyp,stone")
    assert list(offered.info()["models"]["interactive"]["labels"])[:4] == ["polyp", "lungs", "cyst", "stone"]


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"device": "tpu9"}, "tpu9"),
        ({"cache_mb": "much"}, "much"),
        ({"model_path": "/nowhere.safetensors"}, "/nowhere"),
    ],
)
def test_bad_settings(tmp_path: Path, weights: Path, conf: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        KPrismApp(str(tmp_path), str(tmp_path), {"model_path": str(weights), **conf})


def test_batch_inference_goes_on_after_a_bad_file(app: KPrismApp) -> None:
    (Path(app.studies) / "empty.png").write_bytes(b"")
    app.datastore().refresh()
    request = {"model": "semantic", "images": "unlabeled", "result_extension": ".png", "max_workers": 1}
    results = app.batch_infer(request)
    assert sorted(results) == sorted(app.datastore().get_unlabeled_images())
    assert results.pop("empty") == {"error": "image 'empty' is an empty file"}
    assert results
    for image_id in results:
        assert Path(app.datastore().get_label_uri(image_id, "original")).is_file()
