# SPDX-License-Identifier: Apache-2.0
"""One data set measured in all modes, some whole cases at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.datasets import Case, Dataset, load_case, load_scribble
from kprism_model.evaluation.instances import InstanceSampling
from kprism_model.evaluation.protocol import (
    CLICKS_ONLY,
    ScoreAccumulator,
    Slice,
    Target,
    measure_click_sessions,
    measure_masks,
    measure_presence,
    targets_of,
)
from kprism_model.evaluation.reference_pool import ReferenceDraws, RetrievedReferences
from kprism_model.interaction.click_sessions import ClickSession, run_click_sessions
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, predict_batch
from kprism_model.queries import Query
from kprism_model.store import ByteStore
from kprism_model.windowed import predict_batch_in_windows

OTHER_KINDS = "other kinds"
"""Stands for all classes that cannot be in the images of a data set."""

_BLOCK = 48  # slices that are encoded, and then asked about, together
_WINDOWS_KEPT = 256 << 20  # bytes of encoded windows
_ENCODED_TOGETHER = 8  # more in one pass of the encoder cost memory and save no time on a CPU


@dataclass(frozen=True)
class EvaluationReferences:
    """References for one data set: sets drawn by seed, and those to retrieve; empty where none are measured."""

    drawn: ReferenceDraws = field(default_factory=dict)
    retrieved: RetrievedReferences | None = None


class DatasetEvaluation:
    """Measures one data set, block by block; `accumulator` holds the scores.

    `modes` are some of "semantic", "in_context", "interactive" and "chained"; `limit` clicks at most on each object,
    answered in windows if `window` says so. `foreign` are classes of the network that cannot be in these images.
    `instances` says what is clicked one instance at a time; None is the first protocol, which clicks on all of a class
    together and has "claimed" of `foreign` alone in the place of the figures of presence.
    """

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        modes: Sequence[str],
        knowledge: EvaluationReferences,
        limit: int,
        foreign: Sequence[str] = (),
        instances: InstanceSampling | None = None,
        *,
        window: bool = True,
    ) -> None:
        worst = ["semantic", *(f"in_context_{max(knowledge.drawn)}" for _ in knowledge.drawn), CLICKS_ONLY]
        one_by_one = () if instances is None else [dataset.classes[index] for index in instances.indices]
        self.accumulator = ScoreAccumulator(dataset.name, worst, one_by_one)
        self._predictor = predictor
        self._classes = dataset.classes
        self._modes = modes
        self._knowledge = knowledge
        self._limit = limit
        self._foreign = foreign
        self._instances = instances
        self._window = window
        self._known = known_classes(predictor, dataset)

    def measure(self, parts: Sequence[Slice]) -> None:
        """Measure all modes on the slices of some whole cases."""
        if "semantic" in self._modes or "chained" in self._modes:
            self._semantic(targets_of(parts, self._known))
        if "semantic" in self._modes and self._foreign:
            self._foreign_classes(parts)
        for count, draws in self._knowledge.drawn.items():
            for draw, by_class in enumerate(draws):
                self._drawn(targets_of(parts, {i: self._classes[i] for i in by_class}), count, draw)
        if self._knowledge.retrieved is not None and "in_context" in self._modes:
            for count in self._knowledge.drawn:
                self._retrieved(targets_of(parts, self._classes), count, self._knowledge.retrieved)
        if "interactive" in self._modes:
            self._interactive([target for target in targets_of(parts, self._classes) if target.present])

    def _semantic(self, targets: Sequence[Target]) -> None:
        queries = [Query(target.part.embedding, class_name=target.class_name) for target in targets]
        predictions = self._first_masks(targets, queries)
        if "semantic" in self._modes:
            measure_masks(self.accumulator, "semantic", targets, predictions, distances=True)
            if self._instances is not None:
                measure_presence(self.accumulator, "semantic", targets, predictions)
        if "chained" in self._modes:
            self._refine("semantic+interactive", targets, queries, predictions)

    def _foreign_classes(self, parts: Sequence[Slice]) -> None:
        """How often a class that cannot be in an image is painted there or, by the first protocol, claimed to be."""
        queries = [Query(part.embedding, class_name=name) for part in parts for name in self._foreign]
        for answer in predict_batch(self._predictor, queries, minimum_presence=THRESHOLD):
            if self._instances is None:
                self.accumulator.add(OTHER_KINDS, "semantic", "claimed", float(answer.presence >= THRESHOLD))
            else:
                self.accumulator.add(
                    OTHER_KINDS, "semantic", "false_positive_rate", float(answer.mask_if_present.any())
                )

    def _drawn(self, targets: Sequence[Target], count: int, draw: int) -> None:
        """One draw of references; clicks follow the first draw of the largest count."""
        chained = "chained" in self._modes and draw == 0 and count == max(self._knowledge.drawn)
        if not chained and "in_context" not in self._modes:
            return
        by_class = self._knowledge.drawn[count][draw]
        queries = [Query(target.part.embedding, references=by_class[target.index]) for target in targets]
        predictions = self._first_masks(targets, queries)
        if "in_context" in self._modes:
            measure_masks(self.accumulator, f"in_context_{count}", targets, predictions, draw=draw)
        if chained:
            self._refine(f"in_context_{count}+interactive", targets, queries, predictions)

    def _retrieved(self, targets: Sequence[Target], count: int, retrieved: RetrievedReferences) -> None:
        asked: list[Target] = []
        queries: list[Query] = []
        for target in targets:
            part = target.part
            references = retrieved.find(part.embedding, target.index, count, part.patient)
            if references is not None:
                asked.append(target)
                queries.append(Query(part.embedding, references=references))
        measure_masks(self.accumulator, f"retrieved_{count}", asked, self._first_masks(asked, queries))

    def _first_masks(self, targets: Sequence[Target], queries: Sequence[Query]) -> list[Prediction]:
        """Answers without clicks.

        A mask that is predicted to be absent matters only where the structure is present, so elsewhere the decoder
        may stop at the coarsest scale.
        """
        answers: dict[int, Prediction] = {}
        for present, minimum in ((True, None), (False, THRESHOLD)):
            rows = [row for row, target in enumerate(targets) if target.present == present]
            found = predict_batch(self._predictor, [queries[row] for row in rows], minimum_presence=minimum)
            answers.update(zip(rows, found, strict=True))
        return [answers[row] for row in range(len(targets))]

    def _refine(
        self, mode: str, targets: Sequence[Target], queries: Sequence[Query], predictions: Sequence[Prediction]
    ) -> None:
        """Clicks after first masks, where the structure is present.

        A first mask holds all instances of a class, and a click adds a missed one to it or takes a wrong one away: the
        object is the class, also where clicks alone go to one instance.
        """
        rows = [row for row, target in enumerate(targets) if target.present]
        self._annotate(
            mode,
            [targets[row] for row in rows],
            [ClickSession(queries[row], targets[row].mask, predictions[row]) for row in rows],
        )

    def _interactive(self, targets: Sequence[Target]) -> None:
        clicked = targets if self._instances is None else self._instances.clicked(targets)
        sessions = [ClickSession(Query(target.part.embedding), target.mask, None) for target in clicked]
        self._annotate(CLICKS_ONLY, clicked, sessions)
        self._scribbled(targets)

    def _scribbled(self, targets: Sequence[Target]) -> None:
        """Clicks after the mask that a human's scribbles give, where the data set holds such scribbles."""
        drawn = [(target, human_scribbles(target, self._classes)) for target in targets]
        asked = [(target, scribbles) for target, scribbles in drawn if scribbles is not None]
        queries = [Query(target.part.embedding, scribbles=scribbles) for target, scribbles in asked]
        answers = predict_batch(self._predictor, queries)
        sessions = [ClickSession(q, target.mask, a) for q, (target, _), a in zip(queries, asked, answers, strict=True)]
        self._annotate("scribble+interactive", [target for target, _ in asked], sessions)

    def _annotate(self, mode: str, targets: Sequence[Target], sessions: Sequence[ClickSession]) -> None:
        answer = partial(predict_batch, self._predictor)
        if self._window:
            images = {id(target.part.embedding): target.part.image for target in targets}
            answer = partial(predict_batch_in_windows, self._predictor, images, ByteStore(_WINDOWS_KEPT))
        run_click_sessions(answer, sessions, self._limit)
        measure_click_sessions(self.accumulator, mode, targets, sessions, self._limit)


