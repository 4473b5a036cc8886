# SPDX-License-Identifier: Apache-2.0
"""A training on several GPUs: MONAI Label's training process becomes `torchrun`, which starts one process on each GPU.

Every process builds the same data set from the same labels and trains on its own batches. Only the first one validates,
publishes and reports. If one of them dies, `torchrun` ends the others.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from threading import Thread
from typing import Any, TypeVar

import psutil
import torch
from torch import distributed

from kprism_model.training.distributed import Workers

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

TASK_MODULE = "monailabel.interfaces.utils.app"
"""The module that MONAI Label runs in the process of a training."""

NICENESS = 10
"""By how much a training's process yields to the server's."""

SERVER_VARIABLE = "KPRISM_SERVER_PID"
"""Environment variable with the process id of the server."""

WATCH_SECONDS = 1.0
"""Seconds between two looks at whether the server is still there."""

ONE_PER_GPU = 0
"""Setting for one process on each GPU, or a single process without a GPU."""


def announce_server() -> None:
    """In the server: tell the trainings that it starts what to depend on."""
    os.environ[SERVER_VARIABLE] = str(os.getpid())


def depend_on_server() -> None:
    """In the process that MONAI Label starts for a training: let the server have the CPU first, and end with it.

    The next start of a server that was killed takes the training up again; it must not go on twice.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    if main is None or main.name != TASK_MODULE:
        return
    os.nice(NICENESS)
    if SERVER_VARIABLE in os.environ:
        server = int(os.environ[SERVER_VARIABLE])
        Thread(target=_end_with, args=(server,), name="end with the server", daemon=True).start()


def _end_with(server: int) -> None:
    while psutil.pid_exists(server):
        time.sleep(WATCH_SECONDS)
    os._exit(1)  # as a kill would: what is on the disk is complete at any moment


def process_count(wanted: int, device: str) -> int:
    """How many processes a training has: `wanted`, but always one on a certain GPU ("cuda:1")."""
    if device.startswith("cuda:"):
        return 1
    return wanted or (torch.cuda.device_count() if device == "cuda" else 1)


def relaunch_distributed(count: int, request: Mapping[str, Any]) -> None:
    """Replace this process by `count` processes of the same training, unless it is one of them already.

    Does not return if it replaces the process.
    """
    if count < 2 or "WORLD_SIZE" in os.environ:
        return
    logger.info("The training goes on in %d processes", count)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    train = ["-m", TASK_MODULE, "-m", "train", "-r", json.dumps(dict(request))]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *launch, *train])


def broadcast(workers: Workers, value: Value | None) -> Value:
    """The value of the first process, in every process."""
    values = [value]
    if workers.count > 1:
        distributed.broadcast_object_list(values, 0)
    return values[0]  # type: ignore[return-value]


def check_same_inputs(workers: Workers, inputs: str) -> None:
    """Wait for all processes; RuntimeError if they do not have the same `inputs`."""
    if workers.count == 1:
        return
    gathered: list[Any] = [None] * workers.count
    distributed.all_gather_object(gathered, inputs)
    if len(set(gathered)) > 1:
        raise RuntimeError(
            "a label or the serving version changed while the training read it; start the training again"
        )
