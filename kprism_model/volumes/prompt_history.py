# SPDX-License-Identifier: Apache-2.0
"""Which masks depend on which prompts, before anything is computed: prompted slices, and the slice ranges between them.

When a slice is clicked for the first time and other slices hold prompts already, the user sees a mask there that was
propagated from those slices, and the click corrects that mask. So a prompted slice starts from the mask that the clicks
before its own first click lead to. Later clicks on other slices do not change a slice that was corrected. The result
is a function of the prompts in their order: it does not depend on which requests came before.

Scribbles and masks in a request have no order. They count as made before all clicks, and correct `previous_mask` or an
empty mask.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompts import PromptsBySlice, SlicePrompts, digest, digest_of


@dataclass(frozen=True, eq=False)
class PromptedSlice:
    """A slice with prompts, which correct `initial_mask` (from the request) or the slice's mask in `slice_range`."""

    prompts: SlicePrompts
    class_name: str | None
    initial_mask: Patch | None
    slice_range: SliceRange | None

    @property
    def number(self) -> int:
        """The slice."""
        return self.prompts.number

    @cached_property
    def initial_key(self) -> str:
        """A key of the mask that the prompts correct."""
        if self.initial_mask is not None:
            return digest(repr(self.initial_mask.corner), digest_of(self.initial_mask.values))
        return "nothing" if self.slice_range is None else self.slice_range.key

    @cached_property
    def key(self) -> str:
        """A key of everything that the slice's mask depends on, except the volume and the weights."""
        return self.prompts.digest(self.class_name or "", self.initial_key)


@dataclass(frozen=True, eq=False)
class SliceRange:
    """Slices `first` to `last` without prompts; their masks are propagated from the prompted slices next to them.

    `before` and `after` are those slices, None where there is none. `rules` identifies the rules of propagation.
    """

    before: PromptedSlice | None
    after: PromptedSlice | None
    first: int
    last: int
    rules: str

    @cached_property
    def key(self) -> str:
        """A key of everything that the masks depend on, except the volume and the weights."""
        keys = ("none" if end is None else end.key for end in (self.before, self.after))
        return digest(*keys, str(self.first), str(self.last), self.rules)


class PromptHistory:
    """The prompts of one structure, propagated within slices `limits` (first, last), or not at all (None).

    `rules` identifies the rules of propagation.
    """

    def __init__(self, prompts: PromptsBySlice, limits: tuple[int, int] | None, rules: str = "") -> None:
        self._prompts = prompts
        self._rules = rules
        self._limits = limits
        self._states: dict[int, list[PromptedSlice]] = {}

    def prompted_slices(self, clicks: int | None = None) -> list[PromptedSlice]:
        """The prompted slices after the first `clicks` clicks (default: all), ascending."""
        count = len(self._prompts.clicks) if clicks is None else clicks
        if count not in self._states:
            made = self._prompts.clicks[:count]
            numbers = sorted({*self._prompts.scribbles, *self._prompts.initial_masks, *(number for number, _ in made)})
            self._states[count] = [self._prompted_slice(number, count) for number in numbers]
        return self._states[count]

    def slice_ranges(self, clicks: int | None = None) -> list[SliceRange]:
        """The slice ranges to propagate to after the first `clicks` clicks (default: all), ascending."""
        prompted = self.prompted_slices(clicks)
        if self._limits is None or not prompted:
            return []
        first, last = self._limits
        ends: list[PromptedSlice | None] = [None, *prompted, None]
        ranges = []
        for before, after in pairwise(ends):
            # Between two prompted slices every slice is computed, so that the result does not depend on the limits.
            start = first if before is None else before.number + 1
            stop = last if after is None else after.number - 1
            if max(start, first) <= min(stop, last):
                ranges.append(SliceRange(before, after, start, stop, self._rules))
        return ranges

    def within_limits(self, slice_range: SliceRange) -> range:
        """The slices of a range that lie within the limits."""
        first, last = self._limits or (0, -1)
        return range(max(slice_range.first, first), min(slice_range.last, last) + 1)

    def _prompted_slice(self, number: int, count: int) -> PromptedSlice:
        made = [(order, click) for order, (where, click) in enumerate(self._prompts.clicks[:count]) if where == number]
        prompts = SlicePrompts(number, tuple(click for _, click in made), self._prompts.scribbles.get(number))
        initial_mask = self._initial_mask(number)
        without_order = initial_mask is not None or number in self._prompts.scribbles
        slice_range = None if without_order else self._range_with(number, made[0][0])
        return PromptedSlice(prompts, self._prompts.class_name, initial_mask, slice_range)

    def _initial_mask(self, number: int) -> Patch | None:
        """The mask of the request on a slice; None if the request has none or an empty one there."""
        mask = self._prompts.initial_masks.get(number)
        previous = self._prompts.previous_mask
        if mask is None and previous is not None and previous[number].any():
            mask = previous[number]
        return None if mask is None else Patch.of(mask)

    def _range_with(self, number: int, clicks: int) -> SliceRange | None:
        """The slice range that held a slice after the first `clicks` clicks."""
        ranges = self.slice_ranges(clicks)
        index = bisect_left(ranges, number, key=lambda slice_range: slice_range.last)
        return ranges[index] if index < len(ranges) and ranges[index].first <= number else None
