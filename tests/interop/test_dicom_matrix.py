# SPDX-License-Identifier: Apache-2.0
"""Every orientation of a DICOM series, in both orders of its slices and with all types of pixels, against SimpleITK.

For each: the value of every voxel at its place in the patient, of a click, and of a mask that goes out as a SEG. A
sample of the masks is read with highdicom and with dcmqi.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import highdicom
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series
from lib.dicom.series_volume import SeriesVolume
from lib.dicom.web import as_bytes
from tests.unit import dicom_files
from tests.unit.dicom_arrivals import MemoryStore, arriving

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (5, 4, 3)  # columns, rows, slices
SPACING = (0.7, 1.3, 2.5)


def _rotations() -> list[NDArray[np.float64]]:
    """The directions of columns, rows and slices along the axes of the patient: 24, for slices follow the normal."""
    found = []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turn = np.zeros((3, 3))
            turn[list(axes), range(3)] = signs
            if np.linalg.det(turn) > 0:
                found.append(turn)
    return found


ROTATIONS = _rotations()
LETTERS = ("RL", "AP", "IS")  # of LPS, the negative direction first


class Pixels(NamedTuple):
    """How pixels are stored: type, and the slope and the intercept."""

    dtype: str
    slope: float = 1.0
    intercept: float = 0.0


PIXELS = {
    "uint8": Pixels("u1"),
    "int16": Pixels("<i2"),
    "uint16": Pixels("<u2"),
    "uint16 scaled": Pixels("<u2", 2.0, -1024.0),
    "int16 scaled by a fraction": Pixels("<i2", 0.5, 3.25),
}


def name_of(turn: NDArray[np.float64]) -> str:
    """As "LPS": where columns, rows and slices lead."""
    return "".join(LETTERS[int(np.flatnonzero(axis)[0])][int(axis.sum() > 0)] for axis in turn.T)


def instances_of(turn: NDArray[np.float64], descending: bool, pixels: Pixels) -> list[Dataset]:
    """A series in random order; its numbers run along the normal of its planes, or against it."""
    dtype = np.dtype(pixels.dtype)
    info = np.iinfo(dtype)
    values = np.random.default_rng(3).integers(info.min, info.max, SHAPE, endpoint=True).astype(dtype)
    [blank] = dicom_files.volume("MR", (2, 2, 1))
    series, study = generate_uid(), generate_uid()
    found = []
    for k in range(SHAPE[2]):
        image = copy.deepcopy(blank)
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.Columns, image.Rows = SHAPE[:2]
        image.BitsAllocated = image.BitsStored = dtype.itemsize * 8
        image.HighBit, image.PixelRepresentation = dtype.itemsize * 8 - 1, int(dtype.kind == "i")
        image.RescaleSlope, image.RescaleIntercept = pixels.slope, pixels.intercept
        image.PixelSpacing, image.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        image.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        position = np.array([12.5, -31.0, 7.0]) + turn[:, 2] * SPACING[2] * k
        image.ImagePositionPatient = [f"{x:.10g}" for x in position]
        image.InstanceNumber = SHAPE[2] - k if descending else k + 1
        image.PixelData = values[:, :, k].tobytes(order="F")
        image["PixelData"].VR = "OB" if dtype.itemsize == 1 else "OW"
        found.append(image)
    random.Random(5).shuffle(found)
    return found


def read_by_simpleitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def at_points(image: SimpleITK.Image, points: NDArray[np.float64]) -> list[float]:
    """The values of an image at points (LPS, mm)."""
    return [image[image.TransformPhysicalPointToIndex(point)] for point in points.tolist()]


def points_of(series: Series) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """All voxels (i, j, k), and their places (LPS, mm)."""
    voxels = np.stack(np.indices(series.grid), axis=-1).reshape(-1, 3)
    places = (LPS_TO_RAS @ series.affine @ np.c_[voxels, np.ones(len(voxels))].T).T[:, :3]
    return voxels, places


MATRIX = [
    pytest.param(turn, descending, pixels, id=f"{name_of(turn)}-{'descending' if descending else 'ascending'}-{name}")
    for turn in ROTATIONS
    for descending in (False, True)
    for name, pixels in PIXELS.items()
]


def opened(instances: list[Dataset], folder: Path) -> SeriesVolume:
    volume = arriving(MemoryStore(instances), folder / "store")
    volume.complete()
    return volume


@pytest.mark.parametrize(("turn", "descending", "pixels"), MATRIX)
def test_a_voxel_a_click_and_a_mask_are_where_simpleitk_has_them(
    turn: NDArray[np.float64], descending: bool, pixels: Pixels, tmp_path: Path
) -> None:
    instances = instances_of(turn, descending, pixels)
    (tmp_path / "files").mkdir()
    dicom_files.save(instances, tmp_path / "files")
    expected = read_by_simpleitk(tmp_path / "files")
    volume = opened(instances, tmp_path)
    image, series = volume.image("it"), volume.series
    assert (series.positioned, series.grid) == (True, SHAPE)

    voxels, places = points_of(series)
    found = image.array[tuple(voxels.T)]
    np.testing.assert_array_equal(found, at_points(expected, places))

    slices = image.to_slices(image.array)
    for voxel, value in zip(voxels.tolist(), found.tolist(), strict=True):
        k, row, column = image.locate(voxel)
        assert slices[round(k), round(row), round(column)] == value

    labels = np.random.default_rng(7).integers(0, 3, SHAPE).astype(np.uint8)
    stored = dcmread(io.BytesIO(as_bytes(write_seg(labels, {"one": 1, "two": 2}, series, "K-Prism"))))
    for number, mask in masks_by_place(stored, expected).items():
        np.testing.assert_array_equal(mask, labelled(labels == number, places, expected))
    np.testing.assert_array_equal(read_seg(stored, series).labels, labels)


def labelled(mask: NDArray[np.bool_], places: NDArray[np.float64], image: SimpleITK.Image) -> NDArray[np.bool_]:
    """A mask of the series, on the grid of SimpleITK's image (i, j, k)."""
    result = np.zeros(image.GetSize(), bool)
    for inside, place in zip(mask.reshape(-1), places.tolist(), strict=True):
        result[image.TransformPhysicalPointToIndex(place)] = inside
    return result


