# SPDX-License-Identifier: Apache-2.0
"""How long a campaign goes on: a fixed number of rounds in the suite, or the minutes that somebody gives it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Budget:
    """`minutes` of a campaign, None for the short form; each round has a seed of its own, so it can be repeated alone.

    The first round has the number `first`.
    """

    minutes: float | None = None
    seed: int = 0
    first: int = 0

    def rounds(self, short: int) -> Iterator[tuple[int, np.random.Generator]]:
        """(number, random numbers) of each round: `short` rounds, or as many as begin within the minutes.

        There is at least one round. Its number is printed, so that pytest shows it with a failure.
        """
        end = time.monotonic() + 60 * (self.minutes or 0)
        for number in itertools.count(self.first):
            done = number - self.first
            if done and (done >= short if self.minutes is None else time.monotonic() >= end):
                return
            print(f"Round {number}; to repeat it: --seed {self.seed} --first {number}")
            yield number, np.random.default_rng((self.seed, number))
