# SPDX-License-Identifier: Apache-2.0
"""The images of a slice store on a device, and batches that are made there while the network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kprism_model.data.batch import Batch
from kprism_model.data.slices import SliceSet, SliceStore


class DeviceImages:
    """All images of a store on `device`, uint8 (slices, 1 or 3, side, side) for each data set."""

    def __init__(self, store: SliceStore, device: torch.device) -> None:
        self._images = {
            slice_set.name: torch.from_numpy(np.ascontiguousarray(slice_set.images.transpose(0, 3, 1, 2))).to(device)
            for slice_set in store.sets
        }

    def gather(self, slices: Sequence[tuple[SliceSet, int]]) -> Tensor:
        """Slices, each given by a data set and a row, in colour: uint8 (n, 3, side, side)."""
        chosen = [self._images[slice_set.name][row] for slice_set, row in slices]
        return torch.stack([image.expand(3, -1, -1) for image in chosen])


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all batches, because each stream has its own memory pool."""
    return torch.cuda.Stream(device)


@contextmanager
def beside_training(device: torch.device) -> Iterator[Callable[[Batch], Batch]]:
    """Make a batch on a separate stream, so that waiting for it does not wait for the network.

    Yields a function that waits for the batch and marks its memory as used by the training stream. Does nothing if
    `device` is not a GPU.
    """
    if device.type != "cuda":
        yield lambda batch: batch
        return
    stream = _stream(device)

    def finished(batch: Batch) -> Batch:
        stream.synchronize()
        for value in vars(batch).values():
            if isinstance(value, Tensor):
                value.record_stream(torch.cuda.default_stream(device))
        return batch

    with torch.cuda.stream(stream):
        yield finished
