# SPDX-License-Identifier: Apache-2.0
"""Propagation of a structure through a volume from its prompted slices, by the network's own in-context mode.

A slice is predicted from references (a space-time memory, arXiv 2106.05210) and from a previous mask, as the network
was trained to do it step by step (`kprism_model.training.propagation_step`). It is seen in a window around the
previous mask, at a resolution at which the structure can be seen; the window moves along, and becomes wider while the
mask touches its sides. Propagation never changes prompted slices.

- From one prompted slice to an end of the volume: slice by slice. The reference is the prompted slice (long memory),
  which is adapted to its volume before (`adaptation`). The previous mask is that of the slice before. The outline may
  move by at most `slope` slice distances, and only components that touch the mask before are kept. It stops before the
  first slice where the structure is absent, or where the prompted slice alone does not support the mask. The latter is
  asked every few millimetres, and on each slice where the answer is no. A limit of the request does not change a mask:
  the slices up to the next question are predicted, too.
- Between two prompted slices: slice by slice from each of them to the middle. Both are references. The previous mask is
  the mean of the mask of the slice before and of the shape interpolated between the prompted masks. That shape is the
  result where the prediction is empty. A prompted slice with an empty mask is an end: propagation from the other side
  stops there.

If the structure is a class that the network knows, the prediction of that class joins in, as far as it agrees with the
prompted slices (`class_prior`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.predictor import THRESHOLD
from kprism_model.queries import join_references
from kprism_model.volumes.class_prior import ClassPrior
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompt_history import PromptedSlice, SliceRange
from kprism_model.volumes.propagation_rules import PropagationRules
from kprism_model.volumes.propagation_sources import PropagationSource, SourceReferences, box_of
from kprism_model.volumes.refinement import refine
from kprism_model.volumes.shapes import confine, interpolate_masks
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery, search_step
from kprism_model.window import Box, Window

Progress = Callable[[int], object]

FIRST_LOOK = 3
"""Slices that are shown before the prompted slice is adapted."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class PropagatedSlices:
    """Masks by slice, and the confidence of each; slices without the structure are left out."""

    patches: dict[int, Patch]
    confidence: dict[int, float]

    def add(self, number: int, patch: Patch) -> None:
        """Add the mask of a slice, with its mean probability as confidence; an empty mask is left out."""
        if patch.any:
            self.patches[number] = patch
            self.confidence[number] = float(patch.values[patch.values >= THRESHOLD].mean(dtype=np.float64))

    def within(self, slices: range) -> PropagatedSlices:
        """Those of `slices`."""
        patches = {number: patch for number, patch in self.patches.items() if number in slices}
        return PropagatedSlices(patches, {number: self.confidence[number] for number in patches})


@dataclass(frozen=True, eq=False)
class _OpenMask:
    """The mask of a slice, and the window in which it was predicted; its support is not known yet."""

    number: int
    patch: Patch
    window: Window


