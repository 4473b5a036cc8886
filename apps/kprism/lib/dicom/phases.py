# SPDX-License-Identifier: Apache-2.0
"""Series that show the same places several times: the phases of a cine, echoes, b-values. Each is a volume of its own.

The images of the first volume come first, then those of the second. Attributes are read as in the header of a
single-frame image or in the functional groups of a frame (PS3.3, C.7.6.16 and C.8.13.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame, functional

ATTRIBUTES = (
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("EchoNumbers", "MREchoSequence", "EffectiveEchoTime"),
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
)
"""What tells the images at one place apart, the surest first: in a header, or in a group of a multi-frame image."""

PLACE_TOLERANCE = 0.01
"""Positions that differ by less along the normal, in mm, are one place."""


def places_of(frames: Sequence[Frame], depths: NDArray[np.float64]) -> list[list[Frame]]:
    """The frames by place, in the order of `depths` (mm along the normal); at one place, in their order."""
    places: list[list[int]] = []
    start = -np.inf
    for row in np.argsort(depths, kind="stable").tolist():
        if depths[row] - start > PLACE_TOLERANCE:
            start = depths[row]
            places.append([])
        places[-1].append(row)
    return [[frames[row] for row in sorted(place)] for place in places]


def split_phases(places: Sequence[Sequence[Frame]], headers: Mapping[str, Dataset]) -> list[list[Frame]]:
    """The frames of each volume, in the order of `places`; `headers` are those of the SOP instances.

    The images at each place are ordered by the first attribute that differs between all of them at every place, else by
    all attributes and then as they come. One volume if no place is shown twice, if the places are not all shown equally
    often (an image is missing), and if there is only one place: a film, which can be followed through time.
    """
    counts = {len(place) for place in places}
    if len(places) == 1 or len(counts) > 1 or counts == {1}:
        return [[frame for place in places for frame in place]]
    values = {frame: _values(headers[frame.instance], frame.number - 1) for place in places for frame in place}
    deciding = [
        column
        for column in range(len(ATTRIBUTES))
        if all(_all_differ([values[frame][column] for frame in place]) for place in places)
    ]
    columns = deciding[:1] or list(range(len(ATTRIBUTES)))
    ordered = [
        sorted(place, key=lambda frame: [_or_first(values[frame][column]) for column in columns]) for place in places
    ]
    return [list(volume) for volume in zip(*ordered, strict=True)]


def _values(header: Dataset, frame: int) -> list[float | None]:
    return [_value(header, frame, *names) for names in ATTRIBUTES]


def _value(header: Dataset, frame: int, name: str, group_name: str, name_in_group: str) -> float | None:
    """An attribute of a frame as a number; None if it is missing, empty or no number."""
    group = functional(header, frame, group_name)
    value = header.get(name) if group is None else group.get(name_in_group)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _all_differ(values: Sequence[float | None]) -> bool:
    return None not in values and len(set(values)) == len(values)


def _or_first(value: float | None) -> float:
    return -np.inf if value is None else value
