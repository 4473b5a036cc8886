# SPDX-License-Identifier: Apache-2.0
"""Propagation of a structure through a volume from its prompted slices, by the network's own in-context mode.

A prompted slice with its mask is a reference for the slices around it (a space-time memory, arXiv 2106.05210). Each
slice is predicted twice:

1. from references alone. This cannot drift, because it knows nothing of the slices between;
2. from references, the mask of the slice before as previous mask, and clicks in and around that mask, as the network
   was trained to propagate masks. This cannot jump to another place.

The two probabilities are averaged. The first gets more weight the better it reproduces the prompted slice's own mask,
which shows whether the network understands the structure at all. Propagation never changes prompted slices.

- From one prompted slice to an end of the volume: slice by slice. The outline may move by at most `slope` slice
  distances, and only components that touch the mask before are kept. It stops before the first slice where the
  structure is absent, or where the references support it much less than on the prompted slice.
- Between two prompted slices: each slice by itself. Both slices are references. The shape interpolated between their
  masks is the previous mask, and it is the result where the prediction is empty. A prompted slice with an empty mask is
  an end: propagation from the other side stops there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.metrics import dice
from kprism_model.network.prompts import COARSEST_ONLY
from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, Prediction
from kprism_model.queries import join_references
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompt_history import PromptedSlice, SliceRange
from kprism_model.volumes.refinement import refine
from kprism_model.volumes.shapes import confine, interpolate_masks, propagation_clicks
from kprism_model.volumes.slice_features import SLICES_PER_BATCH, SliceFeatures, SliceQuery

Progress = Callable[[int], object]

SLICES_AHEAD = 4
"""Slices that are predicted from references in one pass; more of them waste more passes beyond the structure's end."""

T = TypeVar("T")


@dataclass(frozen=True)
class PropagationRules:
    """The numbers that govern propagation.

    slope: how far an outline may move sideways from slice to slice, in distances between slices. recent: how many of
    the last slices join the prompted one as references. weight: of the prediction from references alone, at full trust.
    support: a structure ends where the mean probability from references alone, inside its mask, is below this share of
    the value on the prompted slice, at full trust. presence: a structure ends where its presence is less probable than
    this. Less trust reduces `weight` and `support` in proportion.
    """

    slope: float = 2.0
    recent: int = 0
    weight: float = 0.6
    support: float = 0.7
    presence: float = 0.1


@dataclass(frozen=True, eq=False)
class PropagationSource:
    """A prompted slice to propagate from: its mask, the slice as a reference, and how well that reference works.

    trust: 1 where a prediction from the reference reproduces the mask, 0 where their Dice is one half or less. support:
    mean probability of that prediction inside the mask.
    """

    number: int
    mask: Patch
    reference: References
    trust: float
    support: float


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


class Propagator:
    """Computes the masks of prompted slices and slice ranges of one volume, for one request.

    `spacing` is the distance in mm between slices, rows and columns. Results stay here until the request ends, even if
    the store drops them: prompted slices may start from masks that start from other masks.
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
        self._reach = 1 + rules.slope * spacing[0] / min(spacing[1:])
        self._progress = progress or (lambda slices: None)
        self._results: dict[tuple[str, str], Any] = {}

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
        slices = range(slice_range.first, slice_range.last + 1)
        if before is not None and after is not None:
            return self._between(before, after, slices)
        if before is not None:
            return self._outwards(before, slices)
        if after is not None:
            return self._outwards(after, slices[::-1])
        return PropagatedSlices({}, {})

    def _source(self, prompted_slice: PromptedSlice | None) -> PropagationSource | None:
        """The slice as a source of propagation; None if its mask is empty."""
        if prompted_slice is None or not (mask := self.mask(prompted_slice)).any:
            return None

        def encode() -> PropagationSource:
            pixels = mask.mask()
            reference = self._features.reference(prompted_slice.number, pixels)
            [prediction] = self._features.predict([SliceQuery(prompted_slice.number, references=reference)])
            support = float(prediction.probability[pixels].mean(dtype=np.float64))
            trust = max(0.0, 2 * dice(prediction.mask, pixels) - 1)
            return PropagationSource(prompted_slice.number, mask, reference, trust, support)

        return self._cached("source", prompted_slice.key, encode)

    def _between(self, one: PropagationSource, other: PropagationSource, slices: range) -> PropagatedSlices:
        """Predict the slices between two prompted ones, in batches."""
        shares = (np.array(slices) - one.number) / (other.number - one.number)
        shapes = interpolate_masks(one.mask.mask(), other.mask.mask(), shares)
        references = join_references([one.reference, other.reference])
        weight = self._rules.weight * (one.trust + other.trust) / 2
        propagated = PropagatedSlices({}, {})
        for start in range(0, len(slices), SLICES_PER_BATCH):
            rows = range(start, min(start + SLICES_PER_BATCH, len(slices)))
            from_references = self._features.predict([SliceQuery(slices[row], references=references) for row in rows])
            from_masks = self._features.predict(
                [_propagation_query(slices[row], references, shapes[row] > 0, shapes[row]) for row in rows]
            )
            for row, first, second in zip(rows, from_references, from_masks, strict=True):
                probability = (1 - weight) * second.probability + weight * first.probability
                patch = Patch.of(confine(probability, shapes[row] > 0, self._reach))
                propagated.add(slices[row], patch if patch.any else Patch.of(shapes[row]))
            self._progress(len(rows))
        return propagated

    def _outwards(self, source: PropagationSource, slices: range) -> PropagatedSlices:
        """Predict one slice after another until the structure ends."""
        rules, last, recent = self._rules, source.mask, list[References]()
        weight = rules.weight * source.trust
        minimum_support = rules.support * source.trust * source.support
        propagated = PropagatedSlices({}, {})
        stop_below = rules.presence if source.trust else COARSEST_ONLY  # without trust only the presence is used
        for start in range(0, len(slices), SLICES_AHEAD):
            numbers = slices[start : start + SLICES_AHEAD]
            queries = [SliceQuery(number, references=source.reference) for number in numbers]
            predictions = self._features.predict(queries, minimum_presence=stop_below)
            for number, from_references in zip(numbers, predictions, strict=True):
                references = join_references([source.reference, *recent])
                mask = last.mask()
                [from_mask] = self._features.predict([_propagation_query(number, references, mask, last.probability())])
                probability = (1 - weight) * from_mask.probability + weight * from_references.probability
                last = Patch.of(confine(probability, mask, self._reach))
                self._progress(1)
                absent = not last.any or from_references.presence < rules.presence
                if absent or _support(from_references, last) < minimum_support:
                    return propagated
                propagated.add(number, last)
                if rules.recent:
                    recent = [*recent, self._features.reference(number, last.mask())][-rules.recent :]
        return propagated


def _propagation_query(
    number: int, references: References, mask: NDArray[np.bool_], previous: NDArray[np.float32]
) -> SliceQuery:
    return SliceQuery(number, references=references, clicks=propagation_clicks(mask), previous_mask=previous)


def _support(prediction: Prediction, patch: Patch) -> float:
    """Mean probability of a prediction inside the mask of a patch."""
    return float(prediction.probability[patch.mask()].mean(dtype=np.float64))
