# SPDX-License-Identifier: Apache-2.0
"""Names of labels over HTTP: by id and in Slicer's order, in `.seg.nrrd`, in `labels.json` while the server runs."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from numpy.typing import NDArray

from benchmarks.live_server import LiveServer
from tests.contract.conftest import _weights
from tests.unit.seg_nrrd_files import write_seg_nrrd

SHAPE = (40, 36, 8)
AFFINE = np.array([[-0.9, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 4, -10], [0, 0, 0, 1.0]])
IMAGES = ("a", "b", "c", "d", "e", "f")
WAIT_SECONDS = 60.0


def blocks(*values: int) -> NDArray[np.int16]:
    """A block of each value, one after the other along i."""
    labels = np.zeros(SHAPE, np.int16)
    for row, value in enumerate(values):
        labels[4 + 10 * row : 12 + 10 * row, 6:24, 2:6] = value
    return labels


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A folder of volumes; labels of two lie there before it starts: one without names, one of Slicer with its own."""
    studies = tmp_path_factory.mktemp("names") / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in IMAGES:
        voxels = rng.normal(100, 20, SHAPE) + 200 * (blocks(1, 2, 3) > 0)
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), AFFINE), studies / f"{image}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(blocks(1, 2, 3), AFFINE), studies / "labels" / "final" / "e.nii.gz")
    crop = blocks(1, 2)[2:30, 3:25, 1:7].astype(np.uint8)
    rows = [("left", 2, 0), ("right", 1, 0)]
    write_seg_nrrd(studies / "labels" / "final" / "f.nrrd", crop, AFFINE, rows, offset=(2, 3, 1))
    weights = _weights(tmp_path_factory.mktemp("weights"))
    with LiveServer(studies, conf={"model_path": str(weights), "train_after": "0"}) as running:
        yield running


def nifti(folder: Path, voxels: NDArray[Any]) -> Path:
    path = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    return path


def submit(server: LiveServer, image: str, file: Path, **params: Any) -> requests.Response:
    return requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, "tag": "final"},
        data={"params": json.dumps(params)},
        files={"label": (file.name, file.read_bytes())},
        timeout=60,
    )


def case(server: LiveServer, image: str) -> dict[str, Any]:
    """What the server has recorded about a submitted label; empty if there is none."""
    path = Path(server.studies) / ".kprism" / "intake" / "cases" / f"{image}.json"
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def kept(server: LiveServer, image: str) -> dict[str, NDArray[np.bool_]]:
    """The masks of a submitted label by name, as training gets them; empty if there is none."""
    entry = case(server, image)
    if not entry:
        return {}
    file = Path(server.studies) / ".kprism" / "intake" / entry["label"]
    labels = np.asarray(nibabel.load(file).dataobj)
    return {name: labels == value for name, value in entry["structures"].items()}


def is_same(found: dict[str, NDArray[np.bool_]], expected: dict[str, NDArray[np.bool_]]) -> bool:
    return set(found) == set(expected) and all(np.array_equal(found[name], mask) for name, mask in expected.items())


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT_SECONDS
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


