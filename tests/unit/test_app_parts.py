# SPDX-License-Identifier: Apache-2.0
"""Small parts of the app: the cache, options, strategies, ids, a datastore for many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kprism_model.store import ByteStore
from lib.datastore import GuardedDatastore, check_tag, stored_at
from lib.errors import NotFoundError, RequestError
from lib.image_files import image_path
from lib.image_ids import check_id
from lib.learning.strategies import FirstCase, RandomCase
from lib.options import Option, names_in, read_options
from lib.request_statistics import RequestStatistics


def test_the_cache_forgets_the_least_used() -> None:
    cache = ByteStore(100)
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


@pytest.mark.parametrize(
    ("option", "sent", "expected"),
    [
        (Option(False), "true", True),
        (Option(True), False, False),
        (Option(3, low=1, high=16), 7.0, 7),
        (Option(3, low=1, high=16), "7", 7),
        (Option(0.5, low=0.0, high=1.0), 1, 1.0),
        (Option("", names=True), None, []),
        (Option("", names=True), "lungs, left  kidney", ["lungs", "left kidney"]),
        (Option("", names=True), ["lobe, upper", "liver"], ["lobe, upper", "liver"]),
        (Option("", names=True), '"lobe, upper", liver', ["lobe, upper", "liver"]),
        (Option(""), 7, "7"),
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
        (Option("", names=True), {"a": 1}),
        (Option("", names=True), ["a", 1]),
        (Option("", names=True), "x" * 200_000),
        (Option("x", choices=("x", "y")), "z"),
        (Option("x", choices=("x", "y")), [["y"]]),
    ],
)
def test_bad_options(option: Option, sent: Any) -> None:
    with pytest.raises(RequestError, match="option name is"):
        read_options({"name": option}, {"name": sent})


def test_names_in_a_text() -> None:
    assert names_in(" liver,  left   kidney,,liver ") == ["liver", "left kidney"]


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


@pytest.mark.parametrize("info", [{"ts": "yesterday"}, {"ts": True}, {"ts": float("nan")}, {"ts": [1]}, {}])
def test_a_time_that_is_none_counts_as_long_ago(info: dict[str, Any]) -> None:
    assert stored_at(info) == 0
    assert stored_at({"ts": 5}) == 5


@pytest.mark.parametrize("chosen", ["nonsense", {"random": "nonsense"}, {"random": {"ts": "then"}}, [1]])
def test_strategies_survive_what_clients_wrote(datastore: GuardedDatastore, chosen: Any) -> None:
    for image in "abc":
        datastore.update_image_info(image, {"strategy": chosen, "ts": "never"})
    assert RandomCase()({"strategy": "random"}, datastore)["id"] in "abc"
    assert isinstance(datastore.get_image_info("a").get("strategy", {}), dict)


@pytest.mark.parametrize("info", [[1], "text", 7, None])
def test_information_is_an_object(datastore: GuardedDatastore, tmp_path: Path, info: Any) -> None:
    for store in (
        lambda: datastore.save_label("a", str(tmp_path / "b.png"), "final", info),
        lambda: datastore.update_image_info("a", info),
    ):
        with pytest.raises(RequestError, match="expected a JSON object"):
            store()


def test_the_datastore_serves_many_threads(datastore: GuardedDatastore, tmp_path: Path) -> None:
    """MONAI Label's own iterates over dictionaries that other threads change, and loses what two of them store."""

    def annotate(number: int) -> None:
        image = datastore.add_image(f"n{number}", str(tmp_path / "b.png"), {})
        for tag in ("final", "original", f"t{number % 7}"):
            datastore.save_label(image, str(tmp_path / "b.png"), tag, {"number": number})
            datastore.refresh()
            datastore.json()
            datastore.status()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(annotate, number) for number in range(20)]:
            done.result()
    assert len(datastore.list_images()) == 23
    assert sorted(datastore.get_labeled_images()) == sorted(f"n{number}" for number in range(20))
    again = GuardedDatastore(str(tmp_path), extensions=("*.png", "*.nii.gz", "*.JPG"))
    assert again.get_label_info("n17", "final")["number"] == 17


def test_time_of_steps_adds_up() -> None:
    report = RequestStatistics()
    with report.step("a"), report.step("b"):
        pass
    with report.step("a"):
        pass
    latencies = report.latencies()
    assert list(latencies) == ["b", "a", "total"]
    assert 0 <= latencies["a"] <= latencies["total"]
