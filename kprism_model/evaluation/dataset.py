# SPDX-License-Identifier: Apache-2.0
"""The evaluation of one data set in all modes, some whole cases at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.datasets import Case, Dataset, load_case, load_scribble
from kprism_model.evaluation.instances import InstanceSampling
from kprism_model.evaluation.reference_pool import ReferenceDraws, RetrievedReferences
from kprism_model.evaluation.scores import (
    CLICKS_ONLY,
    ScoreAccumulator,
    Slice,
    Target,
    measure_click_sessions,
    measure_masks,
    measure_presence,
    targets_of,
)
from kprism_model.interaction.click_sessions import ClickSession, run_click_sessions
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, predict_batch
from kprism_model.queries import Query
from kprism_model.store import ByteStore
from kprism_model.windowed import predict_batch_in_windows

OTHER_KINDS = "other kinds"
"""The class name of figures over all classes that cannot be in the images of a data set."""

_SLICES_PER_BLOCK = 48  # encoded first, then used for all modes
_WINDOW_STORE_BYTES = 256 << 20
_ENCODER_BATCH = 8  # more images in one pass of the encoder cost memory and save no time on a CPU


@dataclass(frozen=True)
class EvaluationReferences:
    """References for one data set: sets drawn by seed, and candidates to retrieve; empty if they are not measured."""

    drawn: ReferenceDraws = field(default_factory=dict)
    retrieved: RetrievedReferences | None = None


class DatasetEvaluation:
    """Measures one data set, block by block; `accumulator` holds the scores.

    `modes` are some of "semantic", "in_context", "interactive" and "chained". An object gets at most `limit` clicks,
    predicted in windows if `window` is true. `foreign` are classes of the network that cannot be in these images.
    `instances` says what is clicked one instance at a time. None is the first protocol: all of a class is clicked
    together, and there are no detection figures, only false positives on the absent structures `foreign` (the figure
    "claimed").
    """

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        modes: Sequence[str],
        references: EvaluationReferences,
        limit: int,
        foreign: Sequence[str] = (),
        instances: InstanceSampling | None = None,
        *,
        window: bool = True,
    ) -> None:
        worst = ["semantic", *(f"in_context_{max(references.drawn)}" for _ in references.drawn), CLICKS_ONLY]
        one_by_one = () if instances is None else [dataset.classes[index] for index in instances.indices]
        self.accumulator = ScoreAccumulator(dataset.name, worst, one_by_one)
        self._predictor = predictor
        self._classes = dataset.classes
        self._modes = modes
        self._references = references
        self._limit = limit
        self._foreign = foreign
        self._instances = instances
        self._window = window
        self._known = known_classes(predictor, dataset)

    def measure(self, slices: Sequence[Slice]) -> None:
        """Measure all modes on the slices of some whole cases."""
        if "semantic" in self._modes or "chained" in self._modes:
            self._semantic(targets_of(slices, self._known))
        if "semantic" in self._modes and self._foreign:
            self._foreign_classes(slices)
        for count, draws in self._references.drawn.items():
            for draw, by_class in enumerate(draws):
                self._drawn(targets_of(slices, {i: self._classes[i] for i in by_class}), count, draw)
        if self._references.retrieved is not None and "in_context" in self._modes:
            for count in self._references.drawn:
                self._retrieved(targets_of(slices, self._classes), count, self._references.retrieved)
        if "interactive" in self._modes:
            self._interactive([target for target in targets_of(slices, self._classes) if target.present])

    def _semantic(self, targets: Sequence[Target]) -> None:
        queries = [Query(target.image_slice.embedding, class_name=target.class_name) for target in targets]
        predictions = self._initial_masks(targets, queries)
        if "semantic" in self._modes:
            measure_masks(self.accumulator, "semantic", targets, predictions, distances=True)
            if self._instances is not None:
                measure_presence(self.accumulator, "semantic", targets, predictions)
        if "chained" in self._modes:
            self._refine("semantic+interactive", targets, queries, predictions)

    def _foreign_classes(self, slices: Sequence[Slice]) -> None:
        """False positives on classes that cannot be in the images: masks or, by the first protocol, presence."""
        queries = [Query(image_slice.embedding, class_name=name) for image_slice in slices for name in self._foreign]
        for answer in predict_batch(self._predictor, queries, minimum_presence=THRESHOLD):
            if self._instances is None:
                self.accumulator.add(OTHER_KINDS, "semantic", "claimed", float(answer.presence >= THRESHOLD))
            else:
                self.accumulator.add(
                    OTHER_KINDS, "semantic", "false_positive_rate", float(answer.mask_if_present.any())
                )

    def _drawn(self, targets: Sequence[Target], count: int, draw: int) -> None:
        """One draw of references; chained clicks start from the first draw of the largest count."""
        chained = "chained" in self._modes and draw == 0 and count == max(self._references.drawn)
        if not chained and "in_context" not in self._modes:
            return
        by_class = self._references.drawn[count][draw]
        queries = [Query(target.image_slice.embedding, references=by_class[target.index]) for target in targets]
        predictions = self._initial_masks(targets, queries)
        if "in_context" in self._modes:
            measure_masks(self.accumulator, f"in_context_{count}", targets, predictions, draw=draw)
        if chained:
            self._refine(f"in_context_{count}+interactive", targets, queries, predictions)

    def _retrieved(self, targets: Sequence[Target], count: int, retrieved: RetrievedReferences) -> None:
        with_references: list[Target] = []
        queries: list[Query] = []
        for target in targets:
            image_slice = target.image_slice
            references = retrieved.find(image_slice.embedding, target.index, count, image_slice.patient)
            if references is not None:
                with_references.append(target)
                queries.append(Query(image_slice.embedding, references=references))
        predictions = self._initial_masks(with_references, queries)
        measure_masks(self.accumulator, f"retrieved_{count}", with_references, predictions)

    def _initial_masks(self, targets: Sequence[Target], queries: Sequence[Query]) -> list[Prediction]:
        """Predictions without clicks.

        The mask of a structure that is predicted as absent matters only if the structure is present. Otherwise the
        decoder may stop at the coarsest scale.
        """
        predictions: dict[int, Prediction] = {}
        for present, minimum in ((True, None), (False, THRESHOLD)):
            rows = [row for row, target in enumerate(targets) if target.present == present]
            of_rows = predict_batch(self._predictor, [queries[row] for row in rows], minimum_presence=minimum)
            predictions.update(zip(rows, of_rows, strict=True))
        return [predictions[row] for row in range(len(targets))]

    def _refine(
        self, mode: str, targets: Sequence[Target], queries: Sequence[Query], predictions: Sequence[Prediction]
    ) -> None:
        """Clicks after initial masks, if the structure is present.

        An initial mask holds all instances of a class, and a click adds a missed one or removes a wrong one. So the
        object is the whole class, even if clicks alone go to one instance.
        """
        rows = [row for row, target in enumerate(targets) if target.present]
        self._run_sessions(
            mode,
            [targets[row] for row in rows],
            [ClickSession(queries[row], targets[row].mask, predictions[row]) for row in rows],
        )

    def _interactive(self, targets: Sequence[Target]) -> None:
        clicked = targets if self._instances is None else self._instances.clicked(targets)
        sessions = [ClickSession(Query(target.image_slice.embedding), target.mask, None) for target in clicked]
        self._run_sessions(CLICKS_ONLY, clicked, sessions)
        self._scribbled(targets)

    def _scribbled(self, targets: Sequence[Target]) -> None:
        """Clicks after the mask from a person's scribbles, if the data set has such scribbles."""
        drawn = [(target, human_scribbles(target, self._classes)) for target in targets]
        scribbled = [(target, scribbles) for target, scribbles in drawn if scribbles is not None]
        queries = [Query(target.image_slice.embedding, scribbles=scribbles) for target, scribbles in scribbled]
        predictions = predict_batch(self._predictor, queries)
        clicked = [target for target, _ in scribbled]
        sessions = [
            ClickSession(query, target.mask, prediction)
            for query, target, prediction in zip(queries, clicked, predictions, strict=True)
        ]
        self._run_sessions("scribble+interactive", clicked, sessions)

    def _run_sessions(self, mode: str, targets: Sequence[Target], sessions: Sequence[ClickSession]) -> None:
        predict = partial(predict_batch, self._predictor)
        if self._window:
            images = {id(target.image_slice.embedding): target.image_slice.image for target in targets}
            predict = partial(predict_batch_in_windows, self._predictor, images, ByteStore(_WINDOW_STORE_BYTES))
        run_click_sessions(predict, sessions, self._limit)
        measure_click_sessions(self.accumulator, mode, targets, sessions, self._limit)


