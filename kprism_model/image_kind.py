# SPDX-License-Identifier: Apache-2.0
"""The kind of an image, such as "CT, chest", and the classes that can be in it.

kind = predictor.image_kind([embedding])
kind.name                                    # "CT, chest", or NONE
kind.possible(["spleen", "hippocampus"])     # {"spleen": 1.0}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.network.kprism import KPrism
from kprism_model.queries import ImageEmbedding

NONE = "none of the kinds that the weights know"
"""The kind of an image that is unlike everything that the network was trained on."""

MINIMUM_POSSIBLE = 0.2
"""A class is predicted if it can be in the image with at least this probability.

The value is low because a class that is predicted without need is still rejected by its presence, while a class that is
not predicted is lost.
"""


@dataclass(frozen=True)
class ImageKind:
    """`probabilities` of all kinds, `NONE` last, sum to 1; `prior`: class name -> probability that it can be there.

    `likeliest` is the highest prior of the classes that depend on the kind; the other classes can be in every image.
    """

    probabilities: Mapping[str, float]
    prior: Mapping[str, float]
    likeliest: float

    @property
    def name(self) -> str:
        """The most probable kind."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    def possible(self, class_names: Sequence[str], threshold: float = MINIMUM_POSSIBLE) -> dict[str, float]:
        """The `class_names` that can be in the image with at least the probability `threshold`, with their priors.

        Priors are divided by `likeliest`, and are at most 1. They should weigh one kind against another, but an unusual
        image of a kind should not make all of its classes less probable.
        """
        priors = {name: self.prior[name] for name in class_names if self.prior[name] >= threshold}
        # An image far from all kinds has a `likeliest` of 0.
        return {name: 1.0 if prior >= self.likeliest else prior / self.likeliest for name, prior in priors.items()}


@torch.inference_mode()
def image_kind(
    model: KPrism, registry: ClassRegistry, embeddings: Sequence[ImageEmbedding], weights: Sequence[float] | None = None
) -> ImageKind | None:
    """The kind of one image by the mean probabilities of its slices `embeddings`; None if the network has no kinds.

    `weights` say how much each slice counts; by default all count the same.
    """
    head = model.kind_head
    if head is None:
        return None
    logits = head(torch.cat([head.pooled(embedding.features) for embedding in embeddings]))
    share = torch.ones(len(embeddings)) if weights is None else torch.tensor(weights).clamp(min=1e-6)
    probability: Tensor = (share / share.sum()).to(logits.device) @ logits.softmax(dim=1)
    prior = head.possible.float() @ probability
    depending = prior[~head.possible[:, -1]]
    return ImageKind(
        dict(zip((*model.config.kinds, NONE), probability.tolist(), strict=True)),
        dict(zip(registry.names, prior.tolist(), strict=True)),
        float(depending.max()) if len(depending) else 1.0,
    )