def known_classes(predictor: Predictor, dataset: Dataset) -> Mapping[int, str]:
    """The data set's classes that the network has been trained for, by label index."""
    return {index: name for index, name in dataset.classes.items() if name in predictor.registry}


def human_scribbles(target: Target, classes: Collection[int]) -> NDArray[np.int8] | None:
    """The case's scribbles as a prompt: of the class positive, of any other class or the background negative.

    None where nobody drew the class; values that are no label (ACDC's "unlabelled") say nothing.
    """
    drawn = target.part.scribble
    if drawn is None or not (drawn == target.index).any():
        return None
    prompt = np.where(np.isin(drawn, [0, *classes]), -1, 0).astype(np.int8)
    prompt[drawn == target.index] = 1
    return prompt


def encoded_blocks(predictor: Predictor, dataset: Dataset, cases: Iterable[Case]) -> Iterator[list[Slice]]:
    """The slices of whole cases, encoded, some `_BLOCK` at a time."""
    block: list[Slice] = []
    for case in cases:
        block += _slices(predictor, dataset, case)
        if len(block) >= _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _slices(predictor: Predictor, dataset: Dataset, case: Case) -> list[Slice]:
    loaded = load_case(dataset, case)
    assert loaded.labels is not None  # only labelled cases are measured
    scribbles = None if case.scribble is None else load_scribble(case)
    images = list(loaded.images)
    embeddings = [
        embedding
        for start in range(0, len(images), _ENCODED_TOGETHER)
        for embedding in predictor.embed(images[start : start + _ENCODED_TOGETHER])
    ]
    return [
        Slice(
            case.name,
            case.patient,
            number,
            image,
            loaded.labels[number],
            loaded.spacing,
            None if scribbles is None else scribbles[number],
            embedding,
        )
        for number, (image, embedding) in enumerate(zip(images, embeddings, strict=True))
    ]