def known_classes(predictor: Predictor, dataset: Dataset) -> Mapping[int, str]:
    """The data set's classes that the network has been trained for, by label index."""
    return {index: name for index, name in dataset.classes.items() if name in predictor.registry}


def human_scribbles(target: Target, classes: Collection[int]) -> NDArray[np.int8] | None:
    """The case's scribbles as a prompt: positive for the class, negative for any other class and the background.

    None if nobody drew the class. Values that are not a label (ACDC's "unlabelled") are ignored.
    """
    drawn = target.image_slice.scribble
    if drawn is None or not (drawn == target.index).any():
        return None
    prompt = np.where(np.isin(drawn, [0, *classes]), -1, 0).astype(np.int8)
    prompt[drawn == target.index] = 1
    return prompt


def encoded_blocks(predictor: Predictor, dataset: Dataset, cases: Iterable[Case]) -> Iterator[list[Slice]]:
    """The encoded slices of whole cases, about `_SLICES_PER_BLOCK` at a time."""
    block: list[Slice] = []
    for case in cases:
        block += _slices(predictor, dataset, case)
        if len(block) >= _SLICES_PER_BLOCK:
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
        for start in range(0, len(images), _ENCODER_BATCH)
        for embedding in predictor.embed(images[start : start + _ENCODER_BATCH])
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
