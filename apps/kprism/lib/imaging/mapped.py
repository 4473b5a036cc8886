# SPDX-License-Identifier: Apache-2.0
"""Arrays in files without a name: the kernel keeps of them in memory what there is room for, and no more.

The voxels of a clinical volume take hundreds of megabytes, and a click needs one slice. A file without a name ends with
the process that made it, however that ends, and nobody else can shorten it while it is mapped.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lib.errors import StorageError
from lib.files import is_disk_full

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Makes an array of a shape and a type, the first axis the fastest in memory; its content is arbitrary."""

SMALL = 16 << 20
"""Bytes up to which an array is kept in memory: a mapping takes one of the files that a process can have open."""


def in_memory(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array in memory."""
    return np.empty(shape, dtype, order="F")


def mapped_in(folder: Path) -> Allocate:
    """Arrays in files of `folder`, which is made if it is missing; small ones are in memory.

    StorageError if the disk has too little room, before anything is written.
    """

    def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size <= SMALL:
            return in_memory(shape, dtype)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a write to a mapping of a full disk would end the process
                mapping = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise _storage_error(size, error) from error
        return np.ndarray(shape, dtype, mapping, order="F")

    return allocate


def _storage_error(size: int, error: OSError) -> StorageError:
    reason = (
        "the disk of the server is full" if is_disk_full(error) else f"the server cannot write to its disk ({error})"
    )
    return StorageError(f"needs {size / 2**20:,.0f} MiB while it is in use, and {reason}")
