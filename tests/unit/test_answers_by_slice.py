# SPDX-License-Identifier: Apache-2.0
"""Answers that travel by slice hold the voxels of the dense computation, in every file format, on odd volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import torch
from main import KPrismApp
from nibabel.orientations import apply_orientation, inv_ornt_aff

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.volumes.predictor import StructurePrompts, VolumePredictor, VoxelClick
from lib.infers.request import Source

ODD = 20


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = KPrism(KPrismConfig.tiny(num_classes=2)).eval()
    save_checkpoint(folder / "random", network, ClassRegistry(["tumour", "lungs"]), metadata={})
    return folder / "random.safetensors"


def odd_volume(number: int, path: Path) -> np.ndarray:
    """A volume of an odd shape, type and storage order; every third has a slope, one in five a single slice."""
    rng = np.random.default_rng(number)
    shape = tuple(int(side) for side in (*rng.integers(9, 40, 2), 1 if number % 5 == 4 else rng.integers(2, 12)))
    values = rng.integers(-300, 300, shape).astype(rng.choice(["<i2", ">i2", "<f4", "<f8", "<i4"]))
    change = np.stack([rng.permutation(3), rng.choice([-1, 1], 3)], axis=1).astype(float)
    affine = np.diag([0.7, 0.7, float(rng.choice([0.4, 3.0])), 1]) @ inv_ornt_aff(change, shape)
    image = nibabel.Nifti1Image(apply_orientation(values, change), affine)
    if number % 3 == 2:
        image.header.set_slope_inter(0.25, -40)
    nibabel.save(image, path)
    return np.asarray(nibabel.load(path).dataobj).astype(np.float32)


@pytest.mark.parametrize("number", range(ODD))
def test_answers_hold_the_voxels_of_the_dense_computation(number: int, weights: Path, tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    values = odd_volume(number, studies / "odd.nii.gz")
    affine = nibabel.load(studies / "odd.nii.gz").affine
    rng = np.random.default_rng(number)
    before = (rng.random(values.shape) < 0.2).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(before, affine), tmp_path / "before.nii.gz")
    inside, outside = ([int(rng.integers(side)) for side in values.shape] for _ in range(2))
    asked: dict[str, Any] = {
        "model": "interactive",
        "image": "odd",
        "thing": [inside],
        **({"background": [outside]} if inside != outside else {}),
        "label_file": Source(tmp_path / "before.nii.gz", "before"),
        "label_info": [{"name": "thing", "id": 1}],
    }
    app = KPrismApp(str(tmp_path), str(studies), {"model_path": str(weights)})
    expected = dense_answer(weights, values, affine, inside, outside, before)
    for extension, compress in ((".nii.gz", True), (".nii", True), (".nrrd", False), (".nrrd", True)):
        result = app.infer({**asked, "result_extension": extension, "result_compress": compress})
        np.testing.assert_array_equal(read(Path(result["file"])), expected)
    planes = app.answered(asked).on_planes()
    np.testing.assert_array_equal(planes.volume(), expected)
    for k, plane in planes.slices.items():
        np.testing.assert_array_equal(plane.T, expected[:, :, k])


def dense_answer(
    weights: Path,
    values: np.ndarray,
    affine: np.ndarray,
    inside: list[int],
    outside: list[int],
    before: np.ndarray,
) -> np.ndarray:
    """The answer from arrays of the whole grid, by the library."""
    checkpoint = load_checkpoint(weights.with_suffix(""))
    volume = VolumePredictor(Predictor(checkpoint.model, checkpoint.registry))
    volume.set_volume(values, affine)
    clicks = [VoxelClick(tuple(inside), True), *([VoxelClick(tuple(outside), False)] if inside != outside else [])]
    prompts = StructurePrompts(clicks, previous_mask=before)
    return volume.segment({"thing": prompts}, extent="slice").masks["thing"].mask.astype(np.uint8)


def read(path: Path) -> np.ndarray:
    """The voxels of a mask, and the file is removed."""
    voxels = nrrd.read(str(path))[0] if path.suffix == ".nrrd" else np.asarray(nibabel.load(path).dataobj)
    path.unlink()
    return np.array(voxels)
