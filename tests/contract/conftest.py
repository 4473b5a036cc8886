# SPDX-License-Identifier: Apache-2.0
"""A server on real images in several orientations and file types, with a small network of seeded random weights.

What is checked here, geometry and protocol, does not depend on what the network has learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import torch
from monailabel.client import MONAILabelClient
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from benchmarks.live_server import LiveServer
from benchmarks.places import ROOT
from kprism_model.checkpoint import save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from tests.contract.viewers import post_as_ohif, read_as_ohif

CLASSES = ("tumour", "lungs", "polyp")
SAMPLES = ROOT / "sample-datastore"
BUDGET_MB = 256
LABEL_NAMES = {"labels": {"1": "tumour"}}


def _weights(folder: Path) -> Path:
    torch.manual_seed(0)
    network = KPrism(KPrismConfig.tiny(num_classes=len(CLASSES))).eval()
    save_checkpoint(folder / "random", network, ClassRegistry(CLASSES), metadata={})
    return folder / "random.safetensors"


def _save(image: nibabel.Nifti1Image, path: Path, orientation: str) -> None:
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(orientation)))
    nibabel.save(image.as_reoriented(change), path)


def _studies(folder: Path) -> Path:
    """One brain in three orientations and as NRRD, two of them labelled, a grey and a colour picture, bad files."""
    (folder / "labels" / "final").mkdir(parents=True)
    image = nibabel.load(SAMPLES / "pyradiomics_brain1.nii.gz").slicer[70:190, 60:160, 8:20]
    label = nibabel.load(SAMPLES / "labels" / "final" / "pyradiomics_brain1.nii.gz").slicer[70:190, 60:160, 8:20]
    for orientation in ("LPS", "RAS", "ASR"):
        _save(image, folder / f"brain_{orientation}.nii.gz", orientation)
    nibabel.save(label, folder / "labels" / "final" / "brain_LPS.nii.gz")
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    place = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(folder / "brain_nrrd.nrrd"), np.asanyarray(image.dataobj), place)
    nibabel.save(
        nibabel.load(SAMPLES / "pyradiomics_brain2.nii.gz").slicer[60:160, 60:180, 5:15], folder / "other.nii.gz"
    )
    nibabel.save(
        nibabel.load(SAMPLES / "pyradiomics_lung1.nii.gz").slicer[60:160, 60:180, 5:15], folder / "lung.nii.gz"
    )
    grey = Image.open(SAMPLES / "mni152_axial72.png")
    grey.save(folder / "grey.png")
    pixels = np.array(grey)
    Image.fromarray(np.stack([pixels, pixels[::-1], pixels // 2], -1)).save(folder / "colour.jpg")
    (folder / "labels.json").write_text(json.dumps(LABEL_NAMES))
    _unusual_files(folder, image)
    _bad_files(folder)
    return folder


def _unusual_files(folder: Path, image: nibabel.Nifti1Image) -> None:
    """The brain as files that are rare and can be used all the same."""
    voxels = np.asanyarray(image.dataobj)
    tilt, turn = np.radians(25), np.radians(40)
    about_x = [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    about_z = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    oblique = image.affine.copy()
    oblique[:3, :3] = np.array(about_z) @ np.array(about_x) @ oblique[:3, :3]
    nibabel.save(nibabel.Nifti1Image(voxels, oblique), folder / "oblique.nii.gz")
    nibabel.save(nibabel.Nifti1Image(voxels[:, :, 6:7], image.affine), folder / "one_slice.nii.gz")
    nibabel.save(nibabel.Nifti1Image(voxels[..., None], image.affine), folder / "four_axes.nii.gz")
    for name, spacing, code in (("no_spacing", (0, 0, 0), 0), ("zero_spacing", (1, 1, 0), 2)):
        header = nibabel.Nifti1Header()
        header.set_data_shape(voxels.shape)
        header.set_data_dtype(voxels.dtype)
        header["pixdim"][1:4], header["sform_code"] = spacing, code
        for axis, row in enumerate(("srow_x", "srow_y", "srow_z")):
            header[row][axis] = spacing[axis]
        _write_nifti(folder / f"{name}.nii", header, voxels.tobytes(order="F"))
    grey = np.clip(voxels / voxels.max() * 255, 0, 255).astype(np.uint8)
    colour = np.stack([grey, grey // 2, 255 - grey], -1).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(colour, image.affine), folder / "rgb.nii.gz")


def _write_nifti(path: Path, header: nibabel.Nifti1Header, body: bytes) -> None:
    """A file with a header as it stands; nibabel itself would put it right."""
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(4) + body)


def _bad_files(folder: Path) -> None:
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "corrupt.nii.gz").write_bytes(b"this is no image" * 20)
    (folder / "corrupt.png").write_bytes(b"nor is this")
    ramp = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
    arrays = {
        "nan": np.where(ramp == 7, np.nan, ramp),
        "constant": np.full((6, 5, 4), 3, np.int16),
        "series": np.zeros((6, 5, 4, 3), np.uint8),
        "complex": ramp.astype(np.complex64),
    }
    for name, array in arrays.items():
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((512, 512, 1000))
    huge.set_data_dtype(np.int16)
    _write_nifti(folder / "huge.nii", huge, bytes(4096))
    nibabel.save(nibabel.Nifti1Image(ramp, np.eye(4)), folder / "mislabelled.nii.gz")
    wrong = np.ones((6, 5, 3), np.uint8)
    nibabel.save(nibabel.Nifti1Image(wrong, np.eye(4)), folder / "labels" / "final" / "mislabelled.nii.gz")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server; its studies are `server.studies`."""
    weights = _weights(tmp_path_factory.mktemp("weights"))
    studies = _studies(tmp_path_factory.mktemp("contract") / "studies")
    with LiveServer(
        studies,
        conf={"model_path": str(weights), "cache_mb": str(BUDGET_MB), "image_mb": str(BUDGET_MB), "train_after": "0"},
    ) as running:
        yield running


@pytest.fixture
def slicer(server: LiveServer, tmp_path: Path) -> MONAILabelClient:
    """MONAI Label's own client, the one inside the Slicer plugin."""
    return MONAILabelClient(server.url, str(tmp_path), client_id=f"user-{tmp_path.name}")


@pytest.fixture
def ohif(server: LiveServer) -> Callable[..., np.ndarray]:
    """Ask as OHIF does and read the answer as OHIF does: the bytes behind the header, x fastest."""

    def ask(model: str, image: str, **params: Any) -> np.ndarray:
        answer = post_as_ohif(server, model, image, params)
        assert answer.status_code == 200, answer.text
        return read_as_ohif(answer.content, server.studies / f"{image}.nii.gz")

    return ask
