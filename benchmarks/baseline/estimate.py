# SPDX-License-Identifier: Apache-2.0
"""How long the test lists will take, from one timed pass of each network."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.baseline.games import unet
from kprism_model.data.datasets import Dataset, slice_counts
from kprism_model.evaluation.evaluate import choose_cases
from kprism_model.evaluation.protocol import Protocol

_CLICKS = 10  # passes that an object takes, about


def measuring_seconds(
    trained: Sequence[Dataset],
    unseen: Sequence[Dataset],
    protocol: Protocol,
    games: Sequence[str],
    *,
    size: int,
    in_context: nn.Module,
    in_context_size: int,
) -> float:
    """Seconds that measuring takes, about.

    One pass a slice for a specialist, ten clicks an object (some instances of a class of many), each draw of references
    for each class of each slice.
    """
    slices = {dataset.name: _slices(dataset, protocol) for dataset in (*trained, *unseen)}
    objects = sum(slices[dataset.name] * len(dataset.classes) for dataset in (*trained, *unseen))
    seconds = 0.0
    if "semantic" in games:
        seconds += sum(slices[dataset.name] for dataset in trained) * _pass(unet(3, 2), torch.zeros(1, 3, size, size))
    if "interactive" in games:
        clicked = sum(slices[dataset.name] * _clicked(dataset, protocol) for dataset in (*trained, *unseen))
        seconds += clicked * _CLICKS * _pass(unet(6, 1), torch.zeros(1, 6, size, size))
    if "in_context" in games:
        images = torch.zeros(1, 3, in_context_size, in_context_size)
        for count in protocol.references:
            examples = images[:, None].expand(-1, count, -1, -1, -1)
            one = _pass(in_context, images, examples, examples[:, :, :1])
            seconds += objects * protocol.draws * one
    return seconds


def _slices(dataset: Dataset, protocol: Protocol) -> int:
    return sum(slice_counts(case)[0] for case in choose_cases(dataset, protocol)[0])


def _clicked(dataset: Dataset, protocol: Protocol) -> int:
    """Objects that are clicked in a slice that shows all classes."""
    sampling = protocol.instance_sampling(dataset)
    return len(dataset.classes) + (0 if sampling is None else (sampling.maximum_per_image - 1) * len(sampling.indices))


@torch.inference_mode()
def _pass(network: nn.Module, *inputs: Tensor) -> float:
    """Seconds of one pass, after one to warm up."""
    network.eval()
    network(*inputs)
    start = time.perf_counter()
    network(*inputs)
    return time.perf_counter() - start
