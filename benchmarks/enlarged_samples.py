# SPDX-License-Identifier: Apache-2.0
"""Inputs of any size, made from the sample datastore: volumes, pictures, and folders and stores of many small cases."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from scipy.ndimage import zoom

from benchmarks.places import ROOT

SAMPLES = ROOT / "sample-datastore"
PICTURE, VOLUME = "lung2_axial17", "pyradiomics_lung2"

NOISE = 12.0
"""Standard deviation in HU of the noise of a CT; its files shrink to 0.6, those of scanners to about 0.5."""

TINY = 16
"""Width and height in pixels of each of many cases."""

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Click:
    """A click on a voxel, on the structure or beside it."""

    voxel: tuple[int, int, int]
    inside: bool


@dataclass(frozen=True)
class Column:
    """A round structure: its centre (i, j) and radius as a share of the columns, and the first share of the slices."""

    centre: tuple[float, float]
    radius: float
    depth: float = 1.0

    def disc(self, plane: tuple[int, int], widened: float = 1.0) -> NDArray[np.bool_]:
        """The pixels (i, j) of the structure on a slice, with the radius `widened`."""
        i, j = np.ogrid[: plane[0], : plane[1]]
        squared = (i - self.centre[0] * plane[0]) ** 2 + (j - self.centre[1] * plane[1]) ** 2
        inside: NDArray[np.bool_] = squared < (widened * self.radius * plane[0]) ** 2
        return inside

    def clicks(self, count: int, shape: Shape) -> list[Click]:
        """Clicks on the middle slice of a volume: two in the structure, one beside it, and so on."""
        rng = np.random.default_rng(0)
        clicks = []
        for number in range(count):
            inside = number % 3 != 2
            distance = self.radius * shape[0] * (rng.uniform(0, 0.7) if inside else rng.uniform(1.3, 1.6))
            angle = rng.uniform(0, 2 * np.pi)
            i = int(self.centre[0] * shape[0] + distance * np.cos(angle))
            j = int(self.centre[1] * shape[1] + distance * np.sin(angle))
            clicks.append(Click((i, j, shape[2] // 2), inside))
        return clicks


COLUMN = Column((0.5, 0.5), 60 / 512)
"""The structure that runs through all slices of `write_ct`."""

COLUMN_HU = 150


def enlarged(shape: Shape) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The sample volume at another size, int16, and its affine."""
    source = nibabel.Nifti1Image.from_filename(SAMPLES / f"{VOLUME}.nii.gz")
    stored = np.asanyarray(source.dataobj).astype(np.float32)
    plane = zoom(stored, (shape[0] / stored.shape[0], shape[1] / stored.shape[1], 1), order=1).astype(np.int16)
    voxels = zoom(plane, (1, 1, shape[2] / stored.shape[2]), order=1)
    return voxels, source.affine @ np.diag([*(np.array(stored.shape) / voxels.shape), 1])


def clinical_ct(shape: Shape) -> NDArray[np.int16]:
    """The sample volume at another size with `COLUMN` in it and with noise, int16 (i, j, k) in HU."""
    voxels, _ = enlarged(shape)
    voxels[COLUMN.disc(shape[:2])] = COLUMN_HU
    rng = np.random.default_rng(0)
    for k in range(shape[2]):
        voxels[..., k] += np.rint(rng.normal(0, NOISE, shape[:2])).astype(np.int16)
    return voxels


def write_ct(path: Path, voxels: NDArray[np.int16], spacing: tuple[float, float, float]) -> None:
    """Write an axial volume whose columns run to the patient's left and rows to posterior."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def write_picture(path: Path, size: tuple[int, int]) -> None:
    """The sample picture at another size (width, height), in colour."""
    with Image.open(SAMPLES / f"{PICTURE}.png") as source:
        grey = source.convert("L").resize(size, Image.Resampling.BILINEAR)
    Image.merge("RGB", [grey.point([int(value * share) for value in range(256)]) for share in (1, 0.8, 0.7)]).save(path)


def write_small_volumes(folder: Path, count: int) -> list[str]:
    """Distinct crops of the sample volume, 64 x 64 x 8 voxels each; their ids."""
    source = nibabel.Nifti1Image.from_filename(SAMPLES / f"{VOLUME}.nii.gz")
    stored = np.asanyarray(source.dataobj)
    rng = np.random.default_rng(0)
    names = [f"case{number:05}" for number in range(count)]
    for name in names:
        i, j, k = (int(rng.integers(side - part)) for side, part in zip(stored.shape, (64, 64, 8), strict=True))
        voxels = stored[i : i + 64, j : j + 64, k : k + 8]
        nibabel.save(nibabel.Nifti1Image(voxels, source.affine), folder / f"{name}.nii.gz")
    return names


def write_many(folder: Path, count: int) -> None:
    """Tiny pictures, the first half of them with submitted labels, as MONAI Label keeps them."""
    (folder / "labels" / "final").mkdir(parents=True)
    rng = np.random.default_rng(0)
    objects = {}
    for number in range(count):
        name = f"case{number:05}"
        Image.fromarray(rng.integers(0, 256, (TINY, TINY), np.uint8)).save(folder / f"{name}.png")
        objects[name] = {"image": {"ext": ".png", "info": {"name": f"{name}.png"}}, "labels": {}}
        if number < count // 2:
            mask = np.zeros((TINY, TINY), np.uint8)
            mask[4:12, 4:12] = 1
            Image.fromarray(mask).save(folder / "labels" / "final" / f"{name}.png")
            info = {"name": f"{name}.png", "label_info": [{"name": "square", "idx": 1}]}
            objects[name]["labels"] = {"final": {"ext": ".png", "info": info}}
    index = {"name": "many", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (folder / "datastore_v2.json").write_text(json.dumps(index))


def tiny_series(count: int) -> Iterator[bytes]:
    """DICOM files of secondary captures, each a study of its own."""
    rng = np.random.default_rng(0)
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        instance.is_little_endian, instance.is_implicit_VR = True, False
        instance.SOPClassUID = SecondaryCaptureImageStorage
        for level in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(instance, level, generate_uid(entropy_srcs=[level, str(number)]))
        meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
        instance.PatientID = instance.PatientName = f"case{number:05}"
        instance.Modality, instance.ConversionType, instance.InstanceNumber = "OT", "WSD", 1
        instance.Rows = instance.Columns = TINY
        instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
        instance.BitsAllocated, instance.BitsStored, instance.HighBit, instance.PixelRepresentation = 8, 8, 7, 0
        instance.PixelData = rng.integers(0, 256, TINY * TINY, np.uint8).tobytes()
        instance["PixelData"].VR = "OB"
        stream = io.BytesIO()
        instance.save_as(stream, write_like_original=False)
        yield stream.getvalue()
