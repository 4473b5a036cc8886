# SPDX-License-Identifier: Apache-2.0
"""The same anatomy gives the same answer at the same place, however the file stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, io_orientation
from PIL import Image

from benchmarks.live_server import LiveServer
from tests.contract.viewers import voxel_in


def answer(server: LiveServer, tmp_path: Path, model: str, image: str, params: dict[str, Any], extension: str) -> Path:
    response = server.infer(model, image, {**params, "result_extension": extension})
    assert response.status_code == 200, response.text
    path = tmp_path / f"{model}-{image}{extension}"
    path.write_bytes(response.content)
    return path


def canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A NIfTI mask in RAS order, and its affine as stored."""
    mask = nibabel.load(path)
    assert mask.get_data_dtype() == np.uint8
    return apply_orientation(np.asanyarray(mask.dataobj), io_orientation(mask.affine)), mask.affine


def places(studies: Path) -> list[np.ndarray]:
    """Three places inside the brain, in millimetres."""
    affine = nibabel.load(studies / "brain_LPS.nii.gz").affine
    return [(affine @ [*voxel, 1])[:3] for voxel in ([60, 50, 6], [70, 44, 6], [20, 80, 6])]


@pytest.mark.parametrize("image", ["brain_RAS", "brain_ASR"])
def test_orientations_agree(server: LiveServer, tmp_path: Path, image: str) -> None:
    masks = {}
    for name in ("brain_LPS", image):
        first, second, outside = (voxel_in(server.studies, name, place) for place in places(server.studies))
        params = {"thing": [first, second], "background": [outside], "start_from": "nothing"}
        masks[name], affine = canonical(answer(server, tmp_path, "interactive", name, params, ".nii.gz"))
        np.testing.assert_allclose(affine, nibabel.load(server.studies / f"{name}.nii.gz").affine, atol=1e-4)
    assert masks[image].any()
    np.testing.assert_array_equal(masks[image], masks["brain_LPS"])


def test_semantic_agrees_too(server: LiveServer, tmp_path: Path) -> None:
    masks = [
        canonical(answer(server, tmp_path, "semantic", name, {"presence": 0}, ".nii.gz"))[0]
        for name in ("brain_LPS", "brain_ASR")
    ]
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


def test_nrrd_agrees_with_nifti(server: LiveServer, tmp_path: Path) -> None:
    params = {"thing": [[60, 50, 6]], "start_from": "nothing"}
    expected = nibabel.load(answer(server, tmp_path, "interactive", "brain_LPS", params, ".nii.gz"))
    mask, header = nrrd.read(str(answer(server, tmp_path, "interactive", "brain_nrrd", params, ".nrrd")))
    np.testing.assert_array_equal(mask, np.asanyarray(expected.dataobj))
    image = nrrd.read_header(str(server.studies / "brain_nrrd.nrrd"))
    np.testing.assert_allclose(header["space directions"], image["space directions"], atol=1e-4)
    np.testing.assert_allclose(header["space origin"], image["space origin"], atol=1e-3)


@pytest.mark.parametrize(("image", "file"), [("grey", "grey.png"), ("colour", "colour.jpg")])
def test_pictures(server: LiveServer, tmp_path: Path, image: str, file: str) -> None:
    """A picture's clicks are [column, row]; the answer is a PNG of its size."""
    response = server.infer("interactive", image, {"thing": [[150, 100]], "background": [[5, 220, 0]]}, output="image")
    assert response.status_code == 200, response.text
    (tmp_path / "mask.png").write_bytes(response.content)
    mask = Image.open(tmp_path / "mask.png")
    assert mask.format == "PNG"
    assert mask.size == Image.open(server.studies / file).size
    assert (mask.getpixel((150, 100)), mask.getpixel((5, 220))) == (1, 0)


def test_a_volume_without_wish_comes_back_as_its_own_type(server: LiveServer) -> None:
    response = server.infer("semantic", "brain_ASR", {})
    assert response.headers["content-disposition"].rstrip('"').endswith(".nii.gz")
