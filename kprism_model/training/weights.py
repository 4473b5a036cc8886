# SPDX-License-Identifier: Apache-2.0
"""Weights of networks with different classes: start from them, average them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kinds import POSSIBLE
from kprism_model.network.kprism import KPrism
from kprism_model.network.references import References

CLASS_TABLES = ("decoder.class_content", "decoder.class_position")
"""Parameters with a row for each class."""


@torch.no_grad()
def warm_start(model: KPrism, registry: ClassRegistry, source: Checkpoint) -> list[str]:
    """Copy the tensors of `source` that fit into `model`, whose classes are `registry`; return the names of the rest.

    A tensor fits if `source` has one of the same name and shape. Tensors with a row for each class are copied by class
    name; a class that `source` does not know keeps its own row. ValueError if nothing fits.
    """
    own, given = model.state_dict(), source.model.state_dict()
    rest = []
    for name, tensor in own.items():
        other = given.get(name)
        if name in (*CLASS_TABLES, POSSIBLE) and other is not None and other.shape[1:] == tensor.shape[1:]:
            for row, class_name in enumerate(registry.names):
                if class_name in source.registry:
                    tensor[row] = other[source.registry.index(class_name)]
        elif other is not None and other.shape == tensor.shape:
            tensor.copy_(other)
        else:
            rest.append(name)
    if len(rest) == len(own):
        raise ValueError(f"{source.path} holds no tensor that fits this network")
    return rest


@torch.no_grad()
def average_weights(
    networks: Sequence[tuple[KPrism, ClassRegistry]], shares: Sequence[float] | None = None
) -> tuple[KPrism, ClassRegistry]:
    """The mean of networks that were trained from one start, and its classes (arXiv 2203.05482; WiSE-FT, 2109.01903).

    `shares` are their weights in the mean, by default equal ones. The classes are those of the first network and, after
    them, those that only others know; a class is the mean of the networks that know it, by name. A network with share 0
    is left out. ValueError if none is left.
    """
    pairs = zip(networks, shares or [1.0] * len(networks), strict=True)
    parts = [(model.state_dict(), own, share) for (model, own), share in pairs if share > 0]
    if not parts:
        raise ValueError("there are no networks to average; expected one or more with a share above 0")
    registry = parts[0][1]
    for _, own, _ in parts[1:]:
        registry = registry.add([name for name in own.names if name not in registry])
    first = networks[0][0]
    average = KPrism(replace(first.config, num_classes=len(registry))).to(next(first.parameters()).device)
    for name, tensor in average.state_dict().items():
        if name in (*CLASS_TABLES, POSSIBLE):
            for row, class_name in enumerate(registry.names):
                known = [
                    (state[name][own.index(class_name)], share) for state, own, share in parts if class_name in own
                ]
                tensor[row] = _mean(known)
        else:
            tensor.copy_(_mean([(state[name], share) for state, _, share in parts]))
    return average.eval(), registry


def _mean(values: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The weighted mean of numbers; whether any is true of truth values; the first of what is counted."""
    (first, _), *_ = values
    if first.is_floating_point():
        total = sum(share for _, share in values)
        return torch.stack([value.to(first.device) * (share / total) for value, share in values]).sum(0)
    return torch.stack([value.to(first.device) for value, _ in values]).any(0) if first.dtype == torch.bool else first


@torch.no_grad()
def class_from_references(model: KPrism, references: References) -> tuple[Tensor, Tensor]:
    """Content and position (queries, C) with which a new class can start, from one row of R references to it.

    In the decoder, the tokens that summarize the object of a reference have the role of class queries. Their mean over
    references and scales is therefore a start for a class; its queries divide the tokens among them.
    """
    decoder = model.decoder
    half, queries = model.config.summaries // 2, model.config.queries_per_class
    contents, positions = [], []
    for summaries in references.summaries:  # (1, R, S, C); the first half of S summarizes the object
        objects = summaries[0, :, :half].to(decoder.reference_content.device)
        contents.append((decoder.reference_content[:half] + decoder.summary_to_content(objects)).mean(0))
        positions.append((decoder.reference_position[:half] + decoder.summary_to_position(objects)).mean(0))
    groups = [[token % half for token in part] for part in np.array_split(range(max(half, queries)), queries)]
    content, position = (torch.stack(tokens).mean(0) for tokens in (contents, positions))
    return torch.stack([content[group].mean(0) for group in groups]), torch.stack(
        [position[group].mean(0) for group in groups]
    )


def class_tables(model: KPrism) -> tuple[Tensor, Tensor]:
    """The data of `CLASS_TABLES`: content and position (classes, queries, C)."""
    return model.decoder.class_content.data, model.decoder.class_position.data