class Propagator:
    """Computes the masks of prompted slices and slice ranges of one volume, for one request.

    `spacing` is the distance in mm between slices, rows and columns. Results stay here until the request ends, even if
    the store drops them: prompted slices may start from masks that start from other masks. `on_mask` is called with
    each slice that a mask was propagated to, and the mask (row, column).
    """

    def __init__(
        self,
        features: SliceFeatures,
        spacing: tuple[float, float, float],
        rules: PropagationRules,
        progress: Progress | None = None,
    ) -> None:
        self._features = features
        self._rules = rules
        self._support_step = search_step(spacing[0])
        self._reach = 1 + rules.slope * spacing[0] / min(spacing[1:])
        self._progress = progress or (lambda slices: None)
        self.on_mask: Callable[[int, NDArray[np.bool_]], object] | None = None
        self._results: dict[tuple[str, str], Any] = {}
        self._sources = SourceReferences(features, rules, self._cached, lambda: self._progress(0))

    def mask(self, prompted_slice: PromptedSlice) -> Patch:
        """The mask of a prompted slice; empty if it has neither an initial mask nor a positive prompt."""
        return self._cached("mask", prompted_slice.key, lambda: self._mask(prompted_slice))

    def propagate(self, slice_range: SliceRange) -> PropagatedSlices:
        """The masks of a slice range."""
        return self._cached("propagated", slice_range.key, lambda: self._propagate(slice_range))

    def _cached(self, kind: str, key: str, compute: Callable[[], T]) -> T:
        if (kind, key) not in self._results:
            self._results[kind, key] = self._features.cached(kind, key, compute)
        result: T = self._results[kind, key]
        return result

    def _report(self, number: int, patch: Patch, is_wanted: bool = True) -> None:
        """Tell of a mask that was propagated to a slice."""
        if self.on_mask is not None and is_wanted and patch.any:
            self.on_mask(number, patch.mask())
        self._progress(int(is_wanted))

    def _mask(self, prompted_slice: PromptedSlice) -> Patch:
        initial_mask = prompted_slice.initial_mask
        if initial_mask is None and prompted_slice.slice_range is not None:
            initial_mask = self.propagate(prompted_slice.slice_range).patches.get(prompted_slice.number)
        if not prompted_slice.prompts.any:
            return initial_mask or Patch.empty(self._features.size)
        if initial_mask is None and not prompted_slice.prompts.positive:
            return Patch.empty(self._features.size)
        return refine(
            self._features,
            prompted_slice.prompts,
            prompted_slice.class_name,
            initial_mask,
            prompted_slice.initial_key,
        )

    def _propagate(self, slice_range: SliceRange) -> PropagatedSlices:
        before, after = (self._source(prompted_slice) for prompted_slice in (slice_range.before, slice_range.after))
        prior = self._prior(slice_range.known_class, [source for source in (before, after) if source is not None])
        slices = range(slice_range.first, slice_range.last + 1)
        if before is not None and after is not None:
            return self._between(before, after, slices, prior)
        if before is not None:
            past = 0 if slice_range.after is not None else -(slice_range.last - before.number) % self._support_step
            ahead = range(slice_range.first, min(slice_range.last + past + 1, len(self._features)))
            return self._outwards(before, ahead, prior, slices)
        if after is not None:
            past = 0 if slice_range.before is not None else -(after.number - slice_range.first) % self._support_step
            ahead = range(max(slice_range.first - past, 0), slice_range.last + 1)
            return self._outwards(after, ahead[::-1], prior, slices)
        return PropagatedSlices({}, {})

    def _source(self, prompted_slice: PromptedSlice | None) -> PropagationSource | None:
        """The slice as a source of propagation; None if its mask is empty."""
        if prompted_slice is None:
            return None
        return PropagationSource.of(prompted_slice.number, self.mask(prompted_slice))

    def _prior(self, known_class: str | None, sources: Sequence[PropagationSource]) -> ClassPrior | None:
        """The class of the structure, as far as it agrees with the sources; None if it has no say."""
        if known_class is None or not sources or not self._rules.class_share:
            return None
        masks = [(source.number, source.mask.mask()) for source in sources]
        prior = ClassPrior.of(self._features, known_class, masks, self._rules.class_share)
        return prior if prior.share else None

    def _between(
        self, one: PropagationSource, other: PropagationSource, slices: range, prior: ClassPrior | None
    ) -> PropagatedSlices:
        """Predict the slices between two prompted ones, from each of them to the middle."""
        shares = (np.array(slices) - one.number) / (other.number - one.number)
        shapes = interpolate_masks(one.mask.mask(), other.mask.mask(), shares)
        middle = (len(slices) + 1) // 2
        propagated = PropagatedSlices({}, {})
        for near, rows in ((one, range(middle)), (other, range(len(slices) - 1, middle - 1, -1))):
            last = near.mask
            for row in rows:
                last = self._next_between(slices[row], (one, other), last, shapes[row], prior)
                propagated.add(slices[row], last)
                self._report(slices[row], last)
        return propagated

    def _next_between(
        self,
        number: int,
        prompted: tuple[PropagationSource, PropagationSource],
        last: Patch,
        shape: NDArray[np.float32],
        prior: ClassPrior | None,
    ) -> Patch:
        """The mask of a slice, from the mask `last` of the slice before and the interpolated `shape` (row, column)."""
        box = box_of(shape > 0).joined(Box.around(last.mask()))
        window = self._sources.window(box)
        query = SliceQuery(
            number,
            references=join_references([self._sources.encode(source, window.longest) for source in prompted]),
            previous_mask=(last.probability() + shape) / 2,
            window=window,
        )
        [prediction] = self._features.predict([query])
        if prior is not None:
            prediction = prior.joined(number, prediction)
        patch = Patch.of(confine(prediction.probability, shape > 0, self._reach))
        return patch if patch.any else Patch.of(shape)

    def _outwards(
        self, source: PropagationSource, slices: range, prior: ClassPrior | None, wanted: range
    ) -> PropagatedSlices:
        """Predict one slice after another until the structure ends; the result holds the slices `wanted` of `slices`.

        Whether the prompted slice supports a mask is asked on every `_support_step`-th slice and on the last one. If it
        does not there, the slices since the last question are asked one by one, and the first without support ends the
        structure.
        """
        self._first_look(source, [number for number in slices[:FIRST_LOOK] if number in wanted])
        propagated, last = PropagatedSlices({}, {}), source.mask
        open_masks: list[_OpenMask] = []
        for number in slices:
            last, window = self._next(number, source, last, prior)
            self._report(number, last, number in wanted)
            if not last.any:
                break
            open_masks.append(_OpenMask(number, last, window))
            if (number - source.number) % self._support_step == 0:
                supported, open_masks = self._close(open_masks, source, propagated), []
                if not supported:
                    break
        if open_masks:
            self._close(open_masks, source, propagated)
        return propagated.within(wanted)

    def _first_look(self, source: PropagationSource, slices: Sequence[int]) -> None:
        """Tell of the next masks as they are without adaptation, which takes a second. The result may differ."""
        if self.on_mask is None or self._sources.is_adapted(source):
            return
        last = source.mask
        for number in slices:
            last_mask = last.mask()
            window = self._sources.window(box_of(last_mask))
            references = self._sources.encode(source, window.longest)
            query = SliceQuery(number, references=references, previous_mask=last.probability(), window=window)
            [prediction] = self._features.predict([query], minimum_presence=self._rules.presence)
            last = Patch.of(confine(prediction.probability, last_mask, self._reach))
            if not last.any:
                return
            self.on_mask(number, last.mask())
            self._progress(0)

    def _close(self, masks: Sequence[_OpenMask], source: PropagationSource, propagated: PropagatedSlices) -> bool:
        """Add masks if `source` supports the last of them; else those before the first one that it does not support."""
        *before, last = masks
        supported = self._sources.is_supported(last.number, last.patch, source, last.window)
        for mask in masks if supported else before:
            if not supported and not self._sources.is_supported(mask.number, mask.patch, source, mask.window):
                break
            propagated.add(mask.number, mask.patch)
        return supported

    def _next(
        self, number: int, source: PropagationSource, last: Patch, prior: ClassPrior | None
    ) -> tuple[Patch, Window]:
        """The mask of a slice, from the prompted slice `source` and the mask `last` of the slice before.

        It comes with the window in which it was predicted, and is empty where the structure is absent.
        """
        last_mask = last.mask()
        last_box = box_of(last_mask)
        minimum = self._rules.presence if prior is None else None  # with a prior, the joined presence decides
        window = self._sources.window(last_box)
        while True:
            references = self._sources.adapted(source, window.longest)
            query = SliceQuery(number, references=references, previous_mask=last.probability(), window=window)
            [prediction] = self._features.predict([query], minimum_presence=minimum)
            if not window.cuts(window.crop(prediction.mask)):
                break
            window = self._sources.window(box_of(prediction.mask).joined(last_box), wider_than=window.longest)
        if prior is not None:
            prediction = prior.joined(number, prediction)
        patch = Patch.of(confine(prediction.probability, last_mask, self._reach))
        present = patch.any and prediction.presence >= self._rules.presence
        return patch if present else Patch.empty(self._features.size), window
