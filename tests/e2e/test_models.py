# SPDX-License-Identifier: Apache-2.0
"""All models of a running server on real images: grids, types, contents and the JSON of the answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import requests

from benchmarks.live_server import LiveServer
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from tests.e2e.conftest import read_picture, read_volume, xrays

JSON_KEYS = {"label_names", "weights_version", "device", "latencies", "model"}

SLICE = 17
"""Slice of pyradiomics_lung2 through its tumour; the picture lung2_axial17 shows it."""
TUMOUR, SPINE = [179, 181], [128, 181]
"""Column and row of two of its pixels, in the volume as in the picture."""


def stored_volume(server: LiveServer, image: str) -> nibabel.Nifti1Image:
    return nibabel.load(server.studies / f"{image}.nii.gz")


def check_json(answer: dict[str, Any], model: str) -> None:
    assert answer.keys() >= JSON_KEYS
    assert answer["model"] == model
    assert answer["device"].startswith(("cpu", "cuda"))
    assert len(answer["weights_version"]) >= 8
    assert 0 < answer["latencies"]["total"] < 300


def check_volume(mask: nibabel.Nifti1Image, image: nibabel.Nifti1Image, names: dict[str, int]) -> np.ndarray:
    """The voxels of a mask, after comparing its grid, type and values with what they must be."""
    assert mask.shape == image.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    voxels = np.asanyarray(mask.dataobj)
    assert set(np.unique(voxels)) <= {0, *names.values()}
    return voxels


def test_the_server_describes_its_models_and_studies(server: LiveServer) -> None:
    info = server.info()
    types = {name: model["type"] for name, model in info["models"].items()}
    assert types == {
        "semantic": "segmentation",
        "in_context": "segmentation",
        "interactive": "deepedit",
        "scribbles": "scribbles",
    }
    labels = info["models"]["interactive"]["labels"]
    assert sorted(labels.values()) == list(range(1, len(labels) + 1))
    assert {"brain tumour", "lung tumour", "grey matter", "white matter"} <= set(labels)
    assert info["datastore"]["total"] >= 11


def test_semantic_finds_the_lungs_of_an_xray(server: LiveServer, data: Path) -> None:
    image, truth = xrays(1)["xray0"]
    answer, content = server.infer_all("semantic", "xray0", {"structures": "lungs"})
    check_json(answer, "semantic")
    assert answer["label_names"] == {"lungs": 1}
    mask, expected = read_picture(content), read_picture(truth.read_bytes()) > 0
    assert mask.dtype == np.uint8
    assert mask.shape == read_picture(image.read_bytes()).shape[:2]
    assert dice(mask == 1, expected) > 0.8


def test_semantic_answers_for_every_slice_of_a_volume(server: LiveServer) -> None:
    known = server.info()["models"]["semantic"]["labels"]
    params = {"structures": ", ".join(known), "presence": 0}  # by name: also what cannot be in such an image
    answer, content = server.infer_all("semantic", "pyradiomics_breast1", params)
    check_json(answer, "semantic")
    voxels = check_volume(read_volume(content), stored_volume(server, "pyradiomics_breast1"), answer["label_names"])
    assert voxels.any()
    assert answer["encoder_passes"] in (0, 21)  # one a slice, none if the slices were encoded before


def test_in_context_segments_a_volume_after_another_patient(server: LiveServer) -> None:
    answer, content = server.infer_all(
        "in_context", "pyradiomics_brain2", {"structures": "brain tumour", "presence": 0}
    )
    check_json(answer, "in_context")
    assert answer["label_names"] == {"brain tumour": 1}
    assert {reference["image"] for reference in answer["references"]["brain tumour"]} == {"pyradiomics_brain1"}
    voxels = check_volume(read_volume(content), stored_volume(server, "pyradiomics_brain2"), answer["label_names"])
    assert voxels.any()


def test_in_context_takes_the_references_named_in_the_request(server: LiveServer) -> None:
    references = {"mni152_axial60", "mni152_axial85"}
    params = {"references": ",".join(sorted(references)), "presence": 0}  # of a kind that the weights do not know
    answer, content = server.infer_all("in_context", "mni152_axial72", params)
    check_json(answer, "in_context")
    assert answer["references"].keys() == {"grey matter", "white matter"}
    for used in answer["references"].values():
        assert {reference["image"] for reference in used} == references
    mask, picture = read_picture(content), read_picture((server.studies / "mni152_axial72.png").read_bytes())
    assert mask.dtype == np.uint8
    assert mask.shape == picture.shape
    assert mask.any()
    assert (picture[mask > 0] > 0).mean() > 0.95  # in the head, not in the air around it


def test_submitted_labels_serve_as_references_at_once(server: LiveServer, data: Path) -> None:
    for name in ("xray1", "xray2"):
        _, label = xrays(3)[name]
        saved = requests.put(
            f"{server.url}/datastore/label",
            params={"image": name, "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": "chest cavity", "idx": 1}]})},
            files={"label": ("label.png", label.read_bytes())},
            timeout=60,
        )
        assert saved.status_code == 200, saved.text
    answer, content = server.infer_all("in_context", "xray3", {"structures": "chest cavity"})
    used = {reference["image"] for reference in answer["references"]["chest cavity"]}
    assert used <= {"xray1", "xray2"}
    assert used
    truth = read_picture(xrays(4)["xray3"][1].read_bytes()) > 0
    assert dice(read_picture(content) == 1, truth) > 0.7


def test_clicks_correct_a_tumour_of_a_volume(server: LiveServer, shared: Path) -> None:
    volume = nibabel.load(shared / "sample-data" / "labels" / "pyradiomics_lung2.nii.gz")
    truth = np.asanyarray(volume.dataobj)[:, :, SLICE] > 0
    found = np.zeros_like(truth)
    clicks: dict[str, Any] = {"lung tumour": [], "background": []}
    for _ in range(6):
        column, row, positive = next_click(found, truth)
        clicks["lung tumour" if positive else "background"].append([int(column), int(row), SLICE])
        answer, content = server.infer_all("interactive", "pyradiomics_lung2", {**clicks, "client_id": "annotator"})
        check_json(answer, "interactive")
        assert answer["label_names"] == {"lung tumour": 1}
        mask = check_volume(read_volume(content), stored_volume(server, "pyradiomics_lung2"), answer["label_names"])
        assert all(mask[tuple(voxel)] == 1 for voxel in clicks["lung tumour"])
        assert all(mask[tuple(voxel)] == 0 for voxel in clicks["background"])
        assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == [SLICE]
        found = mask[:, :, SLICE] > 0
    assert dice(found, truth) > 0.8


def test_clicks_as_ohif_sends_them_on_a_picture(server: LiveServer) -> None:
    number = server.info()["models"]["interactive"]["labels"]["lung tumour"]
    params = {
        "lung tumour": [[*TUMOUR, 0]],
        "background": [[*SPINE, 0]],
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    answer = server.infer("interactive", "lung2_axial17", params)
    assert answer.status_code == 200, answer.text
    stream = io.BytesIO(answer.content)
    mask = nrrd.read_data(nrrd.read_header(stream), stream, index_order="F").squeeze()
    assert mask.dtype == np.uint8
    assert mask.shape == (256, 256)
    assert set(np.unique(mask)) == {0, number}
    assert mask[tuple(TUMOUR)] == number
    assert mask[tuple(SPINE)] == 0


def test_scribbles_correct_a_label_and_keep_its_other_slices(server: LiveServer, tmp_path: Path) -> None:
    label = nibabel.load(server.studies / "labels" / "final" / "pyradiomics_brain1.nii.gz")
    before = np.asanyarray(label.dataobj)
    slice_number = 16
    drawn = before.copy()
    column, row = (int(np.median(index)) for index in np.nonzero(before[:, :, slice_number]))
    drawn[column - 2 : column + 3, row, slice_number] = 2
    drawn[20:40, 20, slice_number] = 3
    nibabel.save(nibabel.Nifti1Image(drawn, label.affine), tmp_path / "scribbles.nii.gz")
    names = ["brain tumour", "foreground_scribbles", "background_scribbles"]
    params = {
        "label_info": [{"name": name, "id": value} for value, name in enumerate(names, 1)],
        "selected_label_name": "brain tumour",
        "result_extension": ".nii.gz",
    }
    upload = {"label": ("scribbles.nii.gz", (tmp_path / "scribbles.nii.gz").read_bytes())}
    answer, content = server.infer_all("scribbles", "pyradiomics_brain1", params, files=upload)
    check_json(answer, "scribbles")
    after = check_volume(read_volume(content), stored_volume(server, "pyradiomics_brain1"), {"brain tumour": 1})
    untouched = np.arange(before.shape[2]) != slice_number
    np.testing.assert_array_equal(after[:, :, untouched], before[:, :, untouched])
    assert (after[column - 2 : column + 3, row, slice_number] == 1).all()
    assert (after[20:40, 20, slice_number] == 0).all()


def test_the_server_goes_on_after_bad_requests(server: LiveServer) -> None:
    bad = {
        "no such image": server.infer("semantic", "nobody", {}),
        "file of the server": server.infer("semantic", "/etc/hostname", {}),
        "file of the server in params": server.infer("semantic", "lung2_axial17", {"image": "/etc/hostname"}),
        "no such model": server.infer("oracle", "lung2_axial17", {}),
        "no JSON": server.infer("semantic", "lung2_axial17", "{"),
        "no such structure": server.infer("semantic", "lung2_axial17", {"structures": "spleen of a dragon"}),
        "no such reference": server.infer("in_context", "lung2_axial17", {"references": "nobody"}),
        "click outside": server.infer("interactive", "pyradiomics_lung2", {"lung tumour": [[256, 0, 0]]}),
        "no clicks": server.infer("interactive", "pyradiomics_lung2", {}),
        "no labelmap": server.infer("scribbles", "pyradiomics_brain1", {}),
    }
    for what, answer in bad.items():
        assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text)
        assert len(answer.json()["detail"]) > 20, (what, answer.text)
    after = server.infer("interactive", "pyradiomics_lung2", {"lung tumour": [[*TUMOUR, SLICE]]})
    assert after.status_code == 200, after.text
