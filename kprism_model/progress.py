# SPDX-License-Identifier: Apache-2.0
"""Progress bars where tqdm is installed; a bare GPU machine may lack it and shows none."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")


def progress_bar(
    items: Iterable[T], description: str, *, shown: bool = True, total: int | None = None, leave: bool = True
) -> Iterable[T]:
    """The same items, with a progress bar if it is to be `shown`; `total` is their number if they have no length."""
    if not shown or find_spec("tqdm") is None:
        return items
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(items, desc=description, total=total, leave=leave)
    return bar
