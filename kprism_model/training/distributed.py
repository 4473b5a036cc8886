# SPDX-License-Identifier: Apache-2.0
"""Training on several devices, with one process each that `torchrun` starts; a single process needs none of this.

Gradients are averaged after the backward pass, in one message. DistributedDataParallel would see only `forward`, but
training calls the encoders and the decoder separately.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

TIMEOUT = timedelta(hours=1)
"""How long a process waits for another, which may have many files to read; `torchrun` detects a dead one sooner."""


@dataclass(frozen=True)
class Workers:
    """The processes of one training: this one's `rank` among `count`, and its number on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str) -> Workers:
        """Join the processes that `torchrun` started for `device` ("cuda" or "cpu"); one worker if it started none."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device.startswith("cuda"):
            torch.cuda.set_device(local_rank)  # NCCL communicates on the current device
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
        return cls(distributed.get_rank(), count, local_rank)

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """End the connection to the other processes."""
        if self.count > 1:
            distributed.destroy_process_group()

    def device(self, name: str) -> torch.device:
        """The device of this process: with "cuda" the GPU of its number on this machine."""
        return torch.device("cuda", self.local_rank) if name == "cuda" else torch.device(name)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes; a parameter without one counts as zero."""
        if self.count == 1:
            return
        owned = list(parameters)
        for parameter in owned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.average_values([parameter.grad for parameter in owned if parameter.grad is not None])

    @torch.no_grad()
    def average_values(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their means over all processes, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    @torch.no_grad()
    def share_state(self, model: nn.Module) -> None:
        """Give every process the weights and statistics of the first one."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)

    def longest(self, seconds: float, device: torch.device) -> float:
        """The largest of the values of all processes, so that they agree on the time that is spent."""
        if self.count == 1:
            return seconds
        value = torch.tensor([seconds], dtype=torch.float32, device=device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return float(value)
