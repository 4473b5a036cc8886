# SPDX-License-Identifier: Apache-2.0
"""Training on several devices, one process each, as `torchrun` starts them; with one process nothing happens here.

Gradients are averaged after the backward pass, in one message; a wrapper around the module would see only `forward`,
and training calls the encoders and the decoder apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

PATIENCE = timedelta(hours=1)
"""How long a process waits for another, which may read many files alone; `torchrun` notices sooner if it has died."""


@dataclass(frozen=True)
class Workers:
    """The processes of one training: this one's `rank` among `count`, and its number on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str) -> Workers:
        """Join the processes that `torchrun` started for `device` ("cuda" or "cpu"); alone where it started none."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device.startswith("cuda"):
            torch.cuda.set_device(local_rank)  # where NCCL puts what it exchanges
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), count, local_rank)

    def wait(self) -> None:
        """Go on when all processes have come here."""
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
        gradients: list[Tensor] = [parameter.grad for parameter in owned if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def share_state(self, model: nn.Module) -> None:
        """Give every process the weights and statistics of the first one."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)

    def longest(self, seconds: float, device: torch.device) -> float:
        """The largest of the processes' values, so that all agree on how much time is spent."""
        if self.count == 1:
            return seconds
        value = torch.tensor([seconds], dtype=torch.float32, device=device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return float(value)
