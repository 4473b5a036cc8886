# SPDX-License-Identifier: Apache-2.0
"""Which case to label next; both viewers ask for `random` unless told otherwise.

A strategy answers None when every case is labelled. Those that go by scores take what has been computed by now, and a
random case as long as nothing has.
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

EMPTY = "every case has a submitted label; there is no next one"
"""What is said when there is nothing left to label."""

RESERVED = 600.0
"""Seconds for which a case that was given out is given to nobody else, as long as there are others."""

CURRENT = "current"
"""Key of a request for the case that is open in the viewer: it comes next only if there is no other."""

Rank = Callable[[Mapping[str, Scores], set[str]], dict[str, float]]
"""From scores of all images and the ids of unlabelled ones to a figure for those; the highest comes next."""


def by_uncertainty(scores: Mapping[str, Scores], pool: set[str]) -> dict[str, float]:
    """Entropy of the semantic answer, compared with what is usual for each structure."""
    ranks = calibrated({image: found.uncertainty for image, found in scores.items()})
    return {image: rank for image, rank in ranks.items() if image in pool}


def by_disagreement(scores: Mapping[str, Scores], pool: set[str]) -> dict[str, float]:
    """How far the semantic and the in-context answer differ, compared with what is usual for each structure."""
    ranks = calibrated({image: found.disagreement for image, found in scores.items()})
    return {image: rank for image, rank in ranks.items() if image in pool}


def by_distance(scores: Mapping[str, Scores], pool: set[str]) -> dict[str, float]:
    """Distance from the nearest labelled image."""
    known = [found.embedding for image, found in scores.items() if image not in pool]
    return distances({image: found.embedding for image, found in scores.items() if image in pool}, known)


class RandomCase(Strategy):  # type: ignore[misc]
    """A case without a submitted label, drawn at random; one that was given out lately is less likely."""

    def __init__(self) -> None:
        super().__init__("A random case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        images = others(request, unlabelled(request, datastore))
        if not images:
            return None
        now = time.time()
        ages = [now - given_out(datastore, image) for image in images]
        return {"id": random.choices(images, [max(age, 1.0) for age in ages])[0]}


class FirstCase(Strategy):  # type: ignore[misc]
    """The first case without a submitted label, in the order of ids."""

    def __init__(self) -> None:
        super().__init__("The first case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        images = others(request, unlabelled(request, datastore))
        return {"id": images[0]} if images else None


class ScoredCase(Strategy):  # type: ignore[misc]
    """The case without a submitted label that ranks highest; one that was given out lately waits."""

    def __init__(self, description: str, board: ScoreBoard, rank: Rank) -> None:
        super().__init__(description)
        self._board, self._rank, self._otherwise = board, rank, RandomCase()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id, "weight": its rank}, or None if every case is labelled."""
        images = unlabelled(request, datastore)
        ranks = self._rank(self._board.scores(), set(images))
        if not ranks:
            if images:
                logger.info("No case has a score yet; a random one is taken")
            return self._otherwise(request, datastore)
        now = time.time()
        ranked = others(request, list(ranks))
        free = [image for image in ranked if now - given_out(datastore, image) > RESERVED] or ranked
        best = max(sorted(free), key=lambda image: ranks[image])
        return {"id": best, "weight": round(ranks[best], 4)}


def make_strategies(board: ScoreBoard, best: str = "random") -> dict[str, Strategy]:
    """All strategies by name; `best` names the one that is meant by `random`, the only name that OHIF asks for.

    ValueError for a name that is none.
    """
    strategies: dict[str, Strategy] = {
        "random": RandomCase(),
        "first": FirstCase(),
        "uncertainty": ScoredCase("The case of which the network is least sure", board, by_uncertainty),
        "disagreement": ScoredCase(
            "The case where trained classes and labelled cases contradict each other most", board, by_disagreement
        ),
        "diverse": ScoredCase("The case that is least like any labelled one", board, by_distance),
    }
    if best not in strategies:
        raise ValueError(f"strategy {best!r} is unknown; expected one of {', '.join(strategies)}")
    return {**strategies, "random": strategies[best]}


def unlabelled(request: Mapping[str, Any], datastore: Datastore) -> list[str]:
    """Ids of the images without a submitted label, sorted."""
    return sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))


def others(request: Mapping[str, Any], images: list[str]) -> list[str]:
    """The images but the one that is open already (`CURRENT`), unless it is the only one."""
    return [image for image in images if image != request.get(CURRENT)] or images


def given_out(datastore: Datastore, image: str) -> float:
    """When a strategy last chose a case, in seconds since 1970; 0 if none ever did."""
    chosen = datastore.get_image_info(image).get("strategy")
    entries = chosen.values() if isinstance(chosen, Mapping) else ()
    return max((stored_at(entry) for entry in entries if isinstance(entry, Mapping)), default=0.0)
