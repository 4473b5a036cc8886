# SPDX-License-Identifier: Apache-2.0
"""Which case to label next; both viewers ask for `random` unless told otherwise."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class RandomCase(Strategy):  # type: ignore[misc]
    """A case without a submitted label, drawn at random; one that was given out lately is less likely."""

    def __init__(self) -> None:
        super().__init__("A random case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        now = time.time()
        ages = [now - _given_out(datastore, image, str(request.get("strategy"))) for image in images]
        return {"id": random.choices(images, [max(age, 1.0) for age in ages])[0]}


class FirstCase(Strategy):  # type: ignore[misc]
    """The first case without a submitted label, in the order of ids."""

    def __init__(self) -> None:
        super().__init__("The first case without a submitted label")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """{"id": image id}, or None if every case is labelled."""
        images = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        return {"id": min(images)} if images else None


def _given_out(datastore: Datastore, image: str, strategy: str) -> float:
    """When the strategy last chose a case, in seconds since 1970; 0 if never."""
    info = datastore.get_image_info(image).get("strategy", {}).get(strategy, {})
    return float(info.get("ts", 0))
