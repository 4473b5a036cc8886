# SPDX-License-Identifier: Apache-2.0
"""A cache for results that depend only on weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class WeightCache(Generic[T]):
    """The last result of a computation from weights and a key, as long as neither changes.

    Weights are parameters and buffers. Nothing is cached while gradients are recorded, because then the result must be
    part of the graph, and for weights that were made in inference mode, because their changes cannot be detected.
    """

    def __init__(self) -> None:
        self._last: tuple[object, T] | None = None

    def get(self, tensors: Iterable[Tensor], key: Hashable, compute: Callable[[], T]) -> T:
        """The cached result, or `compute()`; all tensors must be on one device."""
        held = list(tensors)
        if torch.is_grad_enabled() or any(tensor.is_inference() for tensor in held):
            return compute()
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in held)
        now = (key, weights, torch.is_autocast_enabled(held[0].device.type))
        last = self._last
        if last is None or last[0] != now:
            last = self._last = now, compute()
        return last[1]
