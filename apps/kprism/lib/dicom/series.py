# SPDX-License-Identifier: Apache-2.0
"""A DICOM series as a volume: the order of its slices, the grid in space, and the voxels.

The order of slices is the order of `frames`, and viewers get the same order: a click and a mask name a slice by its
image, so they are never mirrored. Images may be single-frame or multi-frame, with and without a position in the
patient. Unusual properties that do no harm give a warning, a message for the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from lib.dicom.frames import Frame, number
from lib.dicom.placing import SetAside, pixel_spacing, place, told, usable_images
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS

SPACING_TOLERANCE = 0.05
"""Slice distances that differ by less than this share of their median count as equal."""

ROUNDED = 1e-5
"""A direction whose length differs from 1 by less is taken as it is."""


@dataclass(frozen=True)
class Series:
    """A series in slice order. `affine` maps (column, row, slice, 1) to millimetres in RAS+.

    `grid` is (columns, rows, slices). `positioned`: the images have positions in the patient. Several `volumes`
    (phases, echoes, b-values) come one after the other and have the same positions; `affine` is that of the first.
    `first` is one of the headers, perhaps without attributes that do not concern the volume. Images in `aside` are of
    the series, but not in the volume; they are not among `headers`.
    """

    uid: str
    headers: Sequence[Dataset] = field(repr=False)
    frames: tuple[Frame, ...] = field(repr=False)
    grid: tuple[int, int, int]
    affine: NDArray[np.float64] = field(repr=False)
    positioned: bool
    warnings: tuple[str, ...] = ()
    volumes: int = 1
    first: Dataset = field(default_factory=Dataset, repr=False, compare=False)
    aside: tuple[SetAside, ...] = ()

    def index(self) -> dict[tuple[str, int], int]:
        """(SOP instance, frame number) -> slice."""
        return {(frame.instance, frame.number): row for row, frame in enumerate(self.frames)}


def read_headers(files: Iterable[Path]) -> dict[Path, Dataset]:
    """Headers of DICOM files, without pixels; RequestError names a file that is not DICOM."""
    headers: dict[Path, Dataset] = {}
    for path in sorted(files):
        try:
            headers[path] = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, ValueError) as error:
            raise RequestError(f"{path.name} is not a readable DICOM file: {error}") from error
    return headers


def describe_series(headers: Sequence[Dataset]) -> Series:
    """The order, grid and position of a series, without odd images; RequestError if none can be used."""
    images = [header for header in headers if "Rows" in header and "Columns" in header]
    if not images:
        raise RequestError("the series has no images")
    uid = str(images[0].get("SeriesInstanceUID", ""))
    try:
        return _described(uid, images)
    except RequestError:
        raise
    except Exception as error:  # whatever pydicom raises for a malformed header
        raise RequestError(
            f"series {uid} cannot be read as a volume: a header is wrong ({type(error).__name__}: {error})"
        ) from error


def _described(uid: str, headers: Sequence[Dataset]) -> Series:
    images, aside = usable_images(headers)
    if not images:
        raise RequestError(f"series {uid} has no image that can be used: {aside[0].reason}")
    placed = place(images)
    aside += placed.aside
    frames = tuple(frame for volume in placed.volumes for frame in volume)
    used = {frame.instance for frame in frames}
    images = [header for header in images if str(header.SOPInstanceUID) in used]
    by_instance = {str(header.SOPInstanceUID): header for header in images}
    first = by_instance[frames[0].instance]
    warnings = [*placed.warnings, *told(aside)]
    spacings = (pixel_spacing(by_instance[frame.instance], frame.number - 1) for frame in frames)
    spacing = next(filter(None, spacings), None)
    if spacing is None:
        warnings.append("The images have no pixel spacing: sizes in millimetres are not known.")
    affine, positioned, gaps = _affine(placed.volumes[0], spacing or (1.0, 1.0), first)
    grid = (int(first.Columns), int(first.Rows), len(frames))
    return Series(
        uid,
        tuple(images),
        frames,
        grid,
        affine,
        positioned,
        (*warnings, *gaps),
        len(placed.volumes),
        first,
        tuple(aside),
    )


def read_voxels(series: Series, files: dict[str, Path]) -> NDArray[Any]:
    """The voxels (column, row, slice) or (column, row, slice, 3), rescaled; `files` maps SOP instances to files.

    Every transfer syntax that GDCM decodes can be read: JPEG, JPEG-LS, JPEG 2000, RLE, uncompressed. GDCM inverts
    images in which low values are white (MONOCHROME1).
    """
    columns, rows, slices = series.grid
    decoded = {instance: decode_file(path) for instance, path in files.items()}
    first = decoded[series.frames[0].instance]
    shape = (slices, rows, columns, *first.shape[3:])
    volume = np.empty(shape, np.result_type(*(planes.dtype for planes in decoded.values())))
    for row, frame in enumerate(series.frames):
        planes = decoded[frame.instance]
        if planes.shape[1:] != shape[1:] or frame.number > len(planes):
            raise RequestError(f"image {frame.instance} has other pixels than its header says")
        volume[row] = planes[frame.number - 1]
    return np.ascontiguousarray(volume.swapaxes(0, 2)) if volume.ndim == 3 else volume.transpose(2, 1, 0, 3)


def decode_file(path: Path) -> NDArray[Any]:
    """The planes (frame, row, column) or (frame, row, column, 3) of a DICOM file, rescaled.

    RequestError if they cannot be decoded.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        planes = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        syntax = dcmread(path, stop_before_pixels=True).file_meta.get("TransferSyntaxUID", "unknown")
        raise RequestError(
            f"the pixels of {path.name} ({getattr(syntax, 'name', syntax)}) cannot be decoded"
        ) from error
    colour = planes.ndim > 2 and planes.shape[-1] == 3 and _samples(path) == 3
    return planes if planes.ndim == 3 + colour else planes[None]


