# SPDX-License-Identifier: Apache-2.0
"""The presence head fitted anew at the end of a training, so that 0.5 separates present from absent in every class.

During training a class is far more often asked for where it is than where it is not, or the other way round, and the
head learns these shares too. Here all that it sees is collected once, without gradients, and it alone is fitted to it
with the present and the absent rows of each class weighing the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from kprism_model.data.batch import Batch
from kprism_model.data.sampling import Sampler
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import COARSEST_ONLY, Prompts
from kprism_model.training.training_step import absent_prompts, in_context_prompts, semantic_prompts

logger = logging.getLogger(__name__)

BATCHES = 120
"""Batches of the sampler that are looked at."""

_IMAGES = 8  # in a batch
_STEPS = 400
_LEARNING_RATE = 1e-3
_HELD_OUT = 5  # every fifth batch tells whether the fit is an improvement
_FIRST_STEP = 1 << 30  # of the sampler, so that these batches are no batches of the training


class Seen(NamedTuple):
    """What the head sees of M rows: `inputs` (M, 2 * width), `present` (M,) of 0 and 1, `kind` (M,).

    A kind is a class in one mode, semantic or in-context.
    """

    inputs: Tensor
    present: Tensor
    kind: Tensor


def fit_presence(model: KPrism, sampler: Sampler, *, batches: int = BATCHES, progress: bool = True) -> dict[str, float]:
    """Fit `model.decoder.presence` in place; the network is left in eval mode.

    Returns the mean over kinds of the balanced accuracy (mean of sensitivity and specificity at 0.5) on rows that were
    held out, "before" and "after". Where it would fall, or nothing is held out, the head stays as it was.
    """
    model.eval()
    seen: tuple[list[Seen], list[Seen]] = ([], [])
    for step in tqdm(range(batches), desc="presence", disable=not progress):
        batch = sampler.batch(_IMAGES, step=_FIRST_STEP + step, size=model.config.native_size)
        seen[step % _HELD_OUT == 0].extend(_look(model, batch))
    if not all(seen):
        return {}
    fitted, held_out = (Seen(*(torch.cat(parts) for parts in zip(*rows, strict=True))) for rows in seen)
    head = model.decoder.presence
    kept = {name: value.clone() for name, value in head.state_dict().items()}
    before = balanced_accuracy(head, held_out)
    _fit(head, fitted)
    after = balanced_accuracy(head, held_out)
    if after < before:
        head.load_state_dict(kept)
    logger.info("Presence: balanced accuracy %.3f before and %.3f after the fit", before, after)
    return {"before": before, "after": max(before, after)}


@torch.no_grad()
def balanced_accuracy(head: nn.Module, seen: Seen) -> float:
    """Mean of sensitivity and specificity at 0.5 over the kinds that have both present and absent rows."""
    right = ((head(seen.inputs)[:, 0] > 0) == (seen.present > 0.5)).float()
    found = []
    for kind in seen.kind.unique():
        shares = [right[(seen.kind == kind) & (seen.present == value)] for value in (0, 1)]
        if all(len(share) for share in shares):
            found.append(sum(float(share.mean()) for share in shares) / 2)
    return sum(found) / max(1, len(found))


def _fit(head: nn.Module, seen: Seen) -> None:
    weights = _weights(seen)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(_STEPS):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(head(seen.inputs)[:, 0], seen.present, weight=weights)
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()


def _weights(seen: Seen) -> Tensor:
    """Weights that give all present and all absent rows of each kind the same sum; their mean is 1."""
    group = 2 * seen.kind + seen.present.long()
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    weights: Tensor = 1.0 / count[index].float()
    return weights / weights.mean()


@torch.no_grad()
def _look(model: KPrism, batch: Batch) -> Iterator[Seen]:
    """The rows of a batch: semantic, what the images lack, and in-context."""
    batch = batch.to(next(model.parameters()).device)
    features = model.encode_image(batch.images)
    present = batch.masks.flatten(1).any(dim=1).float()
    for prompts in (semantic_prompts(batch), in_context_prompts(model, batch, features)):
        if prompts is not None:
            rows = prompts.image_index
            kind = 2 * batch.class_index[rows] + int(prompts.references is not None)
            yield Seen(_inputs(model, features, prompts), present[rows], kind)
    absent = absent_prompts(batch)
    if absent is not None and absent.class_index is not None:
        classes = absent.class_index
        yield Seen(_inputs(model, features, absent), torch.zeros(len(classes), device=classes.device), 2 * classes)


def _inputs(model: KPrism, features: ImageFeatures, prompts: Prompts) -> Tensor:
    """What the head is given for the rows of `prompts`."""
    taken: list[Tensor] = []
    hook = model.decoder.presence.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        model.decode(features, replace(prompts, minimum_presence=COARSEST_ONLY))
    finally:
        hook.remove()
    return taken[0]
