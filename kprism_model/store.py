# SPDX-License-Identifier: Apache-2.0
"""Caches of results that can be computed again, by keys that name everything they depend on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Store(Protocol):
    """The interface of a cache. It may drop any entry at any time, and must be safe to use from several threads."""

    def get(self, key: Hashable) -> Any | None:
        """The value of `key`, or None."""

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep `value`, which occupies `size` bytes, replacing an older value of `key`."""


class ByteStore:
    """Keeps values as long as they fit into `budget` bytes together; the least recently used are dropped first.

    A value larger than the whole budget is not kept. Safe to use from several threads.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Hashable) -> Any | None:
        """The value of `key`, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep `value`, which occupies `size` bytes, replacing an older value of `key`."""
        with self._lock:
            if key in self._entries:
                self._bytes -= self._entries.pop(key)[1]
            if size > self.budget:
                return
            self._entries[key] = (value, size)
            self._bytes += size
            while self._bytes > self.budget:
                self._bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)


def cached(store: Store, key: Hashable, compute: Callable[[], T]) -> T:
    """The value of `key`; computed and stored if there is none."""
    value: T | None = store.get(key)
    if value is None:
        value = compute()
        store.put(key, value, size_of(value))
    return value


def size_of(value: Any) -> int:
    """Bytes of an object with `nbytes`, or of all tensors and arrays in a class, dataclass, tuple, list or mapping."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, tuple | list):
        return sum(size_of(item) for item in value)
    if isinstance(value, dict):
        return sum(size_of(item) for item in value.values())
    return sum(size_of(item) for item in getattr(value, "__dict__", {}).values())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory has run out, on any device."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in message or "can't allocate memory" in message)
    )
