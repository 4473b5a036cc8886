# SPDX-License-Identifier: Apache-2.0
"""Results that depend on weights alone, kept from call to call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class WeightCache(Generic[T]):
    """The last result of a computation from some weights and a key, for as long as neither changes.

    Nothing is kept while gradients are recorded, for then the result must be part of the graph, nor for parameters
    made in inference mode, which do not tell when they are changed.
    """

    def __init__(self) -> None:
        self._last: tuple[object, T] | None = None

    def get(self, parameters: Iterable[nn.Parameter], key: Hashable, compute: Callable[[], T]) -> T:
        """The kept result, or `compute()`; all parameters must lie on one device."""
        held = list(parameters)
        if torch.is_grad_enabled() or any(parameter.is_inference() for parameter in held):
            return compute()
        weights = tuple((parameter.data_ptr(), parameter._version) for parameter in held)
        now = (key, weights, torch.is_autocast_enabled(held[0].device.type))
        last = self._last
        if last is None or last[0] != now:
            last = self._last = now, compute()
        return last[1]
