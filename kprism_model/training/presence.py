# SPDX-License-Identifier: Apache-2.0
"""Fitting the presence head at the end of a training, so that 0.5 separates present from absent in every class.

During training a class is present far more often than absent, or far less often, and the head learns these shares too.
Here its inputs are collected once, without gradients, and the head alone is fitted to them, with the same total weight
for the present and the absent rows of each class.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kprism_model.data.batch import Batch, SequenceBatch
from kprism_model.data.sampling import Sampler
from kprism_model.data.sequence_sampling import SequenceSampler
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import COARSEST_ONLY, Prompts
from kprism_model.progress import progress_bar
from kprism_model.training.prompts import absent_prompts, in_context_prompts, semantic_prompts
from kprism_model.training.propagation_step import MAXIMUM_RECENT, EncodedSequences, shows_something

logger = logging.getLogger(__name__)

BATCHES = 120
"""Batches of the sampler from which the inputs are collected."""

_IMAGES = 8  # in a batch
_STEPS = 400
_LEARNING_RATE = 1e-3
_HELD_OUT_EVERY = 5  # this batch shows whether the fit is an improvement
PROPAGATED = -1
_LEAST_GAIN = 0.02
_PROPAGATED_SHARE = 0.25  # weight of these rows, relative to that of all classes together
_SEQUENCES_EVERY = 3  # batches; each slice takes a pass through the whole network
_SEQUENCES = 2  # in a batch
_SLICES = 6  # of each
_FIRST_STEP = 1 << 30  # of the sampler, so that these batches were not trained on


class PresenceInputs(NamedTuple):
    """M rows for the head: `inputs` (M, 2 * width), `present` (M,) of 0 and 1, `group` (M,).

    A group is a class in one mode, semantic or in-context, or `PROPAGATED` for all slices of volumes.
    """

    inputs: Tensor
    present: Tensor
    group: Tensor


def fit_presence(
    model: KPrism,
    sampler: Sampler,
    sequences: SequenceSampler | None = None,
    *,
    batches: int = BATCHES,
    progress: bool = True,
) -> dict[str, float]:
    """Fit `model.decoder.presence` in place; the network is left in eval mode.

    With `sequences`, it is also fitted to propagated slices, where it tells that a structure has ended.
    Returns the mean over groups of the balanced accuracy (mean of sensitivity and specificity at 0.5) on rows that were
    held out, "before" and "after" the fit. If it does not rise by two points, or no rows are held out, the head stays
    as it was: after a long training it knows rare classes better than a fit to a thousand images.
    """
    model.eval()
    parts: tuple[list[PresenceInputs], list[PresenceInputs]] = ([], [])
    for step in progress_bar(range(batches), "presence", shown=progress):
        batch = sampler.batch(_IMAGES, step=_FIRST_STEP + step, size=model.config.native_size)
        part = parts[step % _HELD_OUT_EVERY == 0]
        part.extend(_collect(model, batch))
        if sequences is not None and step % _SEQUENCES_EVERY == 0:
            size = model.config.native_size
            part.append(
                _propagated(model, sequences.batch(_SEQUENCES, _SLICES, step=_FIRST_STEP + step, size=size), step)
            )
    if not all(parts):
        return {}
    fitted, held_out = (PresenceInputs(*map(torch.cat, zip(*rows, strict=True))) for rows in parts)
    head = model.decoder.presence
    original = {name: value.clone() for name, value in head.state_dict().items()}
    before = balanced_accuracy(head, held_out)
    _fit(head, fitted)
    after = balanced_accuracy(head, held_out)
    gained = after >= before + _LEAST_GAIN
    if not gained:
        head.load_state_dict(original)
    logger.info("Presence: balanced accuracy %.3f before and %.3f after the fit", before, after)
    return {"before": before, "after": after if gained else before}


@torch.no_grad()
def balanced_accuracy(head: nn.Module, rows: PresenceInputs) -> float:
    """Mean of sensitivity and specificity at 0.5, over the groups that have both present and absent rows."""
    correct = ((head(rows.inputs)[:, 0] > 0) == (rows.present > 0.5)).float()
    accuracies = []
    for group in rows.group.unique():
        outcomes = [correct[(rows.group == group) & (rows.present == value)] for value in (0, 1)]
        if all(len(outcome) for outcome in outcomes):
            accuracies.append(sum(float(outcome.mean()) for outcome in outcomes) / 2)
    return sum(accuracies) / max(1, len(accuracies))


def _fit(head: nn.Module, rows: PresenceInputs) -> None:
    weights = balanced_weights(rows)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(head(rows.inputs)[:, 0], rows.present, weight=weights)
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()


def balanced_weights(rows: PresenceInputs) -> Tensor:
    """Weights (M,) with the same sum for the present and the absent rows of each group; their mean is 1.

    All classes have the same sum; that of propagated slices is `_PROPAGATED_SHARE` of the sum of all classes.
    """
    cell = 2 * rows.group + rows.present.long()
    _, index, count = cell.unique(return_inverse=True, return_counts=True)
    weights: Tensor = 1.0 / count[index].float()
    propagated = rows.group == PROPAGATED
    if propagated.any() and not propagated.all():
        weights[propagated] *= _PROPAGATED_SHARE * weights[~propagated].sum() / weights[propagated].sum()
    return weights / weights.mean()


@torch.no_grad()
def _collect(model: KPrism, batch: Batch) -> Iterator[PresenceInputs]:
    """The inputs of a batch: semantic, in-context, and classes that the images lack."""
    batch = batch.to(next(model.parameters()).device)
    features = model.encode_image(batch.images)
    present = batch.masks.flatten(1).any(dim=1).float()
    for prompts in (semantic_prompts(batch), in_context_prompts(model, batch, features)):
        if prompts is not None:
            rows = prompts.image_index
            group = 2 * batch.class_index[rows] + int(prompts.references is not None)
            yield PresenceInputs(_inputs(model, features, prompts), present[rows], group)
    absent = absent_prompts(batch)
    if absent is not None and absent.class_index is not None:
        classes = absent.class_index
        absence = torch.zeros(len(classes), device=classes.device)
        yield PresenceInputs(_inputs(model, features, absent), absence, 2 * classes)


@torch.no_grad()
def _propagated(model: KPrism, batch: SequenceBatch, number: int) -> PresenceInputs:
    """The inputs for slices to which true first masks are propagated; `number` says with how many references."""
    device = next(model.parameters()).device
    masks = batch.masks.to(device)
    sequences = EncodedSequences(model, SequenceBatch(batch.images.to(device), masks))
    with _head_inputs(model) as captured:
        sequences.outwards(masks[:, 0], number % (MAXIMUM_RECENT + 1))
    present = shows_something(masks[:, 1:].transpose(0, 1).flatten(0, 1))
    return PresenceInputs(torch.cat(captured), present, torch.full(present.shape, PROPAGATED, device=present.device))


def _inputs(model: KPrism, features: ImageFeatures, prompts: Prompts) -> Tensor:
    """The inputs of the head for the rows of `prompts`."""
    with _head_inputs(model) as captured:
        model.decode(features, replace(prompts, minimum_presence=COARSEST_ONLY))
    return captured[0]


@contextmanager
def _head_inputs(model: KPrism) -> Iterator[list[Tensor]]:
    """The list that the inputs of each pass through the head are appended to."""
    captured: list[Tensor] = []
    hook = model.decoder.presence.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        yield captured
    finally:
        hook.remove()
