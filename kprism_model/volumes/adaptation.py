# SPDX-License-Identifier: Apache-2.0
"""Adaptation of a reference to its own slice, before a mask is propagated from it (after test-time training,
arXiv 1909.13231).

The network stays as it is. What is fitted are offsets of the reference's object summaries: with them, the network
should find the structure in slices that are made of the reference's own (`kprism_model.data.pseudo_volumes`), from the
mask of the slice before, and should find it absent where it has ended. The offsets belong to the reference: another
request never meets them. The steps and the seed are fixed, so that the same reference gives the same offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.pseudo_volumes import slice_grids
from kprism_model.losses import mask_loss, presence_loss
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, Predictor
from kprism_model.queries import ImageEmbedding, Query, build_prompts

Offsets = tuple[Tensor, Tensor, Tensor]
"""Of the object summaries at strides 16, 8 and 4, each (1, 1, S, C)."""


@dataclass(frozen=True)
class AdaptationRules:
    """The numbers that govern adaptation.

    steps, rows, learning_rate: of Adam, and how many slices a step looks at. volumes, slices: how many pseudo-volumes
    are made, and of how many slices; the structure ends in every second one. gain, offset: standard deviations of a
    factor (as a logarithm) and of a summand of intensities in [0, 1]. seed: of everything random.
    """

    steps: int = 10
    rows: int = 2
    learning_rate: float = 0.05
    volumes: int = 4
    slices: int = 6
    gain: float = 0.1
    offset: float = 0.03
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Task:
    """A slice of a pseudo-volume to segment, its mask (1, H, W) on the canvas, and whether it shows the structure."""

    query: Query
    target: Tensor
    present: bool


@torch.inference_mode(False)
@torch.enable_grad()
def fit_offsets(
    predictor: Predictor,
    reference: References,
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rules: AdaptationRules,
    lock: AbstractContextManager[object],
    on_step: Callable[[], object],
) -> Offsets:
    """Offsets of the summaries of `reference`, which is made of an `image` in [0, 1] and of a `mask` (row, column).

    The image is (row, column) or (row, column, 3). `lock` is held during each pass through the network; `on_step` is
    called after each step, and an exception in it ends the adaptation.
    """
    rng = np.random.default_rng(rules.seed)
    tasks = _tasks(predictor, image, mask, rules, rng, lock)
    # What was computed for inference cannot take part in a gradient; copies can.
    reference = References(
        tuple(summary.clone() for summary in reference.summaries),  # type: ignore[arg-type]
        reference.keys.clone(),
        reference.values.clone(),
    )
    offsets = [torch.zeros_like(summary, requires_grad=True) for summary in reference.summaries]
    adam = _Adam(offsets, rules.learning_rate)
    order: list[int] = []
    for _ in range(rules.steps):
        while len(order) < rules.rows:
            order.extend(rng.permutation(len(tasks)).tolist())
        chosen, order = [tasks[number] for number in order[: rules.rows]], order[rules.rows :]
        with lock:
            loss = _loss(predictor, with_offsets(reference, offsets), chosen)
            gradients = torch.autograd.grad(loss, offsets)
        adam.step(gradients)
        on_step()
    first, second, third = (offset.detach() for offset in offsets)
    return first, second, third


class _Adam:
    """`torch.optim.Adam`, with the same results to the last bit.

    The first of PyTorch's optimizers in a process loads its compiler: seconds that a user would wait for, and memory.
    """

    def __init__(self, weights: list[Tensor], learning_rate: float) -> None:
        self._weights = weights
        self._learning_rate = learning_rate
        self._means = [torch.zeros_like(weight) for weight in weights]
        self._squares = [torch.zeros_like(weight) for weight in weights]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], decay: float = 0.9, square_decay: float = 0.999) -> None:
        """Move the weights against their gradients."""
        self._steps += 1
        size = self._learning_rate / (1 - decay**self._steps)
        spread = (1 - square_decay**self._steps) ** 0.5
        for weight, mean, square, gradient in zip(self._weights, self._means, self._squares, gradients, strict=True):
            mean.lerp_(gradient, 1 - decay)
            square.mul_(square_decay).addcmul_(gradient, gradient, value=1 - square_decay)
            weight.addcdiv_(mean, (square.sqrt() / spread).add_(1e-8), value=-size)


def with_offsets(reference: References, offsets: Offsets | list[Tensor]) -> References:
    """The reference with other summaries."""
    moved = (summary + offset for summary, offset in zip(reference.summaries, offsets, strict=True))
    return References(tuple(moved), reference.keys, reference.values)  # type: ignore[arg-type]


def _loss(predictor: Predictor, reference: References, tasks: list[_Task]) -> Tensor:
    """The training loss of masks and presence (`kprism_model.losses`)."""
    queries = [replace(task.query, references=reference) for task in tasks]
    features, prompts = build_prompts(queries, predictor.registry, predictor.device)
    decoded = predictor.model.decode(features, prompts)
    target = torch.stack([task.target for task in tasks]).to(predictor.device)
    present = torch.tensor([float(task.present) for task in tasks], device=predictor.device)
    return mask_loss(decoded.logits, target) + presence_loss(decoded.presence, present)


def _tasks(
    predictor: Predictor,
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rules: AdaptationRules,
    rng: np.random.Generator,
    lock: AbstractContextManager[object],
) -> list[_Task]:
    """All slices but the first of each pseudo-volume, with the mask of the slice before, until the structure ends."""
    channels = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image), dtype=np.float32)).permute(2, 0, 1)
    structure = torch.from_numpy(mask.astype(np.float32))[None]
    tasks: list[_Task] = []
    for volume in range(rules.volumes):
        grids, shown = slice_grids(mask, rules.slices, volume % 2 == 1, rng)
        masks = _sampled(structure, grids)[:, 0] * torch.from_numpy(shown)[:, None, None]
        images = _sampled(channels, grids)
        for number in range(1, rules.slices):
            before, after = masks[number - 1].numpy(), masks[number].numpy() >= THRESHOLD
            if not (before >= THRESHOLD).any():
                break
            gain, offset = np.exp(rng.normal(0, rules.gain)), rng.normal(0, rules.offset)
            picture = (images[number] * gain + offset).clamp(0, 1)
            with lock:
                embedding = _embed(predictor, picture.permute(1, 2, 0).numpy().reshape(image.shape))
            target = embedding.geometry.mask_to_model(after)
            tasks.append(_Task(Query(embedding, previous_mask=before), target, bool(after.any())))
    return tasks


def _sampled(maps: Tensor, grids: Tensor) -> Tensor:
    """Maps (C, H, W) in [0, 1] at each of the grids (N, H, W, 2) of `slice_grids`: (N, C, H, W)."""
    sampled = F.grid_sample(maps.expand(len(grids), *maps.shape), grids, padding_mode="border", align_corners=False)
    return sampled.clamp(0, 1)  # sums of rounded weights can exceed 1


def _embed(predictor: Predictor, image: NDArray[np.float32]) -> ImageEmbedding:
    """An encoded image whose features can take part in a gradient."""
    [embedding] = predictor.embed([image])
    return ImageEmbedding(ImageFeatures(*(scale.clone() for scale in embedding.features)), embedding.geometry)
