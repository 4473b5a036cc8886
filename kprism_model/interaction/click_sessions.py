# SPDX-License-Identifier: Apache-2.0
"""Simulated click sessions: clicks on the largest error until the mask is right, for many images at a time."""

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

NOC_THRESHOLDS = (0.85, 0.90)
"""The Dice values for which the number of clicks (NoC) is reported."""

PredictQueries = Callable[[Sequence[Query]], Sequence[Prediction]]
"""A network: predictions for queries, in order, each in the pixels of its image."""


@dataclass(eq=False)
class ClickSession:
    """One object that the simulated user segments: the query so far, the true mask, the last prediction if any.

    `initial_dice` is the Dice of the mask before the first click, None if there was no mask. `scores` are the Dice
    values after each click, `shown` is the mask after the last of `CLICKS_SHOWN`.
    """

    query: Query
    true: NDArray[np.bool_]
    prediction: Prediction | None
    initial_dice: float | None = None
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Score the initial mask."""
        self.shown = np.zeros_like(self.true) if self.prediction is None else self.prediction.mask
        self.initial_dice = None if self.prediction is None else dice(self.prediction.mask, self.true)

    def after(self, clicks: int) -> float:
        """Dice after `clicks` clicks; a session that ended earlier keeps its last score."""
        return [self.initial_dice or 0.0, *self.scores[:clicks]][-1]

    def clicks_to(self, threshold: float, limit: int) -> int:
        """NoC: 0 if the initial mask reaches the threshold, `limit` if no mask does."""
        if self.initial_dice is not None and self.initial_dice >= threshold:
            return 0
        return clicks_to_reach(self.scores, threshold, limit)

    def reached(self, threshold: float) -> bool:
        """Whether any mask reached the threshold."""
        return max(self.initial_dice or 0.0, *self.scores, 0.0) >= threshold

    @property
    def finished(self) -> bool:
        """Whether more clicks can change none of the reported figures."""
        return len(self.scores) >= CLICKS_SHOWN[-1] and self.reached(NOC_THRESHOLDS[-1])

    def click(self) -> bool:
        """Add the next click to the query; false if the mask is already right."""
        mask = np.zeros_like(self.true) if self.prediction is None else self.prediction.mask
        click = next_click(mask, self.true)
        if click is not None:
            previous_mask = None if self.prediction is None else self.prediction.probability
            self.query = self.query.with_click(Click(*click), previous_mask)
        return click is not None

    def accept(self, prediction: Prediction) -> None:
        """Record the prediction for the last click."""
        self.prediction = prediction
        self.scores.append(dice(prediction.mask, self.true))
        if len(self.scores) <= CLICKS_SHOWN[-1]:
            self.shown = prediction.mask


def run_click_sessions(
    predict: PredictQueries, sessions: Sequence[ClickSession], limit: int, *, batch_size: int = 16
) -> None:
    """Click in every session until its mask is right, no figure can change, or `limit` clicks are made.

    `predict` is the network; it gets `batch_size` queries at once. A session that ends is replaced by the next one, so
    that no pass is spent on the last few difficult ones alone. Images with the same canvas size follow each other,
    because only they can share a pass.
    """
    waiting = deque(sorted(sessions, key=lambda session: session.query.embedding.geometry.padded))
    active: list[ClickSession] = []
    while waiting or active:
        while waiting and len(active) < batch_size:
            active.append(waiting.popleft())
        active = [session for session in active if session.click()]
        predictions = predict([session.query for session in active])
        for session, prediction in zip(active, predictions, strict=True):
            session.accept(prediction)
        active = [session for session in active if not session.finished and len(session.scores) < limit]