@pytest.mark.parametrize(
    ("entries", "values"),
    [
        ([("c", "id", 3), ("b", "id", 2), ("a", "id", 1)], {"a": 1, "b": 2, "c": 3}),
        ([("c", "idx", 3), ("b", "idx", 2), ("a", "idx", 1)], {"a": 1, "b": 2, "c": 3}),
        ([("a", "idx", 2), ("b", "idx", 3), ("c", "idx", 4)], {"a": 1, "b": 2, "c": 3}),  # Slicer, background first
        ([("a", "idx", 1), ("b", "idx", 3), ("c", "idx", 5)], {"a": 1, "b": 2, "c": 3}),
        ([("a", "id", "1"), ("b", "id", "2"), ("c", "id", "4")], {"a": 1, "b": 2, "c": 4}),
        ([("a", "id", 1001), ("b", "id", 1002), ("c", "id", 2035)], {"a": 1001, "b": 1002, "c": 2035}),
        ([("lesion", "id", 1), ("b", "id", 2), ("Lesion", "id", 3)], {"lesion": (1, 3), "b": 2}),
    ],
)
def test_names_are_those_of_the_ids(
    server: LiveServer, tmp_path: Path, entries: list[tuple[str, str, Any]], values: dict[str, Any]
) -> None:
    flat = sorted({value for own in values.values() for value in (own if isinstance(own, tuple) else (own,))})
    voxels = blocks(*flat)
    info = [{"name": name, key: number} for name, key, number in entries]
    answer = submit(server, "a", nifti(tmp_path, voxels), label_info=info)
    assert answer.status_code == 200, answer.text
    assert is_same(kept(server, "a"), {name: np.isin(voxels, value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("info", "present", "sentence"),
    [
        ([{"name": "x", "id": 1, "idx": 2}], (1,), "gives segment 'x' the id 1 and the idx 2"),
        ([{"name": "x", "id": 1}, {"name": "y", "id": 1}], (1, 2), "two names, 'x' and 'y'"),
        ([{"name": "x", "id": 2}, {"name": "y", "id": 3}], (1, 2), "with the id [2, 3], but the file holds [1, 2]"),
        ([{"name": "x", "idx": 2}, {"name": "y", "idx": 3}], (2,), "they name different structures"),
        ([{"name": "x", "id": "one"}], (1,), "the id 'one'; expected a number"),
    ],
)
def test_contradictions_change_nothing(
    server: LiveServer, tmp_path: Path, info: list[Any], present: tuple[int, ...], sentence: str
) -> None:
    before = case(server, "b")
    answer = submit(server, "b", nifti(tmp_path, blocks(*present)), label_info=info)
    assert answer.status_code == 400 and sentence in answer.json()["detail"], answer.text
    assert case(server, "b") == before


def test_segments_of_slicer_are_submitted_cropped_and_in_layers(server: LiveServer, tmp_path: Path) -> None:
    organ, lesion = blocks(1) > 0, np.zeros(SHAPE, bool)
    lesion[6:8, 8:12, 3:5] = True
    layers = np.stack([organ, lesion]).astype(np.uint8)[:, 2:15, 5:30, 1:7]
    rows = [("腫瘍", 1, 1), ("Knöchel, links", 1, 0)]
    file = write_seg_nrrd(tmp_path / "label.seg.nrrd", layers, AFFINE, rows, offset=(2, 5, 1))
    answer = submit(server, "c", file)
    assert answer.status_code == 200, answer.text
    [warning] = answer.json()["warnings"]
    assert "'Knöchel, links' and '腫瘍' overlap in 16 of the 576 voxels of 'Knöchel, links'" in warning
    assert is_same(kept(server, "c"), {"腫瘍": lesion, "Knöchel, links": organ & ~lesion})
    assert {"腫瘍", "Knöchel, links"} <= set(server.info()["labels"])
    refused = submit(server, "c", file, label_info=[{"name": "other", "id": 1}])
    assert refused.status_code == 400 and "the file names the segment" in refused.json()["detail"]


def scribbled() -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A labelmap of a mask (4), strokes on it (1) and beside it (2) on the slice k = 3; and the mask."""
    labels = np.zeros(SHAPE, np.int16)
    labels[6:24, 6:24, 2:6] = 4
    mask = labels > 0
    labels[30, 10:20, 3], labels[2, 5:30, 3] = 1, 2
    return labels, mask


@pytest.mark.parametrize("form", ["header", "cropped", "ids", "strings", "both"])
def test_scribbles_are_read_by_id_or_by_their_own_header(server: LiveServer, tmp_path: Path, form: str) -> None:
    labels, mask = scribbled()
    names = [("stone", 4), ("background_scribbles", 2), ("foreground_scribbles", 1)]
    rows = [(name, value, 0) for name, value in names]
    params: dict[str, Any] = {"selected_label_name": "stone", "result_extension": ".nii"}
    if form in ("header", "both"):
        file = write_seg_nrrd(tmp_path / "x.seg.nrrd", labels.astype(np.uint8), AFFINE, rows)
    elif form == "cropped":
        crop = labels[2:31, 5:30, 2:6].astype(np.uint8)
        file = write_seg_nrrd(tmp_path / "x.seg.nrrd", crop, AFFINE, rows, offset=(2, 5, 2))
    else:
        file = nifti(tmp_path, labels)
    if form in ("ids", "strings", "both"):
        convert = str if form == "strings" else int
        params["label_info"] = [{"name": name, "id": convert(value)} for name, value in names]
    answer = server.infer("scribbles", "d", params, files={"label": (file.name, file.read_bytes())})
    assert answer.status_code == 200, answer.text
    (tmp_path / "answer.nii").write_bytes(answer.content)
    found = np.asarray(nibabel.load(tmp_path / "answer.nii").dataobj)
    others = [k for k in range(SHAPE[2]) if k != 3]
    np.testing.assert_array_equal(found[..., others] > 0, mask[..., others])
    assert found[30, 10:20, 3].all() and not found[2, 5:30, 3].any()


@pytest.mark.parametrize("ids", [(1, 2, 3), (4, 1, 1)])
def test_scribbles_that_contradict_their_header_are_refused(
    server: LiveServer, tmp_path: Path, ids: tuple[int, ...]
) -> None:
    names = ["stone", "background_scribbles", "foreground_scribbles"]
    rows = list(zip(names, (4, 2, 1), (0, 0, 0), strict=True))
    file = write_seg_nrrd(tmp_path / "x.seg.nrrd", scribbled()[0].astype(np.uint8), AFFINE, rows)
    info = [{"name": name, "id": number} for name, number in zip(names, ids, strict=True)]
    params = {"selected_label_name": "stone", "label_info": info}
    answer = server.infer("scribbles", "d", params, files={"label": (file.name, file.read_bytes())})
    assert answer.status_code == 400 and "the value 1" in answer.json()["detail"], answer.text


def refused(server: LiveServer) -> dict[str, str]:
    """Image -> why its label cannot be used, from the status page."""
    answer = requests.get(f"{server.url}/kprism/api/status", timeout=60)
    return {entry["title"]: entry["reason"] for entry in answer.json()["cases"]["refused"]}


def references(server: LiveServer, structure: str, asked: list[str] | None = None) -> set[str]:
    """The labelled cases that show a structure to the network, which may be `asked` for in another spelling."""
    params = {"structures": asked or [structure], "presence": 0}
    answer = server.infer("in_context", "a", params, output="json")
    if answer.status_code != 200:
        return set()
    return {use["image"] for use in answer.json()["references"].get(structure, [])}


def test_labels_json_counts_within_seconds_while_the_server_runs(server: LiveServer) -> None:
    names = Path(server.studies) / "labels.json"
    voxels = blocks(1, 2, 3)
    assert eventually(lambda: "nothing names the values 1, 2, 3" in refused(server).get("e", ""))
    names.write_text('{"labels": {"1": "liver", "2": "spleen"}}')
    assert eventually(lambda: "nothing names the value 3" in refused(server).get("e", ""))
    names.write_text('{"labels": {"1": "liver", "2": "spleen", "3": "liver"}}')
    assert eventually(lambda: is_same(kept(server, "e"), {"liver": np.isin(voxels, (1, 3)), "spleen": voxels == 2}))
    assert "e" not in refused(server)
    assert eventually(lambda: references(server, "spleen") == {"e"})

    names.write_text('{"labels": {"1": "liver", "2": "脾臓", "3": "kidney"}}')  # renamed
    assert eventually(
        lambda: is_same(kept(server, "e"), {"liver": voxels == 1, "脾臓": voxels == 2, "kidney": voxels == 3})
    )
    assert eventually(lambda: references(server, "脾臓") == {"e"} and references(server, "spleen") == set())

    names.write_text('{"labels": {"1": "liver", ')  # broken for a while: nothing is lost
    assert eventually(lambda: "labels.json of the datastore is not JSON" in refused(server).get("e", ""))
    assert is_same(kept(server, "e"), {"liver": voxels == 1, "脾臓": voxels == 2, "kidney": voxels == 3})
    names.write_text('{"labels": {"1": "liver", "2": "spleen", "3": "kidney"}}')
    assert eventually(lambda: kept(server, "e").keys() == {"liver", "spleen", "kidney"} and not refused(server))


def test_a_label_that_names_itself_needs_no_labels_json(server: LiveServer) -> None:
    voxels = blocks(1, 2)
    assert eventually(lambda: is_same(kept(server, "f"), {"right": voxels == 1, "left": voxels == 2}))
    assert eventually(lambda: references(server, "left") == {"f"})
    listed = requests.get(f"{server.url}/kprism/api/references", timeout=60).json()
    assert {entry["id"]: entry["names"] for entry in listed}["f"] == ["left", "right"]


def test_names_of_a_stored_label_can_be_changed(server: LiveServer, tmp_path: Path) -> None:
    voxels = blocks(1, 2)
    assert submit(server, "d", nifti(tmp_path, voxels), label_info=[{"name": "x"}, {"name": "y"}]).status_code == 200
    changed = requests.put(
        f"{server.url}/datastore/label/info",
        params={"label": "d", "tag": "final"},
        data={"info": json.dumps({"label_info": [{"name": "y"}, {"name": "z"}]})},
        timeout=60,
    )
    assert changed.status_code == 200, changed.text
    assert is_same(kept(server, "d"), {"y": voxels == 1, "z": voxels == 2})


def test_text_that_is_not_unicode_is_refused(server: LiveServer, tmp_path: Path) -> None:
    answer = submit(server, "d", nifti(tmp_path, blocks(1)), label_info=[{"name": "half \ud800", "id": 1}])
    assert answer.status_code == 400 and "params holds text that is not Unicode" in answer.json()["detail"]


@pytest.mark.parametrize(
    "text", ['{"label_names": {"lesion": 1, "lesion": 2}}', '{"client_id": "a", "client_id": "b"}']
)
def test_keys_that_are_sent_twice_are_refused(server: LiveServer, tmp_path: Path, text: str) -> None:
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": "d", "tag": "final"},
        data={"params": text},
        files={"label": ("label.nii.gz", nifti(tmp_path, blocks(1, 2)).read_bytes())},
        timeout=60,
    )
    assert answer.status_code == 400 and "twice; expected it once" in answer.json()["detail"], answer.text


@pytest.mark.parametrize("name", ["肝臓", "a, b", 'the "left" one', "x" * 215, "tab\tand\nline", "Kno\u0308chel"])
def test_unusual_names_come_back_as_structures(server: LiveServer, tmp_path: Path, name: str) -> None:
    voxels = blocks(1)
    sent = submit(server, "d", nifti(tmp_path, voxels), label_info=[{"name": f" {name} ", "id": 1}])
    assert sent.status_code == 200, sent.text
    shown = " ".join(unicodedata.normalize("NFC", name).split())
    assert is_same(kept(server, "d"), {shown: voxels == 1})
    assert shown in server.info()["labels"]
    assert eventually(lambda: references(server, shown, asked=[name.upper() if name.isascii() else name]) == {"d"})
