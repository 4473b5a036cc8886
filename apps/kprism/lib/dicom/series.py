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

from lib.dicom.frames import Frame, frames_of, functional, numbers
from lib.dicom.phases import places_of, split_phases
from lib.errors import RequestError
from lib.imaging.medical_image import LPS_TO_RAS

DIRECTION_TOLERANCE = 1e-3
"""Largest difference of direction cosines that count as equal."""

SPACING_TOLERANCE = 0.05
"""Slice distances that differ by less than this share of their median count as equal."""


@dataclass(frozen=True)
class Series:
    """A series in slice order. `affine` maps (column, row, slice, 1) to millimetres in RAS+.

    `grid` is (columns, rows, slices). `positioned`: the images have positions in the patient. Several `volumes`
    (phases, echoes, b-values) come one after the other and have the same positions; `affine` is that of the first.
    `first` is one of the headers, perhaps without attributes that do not concern the volume.
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
    """The order, grid and position of a series; RequestError if its images differ in size or none has pixels."""
    headers = [header for header in headers if "Rows" in header and "Columns" in header]
    if not headers:
        raise RequestError("the series has no images")
    uid = str(headers[0].SeriesInstanceUID)
    sizes = sorted({(int(header.Columns), int(header.Rows)) for header in headers})
    if len(sizes) > 1:
        shown = ", ".join(f"{columns} x {rows}" for columns, rows in sizes)
        raise RequestError(f"series {uid} has images of {len(sizes)} sizes ({shown}); it cannot be a volume")
    frames = [frame for header in sorted(headers, key=_number) for frame in frames_of(header)]
    frames, warnings, volumes = _ordered(frames, headers)
    columns, rows = sizes[0]
    spacing = pixel_spacing(headers[0])
    if spacing is None:
        warnings.append("The images have no pixel spacing: sizes in millimetres are not known.")
    first = frames[: len(frames) // volumes]
    affine, positioned, gaps = _affine(first, spacing or (1.0, 1.0), headers[0])
    grid = (columns, rows, len(frames))
    told = (*warnings, *gaps)
    return Series(uid, tuple(headers), tuple(frames), grid, affine, positioned, told, volumes, headers[0])


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


def _number(header: Dataset) -> tuple[int, str]:
    return int(header.get("InstanceNumber") or 0), str(header.SOPInstanceUID)


def pixel_spacing(header: Dataset) -> tuple[float, float] | None:
    """(between rows, between columns) in millimetres."""
    measures = functional(header, 0, "PixelMeasuresSequence")
    for source, name in ((measures, "PixelSpacing"), (header, "PixelSpacing"), (header, "ImagerPixelSpacing")):
        values = numbers(source, name, 2) if source is not None else None
        if values and min(values) > 0:
            return values  # type: ignore[no-any-return]
    regions = header.get("SequenceOfUltrasoundRegions") or []
    for region in regions:  # physical units 3 are centimetres (PS3.3 C.8.5.5.1.15)
        if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == 3:
            return abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10
    return None


def _ordered(frames: list[Frame], headers: Sequence[Dataset]) -> tuple[list[Frame], list[str], int]:
    """The frames along the normal of their planes, volume by volume, warnings, and the number of volumes.

    In the order of numbers, as one volume, if they are not parallel.
    """
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return frames, [], 1
    orientations = np.array([frame.orientation for frame in frames])
    if np.abs(orientations - orientations[0]).max() > DIRECTION_TOLERANCE:
        count = len(np.unique(np.round(orientations, 2), axis=0))
        warning = f"The series has images in {count} orientations: each is treated as a separate picture."
        return [Frame(f.instance, f.number) for f in frames], [warning], 1
    depths = np.array([frame.position for frame in frames]) @ np.cross(orientations[0, :3], orientations[0, 3:])
    places = places_of(frames, depths)
    volumes = split_phases(places, {str(header.SOPInstanceUID): header for header in headers})
    repeated = len(frames) - len(places)
    warnings = []
    if len(volumes) > 1:
        warnings.append(
            f"The series shows {len(places)} places {len(volumes)} times (phases, echoes or b-values): each time is a "
            "volume of its own, and the one of the image in view is segmented."
        )
    elif repeated:
        warnings.append(f"{repeated} images have the same position as others (several times or phases in one series).")
    return [frame for volume in volumes for frame in volume], warnings, len(volumes)


def _affine(
    frames: list[Frame], spacing: tuple[float, float], header: Dataset
) -> tuple[NDArray[np.float64], bool, list[str]]:
    """(affine (RAS+), whether the position in the patient is known, warnings)."""
    first, last = frames[0], frames[-1]
    affine = np.diag([spacing[1], spacing[0], _thickness(header), 1.0])
    if first.position is None or first.orientation is None:
        return LPS_TO_RAS @ affine, False, []
    along, down = np.array(first.orientation[:3]), np.array(first.orientation[3:])
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


def _thickness(header: Dataset) -> float:
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.get(name)
        if value and float(value) > 0:
            return float(value)
    return 1.0
