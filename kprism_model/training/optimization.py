# SPDX-License-Identifier: Apache-2.0
"""Which parameters learn how fast, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kprism_model.network.efficientnet import EfficientNetLiteEncoder
from kprism_model.network.kprism import KPrism


class MovingAverage:
    """Exponential moving average of a model's floating-point state, batch-norm statistics included."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's present state; the first steps move faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.state[name], value) for name, value in model.state_dict().items()]
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for count, value in pairs:
            if not count.is_floating_point():
                count.copy_(value)


def parameter_groups(model: KPrism, weight_decay: float, trunk_rate: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms and embeddings do not. "rate" is relative to the learning rate."""
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
