# SPDX-License-Identifier: Apache-2.0
"""Whoever asked first has the next turn, also if somebody asks again and again; those in a hurry go before others."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event, Thread

import pytest

from lib.turns import Turns


def order_of(hurried: Sequence[bool]) -> list[int]:
    """The order in which threads that asked one after the other had their turns."""
    turns, order, threads = Turns(), [], []
    turns.acquire()
    for number, is_hurried in enumerate(hurried):

        def take(number: int = number, is_hurried: bool = is_hurried) -> None:
            turns.acquire(is_hurried)
            order.append(number)
            turns.release()

        threads.append(Thread(target=take))
        threads[-1].start()
        while turns.waiting == number:
            pass
    turns.release()
    for thread in threads:
        thread.join()
    turns.acquire()  # nobody holds it any more
    turns.release()
    return order


@pytest.mark.parametrize(
    ("hurried", "expected"),
    [
        ("nnnnn", [0, 1, 2, 3, 4]),
        ("yyyyy", [0, 1, 2, 3, 4]),
        ("nyny", [1, 3, 0, 2]),
        ("nyyyyyyn", [1, 2, 3, 4, 0, 5, 6, 7]),  # four in a row, then one of the others
    ],
)
def test_turns_are_taken_in_the_order_of_asking_and_of_hurry(hurried: str, expected: list[int]) -> None:
    assert order_of([letter == "y" for letter in hurried]) == expected


def test_a_thread_that_asks_again_at_once_waits_for_the_one_that_waits() -> None:
    turns, taken, ended = Turns(), Event(), Event()

    def again_and_again() -> None:
        while not ended.is_set():
            turns.acquire()
            turns.release()

    def once() -> None:
        turns.acquire()
        taken.set()
        turns.release()

    busy, waiting = Thread(target=again_and_again), Thread(target=once)
    busy.start()
    waiting.start()
    assert taken.wait(20)
    ended.set()
    busy.join()
    waiting.join()
