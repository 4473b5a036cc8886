# SPDX-License-Identifier: Apache-2.0
"""Small parts of the app: the cache, the memory of masks, options, strategies, ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.cache import ByteCache
from lib.datastore import GuardedDatastore, check_id, check_tag, image_path
from lib.errors import NotFoundError, RequestError
from lib.memory import MaskMemory
from lib.options import Option, names_in, read_options
from lib.refine import SliceClicks
from lib.report import Report
from lib.strategies import FirstCase, RandomCase


def test_the_cache_forgets_the_least_used() -> None:
    cache = ByteCache(100)
    for name in "abc":
        cache.put(name, name, 40)
        cache.get("a")
    assert [cache.get(name) for name in "abc"] == ["a", None, "c"]
    assert cache.bytes == 80
    cache.put("a", "A", 90)
    assert (cache.get("a"), cache.get("c"), cache.bytes) == ("A", None, 90)
    cache.put("huge", "x", 101)
    assert (cache.get("huge"), cache.bytes) == (None, 90)
    cache.put("a", "larger than all", 101)
    assert (cache.get("a"), cache.bytes) == (None, 0)


def test_rounds_of_clicks() -> None:
    rng = np.random.default_rng(0)
    base, first, second = (np.asfortranarray(rng.random((5, 7, 3)) > 0.5) for _ in range(3))
    memory, key = MaskMemory(10_000), ("", "image", "label")
    assert memory.before(key, frozenset({1})) is None
    memory.put(key, base)
    np.testing.assert_array_equal(memory.before(key, frozenset({1})), base)
    memory.put(key, first, base, frozenset({1}))
    np.testing.assert_array_equal(memory.before(key, frozenset({1, 2})), base)  # one more click
    np.testing.assert_array_equal(memory.before(key, frozenset({3})), first)  # a new round
    memory.put(key, second, None, frozenset({4}))
    assert memory.before(key, frozenset({4, 5})) is None
    np.testing.assert_array_equal(memory.last(key), second)


@pytest.mark.parametrize(
    ("option", "sent", "expected"),
    [
        (Option(False), "true", True),
        (Option(True), False, False),
        (Option(3, low=1, high=16), 7.0, 7),
        (Option(3, low=1, high=16), "7", 7),
        (Option(0.5, low=0.0, high=1.0), 1, 1.0),
        (Option(""), ["a", "b"], "a,b"),
        (Option("x", choices=("x", "y")), "y", "y"),
        (Option("x", choices=("x", "y")), ["y"], "y"),
        (Option("x", choices=("x", "y")), None, "x"),
    ],
)
def test_options_as_clients_send_them(option: Option, sent: Any, expected: Any) -> None:
    value = read_options({"name": option}, {"name": sent})["name"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        (Option(False), "perhaps"),
        (Option(3, low=1, high=16), 17),
        (Option(3, low=1, high=16), 2.5),
        (Option(3, low=1, high=16), True),
        (Option(0.5, low=0.0, high=1.0), float("nan")),
        (Option(0.5), "half"),
        (Option(""), {"a": 1}),
        (Option("x", choices=("x", "y")), "z"),
        (Option("x", choices=("x", "y")), [["y"]]),
    ],
)
def test_bad_options(option: Option, sent: Any) -> None:
    with pytest.raises(RequestError, match="option name is"):
        read_options({"name": option}, {"name": sent})


def test_names_in_a_text() -> None:
    assert names_in(" liver,  left   kidney,,liver ") == ["liver", "left kidney"]


def test_clicks_by_turns() -> None:
    turn = SliceClicks(((1, 1), (2, 2), (3, 3)), ((9, 9),)).in_turn()
    assert [(click.row, click.positive) for click in turn] == [(1, True), (9, False), (2, True), (3, True)]


@pytest.mark.parametrize("value", ["../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "", "x\0y", 7, None, "x" * 300])
def test_ids_are_no_paths(value: Any) -> None:
    with pytest.raises(NotFoundError):
        check_id(value)


@pytest.mark.parametrize("value", ["../x", "a/b", "", ".", "x y", 3])
def test_tags_are_words(value: Any) -> None:
    with pytest.raises(RequestError):
        check_tag(value)


@pytest.fixture
def datastore(tmp_path: Path) -> GuardedDatastore:
    for name in ("b.png", "a.nii.gz", "c.JPG"):
        (tmp_path / name).write_bytes(b"x")
    return GuardedDatastore(str(tmp_path), extensions=("*.png", "*.nii.gz", "*.JPG"))


def test_only_images_of_the_datastore_have_a_path(datastore: GuardedDatastore, tmp_path: Path) -> None:
    assert image_path(datastore, "a") == tmp_path.resolve() / "a.nii.gz"
    assert image_path(datastore, "c") == tmp_path.resolve() / "c.JPG"
    for other in ("d", str(tmp_path / "b.png"), "../b", "b.png"):
        with pytest.raises(NotFoundError, match="datastore"):
            image_path(datastore, other)


def test_strategies(datastore: GuardedDatastore, tmp_path: Path) -> None:
    assert FirstCase()({}, datastore) == {"id": "a"}
    drawn = {RandomCase()({"strategy": "random"}, datastore)["id"] for _ in range(100)}
    assert drawn == {"a", "b", "c"}
    for image in "abc":
        datastore.save_label(image, str(tmp_path / "b.png"), "final", {})
    assert FirstCase()({}, datastore) is None
    assert RandomCase()({"strategy": "random"}, datastore) is None


def test_time_of_steps_adds_up() -> None:
    report = Report()
    with report.step("a"), report.step("b"):
        pass
    with report.step("a"):
        pass
    latencies = report.latencies()
    assert list(latencies) == ["b", "a", "total"]
    assert 0 <= latencies["a"] <= latencies["total"]
