# SPDX-License-Identifier: Apache-2.0
"""The same work on many items, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

import torch

from kprism_model.progress import progress_bar

T = TypeVar("T")


class Processes:
    """`count` processes that are started when they are first needed; with one, the work is done in this process.

    Use it as a context manager. A program that uses several must guard its start by `if __name__ == "__main__"`.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"the number of processes must be 1 or more, got {count}")
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, work: Callable[[T], None], items: Sequence[T], description: str, *, progress: bool) -> None:
        """Do `work` on every item. The error of the first item that fails is raised, whatever the number of processes.

        OSError if a process was killed.
        """
        if self._count == 1 or len(items) < 2:
            for item in progress_bar(items, description, shown=progress):
                work(item)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of torch hold
            self._pool = ProcessPoolExecutor(self._count, mp_context=context, initializer=_start)
        futures = [self._pool.submit(work, item) for item in items]
        try:
            for future in progress_bar(futures, description, shown=progress):
                future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"{description}: a process was killed, perhaps for want of memory. What is finished is kept; "
                "the same command goes on from there, with fewer processes if memory is short"
            ) from error
        finally:
            wait([future for future in futures if not future.cancel()])

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start() -> None:
    """Prepare a process of the pool: one thread, and its end when that of its parent comes, however it comes."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
