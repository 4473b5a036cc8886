# SPDX-License-Identifier: Apache-2.0
"""In which order the images of a series are fetched."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from kprism_model.preprocess import evenly_spaced

RANGE_PLANES = 16
"""Planes from which the range of a volume's intensities is taken."""


def range_planes(count: int) -> list[int]:
    """The planes of a volume of `count` planes that the range of its intensities is taken from, evenly spaced."""
    return evenly_spaced(range(count), RANGE_PLANES)


class PlaneQueue:
    """The instances that have not been fetched: `instances` names that of each plane, by number.

    First those that somebody waits for, then those for the range of each of the `volumes`, then from the slice in view
    outwards. Not safe for threads.
    """

    def __init__(self, instances: Sequence[int], volumes: int = 1) -> None:
        self._instances = list(instances)
        count = len(instances) // volumes
        self._pending = set(instances)
        self._wanted: deque[int] = deque()
        places = [place + start for start in range(0, count * volumes, count) for place in range_planes(count)]
        self._range = deque(self._instances[place] for place in places)
        self._centre = count // 2
        self._order: deque[int] | None = None

    def look_at(self, k: int) -> None:
        """Fetch the planes around the plane k first, after those for the range."""
        self._centre, self._order = min(max(k, 0), len(self._instances) - 1), None

    def want(self, planes: Iterable[int]) -> None:
        """Fetch these planes next, in this order; planes that were wanted before come after them."""
        new = dict.fromkeys(self._instances[plane] for plane in planes)
        self._wanted = deque([*new, *(instance for instance in self._wanted if instance not in new)])

    def take(self, *, urgent: bool = False) -> int | None:
        """The next instance, which is then no longer in the queue; with `urgent` only a wanted one."""
        if (found := self._first_of(self._wanted)) is not None or urgent:
            return found
        if (found := self._first_of(self._range)) is not None:
            return found
        if self._order is None:
            self._order = self._outwards()
        return self._first_of(self._order)

    def put_back(self, instance: int) -> None:
        """An instance that could not be fetched is taken again, after those before it."""
        self._pending.add(instance)
        self._order = None

    def _outwards(self) -> deque[int]:
        places = sorted(range(len(self._instances)), key=lambda plane: (abs(plane - self._centre), -plane))
        return deque(dict.fromkeys(self._instances[place] for place in places))

    def _first_of(self, queue: deque[int]) -> int | None:
        while queue:
            instance = queue.popleft()
            if instance in self._pending:
                self._pending.remove(instance)
                return instance
        return None
