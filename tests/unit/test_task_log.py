# SPDX-License-Identifier: Apache-2.0
"""The lines of a background task can be encoded while they are written."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from threading import Event, Thread

import pytest
from fastapi.encoders import jsonable_encoder
from monailabel.utils.async_tasks import utils

from lib.api import task_log

ROUNDS = 20_000


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def encode_while_written(lines: deque[str]) -> None:
    """Encode a task as the routes do, again and again, while another thread appends lines to it."""
    stop = Event()

    def write() -> None:
        while not stop.is_set():
            lines.append("Epoch 1")

    writer = Thread(target=write)
    writer.start()
    try:
        for _ in range(ROUNDS):
            jsonable_encoder({"details": lines})
    finally:
        stop.set()
        writer.join()


@pytest.mark.usefixtures("eager_threads")
def test_a_task_is_encoded_while_lines_are_appended() -> None:
    encode_while_written(task_log.TaskLog(maxlen=20))


@pytest.mark.usefixtures("eager_threads")
def test_a_plain_deque_fails_so_the_class_is_needed() -> None:
    with pytest.raises(RuntimeError, match="mutated"):
        encode_while_written(deque(maxlen=20))


def test_monailabel_keeps_the_last_lines_of_its_tasks_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils, "deque", deque)
    task_log.install()
    lines = utils.deque(maxlen=2)
    lines.extend("abc")
    assert jsonable_encoder(lines) == ["b", "c"]
