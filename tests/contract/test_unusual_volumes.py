# SPDX-License-Identifier: Apache-2.0
"""Volumes as they come, not as they should be: without spacing, oblique, of one slice, with four axes, in colour."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import pytest

from benchmarks.live_server import LiveServer

IMAGE = "brain_LPS"
CLICKS: dict[str, Any] = {"thing": [[60, 50, 6], [70, 44, 6]], "background": [[20, 80, 6]]}


def clicked(server: LiveServer, image: str, clicks: dict[str, Any]) -> nibabel.Nifti1Image:
    answer = server.infer("interactive", image, {**clicks, "result_extension": ".nii.gz"})
    assert answer.status_code == 200, answer.text
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(answer.content))


@pytest.mark.parametrize("image", ["oblique", "four_axes"])
def test_the_answer_is_that_of_the_usual_volume(server: LiveServer, image: str) -> None:
    """Neither the angle of the scanner's table nor an axis of length 1 changes what is in the slices."""
    expected, mask = (clicked(server, name, CLICKS) for name in (IMAGE, image))
    assert np.asanyarray(mask.dataobj).any()
    np.testing.assert_array_equal(np.squeeze(mask.dataobj), expected.dataobj)
    np.testing.assert_allclose(mask.affine, nibabel.load(server.studies / f"{image}.nii.gz").affine, atol=1e-4)


@pytest.mark.parametrize("image", ["no_spacing", "zero_spacing"])
def test_without_spacing_voxels_are_cubes(server: LiveServer, image: str) -> None:
    voxels = np.asanyarray(clicked(server, image, CLICKS).dataobj)
    assert voxels.shape == (120, 100, 12)
    assert all(voxels[tuple(voxel)] == 1 for voxel in CLICKS["thing"])
    assert voxels[20, 80, 6] == 0


def test_a_volume_of_one_slice(server: LiveServer) -> None:
    flat = {name: [[i, j, 0] for i, j, _ in voxels] for name, voxels in CLICKS.items()}
    mask = clicked(server, "one_slice", flat)
    assert mask.shape == (120, 100, 1)
    assert [int(mask.dataobj[i, j, 0]) for i, j in ((60, 50), (70, 44), (20, 80))] == [1, 1, 0]
    answer = server.infer("interactive", "one_slice", CLICKS)
    assert answer.status_code == 400
    assert "[60, 50, 6]" in answer.json()["detail"]


def test_a_volume_in_colour(server: LiveServer) -> None:
    grey, colour = (np.asanyarray(clicked(server, image, CLICKS).dataobj) for image in (IMAGE, "rgb"))
    assert colour.shape == grey.shape
    assert all(colour[tuple(voxel)] == 1 for voxel in CLICKS["thing"])
    assert (colour != grey).any()  # the colours are seen
