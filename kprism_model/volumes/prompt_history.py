# SPDX-License-Identifier: Apache-2.0
"""Which masks follow from which prompts, before anything is computed: prompted slices, and the stretches between them.

A slice that is clicked for the first time while others hold prompts already shows a mask that was followed from those,
and this is what the click corrects. So the mask that a prompted slice starts from is the one that the clicks before its
first one lead to. Later clicks on other slices do not change a slice that was corrected, and the whole is a function of
the prompts in their order: an answer does not depend on which requests came before it.

Scribbles and given masks have no order; they count as made before all clicks, and start from `before` or from nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompts import SlicePrompts, SliceTask, digest, digest_of


@dataclass(frozen=True, eq=False)
class Anchor:
    """A slice that holds prompts; they correct `taken` (a mask of the request) or the slice's mask in `stretch`."""

    prompts: SlicePrompts
    class_name: str | None
    taken: Patch | None
    stretch: SliceRange | None

    @property
    def number(self) -> int:
        """The slice."""
        return self.prompts.number

    @cached_property
    def start_key(self) -> str:
        """A key of what the prompts start from."""
        if self.taken is not None:
            return digest(repr(self.taken.corner), digest_of(self.taken.values))
        return "nothing" if self.stretch is None else self.stretch.key

    @cached_property
    def key(self) -> str:
        """A key of all that the slice's mask depends on, apart from the volume and the weights."""
        return self.prompts.digest(self.class_name or "", self.start_key)


@dataclass(frozen=True, eq=False)
class SliceRange:
    """Slices `first` to `last` without prompts, followed by `rules` from the one or two prompted slices beside them."""

    before: Anchor | None
    after: Anchor | None
    first: int
    last: int
    rules: str

    @cached_property
    def key(self) -> str:
        """A key of all that the masks depend on, apart from the volume and the weights."""
        keys = ("none" if anchor is None else anchor.key for anchor in (self.before, self.after))
        return digest(*keys, str(self.first), str(self.last), self.rules)


class PromptHistory:
    """The prompts of one structure, followed in slices `limits` (first, last), or not at all (None).

    `rules` identifies the rules by which masks are followed.
    """

    def __init__(self, task: SliceTask, limits: tuple[int, int] | None, rules: str = "") -> None:
        self._task = task
        self._rules = rules
        self._limits = limits
        self._states: dict[int, list[Anchor]] = {}

    def anchors(self, clicks: int | None = None) -> list[Anchor]:
        """The prompted slices after the first `clicks` clicks (default: all), ascending."""
        count = len(self._task.clicks) if clicks is None else clicks
        if count not in self._states:
            made = self._task.clicks[:count]
            numbers = sorted({*self._task.scribbles, *self._task.given, *(number for number, _ in made)})
            self._states[count] = [self._anchor(number, count) for number in numbers]
        return self._states[count]

    def stretches(self, clicks: int | None = None) -> list[SliceRange]:
        """The slices to follow after the first `clicks` clicks (default: all), ascending."""
        anchors = self.anchors(clicks)
        if self._limits is None or not anchors:
            return []
        first, last = self._limits
        ends: list[Anchor | None] = [None, *anchors, None]
        found = []
        for before, after in pairwise(ends):
            # Between two prompted slices all is followed, so that the result does not depend on the limits.
            start = first if before is None else before.number + 1
            stop = last if after is None else after.number - 1
            if max(start, first) <= min(stop, last):
                found.append(SliceRange(before, after, start, stop, self._rules))
        return found

    def inside(self, stretch: SliceRange) -> range:
        """The slices of a stretch that lie within the limits."""
        first, last = self._limits or (0, -1)
        return range(max(stretch.first, first), min(stretch.last, last) + 1)

    def _anchor(self, number: int, count: int) -> Anchor:
        made = [(order, click) for order, (where, click) in enumerate(self._task.clicks[:count]) if where == number]
        prompts = SlicePrompts(number, tuple(click for _, click in made), self._task.scribbles.get(number))
        taken = self._taken(number)
        timeless = taken is not None or number in self._task.scribbles
        stretch = None if timeless else self._stretch_with(number, made[0][0])
        return Anchor(prompts, self._task.class_name, taken, stretch)

    def _taken(self, number: int) -> Patch | None:
        """The mask of the request on a slice, if it holds anything there."""
        mask = self._task.given.get(number)
        if mask is None and self._task.before is not None and self._task.before[number].any():
            mask = self._task.before[number]
        return None if mask is None else Patch.of(mask)

    def _stretch_with(self, number: int, clicks: int) -> SliceRange | None:
        """The stretch that held a slice after the first `clicks` clicks."""
        stretches = self.stretches(clicks)
        found = bisect_left(stretches, number, key=lambda stretch: stretch.last)
        held = found < len(stretches) and stretches[found].first <= number
        return stretches[found] if held else None
