# SPDX-License-Identifier: Apache-2.0
"""Which case comes next: at random or the first one, what is labelled, assigned or open already, and the option."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from lib.learning.strategies import make_strategies


class Store:
    """The part of a datastore that strategies ask."""

    def __init__(self, *images: str) -> None:
        self.images = list(images)
        self.labelled: set[str] = set()
        self.given: dict[str, dict[str, object]] = {}

    def get_unlabeled_images(self, label_tag: object, labels: object) -> list[str]:
        return [image for image in self.images if image not in self.labelled]

    def get_image_info(self, image: str) -> dict[str, object]:
        return self.given.get(image, {})

    def assign(self, image: str) -> None:
        self.given[image] = {"strategy": {"random": {"ts": int(time.time())}}}


def test_every_strategy_says_that_nothing_is_left() -> None:
    store = Store("a")
    store.labelled = {"a"}
    strategies = make_strategies()
    assert set(strategies) == {"random", "first"}
    assert all(strategy({"strategy": name}, store) is None for name, strategy in strategies.items())
    assert all(strategy({"strategy": name}, Store()) is None for name, strategy in strategies.items())


def test_first_and_random() -> None:
    store = Store("c", "b", "a")
    strategies = make_strategies()
    assert strategies["first"]({}, store) == {"id": "a"}
    store.assign("a")
    drawn = Counter(strategies["random"]({}, store)["id"] for _ in range(50))
    assert drawn["b"] > 0 and drawn["c"] > 0
    assert drawn["a"] == 0  # assigned a moment ago: a chance of one in 10^9


def test_the_open_case_comes_next_only_if_there_is_no_other() -> None:
    for name, strategy in make_strategies().items():
        store = Store("a", "b")
        given = {image: strategy({"strategy": name, "current": image}, store)["id"] for image in "ab"}
        assert given == {"a": "b", "b": "a"}, name
        store.labelled = {"b"}
        assert strategy({"strategy": name, "current": "a"}, store)["id"] == "a", name


def test_random_can_mean_another_strategy() -> None:
    strategies = make_strategies("first")
    assert {strategies["random"]({}, Store("b", "a"))["id"] for _ in range(20)} == {"a"}
    with pytest.raises(ValueError, match="--conf strategy uncertainty: expected one of random, first"):
        make_strategies("uncertainty")
