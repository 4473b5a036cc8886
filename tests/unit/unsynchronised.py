# SPDX-License-Identifier: Apache-2.0
"""Finds, without a GPU, the operations for which a host would have to wait for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = (
    "aten::_local_scalar_dense",  # item(), float(), bool(), a branch
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::lift_fresh",  # torch.tensor of Python numbers: a copy from memory that is not pinned
)


class Unsynchronised(TorchDispatchMode):
    """While it is active, an operation whose result or shape the host must wait for raises AssertionError."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Check and do the operation."""
        name = func.name().split(".")[0]
        assert name not in _WAITING, f"{name} waits for the device"
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index"):
            by_mask = [index for index in args[1] if isinstance(index, Tensor) and index.dtype == torch.bool]
            assert not by_mask, f"{name} with a boolean mask waits for the device"
        return func(*args, **(kwargs or {}))
