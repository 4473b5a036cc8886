# SPDX-License-Identifier: Apache-2.0
"""A training on several GPUs: MONAI Label's process for it becomes `torchrun`, which starts one like it for each GPU.

Every process makes the same material of the same labels and trains on its own batches; the first one alone judges,
publishes and tells about it. Where one of them dies, `torchrun` ends the others.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import distributed

from kprism_model.training.distributed import Workers

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

EACH_GPU = 0
"""Number of processes that stands for one on each GPU, or one where there is none."""


def count_of(wanted: int, device: str) -> int:
    """How many processes a training has; on a certain GPU ("cuda:1") it is one, whatever is wanted."""
    if device.startswith("cuda:"):
        return 1
    return wanted or (torch.cuda.device_count() if device == "cuda" else 1)


def spread_out(count: int, request: Mapping[str, Any]) -> None:
    """Become `count` processes of the same training, unless this is one of them; does not return if it does."""
    if count < 2 or "WORLD_SIZE" in os.environ:
        return
    logger.info("The training goes on in %d processes", count)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    train = ["-m", "monailabel.interfaces.utils.app", "-m", "train", "-r", json.dumps(dict(request))]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *launch, *train])


def share(workers: Workers, value: Value | None) -> Value:
    """The first process's value, in every process."""
    shared = [value]
    if workers.count > 1:
        distributed.broadcast_object_list(shared, 0)
    return shared[0]  # type: ignore[return-value]


def agree(workers: Workers, what: str) -> None:
    """Go on when all processes have come here with the same value of `what`; RuntimeError if they differ."""
    if workers.count == 1:
        return
    found: list[Any] = [None] * workers.count
    distributed.all_gather_object(found, what)
    if len(set(found)) > 1:
        raise RuntimeError("a label or the version changed while the training's processes read it; start it again")
