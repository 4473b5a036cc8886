# SPDX-License-Identifier: Apache-2.0
"""What a step of a training costs, measured before the training without a trace in it."""

from __future__ import annotations

import resource
import time
from itertools import count, islice
from typing import NamedTuple

import torch

from kprism_model.published.training.run import PublishedTraining
from kprism_model.training.schedule import MODES


class StepCost(NamedTuple):
    """seconds: of a step of the slowest process, the mean over modes by their shares. peak_bytes: of a GPU's memory.

    On a CPU `peak_bytes` are those of this process so far, with all that it holds.
    """

    seconds: float
    peak_bytes: int


def measure(training: PublishedTraining, rounds: int = 2) -> StepCost:
    """Make `rounds` steps of each mode, after one that does not count; weights and statistics stay as they are.

    All processes must call it. Batches are made between the steps, not beside them, and their time does not count:
    `loaders` hide it in a training. torch.OutOfMemoryError passes through.
    """
    if rounds < 1:
        raise ValueError(f"a step cannot be measured in {rounds} rounds")
    model, sampler, device = training.model, training.sampler, training.device
    statistics = [value.clone() for value in model.buffers()]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = 0.0
    for mode, share in zip(MODES, training.recipe.mode_shares, strict=True):
        if not share:
            continue
        of_mode = (step for step in count() if sampler.mode(step) == mode)
        taken = [_timed(training, step) for step in islice(of_mode, rounds + 1)]
        seconds += share * sum(taken[1:]) / rounds
    training.optimizer.zero_grad()
    with torch.no_grad():
        for value, before in zip(model.buffers(), statistics, strict=True):
            value.copy_(before)
    return StepCost(training.workers.longest(seconds, device), _peak(training))


def _timed(training: PublishedTraining, step: int) -> float:
    batches = training.batches(step)
    start = time.perf_counter()
    float(training.gradients(batches)[0])  # waits for the forward passes
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter() - start


def _peak(training: PublishedTraining) -> int:
    moments = (
        0 if training.optimizer.state else 2 * sum(p.numel() * p.element_size() for p in training.model.parameters())
    )
    if training.device.type == "cuda":
        return torch.cuda.max_memory_allocated(training.device) + moments
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + moments
