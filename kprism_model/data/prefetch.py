# SPDX-License-Identifier: Apache-2.0
"""Prefetching of batches in one background thread, or in several processes.

The worker calls `make(0)`, `make(1)`, ... and puts the results into a bounded queue; the consumer gets them in that
order. The content of a batch depends on its number alone, so timing never changes training. An exception of `make` is
raised in the consumer, at the batch that failed.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import count
from types import TracebackType
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as TorchSampler

T = TypeVar("T")
_BATCHES_PER_PROCESS = 2  # that wait for the training
_POLL_SECONDS = 0.1  # a worker that waits for a free place notices within this time that it is closed


@contextmanager
def prefetched(make: Callable[[int], T], *, start: int, processes: int, pin: bool) -> Iterator[Iterator[T]]:
    """Endless make(start), make(start + 1), ..., made by `processes`, or by one thread if that is 0.

    With `pin`, what processes make is in page-locked memory for a GPU. The processes are forked and must not use it.
    """
    if not processes:
        with Prefetcher(make, start=start) as items:
            yield items
        return
    loader = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=_NumbersFrom(start),
        num_workers=processes,
        prefetch_factor=_BATCHES_PER_PROCESS,
        pin_memory=pin,
        multiprocessing_context="fork",
        worker_init_fn=_outlast_termination,
    )
    with closing(_items(loader)) as made:
        yield made


def _outlast_termination(_: int) -> None:
    """Ignore SIGTERM, which schedulers send to a whole group: a training saves its state, and then ends its loaders."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _items(loader: DataLoader[T]) -> Generator[T]:
    """The items of a loader, whose processes end when this generator is closed or an item could not be made.

    PyTorch ends them when its iterator is collected, which the traceback of an error can put off, and by SIGTERM, which
    they ignore: Python would wait for them for ever at its end.
    """
    iterator: Any = iter(loader)
    try:
        yield from iterator
    finally:
        iterator._shutdown_workers()
        for process in iterator._workers:
            process.kill()
            process.join()


class _Made(Dataset[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> T:
        return self._make(number)


class _NumbersFrom(TorchSampler[int]):
    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return count(self._start)


class Prefetcher(Generic[T]):
    """An iterator over make(start), make(start + 1), ... up to make(stop - 1), or endless if `stop` is None.

    At most `depth` finished items wait in the queue. Use it as a context manager, or call `close`, to end the thread.
    """

    def __init__(self, make: Callable[[int], T], *, start: int = 0, stop: int | None = None, depth: int = 4) -> None:
        if depth < 1:
            raise ValueError(f"depth must be 1 or more, got {depth}")
        self._make = make
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._work, args=(start, stop), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        if self._finished or self._closed.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self._finished = True
            raise error
        return item  # type: ignore[return-value]  # an entry without an error holds an item

    def close(self) -> None:
        """End the thread; waiting items are dropped. A second call does nothing."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, start: int, stop: int | None) -> None:
        number = start
        while not self._closed.is_set():
            if stop is not None and number >= stop:
                self._put((None, StopIteration()))
                return
            try:
                item = self._make(number)
            except Exception as error:  # handed to the consumer, whatever it is
                self._put((None, error))
                return
            self._put((item, None))
            number += 1

    def _put(self, entry: tuple[T | None, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
