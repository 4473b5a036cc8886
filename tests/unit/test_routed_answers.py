# SPDX-License-Identifier: Apache-2.0
"""What the shipped weights answer stays the same bit for bit, whatever the site publishes; and who answers the rest."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from main import KPrismApp

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.volumes.predictor import PropagationRules
from lib.api.ohif.versions import served
from lib.infers.request import Source
from lib.learning.weight_reloader import networks_of
from lib.routes import MODES

CLASSES = ("tumour", "lungs", "spleen")
SITE_CLASSES = (*CLASSES, "cyst")
KINDS = ("MR, brain", "CT, chest")
Labels = np.ndarray[Any, np.dtype[np.uint8]]
PRESENT = {"presence": 0}
FOLLOWED = {"start_from": "final label", "follow_mask": True, "scope": "whole volume"}


def network(seed: int, classes: int) -> KPrism:
    """Random weights that take every class for possible in every image."""
    torch.manual_seed(seed)
    model = KPrism(KPrismConfig.tiny(num_classes=classes, kinds=KINDS)).eval()
    assert model.kind_head is not None
    model.kind_head.possible.fill_(True)
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Studies with two labelled volumes, and shipped weights."""
    folder = tmp_path_factory.mktemp("routed")
    samples = repository / "sample-datastore"
    final = folder / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    for case, value in (("brain1", 1), ("brain2", 2)):
        image = nibabel.load(samples / f"pyradiomics_{case}.nii.gz").slicer[60:124, 70:134, 8:14]
        nibabel.save(image, folder / "studies" / f"{case}.nii.gz")
        labels = np.zeros((64, 64, 6), np.uint8)  # a tumour and a cyst that reach through all slices
        labels[10:30, 10:30], labels[35:50, 30:60] = value, 3 - value
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), final / f"{case}.nii.gz")
    (folder / "studies" / "labels.json").write_text('{"labels": {"1": "tumour", "2": "cyst"}}')
    save_checkpoint(folder / "shipped", network(0, 3), ClassRegistry(CLASSES), metadata={})
    return folder


@pytest.fixture
def app(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KPrismApp:
    # Random weights are sure of nothing; with these rules they propagate all the same.
    monkeypatch.setattr("kprism_model.volumes.predictor.PropagationRules", lambda: PropagationRules(presence=0))
    conf = {"model_path": str(source / "shipped.safetensors"), "state": str(tmp_path / "state")}
    app = KPrismApp(str(tmp_path), str(source / "studies"), conf)
    app.learning_loop.submissions.reconcile()
    return app


def publish(app: KPrismApp, seed: int, routes: Mapping[str, Mapping[str, int | None]], **metadata: Any) -> int:
    """Publish random weights that know a cyst; the app answers with them from now on."""
    model = network(seed, len(SITE_CLASSES))
    number = app.versions.publish(model, ClassRegistry(SITE_CLASSES), metadata=metadata, routes=routes)
    reload(app)
    return number


def reload(app: KPrismApp) -> None:
    app.engine.use(networks_of(app.versions.load(), "cpu", app.engine.networks()))
    app.engine.cache.clear()


def everywhere(*names: str, number: int | None = None) -> dict[str, dict[str, int | None]]:
    return {mode: dict.fromkeys(names, number) for mode in MODES}


def ask(app: KPrismApp, model: str, **params: Any) -> tuple[Labels, dict[str, Any]]:
    """The mask (i, j, k) and the JSON."""
    result = app.infer({"model": model, "image": "brain1", "result_extension": ".nii.gz", **params})
    path = Path(result["file"])
    mask = np.asanyarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).dataobj)
    path.unlink()
    return mask, result["params"]


