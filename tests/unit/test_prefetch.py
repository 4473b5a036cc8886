# SPDX-License-Identifier: Apache-2.0
"""The background thread: in order, bounded, honest about errors, and gone when closed."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest
import torch

from kprism_model.data.prefetch import Prefetcher, prefetched


def test_items_come_in_order_and_end() -> None:
    with Prefetcher(lambda number: number * number, start=2, stop=6) as items:
        assert list(items) == [4, 9, 16, 25]
        assert list(items) == []


def test_no_more_than_depth_items_wait() -> None:
    made: list[int] = []
    with Prefetcher(lambda number: made.append(number) or number, depth=3) as items:
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]  # three wait, one is in the worker's hands
        assert next(items) == 0


def test_an_error_arrives_in_its_place_and_ends_the_iteration() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError("disk gone")
        return number

    with Prefetcher(make) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(OSError, match="disk gone"):
            next(items)
        assert list(items) == []


def test_closing_ends_a_worker_that_waits_for_room() -> None:
    items = Prefetcher(lambda number: number, depth=1)
    assert next(items) == 0
    items.close()
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert list(items) == []


def test_depth_must_hold_an_item() -> None:
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        Prefetcher(lambda number: number, depth=0)


@pytest.mark.parametrize("processes", [0, 2])
def test_processes_make_the_same_batches_in_the_same_order(processes: int) -> None:
    with prefetched(lambda number: torch.full((2,), number), start=5, processes=processes, pin=False) as items:
        made = [int(next(items)[0]) for _ in range(7)]
    assert made == list(range(5, 12))
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_reaches_the_training() -> None:
    def make(number: int) -> torch.Tensor:
        if number == 2:
            raise ValueError("nothing to draw")
        return torch.zeros(1)

    with prefetched(make, start=1, processes=1, pin=False) as items:
        assert not next(items).any()
        with pytest.raises(ValueError, match="nothing to draw") as caught:
            next(items)
        assert caught.value.__traceback__ is not None  # its frames keep the loader's iterator alive
        assert not multiprocessing.active_children()
