# SPDX-License-Identifier: Apache-2.0
"""The frames of DICOM images, single-frame or multi-frame, with their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset


@dataclass(frozen=True)
class Frame:
    """One plane: its SOP instance, its frame number from 1, and the position of its first pixel (LPS, mm) if known."""

    instance: str
    number: int
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, ...] | None = None


def functional(header: Dataset, frame: int, group: str) -> Dataset | None:
    """A functional group of a multi-frame image: that of the frame, else the shared one."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [per_frame[frame]] if frame < len(per_frame) else []
    groups += list(header.get("SharedFunctionalGroupsSequence") or [])
    return next((item[group].value[0] for item in groups if item.get(group)), None)


def frames_of(header: Dataset) -> list[Frame]:
    """The frames of an image with their positions."""
    uid = str(header.SOPInstanceUID)
    frames = []
    for number in range(int(header.get("NumberOfFrames") or 1)):
        place = functional(header, number, "PlanePositionSequence") or header
        orientation = functional(header, number, "PlaneOrientationSequence") or header
        frames.append(
            Frame(
                uid,
                number + 1,
                numbers(place, "ImagePositionPatient", 3),
                numbers(orientation, "ImageOrientationPatient", 6),
            )
        )
    return frames


def numbers(dataset: Dataset, name: str, count: int) -> Any:
    values = dataset.get(name)
    if values is None or len(values) != count:
        return None
    return tuple(float(value) for value in values)