def mask_of(answer: tuple[Labels, dict[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    labels, told = answer
    return labels == told["label_names"].get(name, -1)


def requests(app: KPrismApp, tmp_path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every kind of request that the shipped weights answer: model and parameters."""
    scribbles = np.zeros((64, 64, 6), np.uint8)
    scribbles[15:25, 20, 2] = 2
    path = tmp_path / "scribbles.nii.gz"
    affine = nibabel.load(Path(app.studies) / "brain1.nii.gz").affine
    nibabel.save(nibabel.Nifti1Image(scribbles, affine), path)
    drawn = {
        "label_info": [{"name": "tumour", "id": 1}, {"name": "foreground_scribbles", "id": 2}],
        "selected_label_name": "tumour",
        "label_file": Source(path, "scribbles"),
    }
    clicks = {"tumour": [[20, 20, 2], [40, 40, 3]], "background": [[50, 10, 2]]}
    return {
        "by name": ("semantic", {"structures": "tumour,spleen", **PRESENT}),
        "cleaned up": ("semantic", {"structures": "spleen", "clean_up": True, **PRESENT}),
        "search": ("semantic", PRESENT),
        "in context": ("in_context", {"structures": "tumour", **PRESENT}),
        "named references": ("in_context", {"structures": "tumour", "references": "brain2", **PRESENT}),
        "clicks": ("interactive", clicks),
        "clicks with the class": ("interactive", {**clicks, "use_class": True}),
        "unknown label": ("interactive", {"thing": [[20, 20, 2]]}),
        "propagation": ("interactive", {**clicks, "scope": "whole volume"}),
        "propagated label": ("interactive", {"tumour": [[20, 20, 2]], **FOLLOWED}),
        "from semantic": ("interactive", {**clicks, "start_from": "semantic"}),
        "scribbles": ("scribbles", drawn),
    }


def test_what_the_shipped_weights_answer_is_the_same_after_ten_versions(app: KPrismApp, tmp_path: Path) -> None:
    asked = requests(app, tmp_path)
    before = {name: ask(app, model, **params) for name, (model, params) in asked.items()}
    kind = before["search"][1]["image_kind"]
    other = next(name for name in KINDS if name != kind)
    for seed in range(1, 11):
        routes = everywhere("cyst", number=None if seed % 3 else seed - 1)
        routes["interactive"]["vein"] = None
        assert publish(app, seed, routes, kinds={"cyst": [other]}) == seed
    for name, (model, params) in asked.items():
        after = ask(app, model, **params)
        np.testing.assert_array_equal(after[0], before[name][0], err_msg=name)
        assert set(after[1]["answered_by"].values()) == {"shipped"}, name
        assert after[1]["label_names"] == before[name][1]["label_names"], name
        assert after[1]["weights_version"] != before[name][1]["weights_version"]
        assert after[0].any(), name
    assert ask(app, "semantic", **PRESENT)[1]["not_asked"] == ["cyst"]


def test_routes_decide_which_weights_answer(app: KPrismApp, tmp_path: Path) -> None:
    """The same requests with other weights give other masks: the test above would notice wrong routes."""
    asked = requests(app, tmp_path)
    before = {name: ask(app, model, **params) for name, (model, params) in asked.items()}
    publish(app, 1, everywhere(*CLASSES, "thing") | {"semantic": dict.fromkeys(CLASSES)})
    for name, (model, params) in asked.items():
        after = ask(app, model, **params)
        assert set(after[1]["answered_by"].values()) == {"version 1"}, name
        assert (after[0] != before[name][0]).any(), name


@pytest.mark.parametrize("model", ["semantic", "in_context"])
def test_a_request_for_both_kinds_is_answered_by_each_path_as_if_alone(app: KPrismApp, model: str) -> None:
    publish(app, 1, everywhere("cyst"))
    both = ask(app, model, structures="tumour,cyst", **PRESENT)
    assert both[1]["answered_by"] == {"tumour": "shipped", "cyst": "version 1"}
    alone = {name: mask_of(ask(app, model, structures=name, **PRESENT), name) for name in ("tumour", "cyst")}
    assert alone["tumour"].any() and alone["cyst"].any()
    np.testing.assert_array_equal(mask_of(both, "cyst"), alone["cyst"])  # the site's structure is on top
    np.testing.assert_array_equal(mask_of(both, "tumour"), alone["tumour"] & ~alone["cyst"])


def test_clicks_on_both_kinds_are_answered_by_each_path_as_if_alone(app: KPrismApp) -> None:
    """Alone: with the same clicks, those on the other label too, but only one label to segment."""
    publish(app, 1, everywhere("cyst"))
    clicks = {"tumour": [[20, 20, 2]], "cyst": [[40, 45, 2]], "scope": "whole volume"}
    both = ask(app, "interactive", **clicks)
    assert both[1]["answered_by"] == {"tumour": "shipped", "cyst": "version 1"}
    alone = {name: mask_of(ask(app, "interactive", label=name, **clicks), name) for name in ("tumour", "cyst")}
    overlap = alone["tumour"] & alone["cyst"]
    assert alone["tumour"].any() and alone["cyst"].any() and not overlap.all()
    for name, mask in alone.items():
        np.testing.assert_array_equal(mask_of(both, name)[~overlap], mask[~overlap])
    assert (mask_of(both, "tumour") | mask_of(both, "cyst"))[overlap].all()
    assert mask_of(both, "tumour")[20, 20, 2] and mask_of(both, "cyst")[40, 45, 2]


def test_a_promoted_structure_is_erased_from_the_shipped_answer_of_a_search(app: KPrismApp) -> None:
    before = ask(app, "semantic", **PRESENT)
    publish(app, 1, {"semantic": {"lungs": None}})
    after, alone = ask(app, "semantic", **PRESENT), ask(app, "semantic", structures="lungs", **PRESENT)
    assert after[1]["answered_by"] == {"tumour": "shipped", "spleen": "shipped", "lungs": "version 1"}
    lungs = mask_of(alone, "lungs")
    np.testing.assert_array_equal(mask_of(after, "lungs"), lungs)
    for name in ("tumour", "spleen"):
        np.testing.assert_array_equal(mask_of(after, name), mask_of(before, name) & ~lungs)


def test_a_search_looks_for_a_site_structure_in_the_kinds_that_it_was_labelled_in(app: KPrismApp) -> None:
    kind = ask(app, "semantic", **PRESENT)[1]["image_kind"]
    other = next(name for name in KINDS if name != kind)
    answers = []
    for kinds in ({"cyst": [kind]}, {"cyst": [other]}, {}):
        publish(app, 1, {"semantic": {"cyst": None}}, kinds=kinds)
        answers.append(ask(app, "semantic", **PRESENT)[1])
    assert ["cyst" in answer["answered_by"] for answer in answers] == [True, False, True]
    assert [answer["not_asked"] for answer in answers] == [[], ["cyst"], []]
    named = ask(app, "semantic", structures="cyst", **PRESENT)
    assert named[0].any() and named[1]["answered_by"] == {"cyst": "version 3"}


def test_references_are_encoded_only_by_the_network_that_answers(app: KPrismApp) -> None:
    publish(app, 1, {"semantic": {"cyst": None}, "in_context": {"cyst": None}})
    networks = app.engine.networks()
    ask(app, "in_context", structures="cyst", **PRESENT)
    assert networks.shipped.predictor.encoder_passes == 0 < networks.parts[1].predictor.encoder_passes
    passes = networks.parts[1].predictor.encoder_passes
    ask(app, "in_context", structures="tumour", **PRESENT)
    assert networks.parts[1].predictor.encoder_passes == passes and networks.shipped.predictor.encoder_passes > 0


def test_a_rollback_brings_back_the_routes_and_the_status_lists_them(app: KPrismApp) -> None:
    assert "cyst" not in app.info()["models"]["semantic"]["labels"]
    publish(app, 1, {"semantic": {"cyst": None}}, provisional={"semantic": ["cyst"]})
    first = ask(app, "semantic", structures="cyst", **PRESENT)
    publish(app, 2, {"semantic": {"cyst": None, "lungs": 1}})
    assert (ask(app, "semantic", structures="cyst", **PRESENT)[0] != first[0]).any()
    answering = {entry["structure"]: entry for entry in served(app) if entry["mode"] == "semantic"}
    assert {name: entry["answered_by"] for name, entry in answering.items()} == {
        "tumour": "shipped", "lungs": "version 1", "spleen": "shipped", "cyst": "version 2",
    }  # fmt: skip
    assert "cyst" in app.info()["models"]["semantic"]["labels"]
    app.versions.roll_back(1)
    reload(app)
    again = ask(app, "semantic", structures="cyst", **PRESENT)
    np.testing.assert_array_equal(again[0], first[0])
    provisional = [entry for entry in served(app) if entry["provisional"]]
    assert provisional == [{"structure": "cyst", "mode": "semantic", "answered_by": "version 1", "provisional": True}]
    app.versions.roll_back(0)
    reload(app)
    answering = {entry["structure"]: entry["answered_by"] for entry in served(app) if entry["mode"] == "semantic"}
    assert answering == {"tumour": "shipped", "lungs": "shipped", "spleen": "shipped", "cyst": "references"}
    assert ask(app, "semantic", structures="cyst")[1]["answered_by"] == {"cyst": "references"}
    with pytest.raises(
        ValueError, match="structure 'stone' is unknown to these weights; expected one of tumour, lungs"
    ):
        ask(app, "semantic", structures="stone")
