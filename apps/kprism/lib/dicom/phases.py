# SPDX-License-Identifier: Apache-2.0
"""Series that show the same places several times: the phases of a cine, echoes, b-values. Each is a volume of its own.

The images of the first volume come first, then those of the second. Attributes are read as in the header of a
single-frame image or in the functional groups of a frame (PS3.3, C.7.6.16 and C.8.13.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.frames import Frame, functional, number

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
    all attributes and then as they come. One volume if no place is shown twice, and if there is only one place: a film,
    which can be followed through time. Where the places are not all shown equally often (an image is missing, or was
    sent twice), frames are left out, see `_evened`.
    """
    if len(places) == 1:
        return [list(places[0])]
    values = {frame: _values(headers[frame.instance], frame.number - 1) for place in places for frame in place}
    even = _evened(places, values)
    deciding = [column for column in range(len(ATTRIBUTES)) if _tells_apart(column, even, values)]
    columns = deciding[:1] or list(range(len(ATTRIBUTES)))
    ordered = [
        sorted(place, key=lambda frame: [_or_first(values[frame][column]) for column in columns]) for place in even
    ]
    return [list(volume) for volume in zip(*ordered, strict=True)]


def _tells_apart(
    column: int, places: Sequence[Sequence[Frame]], values: Mapping[Frame, Sequence[float | None]]
) -> bool:
    """Whether an attribute differs between all images of every place."""
    return all(_all_differ([values[frame][column] for frame in place]) for place in places)


def _evened(places: Sequence[Sequence[Frame]], values: Mapping[Frame, Sequence[float | None]]) -> list[Sequence[Frame]]:
    """The places with the same number of frames at each.

    Volumes that do not show all places are left out, if an attribute tells the volumes apart. Else every place gets as
    many frames as most places have: further ones, and places with fewer, are left out.
    """
    counts = Counter(len(place) for place in places)
    if len(counts) == 1:
        return list(places)
    total = sum(len(place) for place in places)
    for column in range(len(ATTRIBUTES)):
        if _tells_apart(column, places, values):
            shown = Counter(values[frame][column] for place in places for frame in place)
            complete = {value for value, count in shown.items() if count == len(places)}
            if 2 * len(complete) * len(places) >= total:
                return [[frame for frame in place if values[frame][column] in complete] for place in places]
    usual = counts.most_common(1)[0][0]
    return [place[:usual] for place in places if len(place) >= usual]


def _values(header: Dataset, frame: int) -> list[float | None]:
    return [_value(header, frame, *names) for names in ATTRIBUTES]


def _value(header: Dataset, frame: int, name: str, group_name: str, name_in_group: str) -> float | None:
    """An attribute of a frame as a number; None if it is missing, empty or no number."""
    group = functional(header, frame, group_name)
    return number(header, name) if group is None else number(group, name_in_group)


def _all_differ(values: Sequence[float | None]) -> bool:
    return None not in values and len(set(values)) == len(values)


def _or_first(value: float | None) -> float:
    return -np.inf if value is None else value
