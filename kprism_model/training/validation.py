# SPDX-License-Identifier: Apache-2.0
"""Dice of a network on a few annotated cases, in the modes that users have: fast enough to run before publishing.

It is deterministic: the same weights on the same cases give the same figures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.partial import AnnotatedCase
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.network.references import References
from kprism_model.predictor import Click, ImageEmbedding, Prediction, Predictor, Query, predict_batch
from kprism_model.preprocess import evenly_spaced

SERVING_MODES = ("semantic", "in_context", "interactive")
"""The modes that users have: a class, references, clicks."""

Masks = dict[int, NDArray[np.bool_]]
"""Predicted or true masks (row, column) by slice number."""


@dataclass(frozen=True)
class ValidationSettings:
    """Limits: slices of a case that show a structure and that do not, clicked slices, clicks in each, references."""

    shown: int = 6
    absent: int = 2
    clicked: int = 3
    clicks: int = 3
    references: int = 3


class Score(NamedTuple):
    """Dice of one structure of one case in one mode; `slice` and `prediction` are those of the worst slice."""

    mode: str
    structure: str
    case: str
    dice: float
    slice: int
    prediction: NDArray[np.bool_]


def validate(
    predictor: Predictor,
    cases: Sequence[AnnotatedCase],
    training: Sequence[AnnotatedCase] = (),
    *,
    modes: Collection[str] = SERVING_MODES,
    settings: ValidationSettings | None = None,
) -> list[Score]:
    """Score `cases` in `modes`, case by case; references come from `training` cases of other patients.

    The Dice of semantic and in-context masks is that of several slices together, some without the structure; a class
    that the weights do not know scores 0. The Dice of clicked masks is the mean over slices and clicks: a mask that
    is right after one click is worth more than one that needs three. A structure that no training case shows has no
    in-context score.
    """
    settings = settings or ValidationSettings()
    scores: list[Score] = []
    for case in cases:
        slices_of = {name: chosen_slices(case, name, settings) for name in case.structures}
        numbers = sorted({number for chosen in slices_of.values() for number in chosen})
        embedded = predictor.embed([case.picture(number) for number in numbers])
        embeddings = dict(zip(numbers, embedded, strict=True))
        for name, chosen in slices_of.items():
            part = _Part(predictor, case, name, {number: embeddings[number] for number in chosen}, settings)
            scores.extend(part.scores(modes, training))
    return scores


def mean_dice(scores: Sequence[Score]) -> dict[tuple[str, str], float]:
    """(mode, structure) -> mean Dice over the cases that were annotated for it."""
    by_kind: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        by_kind.setdefault((score.mode, score.structure), []).append(score.dice)
    return {kind: float(np.mean(values)) for kind, values in by_kind.items()}


def chosen_slices(case: AnnotatedCase, structure: str, settings: ValidationSettings) -> list[int]:
    """Slices of a case spread evenly over those that show a structure, and over those that do not."""
    shown = case.shown(structure)
    absent = np.setdiff1d(np.arange(len(case.labels)), shown)
    return sorted([*evenly_spaced(shown, settings.shown), *evenly_spaced(absent, settings.absent)])


@dataclass(frozen=True)
class _Part:
    """One structure in the chosen slices of one case."""

    predictor: Predictor
    case: AnnotatedCase
    structure: str
    embeddings: dict[int, ImageEmbedding]
    settings: ValidationSettings

    def scores(self, modes: Collection[str], training: Sequence[AnnotatedCase]) -> Iterator[Score]:
        """A score for each of `modes` that is possible for the structure."""
        if "semantic" in modes:
            known = self.structure in self.predictor.registry
            yield self._slices_score("semantic", self._predict(class_name=self.structure) if known else self._empty())
        if "in_context" in modes:
            references = self._references(training)
            if references is not None:
                yield self._slices_score("in_context", self._predict(references=references))
        if "interactive" in modes and len(self._shown()):
            yield self._clicks_score()

    def _truth(self) -> Masks:
        mask = self.case.mask(self.structure)
        return {number: mask[number] for number in self.embeddings}

    def _shown(self) -> list[int]:
        return [number for number, mask in self._truth().items() if mask.any()]

    def _empty(self) -> Masks:
        return {number: np.zeros_like(mask) for number, mask in self._truth().items()}

    def _predict(self, class_name: str | None = None, references: References | None = None) -> Masks:
        queries = [Query(embedding, class_name, references) for embedding in self.embeddings.values()]
        answers = predict_batch(self.predictor, queries)
        return {number: answer.mask_if_present for number, answer in zip(self.embeddings, answers, strict=True)}

    def _references(self, training: Sequence[AnnotatedCase]) -> References | None:
        """The middle slice of some cases, spread over those of other patients that show the structure."""
        usable = [
            case
            for case in training
            if case.patient != self.case.patient
            and self.structure in case.structures
            and len(case.shown(self.structure))
        ]
        chosen = [usable[number] for number in evenly_spaced(np.arange(len(usable)), self.settings.references)]
        if not chosen:
            return None
        numbers = [int(case.shown(self.structure)[len(case.shown(self.structure)) // 2]) for case in chosen]
        return self.predictor.embed_references(
            [case.picture(number) for case, number in zip(chosen, numbers, strict=True)],
            [case.mask(self.structure)[number] for case, number in zip(chosen, numbers, strict=True)],
        )

    def _slices_score(self, mode: str, predicted: Masks) -> Score:
        truth = self._truth()
        numbers = list(truth)
        whole = dice(np.stack([predicted[n] for n in numbers]), np.stack([truth[n] for n in numbers]))
        errors = {number: int(np.count_nonzero(predicted[number] ^ truth[number])) for number in numbers}
        worst = max(numbers, key=lambda number: errors[number])
        return Score(mode, self.structure, self.case.name, whole, worst, predicted[worst])

    def _clicks_score(self) -> Score:
        """The mean Dice after each click of the simulated user, in all slices at the same time."""
        truth = self._truth()
        numbers = evenly_spaced(np.array(self._shown()), self.settings.clicked)
        masks = {number: np.zeros_like(truth[number]) for number in numbers}
        queries = {number: Query(self.embeddings[number]) for number in numbers}
        answers: dict[int, Prediction] = {}
        means = []
        for _ in range(self.settings.clicks):
            open_ = [number for number in numbers if (masks[number] != truth[number]).any()]
            for number in open_:
                click = next_click(masks[number], truth[number])
                assert click is not None  # the masks differ
                before = answers[number].probability if number in answers else None
                queries[number] = queries[number].with_click(Click(*click), before)
            answers.update(zip(open_, predict_batch(self.predictor, [queries[n] for n in open_]), strict=True))
            masks.update({number: answers[number].mask for number in open_})
            scores = {number: dice(masks[number], truth[number]) for number in numbers}
            means.append(float(np.mean(list(scores.values()))))
        worst = min(numbers, key=lambda number: scores[number])
        return Score("interactive", self.structure, self.case.name, float(np.mean(means)), worst, masks[worst])
