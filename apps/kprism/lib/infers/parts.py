# SPDX-License-Identifier: Apache-2.0
"""What a client sees of an answer while the rest of it is computed: slices as they are found, and how many are done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kprism_model.volumes.slice_map import SliceMap
from lib.imaging.medical_image import MedicalImage

PAUSE = 0.25
"""Seconds between two parts; what is found meanwhile comes together."""

PAUSE_SHARE = 4
"""The pause after a part is so many times what it took: that of a cut across all stored planes is large."""


@dataclass(frozen=True, eq=False)
class Part:
    """`labels`: planes k of the stored image (row j, column i), whose values are `names`. `done`: slices of `total`."""

    done: int
    total: int | None
    names: Mapping[str, int]
    labels: SliceMap[np.uint8]


class Listener(Protocol):
    """Who waits for an answer. What a method raises ends the request: the client has left."""

    def check(self) -> None:
        """Called after each slice."""

    def part(self, part: Part) -> None:
        """Called with what has been found since the last part."""


@dataclass
class Parts:
    """Collects the slices of one image for a listener; without a listener it does nothing.

    names: the values of the slices' pixels. total: the number of slices to compute, None if it is not known.
    """

    listener: Listener | None
    image: MedicalImage
    names: Mapping[str, int]
    total: int | None = None
    _done: int = 0
    _slices: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    _next: float = 0.0

    def count(self, slices: int) -> None:
        """So many slices are done."""
        if self.listener is None:
            return
        self._done += slices
        self.listener.check()
        started = time.monotonic()
        if started >= self._next:
            self._send(self.listener)
            ended = time.monotonic()
            self._next = ended + max(PAUSE, PAUSE_SHARE * (ended - started))

    def add(self, number: int, labels: NDArray[np.uint8]) -> None:
        """A slice of the image, as it is so far."""
        if self.listener is not None:
            self._slices[number] = labels

    def add_mask(self, name: str, number: int, mask: NDArray[np.bool_]) -> None:
        """The mask of one structure on a slice; those of other structures stay."""
        if self.listener is not None:
            value = np.uint8(self.names[name])
            before = self._slices.get(number, np.zeros(mask.shape, np.uint8))
            self._slices[number] = np.where(mask, value, np.where(before == value, np.uint8(0), before))

    def _send(self, listener: Listener) -> None:
        found = SliceMap(self.image.orientation, np.dtype(np.uint8), self._slices)
        self._slices = {}
        listener.part(Part(self._done, self.total, self.names, self.image.on_stored_planes(found)))
