# SPDX-License-Identifier: Apache-2.0
"""Which images of a series are its volume, and in which order; odd ones are set aside, and the user is told.

A series may contain a localizer, a report as a picture, an image that was sent twice, or one without a position. The
others are a volume with positions all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from lib.dicom.frames import MAX_FRAMES, Frame, frame_count, frames_of, functional, numbers, whole_number
from lib.dicom.phases import places_of, split_phases
from lib.dicom.pixel_type import channels_of

DIRECTION_TOLERANCE = 1e-3
"""Largest difference of direction cosines that count as equal."""

PIXEL_TOLERANCE = 0.01
"""Pixels whose sizes differ by less than this share count as equal."""


@dataclass(frozen=True)
class SetAside:
    """An image, or a frame of it, that is not in the volume; `reason` is a sentence without its name."""

    instance: str
    number: int
    reason: str


class Placed(NamedTuple):
    """The frames of each volume in slice order, those set aside, and warnings."""

    volumes: list[list[Frame]]
    aside: list[SetAside]
    warnings: list[str]


def usable_images(headers: Sequence[Dataset]) -> tuple[list[Dataset], list[SetAside]]:
    """The images, by number, that have the size and the kind of pixels that most have, and those set aside.

    Images with a position count before others.
    """
    aside: list[SetAside] = []
    sizes: dict[str, tuple[int, int, int]] = {}
    images: list[Dataset] = []
    for header in sorted(headers, key=_number):
        uid = str(header.SOPInstanceUID)
        columns, rows = whole_number(header, "Columns") or 0, whole_number(header, "Rows") or 0
        if uid in sizes:
            aside.append(SetAside(uid, 1, "its identifier is that of another image"))
        elif columns < 1 or rows < 1 or not 0 < frame_count(header) <= MAX_FRAMES:
            aside.append(SetAside(uid, 1, "its header does not say how many pixels it has"))
        else:
            sizes[uid] = columns, rows, channels_of(header)
            images.append(header)
    weights: dict[tuple[int, int, int], tuple[int, int]] = {}
    for header in images:
        size = sizes[str(header.SOPInstanceUID)]
        placed, count = weights.get(size, (0, 0))
        frames = frame_count(header)
        weights[size] = placed + frames * frames_of(header)[0].is_placed, count + frames
    usual = max(weights, key=lambda size: (*weights[size], size[0] * size[1]), default=None)
    kept = [header for header in images if sizes[str(header.SOPInstanceUID)] == usual]
    for uid, size in sizes.items():
        if usual is not None and size != usual:
            aside.append(SetAside(uid, 1, f"it has {_shown(size)}; the others have {_shown(usual)}"))
    return kept, aside


def place(headers: Sequence[Dataset]) -> Placed:
    """The frames of images of one size along the normal of their planes, volume by volume.

    In the order of numbers, as one volume without positions, if most have none or no plane is that of most.
    """
    by_instance = {str(header.SOPInstanceUID): header for header in headers}
    frames = [frame for header in headers for frame in frames_of(header)]
    placed = [frame for frame in frames if frame.is_placed]
    if 2 * len(placed) < len(frames) or not placed:
        return Placed([[Frame(frame.instance, frame.number) for frame in frames]], [], [])
    aside = _others(frames, placed, "it has no position in the patient")
    groups = _parallel(placed)
    parallel = max(groups, key=len)
    if 2 * len(parallel) <= len(placed):
        warning = f"The series has images in {len(groups)} orientations: each is treated as a separate picture."
        return Placed([[Frame(frame.instance, frame.number) for frame in placed]], aside, [warning])
    aside += _others(placed, parallel, "it lies in another plane than the others")
    alike = _of_usual_pixels(parallel, by_instance)
    aside += _others(parallel, alike, "its pixels have another size in millimetres than those of the others")
    volumes, warnings = _in_order(alike, by_instance)
    kept = [frame for volume in volumes for frame in volume]
    aside += _others(alike, kept, "it shows a place in the patient that another image shows already")
    return Placed(volumes, aside, warnings)


def told(aside: Sequence[SetAside]) -> list[str]:
    """Sentences about images that were set aside, one for each reason."""
    counts = Counter(entry.reason for entry in aside)
    return [f"{_images(count)} set aside, not segmented: {reason}." for reason, count in counts.items()]


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"


def _in_order(frames: list[Frame], headers: Mapping[str, Dataset]) -> tuple[list[list[Frame]], list[str]]:
    """The volumes of parallel frames and warnings."""
    along, down = np.array(frames[0].orientation[:3]), np.array(frames[0].orientation[3:])  # type: ignore[index]
    depths = np.array([frame.position for frame in frames]) @ np.cross(along, down)
    places = places_of(frames, depths)
    volumes = split_phases(places, headers)
    if len(volumes) > 1:
        warning = (
            f"The series shows {len(volumes[0])} places {len(volumes)} times (phases, echoes or b-values): each time "
            "is a volume of its own, and the one of the image in view is segmented."
        )
        return volumes, [warning]
    if len(places) == 1 and len(frames) > 1:
        return volumes, [f"{len(frames) - 1} images have the same position as others (several times in one series)."]
    return volumes, []


def _others(frames: Sequence[Frame], kept: Sequence[Frame], reason: str) -> list[SetAside]:
    keys = {(frame.instance, frame.number) for frame in kept}
    return [
        SetAside(frame.instance, frame.number, reason) for frame in frames if (frame.instance, frame.number) not in keys
    ]


def _parallel(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The frames by plane: those whose rows and columns run alike."""
    groups: dict[tuple[float, ...], list[Frame]] = {}
    for frame in frames:
        turn = frame.orientation or ()
        if turn not in groups:
            near = (known for known in groups if np.abs(np.subtract(known, turn)).max() <= DIRECTION_TOLERANCE)
            turn = next(near, turn)
        groups.setdefault(turn, []).append(frame)
    return list(groups.values())


