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

from kprism_model.queries import Click
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

    `before` and `after` are those slices, None where there is none. `rules` identifies the rules of propagation, and
    `known_class` is that of `StructurePrompts`.
    """

    before: PromptedSlice | None
    after: PromptedSlice | None
    first: int
    last: int
    rules: str
    known_class: str | None = None

    @cached_property
    def key(self) -> str:
        """A key of everything that the masks depend on, except the volume and the weights."""
        keys = ("none" if end is None else end.key for end in (self.before, self.after))
        return digest(*keys, str(self.first), str(self.last), self.rules, self.known_class or "")


class PromptHistory:
    """The prompts of one structure, propagated within slices `limits` (first, last), or not at all (None).

    `rules` identifies the rules of propagation.
    """

    def __init__(self, prompts: PromptsBySlice, limits: tuple[int, int] | None, rules: str = "") -> None:
        self._prompts = prompts
        self._rules = rules
        self._limits = limits
        self._own_clicks: dict[int, list[Click]] = {}
        self._initial_masks: dict[int, Patch | None] = {}
        without_order = sorted({*prompts.scribbles, *prompts.initial_masks})
        self._states = [[self._prompted_slice(number, None) for number in without_order]]
        for number, click in prompts.clicks:
            self._states.append(self._with_click(self._states[-1], number, click))

    def prompted_slices(self, clicks: int | None = None) -> list[PromptedSlice]:
        """The prompted slices after the first `clicks` clicks (default: all), ascending."""
        return self._states[len(self._prompts.clicks) if clicks is None else clicks]

    def in_order(self) -> list[PromptedSlice]:
        """All prompted slices in the order of their first clicks; those with scribbles or masks of the request first.

        Each of them depends on earlier ones alone.
        """
        clicked = dict.fromkeys(number for number, _ in self._prompts.clicks)
        order = {number: place for place, number in enumerate(clicked) if not self._without_order(number)}
        return sorted(self.prompted_slices(), key=lambda prompted_slice: order.get(prompted_slice.number, -1))

    def slice_ranges(self, clicks: int | None = None) -> list[SliceRange]:
        """The slice ranges to propagate to after the first `clicks` clicks (default: all), ascending."""
        prompted = self.prompted_slices(clicks)
        if not prompted:
            return []
        ranges = (self._range_between(before, after) for before, after in pairwise([None, *prompted, None]))
        return [slice_range for slice_range in ranges if slice_range is not None]

    def within_limits(self, slice_range: SliceRange) -> range:
        """The slices of a range that lie within the limits."""
        first, last = self._limits or (0, -1)
        return range(max(slice_range.first, first), min(slice_range.last, last) + 1)

    def _with_click(self, state: list[PromptedSlice], number: int, click: Click) -> list[PromptedSlice]:
        """The prompted slices `state` after one more click."""
        self._own_clicks.setdefault(number, []).append(click)
        place = bisect_left(state, number, key=lambda prompted_slice: prompted_slice.number)
        if place < len(state) and state[place].number == number:
            changed = self._prompted_slice(number, state[place].slice_range)
            return [*state[:place], changed, *state[place + 1 :]]
        slice_range = None if self._without_order(number) else self._range_with(number, state, place)
        return [*state[:place], self._prompted_slice(number, slice_range), *state[place:]]

    def _prompted_slice(self, number: int, slice_range: SliceRange | None) -> PromptedSlice:
        clicks = tuple(self._own_clicks.get(number, ()))
        prompts = SlicePrompts(number, clicks, self._prompts.scribbles.get(number))
        made = PromptedSlice(prompts, self._prompts.class_name, self._initial_mask(number), slice_range)
        _ = made.key  # computed in the order of clicks: the keys of hundreds of slices would recurse too deep
        return made

    def _without_order(self, number: int) -> bool:
        """Whether a slice has scribbles or a mask of the request, which count as made before all clicks."""
        return number in self._prompts.scribbles or self._initial_mask(number) is not None

    def _initial_mask(self, number: int) -> Patch | None:
        """The mask of the request on a slice; None if the request has none or an empty one there."""
        if number not in self._initial_masks:
            mask = self._prompts.initial_masks.get(number)
            previous = self._prompts.previous_mask
            if mask is None and previous is not None and previous.on(number).any():
                mask = previous.on(number)
            self._initial_masks[number] = None if mask is None else Patch.of(mask)
        return self._initial_masks[number]

    def _range_with(self, number: int, state: list[PromptedSlice], place: int) -> SliceRange | None:
        """The slice range between prompted slices `place` - 1 and `place` of a state, if it holds a slice."""
        if not state:
            return None
        before = state[place - 1] if place else None
        found = self._range_between(before, state[place] if place < len(state) else None)
        return found if found is not None and found.first <= number <= found.last else None

    def _range_between(self, before: PromptedSlice | None, after: PromptedSlice | None) -> SliceRange | None:
        """The slice range between neighbouring prompted slices (None: an end of the volume) within the limits."""
        if self._limits is None:
            return None
        first, last = self._limits
        # Between two prompted slices every slice is computed, so that the result does not depend on the limits.
        start = first if before is None else before.number + 1
        stop = last if after is None else after.number - 1
        if max(start, first) > min(stop, last):
            return None
        return SliceRange(before, after, start, stop, self._rules, self._prompts.known_class)
