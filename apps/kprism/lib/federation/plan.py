# SPDX-License-Identifier: Apache-2.0
"""What the sites of a federation agree on before they train: structures, rounds, and how each one trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from kprism_model.classes import ClassRegistry


class FederationError(ValueError):
    """A federation that cannot begin or has failed; the message names the site, the value and what was expected."""


@dataclass(frozen=True)
class FederationPlan:
    """A site trains `steps` (or, if they are None, `minutes`) in each of `rounds`.

    `structures` are the agreed names. `base` is the hash of the shipped weights, which all sites must have. `fold`: no
    site trains on its patients of this fold; None: every patient is trained on. FederationError for other values.
    """

    structures: tuple[str, ...]
    rounds: int
    base: str
    steps: int | None = None
    minutes: float = 1.5
    fold: int | None = None
    batch_size: int = 2
    learning_rate: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no site could train."""
        object.__setattr__(self, "structures", _structures(self.structures))
        if self.rounds < 1:
            raise FederationError(f"rounds: expected a number from 1, got {self.rounds}")
        if self.steps is not None and self.steps < 1:
            raise FederationError(f"steps of a round: expected a number from 1, got {self.steps}")
        if self.steps is None and not 0 < self.minutes <= 1440:
            raise FederationError(f"minutes of a round: expected more than 0 and at most 1440, got {self.minutes}")
        if not 2 <= self.batch_size <= 256:
            raise FederationError(f"batch size: expected a number from 2 to 256, got {self.batch_size}")
        if not 0 < self.learning_rate <= 1:
            raise FederationError(f"learning rate: expected more than 0 and at most 1, got {self.learning_rate}")

    @property
    def budget(self) -> str:
        """How long a site trains in a round, in words."""
        return f"{self.minutes:g} minutes" if self.steps is None else f"{self.steps} steps"

    def without_fold(self, fold: int | None) -> FederationPlan:
        """The same plan with another fold that no site trains on."""
        return replace(self, fold=fold)

    def encoded(self) -> str:
        """The plan as one word, JSON with percent signs, in which it travels with FLARE's job."""
        return quote(json.dumps(asdict(self), ensure_ascii=False), safe="")

    @classmethod
    def decoded(cls, word: str) -> FederationPlan:
        """From `encoded`; FederationError if it is no plan."""
        try:
            content: dict[str, Any] = json.loads(unquote(word))
            return cls(**{**content, "structures": tuple(content["structures"])})
        except FederationError:
            raise
        except (ValueError, TypeError, LookupError) as error:
            raise FederationError(f"{word!r} is no plan of a federation: {error!r}") from error


def _structures(names: Sequence[str]) -> tuple[str, ...]:
    """The names as they are written; the order does not matter, because rows of the network travel by name."""
    try:
        registry = ClassRegistry(names)
    except ValueError as error:
        raise FederationError(f"structures: {error}") from error
    if not len(registry):
        raise FederationError("structures: expected one or more names that all sites agree on, got none")
    return registry.names
