# SPDX-License-Identifier: Apache-2.0
"""The tensors that travel between sites: floating-point tensors of the network, and a row for each agreed structure.

A row is a tensor of its own, named after its structure, so sites may know other structures and in any order. A site
that has no label of a structure does not send its row; FLARE averages each tensor over the sites that sent it. Rows of
other structures, truth values and counters stay where they are. Running statistics of batch normalization travel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kinds import POSSIBLE
from kprism_model.network.kprism import KPrism
from kprism_model.training.weights import CLASS_TABLES, warm_start
from lib.federation.plan import FederationError

Arrays = Mapping[str, NDArray[np.float32]]
"""Tensors by the name under which they travel."""


def row_name(table: str, structure: str) -> str:
    """The name under which the row of a structure travels."""
    return f"{table}[{structure}]"


def sent(model: KPrism, registry: ClassRegistry, structures: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """Copies of the tensors that leave a site; `structures` are those whose rows it has trained."""
    arrays = {}
    for name, tensor in _travelling(model, registry, structures):
        arrays[name] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return arrays


def expected_names(model: KPrism, structures: Collection[str]) -> set[str]:
    """The names of all tensors of an aggregate, in which each of `structures` was trained at some site."""
    shared = {name for name, tensor in model.state_dict().items() if _is_shared(name, tensor)}
    return shared | {row_name(table, structure) for table in CLASS_TABLES for structure in structures}


def check(arrays: Arrays, model: KPrism, structures: Collection[str], what: str) -> None:
    """FederationError, which names `what`, if a tensor is missing, unknown, of another shape, or not finite.

    Rows may be missing: in the first round nobody has trained those of new structures.
    """
    rows = {row_name(table, structure) for table in CLASS_TABLES for structure in structures}
    expected = expected_names(model, structures)
    wrong = sorted((expected - rows - set(arrays)) | (set(arrays) - expected))
    if wrong:
        raise FederationError(
            f"{what} has other tensors than this network: {', '.join(wrong[:3])} ({len(wrong)} in all)"
        )
    state = model.state_dict()
    for name, value in arrays.items():
        table = name.partition("[")[0]
        shape = tuple(state[table].shape[1:] if name in rows else state[name].shape)
        if value.shape != shape:
            raise FederationError(f"{what}: tensor {name} has shape {value.shape}, expected {shape}")
        if not np.isfinite(value).all():
            raise FederationError(f"{what}: tensor {name} holds values that are not finite")


@torch.no_grad()
def take_in(model: KPrism, registry: ClassRegistry, structures: Iterable[str], arrays: Arrays) -> None:
    """Put the arrays into the network; structures of them that `registry` does not know are left out."""
    for name, tensor in _travelling(model, registry, structures):
        if name in arrays:
            value = np.asarray(arrays[name], np.float32).reshape(tensor.shape)  # an average of numbers may be a scalar
            tensor.copy_(torch.from_numpy(value))


def assembled(shipped: Checkpoint, structures: Collection[str], arrays: Arrays) -> tuple[KPrism, ClassRegistry]:
    """The network of an aggregate, in evaluation mode, and its classes: those of the shipped weights, then new ones."""
    registry = shipped.registry.add([name for name in structures if name not in shipped.registry])
    model = KPrism(replace(shipped.model.config, num_classes=len(registry)))
    warm_start(model, registry, shipped)
    if model.kind_head is not None:  # what a site labels can be in images of every kind
        model.kind_head.possible[[registry.index(name) for name in structures]] = True
    take_in(model, registry, structures, arrays)
    device = next(shipped.model.parameters()).device
    return model.to(device).eval(), registry


def _travelling(model: KPrism, registry: ClassRegistry, structures: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything that travels; tensors share the network's memory."""
    known = [name for name in structures if name in registry]
    for name, tensor in model.state_dict().items():
        if _is_shared(name, tensor):
            yield name, tensor
        elif name in CLASS_TABLES:
            for structure in known:
                yield row_name(name, structure), tensor[registry.index(structure)]


def _is_shared(name: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and name not in (*CLASS_TABLES, POSSIBLE)
