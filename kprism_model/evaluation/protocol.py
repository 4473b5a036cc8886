# SPDX-License-Identifier: Apache-2.0
"""The evaluation protocol: which modes are measured, on which cases, with which references and clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kprism_model.data.datasets import SPLITS, Dataset
from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.evaluation.instances import INSTANCES_PER_IMAGE, InstanceSampling, instance_classes
from kprism_model.evaluation.reference_pool import RETRIEVAL_CANDIDATES
from kprism_model.interaction.click_sessions import CLICKS_SHOWN

MODES = ("semantic", "in_context", "interactive", "chained")

PROTOCOLS = ("instances", "first")
"""Structures of many instances are clicked one instance at a time, or, as at first, all of a class together."""


@dataclass(frozen=True)
class Protocol:
    """What is measured and how.

    `max_slices` limits a data set to whole cases in an order drawn by `seed`, as long as they fit, at least one.
    In-context figures use `draws` sets of max(`references`) references; smaller counts use the first of each set. The
    same numbers of references are also retrieved. "chained" clicks start from a semantic, or an in-context, mask.
    Clicks are predicted in windows (`kprism_model.windowed`) unless `window` is false. `name` is one of `PROTOCOLS`.
    ValueError for an unknown mode, split or name, or bad counts.
    """

    modes: Sequence[str] = MODES
    split: str = "test"
    seed: int = 0
    references: Sequence[int] = (1, 5)
    draws: int = 5
    click_limit: int = 20
    max_slices: int | None = None
    name: str = PROTOCOLS[0]
    window: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot be measured."""
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise ValueError(f"unknown modes {unknown}; expected one or more of {', '.join(MODES)}")
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; expected one of {', '.join(SPLITS)}")
        if self.name not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.name!r}; expected one of {', '.join(PROTOCOLS)}")
        if not self.references or min(self.references) < 1 or self.draws < 1:
            counts = f"{list(self.references)} and {self.draws}"
            raise ValueError(f"reference counts and draws must be at least 1, got {counts}")
        if self.click_limit < CLICKS_SHOWN[-1]:
            raise ValueError(f"click_limit must be at least {CLICKS_SHOWN[-1]}, got {self.click_limit}")
        if self.max_slices is not None and self.max_slices < 1:
            raise ValueError(f"max_slices must be at least 1, got {self.max_slices}")

    @property
    def uses_references(self) -> bool:
        """Whether a mode needs references."""
        return "in_context" in self.modes or "chained" in self.modes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as a report states it."""
        instances = {"instances_per_image": INSTANCES_PER_IMAGE, "minimum_pixels": MINIMUM_PIXELS}
        return {
            "protocol": self.name,
            "split": self.split,
            "seed": self.seed,
            "modes": " ".join(self.modes),
            "references": " ".join(map(str, self.references)),
            "draws": self.draws,
            "retrieval_candidates": RETRIEVAL_CANDIDATES,
            "click_limit": self.click_limit,
            "max_slices": self.max_slices,
            **(instances if self.name == "instances" else {}),
            "window": self.window,
        }

    def instance_sampling(self, dataset: Dataset) -> InstanceSampling | None:
        """Which structures of a data set are clicked one instance at a time; None for the first protocol."""
        return InstanceSampling(tuple(instance_classes(dataset)), self.seed) if self.name == "instances" else None
