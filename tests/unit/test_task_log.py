# SPDX-License-Identifier: Apache-2.0
"""The lines of a background task can be encoded while they are written."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from itertools import count
from threading import Event, Thread

import pytest
from fastapi.encoders import jsonable_encoder
from monailabel.utils.async_tasks import utils

from lib.api import task_log

ROUNDS = 20_000
LINES = 20


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def encoded_while_written(lines: deque[str]) -> list[list[str]]:
    """The lines of a task, encoded as the routes do, again and again, while another thread appends numbers to them."""
    stop = Event()

    def write() -> None:
        for number in count():
            lines.append(str(number))
            if stop.is_set():
                return

    writer = Thread(target=write)
    writer.start()
    try:
        return [jsonable_encoder({"details": lines})["details"] for _ in range(ROUNDS)]
    finally:
        stop.set()
        writer.join()


@pytest.mark.usefixtures("eager_threads")
def test_a_task_is_encoded_while_lines_are_appended() -> None:
    answers = encoded_while_written(task_log.TaskLog(maxlen=LINES))
    firsts = [int(lines[0]) for lines in answers if lines]
    assert firsts == sorted(firsts) and firsts[-1] > LINES
    for lines in filter(None, answers):  # each is what the task said last at one moment
        assert lines == [str(int(lines[0]) + row) for row in range(len(lines))]
        assert len(lines) == LINES or lines[0] == "0"


@pytest.mark.usefixtures("eager_threads")
def test_a_plain_deque_fails_so_the_class_is_needed() -> None:
    with pytest.raises(RuntimeError, match="mutated"):
        encoded_while_written(deque(maxlen=LINES))


def test_monailabel_keeps_the_last_lines_of_its_tasks_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "deque", deque)
    task_log.install()
    lines = utils.deque(maxlen=2)
    lines.extend("abc")
    assert jsonable_encoder(lines) == ["b", "c"]
