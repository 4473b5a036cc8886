# SPDX-License-Identifier: Apache-2.0
"""A request as the models see it: resolved once, by `lib.infers.resolve`, and never changed afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kprism_model.volumes.predictor import Extent
from kprism_model.volumes.prompts import LocatedClick
from kprism_model.volumes.slice_map import SliceMap
from lib.imaging.medical_image import MedicalImage, Voxel
from lib.imaging.writing import ResultFormat
from lib.infers.parts import Listener, Parts
from lib.networks import Networks
from lib.request_statistics import RequestStatistics

NOTHING = "nothing"
"""Origin of the initial mask of a label that has none."""


@dataclass(frozen=True)
class Source:
    """A file that a request is about: its path, its name for messages, and its image id if it is in the datastore.

    Only the server makes such objects, after its checks; JSON cannot hold one. So no client can name a file.
    """

    path: Path
    name: str
    image_id: str | None = None


@dataclass(frozen=True, eq=False)
class DrawnPlanes:
    """A labelmap as planes k of an image (row j, column i), and its name for messages; the other planes are empty.

    As with `Source`, only the server makes such objects.
    """

    labels: SliceMap[np.uint8]
    name: str


@dataclass(frozen=True)
class Clicks:
    """All clicks of a request, each located in its slice.

    labels: positive clicks by label. background: clicks on no label. edited: the labels to segment. order: the place of
    each clicked voxel in the order in which the clicks were made; empty if the client does not send it.
    """

    labels: Mapping[str, tuple[LocatedClick, ...]] = field(default_factory=dict)
    background: tuple[LocatedClick, ...] = ()
    edited: tuple[str, ...] = ()
    order: Mapping[Voxel, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LocatedClick]:
        """All clicks: those on background, then those of each label."""
        yield from self.background
        for clicks in self.labels.values():
            yield from clicks


@dataclass(frozen=True, eq=False)
class InitialMasks:
    """The masks that the prompts correct: where they come from, and the masks by label."""

    source: str = NOTHING
    masks: Mapping[str, SliceMap[np.bool_]] = field(default_factory=dict)

    def origin(self, label: str) -> str:
        """Where the initial mask of a label comes from."""
        return self.source if label in self.masks else NOTHING

    def at(self, voxels: list[Voxel]) -> list[str]:
        """The labels whose mask holds at least one of the voxels (i, j, k)."""
        return [label for label, mask in self.masks.items() if any(mask.at(voxel) for voxel in voxels)]


@dataclass(frozen=True, eq=False)
class InferRequest:
    """Everything that an answer depends on.

    image: cut in the plane that the request asks for. options: the value of every option of the model. result_format:
    the file that the client expects. registry_numbers: whether a label's value in that file is its number in the label
    registry. statistics: the time and passes that the request takes, counted on the way. labels: the structures to
    segment; if empty, the model chooses. extent: how far to segment: prompted slices only, the whole volume, or first
    to last slice. scribbles: 1 on the structure, -1 beside it, 0 elsewhere. listener: sees slices before the answer.
    """

    image: MedicalImage
    image_id: str | None
    networks: Networks
    options: Mapping[str, Any]
    result_format: ResultFormat
    registry_numbers: bool
    statistics: RequestStatistics
    labels: tuple[str, ...] = ()
    extent: Extent = "volume"
    clicks: Clicks = field(default_factory=Clicks)
    scribbles: SliceMap[np.int8] | None = None
    initial_masks: InitialMasks = field(default_factory=InitialMasks)
    listener: Listener | None = None

    def parts(self, names: Sequence[str], structures: int = 1) -> Parts:
        """What the listener sees of an answer whose values 1, 2, ... are `names`; `structures` come one by one."""
        total: int | None = None
        if self.extent != "slice":
            first, last = (0, self.image.slices - 1) if isinstance(self.extent, str) else self.extent
            total = (last - first + 1) * structures
        return Parts(self.listener, self.image, {name: value for value, name in enumerate(names, 1)}, total)
