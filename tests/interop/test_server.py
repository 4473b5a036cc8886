# SPDX-License-Identifier: Apache-2.0
"""A sample of the matrix through a real server: clicks, masks, and labels as other tools send them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK
from PIL import Image

from benchmarks.live_server import LiveServer
from tests.interop.conftest import PICTURE
from tests.interop.matrix import CLOSE, MARK
from tests.interop.other_readers import by_simpleitk, in_itk, readers_of

ROWS = (0, 11, 33)
FILES = [
    *(f"nifti{row}.nii.gz" for row in ROWS),
    *(f"nrrd{row}.nrrd" for row in ROWS),
    *(f"one{row}.mha" for row in ROWS),
    *(f"two{row}.mhd" for row in ROWS),
    "upper.NII.GZ",
    "upper2.NRRD",
    "upper3.MHA",
    "shifted-mm.nii.gz",
    "sheared-mm.nii.gz",
    "same-micron.nii.gz",
    "las.nrrd",
]


def image_id(name: str) -> str:
    return name.partition(".")[0]


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, server: LiveServer) -> Path:
    return Path(server.studies) / request.param


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_a_click_and_its_mask_are_at_one_place(server: LiveServer, tmp_path: Path, file: Path, extension: str) -> None:
    """A click on the voxel `MARK` alone, and the mask with that voxel, as ITK reads both files."""
    image = by_simpleitk(file)
    [voxel] = np.argwhere(image.array == MARK).tolist()
    others = [list(place) for place in np.ndindex(image.array.shape) if list(place) != voxel]
    params = {"thing": [voxel], "background": others[::13], "start_from": "nothing", "result_extension": extension}
    answer = server.infer("interactive", image_id(file.name), params)
    assert answer.status_code == 200, answer.text
    path = tmp_path / f"mask{extension}"
    path.write_bytes(answer.content)
    mask = by_simpleitk(path)
    assert mask.array.shape == image.array.shape
    assert mask.array[tuple(voxel)] == 1
    assert not any(mask.array[tuple(place)] for place in others[::13])
    for name, reader in readers_of(path).items():
        other, source = reader(path), image if name == "pynrrd" else readers_of(file).get(name, by_simpleitk)(file)
        corners = np.array([[0, 0, 0, 1], [*np.array(image.array.shape) - 1, 1]])
        away = np.abs(corners @ (other.affine - source.affine).T).max()
        assert away < CLOSE, f"{name} reads the mask {away} mm beside the image"


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".mha"])
def test_labels_of_itk_are_taken_voxel_by_voxel(server: LiveServer, tmp_path: Path, file: Path, extension: str) -> None:
    """As 3D Slicer submits them; the server answers with what it has stored."""
    source = in_itk(file)
    labels = np.random.default_rng(4).integers(0, 2, source.GetSize()[::-1]).astype(np.uint8)
    mask = SimpleITK.GetImageFromArray(labels)
    mask.CopyInformation(source)
    SimpleITK.WriteImage(mask, str(tmp_path / f"label{extension}"))
    name = image_id(file.name)
    sent = requests.put(
        f"{server.url}/datastore/label",
        params={"image": name, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "thing", "idx": 1}]})},
        files={"label": (f"{name}{extension}", (tmp_path / f"label{extension}").read_bytes())},
        timeout=60,
    )
    assert sent.status_code == 200, sent.text
    kept = (Path(server.studies) / ".kprism").rglob(f"labels/{name}-*.nii.gz")
    newest = max(kept, key=lambda path: path.stat().st_mtime_ns)
    np.testing.assert_array_equal(by_simpleitk(newest).array, labels.T)


@pytest.mark.parametrize("voxel", [[0, 0], [39, 55], [12, 31]])
def test_a_picture_on_its_side_is_upright(server: LiveServer, tmp_path: Path, voxel: list[int]) -> None:
    """Clicks and mask are on the picture as it is looked at, 40 columns and 56 rows, and the answer says so."""
    params = {"thing": [voxel], "start_from": "nothing"}
    answer, file = server.infer_all("interactive", "side", params)
    assert answer["exif_orientation"] == 6
    assert "upright" in answer["notice"]
    (tmp_path / "mask.png").write_bytes(file)
    mask = Image.open(tmp_path / "mask.png")
    assert mask.size == PICTURE.shape
    assert mask.getpixel(tuple(voxel)) == 1


def test_other_files_of_the_server_stay_its_own(server: LiveServer) -> None:
    answer = server.infer("interactive", "stolen", {"thing": [[0, 0, 0]], "start_from": "nothing"})
    assert answer.status_code == 400, answer.text
    assert "has its voxels in '/etc/passwd'; expected LOCAL" in answer.json()["detail"]
    assert "root:" not in answer.text


@pytest.mark.parametrize("name", [file for file in FILES if file.endswith((".mhd", ".mha", ".nrrd"))])
def test_what_is_downloaded_is_a_whole_image(server: LiveServer, tmp_path: Path, name: str) -> None:
    """As 3D Slicer does with a server on another machine; an image of two files comes as one."""
    answer = requests.get(f"{server.url}/datastore/image", params={"image": image_id(name)}, timeout=60)
    assert answer.status_code == 200, answer.text
    sent_as = answer.headers["content-disposition"].partition("filename=")[2].split('"')[1]
    assert sent_as == name.replace(".mhd", ".mha")
    (tmp_path / sent_as).write_bytes(answer.content)
    sent, stored = by_simpleitk(tmp_path / sent_as), by_simpleitk(Path(server.studies) / name)
    np.testing.assert_array_equal(sent.array, stored.array)
    np.testing.assert_allclose(sent.affine, stored.affine, atol=1e-9)


def test_new_voxels_beside_the_same_header_are_read(server: LiveServer) -> None:
    """The click's answer is made from the file that holds the voxels, not from an image that is remembered."""
    studies = Path(server.studies)
    raw = studies / "two0.raw"
    params = {"thing": [[1, 1, 1]], "start_from": "nothing"}
    assert server.infer_all("interactive", "two0", params)[0]["files_read"] in (0, 1)
    assert server.infer_all("interactive", "two0", params)[0]["files_read"] == 0
    raw.write_bytes(raw.read_bytes()[::-1])
    assert server.infer_all("interactive", "two0", params)[0]["files_read"] == 1
