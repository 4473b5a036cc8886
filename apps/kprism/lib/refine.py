# SPDX-License-Identifier: Apache-2.0
"""Clicks on one slice, replayed as the network was trained: each click corrects the mask of those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
from numpy.typing import NDArray

from kprism_model.predictor import Click
from lib.engine import Engine, Network
from lib.errors import RequestError
from lib.images import MedicalImage
from lib.report import Report

REPLAYED = 8
"""Clicks that are replayed one by one; those beyond are given together, in one pass more."""

MAX_CLICKS = 256
"""Clicks of one label on one slice."""

Probability = NDArray[np.float32]
Half = NDArray[np.float16]
"""Probabilities are kept in half the memory; fresh ones are rounded in the same way, so that both are equal."""

Pixel = tuple[int, int]
"""(row, column) in a slice."""


@dataclass(frozen=True)
class SliceClicks:
    """Clicks of one label on one slice."""

    positive: tuple[Pixel, ...]
    negative: tuple[Pixel, ...]

    def in_turn(self) -> tuple[Click, ...]:
        """Positive and negative clicks by turns, as one corrects a mask; clients do not send their true order."""
        pairs = zip_longest(
            (Click(float(row), float(column), True) for row, column in self.positive),
            (Click(float(row), float(column), False) for row, column in self.negative),
        )
        return tuple(click for click in chain.from_iterable(pairs) if click is not None)


def refine(
    engine: Engine,
    network: Network,
    image: MedicalImage,
    number: int,
    clicks: SliceClicks,
    before: NDArray[np.bool_],
    class_name: str | None,
    report: Report,
) -> Probability:
    """Probability (row, column) of the clicked object in slice `number`, refining the mask `before` (may be empty).

    The result depends on the arguments only; steps that an earlier request has taken are not computed again.
    """
    turn = clicks.in_turn()
    if len(turn) > MAX_CLICKS:
        raise RequestError(f"slice {number} has {len(turn)} clicks of one label; expected at most {MAX_CLICKS}")
    [embedding] = engine.embed(network, image, [number], report)
    start = (network.version, image.digest, number, class_name, np.packbits(before).tobytes())
    previous: Probability | None = before.astype(np.float32) if before.any() else None
    for count in _steps(len(turn)):

        def step(given: Sequence[Click] = turn[:count], corrected: Probability | None = previous) -> Half:
            report.decoder_passes += 1
            prediction = engine.run(
                "decode",
                report,
                network.predictor.predict,
                class_name=class_name,
                clicks=given,
                previous_mask=corrected,
                embedding=embedding,
            )
            return prediction.probability.astype(np.float16)

        kept = engine.cached(("refined", start, turn[:count]), step, lambda probability: probability.nbytes)
        previous = kept.astype(np.float32)
    assert previous is not None  # there is at least one click
    return previous


def _steps(clicks: int) -> list[int]:
    """How many clicks are given in each pass."""
    return [*range(1, min(clicks, REPLAYED) + 1), *([clicks] if clicks > REPLAYED else [])]
