# SPDX-License-Identifier: Apache-2.0
"""Which case to label next; both viewers ask for `random` by default.

A strategy answers None if every case is labelled. None goes by what the network thinks of the cases: three that did
were measured, and needed no fewer labels than chance (`docs/learning-measured.md`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.datastore import GuardedDatastore, stored_at

NO_CASE_LEFT = "every case has a submitted label; there is no next one"
"""The message if no case is left, but some were."""

CURRENT_IMAGE = "current"
"""Key of a request for the case that is open in the viewer; it is chosen only if there is no other."""

_DRAWS = 50
"""Images that are drawn before all of them are asked when they were assigned."""


class RandomCase(Strategy):  # type: ignore[misc]
    """A case without a submitted label, drawn at random; a case that was assigned lately is less likely."""

    def __init__(self) -> None:
        super().__init__("A random case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        return _chosen(request, datastore, lambda images: _drawn(images, lambda image: last_assigned(datastore, image)))


def _drawn(images: Sequence[str], assigned: Callable[[str], float]) -> str:
    """One of the images; the chance of each is in proportion to the time since it was `assigned` (seconds since 1970).

    A few images are drawn with equal chances, and one that was assigned lately is put back. That has the same chances,
    and asks about a few of the images and not about all, unless nearly all were assigned lately.
    """
    now = time.time()

    def age(image: str) -> float:
        return min(max(now - assigned(image), 1.0), now)

    for _ in range(_DRAWS):
        image = random.choice(images)
        if random.random() * now < age(image):
            return image
    return random.choices(images, [age(image) for image in images])[0]


class FirstCase(Strategy):  # type: ignore[misc]
    """The first case without a submitted label, in the order of ids."""

    def __init__(self) -> None:
        super().__init__("The first case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        return _chosen(request, datastore, lambda images: images[0])


def _chosen(
    request: Mapping[str, Any], datastore: Datastore, choose: Callable[[list[str]], str]
) -> dict[str, Any] | None:
    """A case that can be segmented; those that cannot are left out as they are chosen."""
    images = unlabelled(request, datastore)
    while images:
        image = choose(without_current(request, images))
        if not isinstance(datastore, GuardedDatastore) or datastore.can_be_served(image):
            return {"id": image}
        images.remove(image)
    return None


def why_none(datastore: Datastore) -> str:
    """Why no strategy chooses a case."""
    missing = datastore.nothing_to_serve() if isinstance(datastore, GuardedDatastore) else None
    return missing or NO_CASE_LEFT


def make_strategies(chosen: str = "random") -> dict[str, Strategy]:
    """All strategies by name; `chosen` names the one behind the name `random`, the only one that OHIF asks for.

    ValueError if there is no such strategy.
    """
    strategies: dict[str, Strategy] = {"random": RandomCase(), "first": FirstCase()}
    if chosen not in strategies:
        raise ValueError(f"--conf strategy {chosen}: expected one of {', '.join(strategies)}")
    return {**strategies, "random": strategies[chosen]}


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