def _of_usual_pixels(frames: Sequence[Frame], headers: Mapping[str, Dataset]) -> list[Frame]:
    """The frames whose pixels are as large as most are; also those of which it is not known."""
    sizes = [pixel_spacing(headers[frame.instance], frame.number - 1) for frame in frames]
    usual = _most_common([size for size in sizes if size is not None])
    if usual is None:
        return list(frames)
    return [
        frame
        for frame, size in zip(frames, sizes, strict=True)
        if size is None or np.allclose(size, usual, rtol=PIXEL_TOLERANCE, atol=0)
    ]


def _most_common(values: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def pixel_spacing(header: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """(between rows, between columns) in millimetres, of a frame counted from 0."""
    measures = functional(header, frame, "PixelMeasuresSequence")
    for source, name in ((measures, "PixelSpacing"), (header, "PixelSpacing"), (header, "ImagerPixelSpacing")):
        values = numbers(source, name, 2) if source is not None else None
        if values and min(values) > 0:
            return values  # type: ignore[no-any-return]
    regions = header.get("SequenceOfUltrasoundRegions") or []
    for region in regions:  # physical units 3 are centimetres (PS3.3 C.8.5.5.1.15)
        if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == 3:
            steps = _region_steps(region)
            if steps is not None:
                return steps
    return None


def _region_steps(region: Dataset) -> tuple[float, float] | None:
    """The steps of an ultrasound region in millimetres; None if one of them is missing or 0."""
    steps = [abs(float(region.get(name) or 0)) * 10 for name in ("PhysicalDeltaY", "PhysicalDeltaX")]
    return (steps[0], steps[1]) if min(steps) > 0 else None


def _number(header: Dataset) -> tuple[int, str]:
    return whole_number(header, "InstanceNumber") or 0, str(header.SOPInstanceUID)


def _shown(size: tuple[int, int, int]) -> str:
    columns, rows, channels = size
    return f"{columns} x {rows} {'coloured' if channels == 3 else 'grey'} pixels"
