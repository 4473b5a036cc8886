# SPDX-License-Identifier: Apache-2.0
"""The app in this process, with seeded random weights: one network, caches, initial masks, references."""

from __future__ import annotations

import gc
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from main import KPrismApp
from PIL import Image

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from lib.errors import RequestError
from lib.infers.request import Source
from lib.networks import Networks, network_of

CLASSES = ("polyp", "lungs")
IMAGE = "mni152_axial72"
SCRIBBLES = {
    "label_info": [{"name": "polyp", "id": 1}, {"name": "foreground_scribbles", "id": 2}],
    "selected_label_name": "polyp",
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


def drawn(path: Path, labelmap: np.ndarray) -> Source:
    """An uploaded picture of values (i, j)."""
    Image.fromarray(labelmap.T.astype(np.uint8)).save(path)
    return Source(path, f"the uploaded label {path.name!r}")


@pytest.fixture
def everything(tmp_path: Path, repository: Path) -> dict[str, dict[str, Any]]:
    """A request for each model."""
    labelmap = np.zeros(Image.open(repository / "sample-datastore" / f"{IMAGE}.png").size)
    labelmap[40:60, 70] = 2
    return {
        "semantic": {},
        "in_context": {"presence": 0},
        "interactive": {"thing": [[20, 30, 0]]},
        "scribbles": {**SCRIBBLES, "label_file": drawn(tmp_path / "drawn.png", labelmap)},
    }


Requests = dict[str, dict[str, Any]]


def test_all_models_share_one_network(app: KPrismApp, everything: Requests) -> None:
    assert everything.keys() == app._infers.keys()
    gc.collect()
    before = sum(isinstance(thing, KPrism) for thing in gc.get_objects())
    for model, params in everything.items():
        ask(app, model, IMAGE, **params)
    gc.collect()
    assert sum(isinstance(thing, KPrism) for thing in gc.get_objects()) == before
    engines = {id(task.context.engine) for task in app._infers.values()}
    assert engines == {id(app.engine)}
    assert app.engine.networks() is app.engine.networks()
    assert set(app._infers) == {"semantic", "in_context", "interactive", "scribbles"}


def test_weights_are_checked_at_the_start(tmp_path: Path, weights: Path) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(weights.with_suffix(suffix), tmp_path)
    damaged = tmp_path / weights.name
    damaged.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(ValueError, match=r"random\.safetensors has SHA-256"):
        KPrismApp(str(tmp_path), str(tmp_path), {"model_path": str(damaged)})


def test_a_slice_is_encoded_and_a_file_is_read_once_for_all_models(app: KPrismApp, everything: Requests) -> None:
    answers = [ask(app, model, IMAGE, **params)[1] for model, params in everything.items()]
    # in_context encodes its references: two structures in two pictures, one in one
    assert [answer["encoder_passes"] for answer in answers] == [1, 5, 0, 0]
    assert [answer["files_read"] for answer in answers] == [1, 6, 0, 0]
    again = ask(app, "in_context", IMAGE, presence=0)[1]
    assert (again["encoder_passes"], again["files_read"]) == (0, 0)


def test_a_full_cache_changes_costs_and_no_answer(app: KPrismApp, weights: Path, everything: Requests) -> None:
    forgetful = make_app(Path(app.studies), weights, cache_mb="1")
    forgetful.engine.cache.put = lambda key, value, size: None  # type: ignore[method-assign]
    for model, params in everything.items():
        mask, _ = ask(app, model, IMAGE, **params)
        again, answer = ask(forgetful, model, IMAGE, **params)
        np.testing.assert_array_equal(again, mask)
        assert answer["encoder_passes"] >= 1
        assert answer["files_read"] >= 1


def test_the_budget_holds(weights: Path, tmp_path: Path, repository: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    shutil.copy(repository / "sample-datastore" / "pyradiomics_brain1.nii.gz", studies)
    app = make_app(studies, weights, cache_mb="16")
    for number in range(23):
        result = app.infer({"model": "interactive", "image": "pyradiomics_brain1", "thing": [[90, 90, number]]})
        Path(result["file"]).unlink()
        assert app.engine.cache.bytes <= 16 << 20
    assert held(app) <= 16 << 20


def held(app: KPrismApp) -> int:
    """Bytes of memory behind all that the cache keeps: of whole arrays and storages, not of the parts in use."""
    sizes: dict[int, int] = {}

    def count(thing: Any) -> None:
        if isinstance(thing, torch.Tensor):
            sizes[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, np.ndarray):
            owner = thing
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            sizes[id(owner)] = owner.nbytes
        elif isinstance(thing, tuple | list):
            for part in thing:
                count(part)
        else:
            for part in getattr(thing, "__dict__", {}).values():
                count(part)

    for value, _ in app.engine.cache._entries.values():
        count(value)
    return sum(sizes.values())


def test_what_another_version_has_computed_is_not_used(app: KPrismApp, weights: Path) -> None:
    torch.manual_seed(1)
    other = weights.with_name("other")
    network = KPrism(KPrismConfig.tiny(num_classes=len(CLASSES))).eval()
    save_checkpoint(other, network, ClassRegistry(CLASSES), metadata={})
    first, before = ask(app, "interactive", IMAGE, thing=[[100, 100]])
    app.engine.use(Networks(network_of(load_checkpoint(other), "cpu")))
    second, after = ask(app, "interactive", IMAGE, thing=[[100, 100]])
    assert after["encoder_passes"] == 1
    assert after["files_read"] == 0
    assert after["weights_version"] != before["weights_version"]
    assert (first != second).any()


def test_a_changed_file_is_read_again(app: KPrismApp) -> None:
    first, _ = ask(app, "interactive", IMAGE, thing=[[100, 100]])
    path = Path(app.studies) / "mni152_axial72.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels[::-1]).save(path)
    second, answer = ask(app, "interactive", IMAGE, thing=[[100, 100]])
    assert answer["encoder_passes"] == 1
    assert (first != second).any()


def test_answers_depend_on_the_request_alone(app: KPrismApp, weights: Path) -> None:
    """Whatever was asked before, by whomever: a deleted wrong click leaves no trace, undo is exact in any order."""
    clicks = {
        "one": {"thing": [[100, 100]]},
        "two": {"thing": [[100, 100], [60, 150]]},
        "corrected": {"thing": [[100, 100], [60, 150]], "background": [[80, 120]]},
        "wrong": {"thing": [[20, 200]]},
        "class": {"polyp": [[100, 100]], "lungs": [[60, 150]]},
    }
    expected = {}
    for name, params in clicks.items():
        expected[name], _ = ask(make_app(Path(app.studies), weights), "interactive", IMAGE, **params)
    rng = np.random.default_rng(0)
    for number, name in enumerate(rng.choice(list(clicks), 30)):
        ask(app, "semantic", IMAGE, structures="polyp", presence=0)
        mask, _ = ask(app, "interactive", IMAGE, **clicks[name], client_id=f"user{number % 2}")
        np.testing.assert_array_equal(mask, expected[name])


def test_taking_back_a_click_costs_no_pass(app: KPrismApp) -> None:
    one, two = {"thing": [[100, 100]]}, {"thing": [[100, 100], [60, 150]]}
    first, _ = ask(app, "interactive", IMAGE, **one)
    ask(app, "interactive", IMAGE, **two)
    again, answer = ask(app, "interactive", IMAGE, **one)
    np.testing.assert_array_equal(again, first)
    assert (answer["encoder_passes"], answer["decoder_passes"], answer["files_read"]) == (0, 0, 0)


def test_a_correction_of_a_small_structure_looks_at_a_window(
    app: KPrismApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[tuple[int, ...]] = []
    predictor = app.engine.networks().shipped.predictor
    real = predictor.embed
    monkeypatch.setattr(
        predictor, "embed", lambda images: [encoded.append(i.shape[:2]) for i in images] and real(images)
    )
    stored = np.zeros((197, 233))
    stored[30:50, 40:55] = 1
    upload = {"label_file": Source(drawn(tmp_path / "stored.png", stored).path, "it"), "label": "thing"}
    one, answer = ask(app, "interactive", IMAGE, thing=[[52, 45]], **upload)
    assert max(encoded[0]) < 233 / 2
    assert answer["encoder_passes"] == len(encoded)
    ask(app, "interactive", IMAGE, thing=[[52, 45]], background=[[35, 60]], **upload)
    before = len(encoded)
    again, answer = ask(app, "interactive", IMAGE, thing=[[52, 45]], **upload)
    np.testing.assert_array_equal(again, one)
    assert (answer["encoder_passes"], answer["decoder_passes"], len(encoded)) == (0, 0, before)


def test_two_users_at_once_get_their_own_answers(app: KPrismApp, weights: Path) -> None:
    asked = [{f"thing {number % 3}": [[60 + 10 * number, 100], [100, 60 + 9 * number]]} for number in range(8)]
    expected = [ask(make_app(Path(app.studies), weights), "interactive", IMAGE, **params)[0] for params in asked]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda params: ask(app, "interactive", IMAGE, **params), asked * 3))
    for number, (mask, _) in enumerate(answers):
        np.testing.assert_array_equal(mask, expected[number % 8])


def test_clicks_start_from_what_semantic_finds(app: KPrismApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.infers.initial_masks.PRESENCE", 0.0)  # random weights are sure of nothing
    automatic, _ = ask(app, "semantic", IMAGE, presence=0)
    value = 1 if (automatic == 1).any() else 2
    name = CLASSES[value - 1]
    voxel = [int(index) for index in np.argwhere(automatic == value)[0]]
    mask, answer = ask(app, "interactive", IMAGE, background=[voxel], start_from="semantic")
    assert answer["label_names"] == {name: 1}
    assert answer["started_from"] == {name: "semantic"}
    assert answer["decoder_passes"] == 1
    assert mask[tuple(voxel)] == 0


@pytest.mark.parametrize(("start", "tag"), [("final label", "final"), ("original label", "original")])
def test_clicks_start_from_a_stored_label(app: KPrismApp, tmp_path: Path, start: str, tag: str) -> None:
    stored = np.zeros((197, 233))
    stored[20:60, 30:90] = 1
    stored[100:120, 100:140] = 2
    path = drawn(tmp_path / "stored.png", stored).path
    info = {"label_info": [{"name": "thing"}, {"name": "other"}]}
    app.datastore().save_label(IMAGE, str(path), tag, info)
    with pytest.raises(RequestError, match="there is no initial mask under them"):
        ask(app, "interactive", IMAGE, background=[[110, 120]])
    mask, answer = ask(app, "interactive", IMAGE, background=[[110, 120]], start_from=start)
    assert answer["label_names"] == {"other": 1}
    assert answer["started_from"] == {"other": start}
    assert mask[110, 120] == 0
    uploaded, answer = ask(app, "interactive", IMAGE, background=[[110, 120]], label_file=Source(path, "it"), **info)
    np.testing.assert_array_equal(uploaded, mask)
    assert answer["started_from"] == {"other": "uploaded label"}
    _, answer = ask(app, "interactive", IMAGE, nothing_yet=[[40, 50]], start_from=start)
    assert answer["started_from"] == {"nothing_yet": "nothing"}


def test_an_uploaded_mask_without_names_is_of_the_clicked_label(app: KPrismApp, tmp_path: Path) -> None:
    upload = drawn(tmp_path / "mask.png", np.pad(np.ones((40, 60)), ((20, 137), (30, 143))))
    mask, answer = ask(app, "interactive", IMAGE, background=[[40, 50]], label="Polyp", label_file=upload)
    assert answer["label_names"] == {"polyp": 1}
    assert mask[40, 50] == 0
    with pytest.raises(RequestError, match=r"'mask\.png' comes without label_info.*polyp, lungs"):
        ask(app, "interactive", IMAGE, polyp=[[1, 1]], lungs=[[2, 2]], label_file=upload)


def test_an_empty_mask_cannot_be_propagated(app: KPrismApp, tmp_path: Path) -> None:
    upload = drawn(tmp_path / "mask.png", np.zeros((197, 233)))
    with pytest.raises(RequestError, match="the mask of 'polyp' is empty"):
        ask(app, "interactive", IMAGE, follow_mask=True, label="polyp", label_file=upload)


def test_a_failure_leaves_no_file_behind(app: KPrismApp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    with pytest.raises(RequestError, match="tag"):
        ask(app, "semantic", IMAGE, save_label=True, label_tag="../x")

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    for target in ("lib.imaging.writing.Image.Image.save", "lib.datastore.write_bytes"):
        with monkeypatch.context() as context:
            context.setattr(target, full_disk)
            with pytest.raises(OSError, match="No space"):
                ask(app, "semantic", IMAGE, save_label=True)
    assert set(tmp_path.iterdir()) == before


def test_use_class_changes_the_answer_for_a_known_class_only(app: KPrismApp) -> None:
    for name, changes in (("polyp", True), ("something else", False)):
        params = {name: [[100, 100]]}
        plain, _ = ask(app, "interactive", IMAGE, **params)
        with_class, _ = ask(app, "interactive", IMAGE, **params, use_class=True)
        assert (plain != with_class).any() == changes


def test_many_clicks_cost_few_passes(app: KPrismApp) -> None:
    clicks = [[20 + 7 * number, 100] for number in range(20)]
    _, answer = ask(app, "interactive", IMAGE, thing=clicks)
    assert answer["decoder_passes"] == 9
    _, answer = ask(app, "interactive", IMAGE, thing=[*clicks, [100, 20]])
    assert answer["decoder_passes"] == 1


def test_clicked_pixels_are_as_clicked(app: KPrismApp) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.permutation([(i, j) for i in range(20, 180, 9) for j in range(20, 220, 9)])[:40].tolist()
    mask, _ = ask(app, "interactive", IMAGE, thing=voxels[:20], background=voxels[20:])
    assert all(mask[tuple(voxel)] == 1 for voxel in voxels[:20])
    assert all(mask[tuple(voxel)] == 0 for voxel in voxels[20:])


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
        ask(make_app(studies, weights), "in_context", IMAGE)


def test_names_by_hand_serve_as_names(weights: Path, tmp_path: Path, repository: Path) -> None:
    samples, studies = repository / "sample-datastore", tmp_path / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    for name in ("mni152_axial72.png", "mni152_axial60.png"):
        shutil.copy(samples / name, studies)
    shutil.copy(samples / "labels" / "final" / "mni152_axial60.png", studies / "labels" / "final")
    with pytest.raises(RequestError, match=r"labels\.json"):
        ask(make_app(studies, weights), "in_context", IMAGE)
    (studies / "labels.json").write_text('{"labels": {"2": "white matter"}}')
    app = make_app(studies, weights)
    _, answer = ask(app, "in_context", IMAGE)
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


def test_batch_inference_goes_on_after_a_bad_file(app: KPrismApp, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(app.studies) / "empty.png").write_bytes(b"")
    app.datastore().refresh()
    semantic = app._infers["semantic"]

    class Breaks(type(semantic)):  # type: ignore[misc]
        def answer(self, request: Any) -> Any:
            if request.image_id == IMAGE:
                raise ZeroDivisionError("a defect of the program")
            return super().answer(request)

    monkeypatch.setattr(semantic, "__class__", Breaks)
    request = {"model": "semantic", "images": "unlabeled", "result_extension": ".png", "max_workers": 1}
    results = app.batch_infer(request)
    assert sorted(results) == sorted(app.datastore().get_unlabeled_images())
    assert "empty" not in results and "empty.png" in {entry.name for entry in app.datastore().not_served()}
    assert results.pop(IMAGE) == {"error": "the server failed (ZeroDivisionError: a defect of the program)"}
    assert results
    for image_id in results:
        assert Path(app.datastore().get_label_uri(image_id, "original")).is_file()
