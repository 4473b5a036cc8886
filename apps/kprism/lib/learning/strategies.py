# SPDX-License-Identifier: Apache-2.0
"""Which case to label next; both viewers ask for `random` by default.

A strategy answers None if every case is labelled. Strategies that use scores rank the cases that have one so far, and
choose a random case as long as none has.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.datastore import stored_at
from lib.learning.scores import ScoreBoard, Scores, calibrated, distances

logger = logging.getLogger(__name__)

NO_CASE_LEFT = "every case has a submitted label; there is no next one"
"""The message if no case is left."""

RESERVATION_SECONDS = 600.0
"""Seconds for which a case that was assigned is not assigned again, as long as there are others."""

CURRENT_IMAGE = "current"
"""Key of a request for the case that is open in the viewer; it is chosen only if there is no other."""

Rank = Callable[[Mapping[str, Scores], set[str]], dict[str, float]]
"""Scores of all images, and the ids of unlabelled ones -> a rank of each of these; the highest comes first."""


def by_uncertainty(scores: Mapping[str, Scores], pool: set[str]) -> dict[str, float]:
    """Entropy of the semantic prediction, relative to the structure's mean."""
    ranks = calibrated({image: entry.uncertainty for image, entry in scores.items()})
    return {image: rank for image, rank in ranks.items() if image in pool}


def by_disagreement(scores: Mapping[str, Scores], pool: set[str]) -> dict[str, float]:
    """Difference between the semantic and the in-context prediction, relative to the structure's mean."""
    ranks = calibrated({image: entry.disagreement for image, entry in scores.items()})
    return {image: rank for image, rank in ranks.items() if image in pool}


def by_distance(scores: Mapping[str, Scores], pool: set[str]) -> dict[str, float]:
    """Distance from the nearest labelled image."""
    known = [entry.embedding for image, entry in scores.items() if image not in pool]
    return distances({image: entry.embedding for image, entry in scores.items() if image in pool}, known)


class RandomCase(Strategy):  # type: ignore[misc]
    """A case without a submitted label, drawn at random; a case that was assigned lately is less likely."""

    def __init__(self) -> None:
        super().__init__("A random case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        images = without_current(request, unlabelled(request, datastore))
        if not images:
            return None
        now = time.time()
        ages = [now - last_assigned(datastore, image) for image in images]
        return {"id": random.choices(images, [max(age, 1.0) for age in ages])[0]}


class FirstCase(Strategy):  # type: ignore[misc]
    """The first case without a submitted label, in the order of ids."""

    def __init__(self) -> None:
        super().__init__("The first case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        images = without_current(request, unlabelled(request, datastore))
        return {"id": images[0]} if images else None


class ScoredCase(Strategy):  # type: ignore[misc]
    """The case without a submitted label that ranks highest; a case that was assigned lately comes later."""

    def __init__(self, description: str, score_board: ScoreBoard, rank: Rank) -> None:
        super().__init__(description)
        self._score_board, self._rank, self._fallback = score_board, rank, RandomCase()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id, "weight": its rank}, or None if every case is labelled."""
        images = unlabelled(request, datastore)
        ranks = self._rank(self._score_board.scores(), set(images))
        if not ranks:
            if images:
                logger.info("No case has a score yet; a random case is chosen")
            return self._fallback(request, datastore)
        now = time.time()
        ranked = without_current(request, list(ranks))
        free = [image for image in ranked if now - last_assigned(datastore, image) > RESERVATION_SECONDS] or ranked
        best = max(sorted(free), key=lambda image: ranks[image])
        return {"id": best, "weight": round(ranks[best], 4)}


def make_strategies(score_board: ScoreBoard, best: str = "random") -> dict[str, Strategy]:
    """All strategies by name; `best` names the one behind the name `random`, the only one that OHIF asks for.

    ValueError if there is no such strategy.
    """
    strategies: dict[str, Strategy] = {
        "random": RandomCase(),
        "first": FirstCase(),
        "uncertainty": ScoredCase("The case that the network is least sure of", score_board, by_uncertainty),
        "disagreement": ScoredCase(
            "The case where trained classes and labelled cases disagree most", score_board, by_disagreement
        ),
        "diverse": ScoredCase("The case that is least like any labelled one", score_board, by_distance),
    }
    if best not in strategies:
        raise ValueError(f"strategy {best!r} is unknown; expected one of {', '.join(strategies)}")
    return {**strategies, "random": strategies[best]}


def unlabelled(request: Mapping[str, Any], datastore: Datastore) -> list[str]:
    """Ids of the images without a submitted label, sorted."""
    return sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))


def without_current(request: Mapping[str, Any], images: list[str]) -> list[str]:
    """The images without the one that is open already (`CURRENT_IMAGE`), unless it is the only one."""
    return [image for image in images if image != request.get(CURRENT_IMAGE)] or images


def last_assigned(datastore: Datastore, image: str) -> float:
    """When a strategy last chose a case, in seconds since 1970; 0 if none has."""
    chosen = datastore.get_image_info(image).get("strategy")
    entries = chosen.values() if isinstance(chosen, Mapping) else ()
    return max((stored_at(entry) for entry in entries if isinstance(entry, Mapping)), default=0.0)
