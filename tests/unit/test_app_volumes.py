# SPDX-License-Identifier: Apache-2.0
"""The app on a volume, in this process: how far an answer reaches, what it costs, and what it depends on."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from main import KPrismApp
from scipy.ndimage import label

from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.volumes.predictor import PropagationRules
from lib.errors import RequestError
from lib.infers.request import Source

CASE = "brain"
MIDDLE = {"thing": [[60, 50, 6]]}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    samples = repository / "sample-datastore"
    for part, name in (((), CASE), (("labels", "final"), CASE)):
        source = nibabel.load(samples.joinpath(*part) / "pyradiomics_brain1.nii.gz").slicer[70:190, 60:160, 5:17]
        folder.joinpath("source", *part).mkdir(parents=True, exist_ok=True)
        nibabel.save(source, folder.joinpath("source", *part) / f"{name}.nii.gz")
    (folder / "source" / "labels.json").write_text('{"labels": {"1": "tumour"}}')
    torch.manual_seed(0)
    network = KPrism(KPrismConfig.tiny(num_classes=2)).eval()
    save_checkpoint(folder / "random", network, ClassRegistry(["tumour", "lungs"]), metadata={})
    return folder


@pytest.fixture
def app(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KPrismApp:
    # Random weights are sure of nothing; with these rules they follow all the same.
    monkeypatch.setattr("kprism_model.volumes.predictor.PropagationRules", lambda: PropagationRules(presence=0))
    shutil.copytree(studies / "source", tmp_path / "studies")
    return KPrismApp(str(tmp_path), str(tmp_path / "studies"), {"model_path": str(studies / "random.safetensors")})


def ask(app: KPrismApp, model: str, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """The mask (i, j, k) and the JSON."""
    result = app.infer({"model": model, "image": CASE, "result_extension": ".nii.gz", **params})
    path = Path(result["file"])
    mask = np.asanyarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).dataobj)
    path.unlink()
    return mask, result["params"]


def planes(mask: np.ndarray) -> list[int]:
    return [int(k) for k in np.flatnonzero(mask.any(axis=(0, 1)))]


def test_one_click_gives_the_slice_the_slices_around_or_the_whole(app: KPrismApp) -> None:
    here, answer = ask(app, "interactive", **MIDDLE)
    assert planes(here) == [6]
    assert (answer["encoder_passes"], answer["slices_followed"]) == (1, 0)
    around, answer = ask(app, "interactive", **MIDDLE, scope="slices around", slices_around=2)
    assert set(planes(around)) <= {4, 5, 6, 7, 8}
    assert answer["slices_followed"] >= 2
    whole, answer = ask(app, "interactive", **MIDDLE, scope="whole volume")
    assert answer["slices_followed"] >= 4
    assert set(planes(around)) < set(planes(whole))
    for mask in (around, whole):
        np.testing.assert_array_equal(mask[:, :, 6], here[:, :, 6])  # the clicked slice stays as it is


def test_a_label_that_the_weights_know_is_compared_with_what_they_know_of_it(
    app: KPrismApp, studies: Path, tmp_path: Path
) -> None:
    fresh = KPrismApp(str(tmp_path), app.studies, {"model_path": str(studies / "random.safetensors")})
    _, unknown = ask(app, "interactive", **MIDDLE, scope="whole volume")
    _, known = ask(fresh, "interactive", tumour=MIDDLE["thing"], scope="whole volume")
    assert known["decoder_passes"] > unknown["decoder_passes"]


def test_the_slice_to_look_at_next_is_one_that_was_followed(app: KPrismApp) -> None:
    _, here = ask(app, "interactive", **MIDDLE)
    assert here["next_slice"] == {"thing": None}  # nothing was followed
    _, whole = ask(app, "interactive", **MIDDLE, scope="whole volume")
    assert whole["next_slice"]["thing"] in whole["slices"]["thing"]["followed"]


def test_slices_of_the_answer_are_numbered_as_in_the_file(app: KPrismApp) -> None:
    stored = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
    turned = nibabel.Nifti1Image(np.asarray(stored.dataobj)[:, :, ::-1], stored.affine @ np.diag([1, 1, -1, 1]))
    nibabel.save(turned, Path(app.studies) / f"{CASE}.nii.gz")
    mask, answer = ask(app, "interactive", thing=[[60, 50, 2]], scope="slices around", slices_around=2)
    assert planes(mask[:, :, 2:3]) == [0]
    assert answer["slices"]["thing"] == {"prompted": [2], "followed": [0, 1, 3, 4]}
    assert answer["next_slice"]["thing"] in {0, 1, 3, 4}


def test_a_second_click_reads_and_encodes_nothing_again(app: KPrismApp) -> None:
    _, first = ask(app, "interactive", **MIDDLE, scope="whole volume")
    assert first["files_read"] == 1
    assert first["encoder_passes"] >= 5
    _, second = ask(app, "interactive", thing=[[60, 50, 6], [66, 44, 6]], scope="whole volume")
    assert second["files_read"] == 0
    assert first["encoder_passes"] + second["encoder_passes"] <= 12
    _, undone = ask(app, "interactive", **MIDDLE, scope="whole volume")
    assert (undone["files_read"], undone["encoder_passes"], undone["decoder_passes"]) == (0, 0, 0)


def test_undo_is_exact_in_any_order(app: KPrismApp, studies: Path, tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = [
        MIDDLE,
        {"thing": [[60, 50, 6], [66, 44, 9]]},
        {"thing": [[60, 50, 6], [66, 44, 9]], "background": [[20, 80, 3]]},
        {"thing": [[60, 50, 6]], "other": [[30, 30, 4]]},
    ]
    expected = []
    for params in requests:
        fresh = KPrismApp(str(tmp_path), app.studies, {"model_path": str(studies / "random.safetensors")})
        expected.append(ask(fresh, "interactive", **params, scope="whole volume")[0])
    assert len({mask.tobytes() for mask in expected}) == 4
    for number in np.random.default_rng(0).integers(0, 4, 12):
        mask, _ = ask(app, "interactive", **requests[number], scope="whole volume")
        np.testing.assert_array_equal(mask, expected[number])


def test_labels_of_one_request_do_not_overlap(app: KPrismApp) -> None:
    clicks = {"thing": [[60, 50, 6]], "other": [[30, 30, 6], [20, 60, 2]]}
    mask, answer = ask(app, "interactive", **clicks, scope="whole volume")
    values = answer["label_names"]
    assert list(values) == ["thing", "other"]
    for name, voxels in clicks.items():
        assert all(mask[tuple(voxel)] == values[name] for voxel in voxels)
    assert answer["slices"]["thing"]["prompted"] == [6]
    assert answer["slices"]["other"]["prompted"] == [2, 6]


def test_a_submitted_slice_is_followed_without_a_click(app: KPrismApp, tmp_path: Path) -> None:
    image = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
    drawn = np.zeros(image.shape, np.uint8)
    drawn[40:70, 30:60, 6] = 1
    nibabel.save(nibabel.Nifti1Image(drawn, image.affine), tmp_path / "drawn.nii.gz")
    upload = {"label_file": Source(tmp_path / "drawn.nii.gz", "the drawing"), "label": "thing"}
    with pytest.raises(RequestError, match="no clicks"):
        ask(app, "interactive", **upload)
    mask, answer = ask(app, "interactive", **upload, follow_mask=True, scope="whole volume")
    np.testing.assert_array_equal(mask[:, :, 6], drawn[:, :, 6])
    assert answer["slices"]["thing"]["prompted"] == [6]
    assert answer["slices_followed"] >= 2
    assert answer["started_from"] == {"thing": "uploaded label"}


def test_scribbles_are_followed_too(app: KPrismApp, tmp_path: Path) -> None:
    image = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
    drawn = np.zeros(image.shape, np.uint8)
    drawn[40:70, 45, 6] = 2
    drawn[10:20, 80, 6] = 3
    nibabel.save(nibabel.Nifti1Image(drawn, image.affine), tmp_path / "drawn.nii.gz")
    names = ["thing", "foreground_scribbles", "background_scribbles"]
    params = {
        "label_file": Source(tmp_path / "drawn.nii.gz", "the drawing"),
        "label_info": [{"name": name, "id": number} for number, name in enumerate(names, 1)],
        "selected_label_name": "thing",
    }
    here, _ = ask(app, "scribbles", **params)
    assert planes(here) == [6]
    assert here[40:70, 45, 6].all()
    assert not here[10:20, 80, 6].any()
    whole, answer = ask(app, "scribbles", **params, scope="whole volume")
    assert answer["slices_followed"] >= 2
    np.testing.assert_array_equal(whole[:, :, 6], here[:, :, 6])


def drawn_on(app: KPrismApp, tmp_path: Path, k: int, *, line: bool) -> dict[str, Any]:
    """A request of `scribbles`: the longest diameter of a structure on slice k, or a box around it."""
    image = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
    drawn = np.zeros(image.shape, np.uint8)
    if line:
        drawn[40:70, 45, k] = 2
    else:
        drawn[38:72, 28:62, k] = 3  # a frame
        drawn[40:70, 30:60, k] = 0
        drawn[54:57, 44:47, k] = 2  # and its middle
    nibabel.save(nibabel.Nifti1Image(drawn, image.affine), tmp_path / "drawn.nii.gz")
    names = ["thing", "foreground_scribbles", "background_scribbles"]
    return {
        "label_file": Source(tmp_path / "drawn.nii.gz", "the drawing"),
        "label_info": [{"name": name, "id": number} for number, name in enumerate(names, 1)],
        "selected_label_name": "thing",
    }


@pytest.mark.parametrize("line", [True, False], ids=["line", "box"])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_line_or_a_box_with_the_first_and_last_slice(
    app: KPrismApp, tmp_path: Path, line: bool, direction: int
) -> None:
    stored = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
    turned = nibabel.Nifti1Image(
        np.asarray(stored.dataobj)[:, :, ::direction], stored.affine @ np.diag([1, 1, direction, 1])
    )
    nibabel.save(turned, Path(app.studies) / f"{CASE}.nii.gz")
    params = drawn_on(app, tmp_path, 3, line=line)
    here, _ = ask(app, "scribbles", **params)
    mask, answer = ask(app, "scribbles", **params, slices="2 - 6")
    assert {3} < set(planes(mask)) <= {2, 3, 4, 5, 6}
    assert answer["slices"]["thing"] == {"prompted": [3], "followed": [2, 4, 5, 6]}
    np.testing.assert_array_equal(mask[:, :, 3], here[:, :, 3])
    with pytest.raises(RequestError, match="slices is '4-6', but there is a prompt on slice 3; expected it within"):
        ask(app, "scribbles", **params, slices="4-6")
    with pytest.raises(RequestError, match=r"slices is '2-12'; expected .* from 0 to 11"):
        ask(app, "scribbles", **params, slices="2-12")


def test_clicks_with_the_first_and_last_slice(app: KPrismApp) -> None:
    mask, answer = ask(app, "interactive", **MIDDLE, slices="5-7", scope="whole volume")
    assert {6} < set(planes(mask)) <= {5, 6, 7}
    assert answer["slices"]["thing"]["followed"] == [5, 7]
    with pytest.raises(RequestError, match="there is a prompt on slice 6"):
        ask(app, "interactive", **MIDDLE, slices="7")


def test_a_volume_of_one_value_is_refused(app: KPrismApp) -> None:
    path = Path(app.studies) / f"{CASE}.nii.gz"
    stored = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(stored.shape, 7, np.int16), stored.affine), path)
    with pytest.raises(RequestError, match="'brain' is constant: every voxel is 7"):
        ask(app, "interactive", **MIDDLE, scope="whole volume")


@pytest.mark.parametrize("k", [-1, 12])
def test_a_click_on_a_slice_that_does_not_exist_is_refused(app: KPrismApp, k: int) -> None:
    message = rf"the click \[60, 50, {k}\] of label 'thing' lies outside .* of 120 x 100 x 12 voxels"
    with pytest.raises(RequestError, match=message):
        ask(app, "interactive", thing=[[60, 50, 6], [60, 50, k]], scope="whole volume")


@pytest.mark.parametrize("model", ["semantic", "in_context"])
def test_some_slices_alone_are_searched(app: KPrismApp, model: str) -> None:
    if model == "in_context":
        shutil.copy(Path(app.studies) / f"{CASE}.nii.gz", Path(app.studies) / "query.nii.gz")
        image = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
        darker = nibabel.Nifti1Image(np.asanyarray(image.dataobj) // 2, image.affine)
        nibabel.save(darker, Path(app.studies) / "query.nii.gz")
        app.datastore().refresh()
    params = {"presence": 0.0, "image": "query" if model == "in_context" else CASE}
    every, _ = ask(app, model, **params)
    some, _ = ask(app, model, **params, slices="3-5")
    assert set(planes(some)) <= {3, 4, 5}
    np.testing.assert_array_equal(some[:, :, 3:6], every[:, :, 3:6])
    one, again = ask(app, model, **params, slices="4")
    np.testing.assert_array_equal(one[:, :, 4], every[:, :, 4])
    assert again["encoder_passes"] == 0
    for wrong in ("12", "a", "3-", "-1", "2-99"):
        with pytest.raises(RequestError, match="from 0 to 11"):
            ask(app, model, **params, slices=wrong)


def test_cleaning_up_leaves_one_part(app: KPrismApp) -> None:
    plain, _ = ask(app, "semantic", presence=0.0)
    clean, answer = ask(app, "semantic", presence=0.0, clean_up=True)
    assert (plain != clean).any()
    for value in answer["label_names"].values():
        assert label(plain == value)[1] >= label(clean == value)[1] == 1


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_a_volume_is_segmented_in_the_plane_that_is_asked_for(app: KPrismApp, plane: str, axis: int) -> None:
    mask, answer = ask(app, "interactive", **MIDDLE, plane=plane)
    filled = np.argwhere(mask)
    assert answer["plane"] == plane
    assert set(filled[:, axis]) == {MIDDLE["thing"][0][axis]}
    assert mask[tuple(MIDDLE["thing"][0])]
    whole, answer = ask(app, "interactive", **MIDDLE, plane=plane, scope="whole volume")
    assert answer["slices_followed"] >= 4
    np.testing.assert_array_equal(whole.take(MIDDLE["thing"][0][axis], axis), mask.take(MIDDLE["thing"][0][axis], axis))


def test_planes_do_not_share_what_is_cached(app: KPrismApp) -> None:
    first = {plane: ask(app, "semantic", presence=0.0, plane=plane)[0] for plane in ("as acquired", "coronal")}
    assert (first["as acquired"] != first["coronal"]).any()
    for plane, expected in [*first.items(), ("axial", first["as acquired"])]:
        again, answer = ask(app, "semantic", presence=0.0, plane=plane)
        assert answer["encoder_passes"] == 0
        np.testing.assert_array_equal(again, expected)


def test_references_are_cut_in_the_plane_that_is_asked_for(app: KPrismApp) -> None:
    image = nibabel.load(Path(app.studies) / f"{CASE}.nii.gz")
    darker = nibabel.Nifti1Image(np.asanyarray(image.dataobj) // 2, image.affine)
    nibabel.save(darker, Path(app.studies) / "query.nii.gz")
    app.datastore().refresh()
    tumour = nibabel.load(Path(app.studies) / "labels" / "final" / f"{CASE}.nii.gz").get_fdata() == 1
    _, answer = ask(app, "in_context", image="query", plane="coronal")
    [reference] = answer["references"]["tumour"]
    shows = np.flatnonzero(tumour.any(axis=(0, 2)))
    coronal = {
        app.engine.image(Path(app.studies) / f"{CASE}.nii.gz", "it").in_plane("coronal").slice_at(j) for j in shows
    }
    assert reference["image"] == CASE and set(reference["slices"]) <= coronal
    assert max(reference["slices"]) >= image.shape[2]  # no number of an axial slice


def test_an_unknown_plane_is_refused(app: KPrismApp) -> None:
    with pytest.raises(RequestError, match="option plane is 'oblique'; expected one of 'as acquired', 'axial'"):
        ask(app, "interactive", **MIDDLE, plane="oblique")
