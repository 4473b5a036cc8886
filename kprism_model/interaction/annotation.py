# SPDX-License-Identifier: Apache-2.0
"""The simulated annotator at work: clicks on the largest error until the mask is right, many images at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import clicks_to_reach, dice
from kprism_model.predictor import Prediction
from kprism_model.queries import Click, Query

CLICKS_SHOWN = (1, 3, 5)
"""The numbers of clicks after which Dice is reported."""

Answer = Callable[[Sequence[Query]], Sequence[Prediction]]
"""A network that answers questions, each in the pixels of its image."""

NOC_THRESHOLDS = (0.85, 0.90)
"""The Dice values for which the number of clicks is reported."""


@dataclass(eq=False)
class Trace:
    """One object being annotated: the question so far, the true mask, the last answer (None before any).

    `first` is the Dice of the first mask if there was one before the first click, `scores` the Dice after each click,
    `shown` the mask after the last of `CLICKS_SHOWN`.
    """

    query: Query
    true: NDArray[np.bool_]
    answer: Prediction | None
    first: float | None = None
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Score the first mask."""
        self.shown = np.zeros_like(self.true) if self.answer is None else self.answer.mask
        self.first = None if self.answer is None else dice(self.answer.mask, self.true)

    def after(self, clicks: int) -> float:
        """Dice after so many clicks; a mask that needed fewer keeps its last score."""
        return [self.first or 0.0, *self.scores[:clicks]][-1]

    def clicks_to(self, threshold: float, limit: int) -> int:
        """NoC: 0 where the first mask is good enough already, `limit` where no mask is."""
        if self.first is not None and self.first >= threshold:
            return 0
        return clicks_to_reach(self.scores, threshold, limit)

    def reached(self, threshold: float) -> bool:
        """Whether any mask was good enough."""
        return max(self.first or 0.0, *self.scores, 0.0) >= threshold

    @property
    def finished(self) -> bool:
        """Whether more clicks could change any figure that is reported."""
        return len(self.scores) >= CLICKS_SHOWN[-1] and self.reached(NOC_THRESHOLDS[-1])

    def click(self) -> bool:
        """Put the next click into the question; false where the mask is already right."""
        mask = np.zeros_like(self.true) if self.answer is None else self.answer.mask
        click = next_click(mask, self.true)
        if click is not None:
            self.query = self.query.clicked(Click(*click), None if self.answer is None else self.answer.probability)
        return click is not None

    def accept(self, answer: Prediction) -> None:
        """Note the answer to the last click."""
        self.answer = answer
        self.scores.append(dice(answer.mask, self.true))
        if len(self.scores) <= CLICKS_SHOWN[-1]:
            self.shown = answer.mask


def annotate(answer: Answer, traces: Sequence[Trace], limit: int, *, together: int = 16) -> None:
    """Click on every trace until its mask is right, no figure can change, or `limit` clicks are made.

    `answer` is the network, asked `together` questions at once. A trace that ends makes room for the next, so that no
    pass is spent on the last few difficult ones. Images of one canvas size follow each other: only they share a pass.
    """
    waiting = deque(sorted(traces, key=lambda trace: trace.query.embedding.geometry.padded))
    active: list[Trace] = []
    while waiting or active:
        while waiting and len(active) < together:
            active.append(waiting.popleft())
        active = [trace for trace in active if trace.click()]
        answers = answer([trace.query for trace in active])
        for trace, prediction in zip(active, answers, strict=True):
            trace.accept(prediction)
        active = [trace for trace in active if not trace.finished and len(trace.scores) < limit]