def masks_by_place(stored: Dataset, image: SimpleITK.Image) -> dict[int, NDArray[np.bool_]]:
    """Segment -> mask on the grid of SimpleITK's image, from nothing but the positions in the SEG."""
    shared = stored.SharedFunctionalGroupsSequence[0]
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_step, column_step = (float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing)
    masks = {int(item.SegmentNumber): np.zeros(image.GetSize(), bool) for item in stored.SegmentSequence}
    planes = stored.pixel_array.reshape(-1, stored.Rows, stored.Columns)
    for group, plane in zip(stored.PerFrameFunctionalGroupsSequence, planes, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        mask = masks[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]
        for row, column in np.argwhere(plane).tolist():
            place = origin + turn[:3] * column_step * column + turn[3:] * row_step * row
            mask[image.TransformPhysicalPointToIndex(place.tolist())] = True
    return masks


@pytest.mark.parametrize("turn", ROTATIONS[::3], ids=name_of)
@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
def test_highdicom_and_dcmqi_read_the_same_mask(turn: NDArray[np.float64], descending: bool, tmp_path: Path) -> None:
    instances = instances_of(turn, descending, PIXELS["int16"])
    (tmp_path / "files").mkdir()
    dicom_files.save(instances, tmp_path / "files")
    image = read_by_simpleitk(tmp_path / "files")
    series = opened(instances, tmp_path).series
    labels = np.random.default_rng(7).integers(0, 3, SHAPE).astype(np.uint8)
    stored = write_seg(labels, {"one": 1, "two": 2}, series, "K-Prism")
    stored.save_as(tmp_path / "seg.dcm", write_like_original=False)
    _, places = points_of(series)

    by_highdicom = highdicom.seg.segread(tmp_path / "seg.dcm")
    pixels = by_highdicom.get_pixels_by_source_instance([frame.instance for frame in series.frames])
    np.testing.assert_array_equal(pixels[..., 0].transpose(2, 1, 0), labels == 1)
    np.testing.assert_array_equal(pixels[..., 1].transpose(2, 1, 0), labels == 2)

    for number, mask in by_dcmqi(tmp_path / "seg.dcm", tmp_path).items():
        expected = places[(labels == number).reshape(-1)]
        inside = np.argwhere(SimpleITK.GetArrayFromImage(mask))[:, ::-1]
        found = [mask.TransformIndexToPhysicalPoint(voxel) for voxel in inside.tolist()]
        order = [np.lexsort(np.round(points, 2).T) for points in (np.array(found), expected)]
        np.testing.assert_allclose(np.array(found)[order[0]], expected[order[1]], atol=1e-3)
        assert {image.TransformPhysicalPointToIndex(place) for place in found} == {
            image.TransformPhysicalPointToIndex(place) for place in expected.tolist()
        }


def by_dcmqi(path: Path, folder: Path) -> dict[int, SimpleITK.Image]:
    """Segment -> mask, as 3D Slicer reads a segmentation."""
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [program, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd", "--prefix", "seg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    described = json.loads((folder / "seg-meta.json").read_text())["segmentAttributes"]
    numbers = [segment["labelID"] for group in described for segment in group]
    return {number: SimpleITK.ReadImage(str(folder / f"seg-{number}.nrrd")) for number in numbers}
