# SPDX-License-Identifier: Apache-2.0
"""The measurement of one data set in all modes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.structures import StructureMap
from kprism_model.network.references import References
from kprism_model.predictor import Predictor, predict_batch
from kprism_model.published.evaluation.clicks import CLICK_LIMIT, CLICK_RULES, Counts, Refinement, refine
from kprism_model.published.evaluation.pair_counts import NO_MASK, ModeCounts, PairCounts
from kprism_model.published.evaluation.pairs import Pair
from kprism_model.published.evaluation.protocol import PublishedProtocol
from kprism_model.queries import Query

SEMANTIC, IN_CONTEXT, INTERACTIVE = "semantic", "in_context", "interactive"
AFTER_SEMANTIC, AFTER_IN_CONTEXT = "semantic+interactive", "in_context+interactive"
"""The measured modes: by class, with references, clicks alone, and clicks after a mask by class or with references."""

_MASK_MODES = (SEMANTIC, IN_CONTEXT)
_CLICK_MODES = (INTERACTIVE, AFTER_SEMANTIC, AFTER_IN_CONTEXT)


@dataclass
class _Rows:
    """Counts of a mode so far: the pair of each row, and the counts of its columns."""

    pair: list[int] = field(default_factory=list)
    counts: list[list[Counts]] = field(default_factory=list)

    def add(self, pair: int, counts: Sequence[Counts]) -> None:
        self.pair.append(pair)
        self.counts.append(list(counts))

    def to_mode(self, columns: int, *, clicks: bool) -> ModeCounts:
        counts = np.array(self.counts, dtype=np.int64).reshape(len(self.pair), columns, 2)
        return ModeCounts(clicks, np.array(self.pair, dtype=np.int64), counts[..., 0], counts[..., 1])


class SetMeasurement:
    """Measures one data set, block by block.

    `references` are those of each draw; clicks after an in-context mask start from the first one. `batch` queries share
    a pass of the decoder.
    """

    def __init__(
        self,
        predictor: Predictor,
        structures: StructureMap,
        protocol: PublishedProtocol,
        references: Sequence[Mapping[int, References]],
        batch: int,
    ) -> None:
        self._predict = partial(predict_batch, predictor, batch=batch)
        self._structures = structures
        self._known = {index for index, name in structures.classes.items() if name in predictor.registry}
        self._protocol = protocol
        self._references = references
        self._batch = batch
        self._pairs: list[tuple[str, int, int, int]] = []  # case, slice, label index, pixels
        self._rows = {mode: _Rows() for mode in (*_MASK_MODES, *_CLICK_MODES)}

    def measure(self, pairs: Sequence[Pair]) -> None:
        """Measure all modes on the pairs of some slices."""
        first = len(self._pairs)
        self._pairs += [(pair.case, pair.number, pair.index, pair.true) for pair in pairs]
        numbered = list(enumerate(pairs, start=first))
        modes = self._protocol.modes
        chained = "chained" in modes
        if "semantic" in modes or chained:
            known = [(row, pair) for row, pair in numbered if pair.index in self._known]
            self._masks(SEMANTIC, known, [self._by_name], AFTER_SEMANTIC if chained else None)
        if self._protocol.uses_references:
            shown = [(row, pair) for row, pair in numbered if all(pair.index in draw for draw in self._references)]
            ways = [partial(_by_references, draw) for draw in self._references]
            self._masks(IN_CONTEXT, shown, ways, AFTER_IN_CONTEXT if chained else None)
        if "interactive" in modes:
            self._clicks(INTERACTIVE, numbered, [Query(pair.embedding) for pair in pairs], [None] * len(pairs))

    def counts(self, cases: Sequence[str], *, volumes: bool) -> PairCounts:
        """The counts of everything that was measured; `cases` are the names of all measured cases."""
        wanted = {
            SEMANTIC: (1, False),
            IN_CONTEXT: (len(self._references), False),
            **dict.fromkeys(_CLICK_MODES, (CLICK_LIMIT + 1, True)),
        }
        of_case = {name: number for number, name in enumerate(cases)}
        of_index = {index: number for number, index in enumerate(self._structures.classes)}
        table = np.array(
            [(of_case[case], number, of_index[index], true) for case, number, index, true in self._pairs], np.int64
        ).reshape(-1, 4)
        return PairCounts(
            tuple(cases),
            tuple(self._structures.classes.values()),
            volumes,
            *(table[:, 0], table[:, 1], table[:, 2], table[:, 3]),
            {
                mode: self._rows[mode].to_mode(columns, clicks=clicks)
                for mode, (columns, clicks) in wanted.items()
                if self._rows[mode].pair
            },
        )

    def _by_name(self, pair: Pair) -> Query:
        return Query(pair.embedding, class_name=self._structures.classes[pair.index])

    def _masks(
        self,
        mode: str,
        numbered: Sequence[tuple[int, Pair]],
        ways: Sequence[Callable[[Pair], Query]],
        refined: str | None,
    ) -> None:
        """Masks of all `ways` to ask for a pair; those of the first way are then clicked as the mode `refined`."""
        counts: list[list[Counts]] = [[] for _ in numbered]
        for way in ways if mode in self._protocol.modes else ways[:1]:
            queries = [way(pair) for _, pair in numbered]
            predictions = self._predict(queries)
            for found, (_, pair), prediction in zip(counts, numbered, predictions, strict=True):
                found.append(pair.count(prediction.probability))
            if refined is not None and way is ways[0]:
                self._clicks(refined, numbered, queries, [one.probability for one in predictions])
        if mode in self._protocol.modes:
            for (row, _), found in zip(numbered, counts, strict=True):
                self._rows[mode].add(row, found)

    def _clicks(
        self,
        mode: str,
        numbered: Sequence[tuple[int, Pair]],
        queries: Sequence[Query],
        first: Sequence[NDArray[np.float32] | None],
    ) -> None:
        series = [
            Refinement(
                query,
                pair.target,
                probability,
                pair.count,
                pair.true,
                CLICK_RULES[self._protocol.clicks],
                np.random.default_rng([self._protocol.seed, *_place(mode, pair)]),
            )
            for (_, pair), query, probability in zip(numbered, queries, first, strict=True)
        ]
        refine(self._predict, series, self._batch)
        for (row, _), one in zip(numbered, series, strict=True):
            made = [(0, NO_MASK) if counts is None else counts for counts in one.counts]
            self._rows[mode].add(row, made + made[-1:] * (CLICK_LIMIT + 1 - len(made)))


def _by_references(draw: Mapping[int, References], pair: Pair) -> Query:
    return Query(pair.embedding, references=draw[pair.index])


def _place(mode: str, pair: Pair) -> tuple[int, ...]:
    """Numbers that seed what is drawn for a pair, whatever else is measured."""
    return zlib.crc32(f"{mode}/{pair.case}".encode()), pair.number, pair.index