def _samples(path: Path) -> int:
    header = dcmread(path, stop_before_pixels=True)
    palette = str(header.get("PhotometricInterpretation")) == "PALETTE COLOR"
    return 3 if palette else int(header.get("SamplesPerPixel", 1))


def _affine(
    frames: list[Frame], spacing: tuple[float, float], header: Dataset
) -> tuple[NDArray[np.float64], bool, list[str]]:
    """(affine (RAS+), whether the position in the patient is known, warnings)."""
    first, last = frames[0], frames[-1]
    affine = np.diag([spacing[1], spacing[0], _thickness(header), 1.0])
    if first.position is None or first.orientation is None:
        return LPS_TO_RAS @ affine, False, []
    along, down = _direction(first.orientation[:3]), _direction(first.orientation[3:])
    affine[:3, 0], affine[:3, 1] = along * spacing[1], down * spacing[0]
    affine[:3, 2] = np.cross(along, down) * affine[2, 2]
    affine[:3, 3] = first.position
    warnings: list[str] = []
    steps = np.diff(np.array([frame.position for frame in frames]), axis=0)
    distances = np.linalg.norm(steps, axis=1)
    if len(frames) > 1 and distances.max() > 0:
        usual = float(np.median(distances[distances > 0]))
        missing = [row for row, distance in enumerate(distances, 1) if distance > usual * (1 + SPACING_TOLERANCE)]
        affine[:3, 2] = (np.array(last.position) - first.position) / (len(frames) - 1)
        if missing:
            affine[:3, 2] *= usual / np.linalg.norm(affine[:3, 2])
            warnings.append(
                f"Slices seem to be missing: after slice {missing[0]} the distance is "
                f"{distances[missing[0] - 1]:.3g} mm, elsewhere {usual:.3g} mm."
            )
    return LPS_TO_RAS @ affine, True, warnings


def _direction(cosines: Sequence[float]) -> NDArray[np.float64]:
    """A direction of length 1: a header may have it rounded to two digits, which would change the size of a pixel."""
    direction = np.array(cosines)
    length = float(np.linalg.norm(direction))
    return direction if abs(length - 1) < ROUNDED else direction / length


def _thickness(header: Dataset) -> float:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = number(header, name)
        if value is not None and value > 0:
            return value
    return 1.0
