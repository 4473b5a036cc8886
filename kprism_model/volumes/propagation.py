# SPDX-License-Identifier: Apache-2.0
"""A structure followed through a volume from the slices that hold prompts, by the network's own in-context mode.

A prompted slice with its mask is a reference for the slices around it (a space-time memory, arXiv 2106.05210). Each
slice is asked for twice. First by references alone: this cannot drift, for it knows nothing of the slices between. Then
by references, the mask of the slice before as previous mask, and points in and around that mask as clicks, which is how
the network was trained to carry a mask on: this cannot jump elsewhere. The two probabilities are averaged, the first
with the more weight the better it finds the prompted slice's own mask, which tells whether the network understands the
structure at all. Prompted slices are never changed by what is followed.

- From one prompted slice to an end of the volume, slice by slice: the outline may move by no more than `slope` slice
  distances, and only what grows out of the mask before is kept. The walk ends before the first slice where the
  structure is not found, or where the references support it much less than on the prompted slice.
- Between two prompted slices each slice is answered on its own: both are references, and the shape between their masks
  is the previous mask, and the answer where the network finds nothing. A prompted slice with an empty mask is an end:
  what comes from the other side stops there.
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
from kprism_model.volumes.prompt_history import Anchor, SliceRange
from kprism_model.volumes.refinement import refine
from kprism_model.volumes.shapes import between, carried_clicks, confine
from kprism_model.volumes.slice_features import TOGETHER, Question, SliceFeatures

Progress = Callable[[int], object]

AHEAD = 4
"""Slices that a walk asks references about in one pass; the more, the more are asked in vain beyond the end."""

T = TypeVar("T")


@dataclass(frozen=True)
class PropagationRules:
    """The numbers by which structures are followed.

    slope: how far an outline may move sideways from slice to slice, in distances between slices. recent: how many of
    the last slices join the prompted one as references. weight: of what references alone say, where they are trusted
    wholly. support: a structure ends where the mean probability that references alone give to its mask is below this
    share of what they give to the prompted slice's mask, where they are trusted wholly. presence: a structure ends
    where the network finds its presence less probable. Less trust makes weight and support less in proportion.
    """

    slope: float = 2.0
    recent: int = 0
    weight: float = 0.6
    support: float = 0.7
    presence: float = 0.1


@dataclass(frozen=True, eq=False)
class Source:
    """A prompted slice to follow from: its mask, itself as a reference, and what this reference says of the slice.

    trust: from 0, where what it finds there has a Dice of one half or less with the mask, to 1, where it is the mask.
    support: mean probability that it gives to the mask.
    """

    number: int
    mask: Patch
    reference: References
    trust: float
    support: float


@dataclass(frozen=True, eq=False)
class Followed:
    """Masks by slice, and for each how sure the network is; slices that do not show the structure are left out."""

    patches: dict[int, Patch]
    confidence: dict[int, float]

    def add(self, number: int, patch: Patch) -> None:
        """Note the mask of a slice, with its mean probability as confidence; nothing where it is empty."""
        if patch.any:
            self.patches[number] = patch
            self.confidence[number] = float(patch.values[patch.values >= THRESHOLD].mean(dtype=np.float64))


class Propagator:
    """Computes masks of anchors and stretches of one volume, for one request.

    `spacing` is the distance in mm between slices, rows and columns. What the request needs again is held, whatever the
    store forgets: a prompted slice may start from masks that start from others.
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
        self._held: dict[tuple[str, str], Any] = {}

    def mask(self, anchor: Anchor) -> Patch:
        """The mask of a prompted slice; empty where nothing says where the structure is."""
        return self._keep("mask", anchor.key, lambda: self._mask(anchor))

    def follow(self, stretch: SliceRange) -> Followed:
        """The masks of a stretch."""
        return self._keep("followed", stretch.key, lambda: self._follow(stretch))

    def _keep(self, kind: str, key: str, compute: Callable[[], T]) -> T:
        if (kind, key) not in self._held:
            self._held[kind, key] = self._features.cached(kind, key, compute)
        held: T = self._held[kind, key]
        return held

    def _mask(self, anchor: Anchor) -> Patch:
        start = anchor.taken
        if start is None and anchor.stretch is not None:
            start = self.follow(anchor.stretch).patches.get(anchor.number)
        if not anchor.prompts.any:
            return start or Patch.empty(self._features.size)
        if start is None and not anchor.prompts.positive:
            return Patch.empty(self._features.size)
        return refine(self._features, anchor.prompts, anchor.class_name, start, anchor.start_key)

    def _follow(self, stretch: SliceRange) -> Followed:
        before, after = (self._source(anchor) for anchor in (stretch.before, stretch.after))
        slices = range(stretch.first, stretch.last + 1)
        if before is not None and after is not None:
            return self._between(before, after, slices)
        if before is not None:
            return self._walk(before, slices)
        if after is not None:
            return self._walk(after, slices[::-1])
        return Followed({}, {})

    def _source(self, anchor: Anchor | None) -> Source | None:
        """What to follow from; None where there is no mask."""
        if anchor is None or not (mask := self.mask(anchor)).any:
            return None

        def encode() -> Source:
            shown = mask.mask()
            reference = self._features.reference(anchor.number, shown)
            [answer] = self._features.answer([Question(anchor.number, references=reference)])
            support = float(answer.probability[shown].mean(dtype=np.float64))
            trust = max(0.0, 2 * dice(answer.mask, shown) - 1)
            return Source(anchor.number, mask, reference, trust, support)

        return self._keep("source", anchor.key, encode)

    def _between(self, one: Source, other: Source, slices: range) -> Followed:
        """Answer the slices between two prompted ones, in batches."""
        shares = (np.array(slices) - one.number) / (other.number - one.number)
        shapes = between(one.mask.mask(), other.mask.mask(), shares)
        references = join_references([one.reference, other.reference])
        weight = self._rules.weight * (one.trust + other.trust) / 2
        followed = Followed({}, {})
        for start in range(0, len(slices), TOGETHER):
            part = range(start, min(start + TOGETHER, len(slices)))
            numbers = [slices[row] for row in part]
            alone = self._features.answer([Question(number, references=references) for number in numbers])
            carried = self._features.answer(
                [_carried(slices[row], references, shapes[row] > 0, shapes[row]) for row in part]
            )
            for row, number, first, second in zip(part, numbers, alone, carried, strict=True):
                probability = (1 - weight) * second.probability + weight * first.probability
                found = Patch.of(confine(probability, shapes[row] > 0, self._reach))
                followed.add(number, found if found.any else Patch.of(shapes[row]))
            self._progress(len(part))
        return followed

    def _walk(self, source: Source, slices: range) -> Followed:
        """Follow one slice after another until the structure ends."""
        rules, last, recent = self._rules, source.mask, list[References]()
        weight = rules.weight * source.trust
        least = rules.support * source.trust * source.support
        followed = Followed({}, {})
        stop_below = rules.presence if source.trust else COARSEST_ONLY  # without trust only the presence matters
        for start in range(0, len(slices), AHEAD):
            numbers = slices[start : start + AHEAD]
            questions = [Question(number, references=source.reference) for number in numbers]
            answers = self._features.answer(questions, minimum_presence=stop_below)
            for number, alone in zip(numbers, answers, strict=True):
                references = join_references([source.reference, *recent])
                shown = last.mask()
                [carried] = self._features.answer([_carried(number, references, shown, last.probability())])
                probability = (1 - weight) * carried.probability + weight * alone.probability
                last = Patch.of(confine(probability, shown, self._reach))
                self._progress(1)
                if not last.any or alone.presence < rules.presence or _support(alone, last) < least:
                    return followed
                followed.add(number, last)
                if rules.recent:
                    recent = [*recent, self._features.reference(number, last.mask())][-rules.recent :]
        return followed


def _carried(number: int, references: References, mask: NDArray[np.bool_], previous: NDArray[np.float32]) -> Question:
    return Question(number, references=references, clicks=carried_clicks(mask), previous_mask=previous)


def _support(answer: Prediction, patch: Patch) -> float:
    """Mean probability of an answer in the mask of a patch."""
    return float(answer.probability[patch.mask()].mean(dtype=np.float64))
