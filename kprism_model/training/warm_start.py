# SPDX-License-Identifier: Apache-2.0
"""Starting a network from another one's weights, which need not have all of its shapes or classes."""

from __future__ import annotations

import torch

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kinds import POSSIBLE
from kprism_model.network.kprism import KPrism

CLASS_TABLES = ("decoder.class_content", "decoder.class_position")
"""Parameters with a row for each class."""


@torch.no_grad()
def warm_start(model: KPrism, registry: ClassRegistry, source: Checkpoint) -> list[str]:
    """Give `model`, whose classes `registry` names, the tensors of `source` that fit; return the names of the others.

    A tensor fits if one of its name and shape is there. Rows of what has one for each class go by class name; a class
    that the source does not know keeps its own. ValueError if nothing fits.
    """
    own, given = model.state_dict(), source.model.state_dict()
    left = []
    for name, tensor in own.items():
        other = given.get(name)
        if name in (*CLASS_TABLES, POSSIBLE) and other is not None and other.shape[1:] == tensor.shape[1:]:
            for row, known in enumerate(registry.names):
                if known in source.registry:
                    tensor[row] = other[source.registry.index(known)]
        elif other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
        else:
            left.append(name)
    if len(left) == len(own):
        raise ValueError(f"{source.path} holds no tensor that fits this network")
    return left
