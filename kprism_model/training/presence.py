# SPDX-License-Identifier: Apache-2.0
"""The presence head fitted anew at the end of a training, so that 0.5 separates present from absent in every class.

During training a class is far more often asked for where it is than where it is not, or the other way round, and the
head learns these shares too. Here all that it sees is collected once, without gradients, and it alone is fitted to it
with the present and the absent rows of each class weighing the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from kprism_model.data.sampling import Batch, Sampler
from kprism_model.network.kprism import KPrism
from kprism_model.network.prompts import COARSEST_ONLY, Prompts

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
    device = next(model.parameters()).device
    images, masks = batch.images.to(device), batch.masks.to(device)
    size = (images.shape[-2], images.shape[-1])
    features = model.encode_image(images)
    present = masks.flatten(1).any(dim=1).float()
    asked: list[tuple[Prompts, Tensor, Tensor]] = []
    classes = batch.class_index.to(device)
    rows = (classes >= 0).nonzero().flatten()
    if len(rows):
        asked.append((Prompts(size, rows, class_index=classes[rows]), present[rows], 2 * classes[rows]))
    lacking = batch.lacking.to(device)
    where, slots = (lacking >= 0).nonzero(as_tuple=True)
    if len(where):
        absent = lacking[where, slots]
        asked.append((Prompts(size, where, class_index=absent), torch.zeros_like(absent).float(), 2 * absent))
    references = batch.references.to(device)
    rows = (references[:, 0] >= 0).nonzero().flatten()
    if len(rows):
        encoded = model.encode_references(images[:, None], masks[:, None], features).gather(references[rows])
        asked.append((Prompts(size, rows, references=encoded), present[rows], 2 * classes[rows] + 1))
    for prompts, here, kind in asked:
        prompts.minimum_presence = COARSEST_ONLY
        taken: list[Tensor] = []
        hook = model.decoder.presence.register_forward_pre_hook(lambda _, inputs, taken=taken: taken.append(inputs[0]))
        try:
            model.decode(features, prompts)
        finally:
            hook.remove()
        yield Seen(taken[0].clone(), here, kind)
