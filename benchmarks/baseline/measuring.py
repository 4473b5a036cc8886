# SPDX-License-Identifier: Apache-2.0
"""The baselines measured by K-Prism's own protocol: the same cases, references, clicks and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn
from tqdm import tqdm

from benchmarks.baseline.games import answer_classes, answer_clicks, answer_in_context, lay_out, lay_out_examples
from kprism_model.data.datasets import Case, Dataset, load_case
from kprism_model.evaluation.evaluate import choose_cases
from kprism_model.evaluation.protocol import Protocol
from kprism_model.evaluation.reference_pool import Picture, ReferencePool
from kprism_model.evaluation.report import DatasetResult
from kprism_model.evaluation.scores import (
    CLICKS_ONLY,
    ScoreAccumulator,
    Slice,
    measure_click_sessions,
    measure_masks,
    measure_presence,
    targets_of,
)
from kprism_model.interaction.click_sessions import ClickSession, run_click_sessions
from kprism_model.queries import Query


@dataclass(frozen=True)
class Baselines:
    """Trained networks, None where a game is not played; a specialist knows one data set. Sizes in pixels."""

    specialist: nn.Module | None
    clicks: nn.Module | None
    in_context: nn.Module | None
    size: int
    in_context_size: int


def measure(
    baselines: Baselines, dataset: Dataset, protocol: Protocol, *, trained: bool, progress: bool = True
) -> DatasetResult:
    """Measure the baselines on one data set's list; `trained` says whether they have seen its training list."""
    cases, sample = choose_cases(dataset, protocol)
    result = DatasetResult(dataset.name, sample, "all" if trained else "none")
    run = _Run(baselines, dataset, protocol, cases)
    for case in tqdm(cases, f"test {dataset.name}", disable=not progress):
        run.measure(list(_slices(dataset, case, baselines.size)))
    result.figures, result.curves = run.accumulator.figures(), run.accumulator.curves()
    result.worst = run.accumulator.worst_by_mode()
    return result


class _Run:
    def __init__(self, baselines: Baselines, dataset: Dataset, protocol: Protocol, cases: Sequence[Case]) -> None:
        self.accumulator = ScoreAccumulator(
            dataset.name, ("semantic", f"in_context_{max(protocol.references)}", CLICKS_ONLY)
        )
        self._baselines = baselines
        self._classes = dataset.classes
        self._protocol = protocol
        self._instances = protocol.instance_sampling(dataset)
        self._pictures: dict[tuple[int, int], list[Picture]] = {}
        if baselines.in_context is not None:
            pool = ReferencePool(dataset, {case.patient for case in cases})
            self._pictures = {
                (index, draw): pool.pictures(index, max(protocol.references), protocol.seed, draw)
                for index in dataset.classes
                for draw in range(protocol.draws)
            }

    def measure(self, slices: Sequence[Slice]) -> None:
        """Measure all games on the slices of one case."""
        if self._baselines.specialist is not None:
            self._semantic(slices, self._baselines.specialist)
        if self._baselines.in_context is not None:
            for (index, draw), pictures in self._pictures.items():
                self._in_context(slices, index, draw, pictures, self._baselines.in_context)
        if self._baselines.clicks is not None:
            self._interactive(slices, self._baselines.clicks)

    def _semantic(self, slices: Sequence[Slice], network: nn.Module) -> None:
        answers = answer_classes(network, [image_slice.embedding for image_slice in slices], len(self._classes))
        predictions = [one[number] for number in range(len(self._classes)) for one in answers]
        targets = targets_of(slices, self._classes)
        measure_masks(self.accumulator, "semantic", targets, predictions, distances=True)
        if self._instances is not None:
            measure_presence(self.accumulator, "semantic", targets, predictions)

    def _in_context(
        self, slices: Sequence[Slice], index: int, draw: int, pictures: Sequence[Picture], network: nn.Module
    ) -> None:
        targets = targets_of(slices, {index: self._classes[index]})
        for count in self._protocol.references:
            if len(pictures) >= count:
                examples = lay_out_examples(pictures[:count], self._baselines.in_context_size)
                answers = answer_in_context(network, [image_slice.image for image_slice in slices], examples)
                measure_masks(self.accumulator, f"in_context_{count}", targets, answers, draw=draw)

    def _interactive(self, slices: Sequence[Slice], network: nn.Module) -> None:
        targets = [target for target in targets_of(slices, self._classes) if target.present]
        if self._instances is not None:
            targets = self._instances.clicked(targets)
        sessions = [ClickSession(Query(target.image_slice.embedding), target.mask, None) for target in targets]
        run_click_sessions(partial(answer_clicks, network), sessions, self._protocol.click_limit)
        measure_click_sessions(self.accumulator, CLICKS_ONLY, targets, sessions, self._protocol.click_limit)


def _slices(dataset: Dataset, case: Case, size: int) -> Iterator[Slice]:
    loaded = load_case(dataset, case)
    assert loaded.labels is not None  # only labelled cases are chosen
    for number, (image, labels) in enumerate(zip(loaded.images, loaded.labels, strict=True)):
        yield Slice(case.name, case.patient, number, image, labels, loaded.spacing, None, lay_out(image, size))
