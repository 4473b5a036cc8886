# SPDX-License-Identifier: Apache-2.0
"""Parameter groups of the optimizer, steps that skip broken gradients, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kprism_model.network.efficientnet import EfficientNetLiteEncoder
from kprism_model.network.kprism import KPrism


class MovingAverage:
    """Exponential moving average of a model's floating-point state, batch-norm statistics included."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the current state of the model; the first steps move faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.state[name], value) for name, value in model.state_dict().items()]
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for count, value in pairs:
            if not count.is_floating_point():
                count.copy_(value)


def parameter_groups(model: KPrism, weight_decay: float, trunk_rate: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices and kernels get weight decay; biases, norms and embeddings do not.

    The entry "rate" of a group is its learning rate relative to that of the plan: `trunk_rate` for a pretrained trunk.
    """
    encoder = model.image_encoder
    trunk = encoder.trunk_parameters() if isinstance(encoder, EfficientNetLiteEncoder) else []
    pretrained = {id(parameter) for parameter in trunk}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and name.rpartition(".")[2].startswith(
            ("weight", "in_weight", "in_proj_weight", "out_weight")
        )
        groups.setdefault((is_matrix, id(parameter) in pretrained), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if is_matrix else 0.0,
            "rate": trunk_rate if is_trunk else 1.0,
        }
        for (is_matrix, is_trunk), parameters in groups.items()
    ]


def step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Take a step unless the gradients' `norm` () is infinite or NaN; with a fused optimizer the device decides."""
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif norm.isfinite():
        optimizer.step()
