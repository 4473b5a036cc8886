# SPDX-License-Identifier: Apache-2.0
"""Answers in image pixels: `set_image` once, then `predict` as often as wanted, with any kind of knowledge.

Images and masks are (row, column); points are (row, column) with pixel centres at integer coordinates. Everything is
deterministic: the same request gives the same mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.image_kind import ImageKind, image_kind
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.references import References
from kprism_model.preprocess import Geometry
from kprism_model.queries import Click, ImageEmbedding, Query, batches, build_prompts

__all__ = ["THRESHOLD", "Click", "ImageEmbedding", "Prediction", "Predictor", "merge_classes"]

THRESHOLD = 0.5
"""A pixel belongs to a mask, and a structure to an image, from this probability on."""


@dataclass(frozen=True)
class Prediction:
    """`mask` bool and `probability` float32, (row, column); `presence`: probability that the object is here at all.

    Presence is trained for classes and references without clicks and says nothing else.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    presence: float

    @property
    def served(self) -> NDArray[np.bool_]:
        """The mask that a user gets, (row, column): empty where the object probably is not in the image."""
        return self.mask & (self.presence >= THRESHOLD)


class Predictor:
    """A network with its class names, answering in the pixels of the images it is given.

    `encoder_passes` counts the images that were encoded, references included.
    """

    def __init__(self, model: KPrism, registry: ClassRegistry, *, device: str | torch.device = "cpu") -> None:
        if len(registry) != model.config.num_classes:
            raise ValueError(f"{len(registry)} class names for a network of {model.config.num_classes} classes")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.registry = registry
        self.encoder_passes = 0
        self._embedding: ImageEmbedding | None = None

    @torch.inference_mode()
    def embed(self, images: Sequence[NDArray[Any]]) -> list[ImageEmbedding]:
        """Encode images (row, column) or (row, column, 3) with values in [0, 1]; those of one size in one batch."""
        embeddings: dict[int, ImageEmbedding] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            if image.ndim not in (2, 3) or min(image.shape[:2]) < 1:
                raise ValueError(f"an image must be (rows, columns) or (rows, columns, 3), got shape {image.shape}")
            by_size.setdefault((image.shape[0], image.shape[1]), []).append(number)
        for size, numbers in by_size.items():
            geometry = Geometry.fit(size, self.model.config.native_size)
            canvas = torch.stack([geometry.image_to_model(images[number]) for number in numbers])
            features = self.model.encode_image(canvas.to(self.device))
            self.encoder_passes += len(numbers)
            for row, number in enumerate(numbers):
                one = ImageFeatures(*(scale[row : row + 1] for scale in features))
                embeddings[number] = ImageEmbedding(one, geometry)
        return [embeddings[number] for number in range(len(images))]

    def set_image(self, image: NDArray[Any]) -> ImageEmbedding:
        """Encode `image` and answer about it until the next one is set."""
        self._embedding = self.embed([image])[0]
        return self._embedding

    def image_kind(
        self, embeddings: Sequence[ImageEmbedding], weights: Sequence[float] | None = None
    ) -> ImageKind | None:
        """What kind of image slices are of, and which classes can be in it; None for weights that know no kinds.

        `weights` tell how much each slice counts, by default all the same.
        """
        return image_kind(self.model, self.registry, embeddings, weights)

    @torch.inference_mode()
    def embed_references(self, images: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any]]) -> References:
        """Encode R reference images with their masks (row, column) of one structure, for any number of queries.

        Sizes may differ from each other and from the query's: each is laid on a square canvas of the native size.
        ValueError for none, unequal counts, a mask of another size than its image, or an empty mask.
        """
        if not images or len(images) != len(masks):
            raise ValueError(
                f"need as many masks as reference images and at least one, got {len(masks)}, {len(images)}"
            )
        native = self.model.config.native_size
        canvas = torch.zeros(2, len(images), 3, native, native)
        for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
            if not np.any(mask):
                raise ValueError(f"the mask of reference {number + 1} is empty")
            geometry = Geometry.fit((image.shape[0], image.shape[1]), native)
            rows, columns = geometry.padded
            canvas[0, number, :, :rows, :columns] = geometry.image_to_model(image)
            canvas[1, number, :, :rows, :columns] = _objects(geometry.mask_to_model(np.asarray(mask, dtype=bool)))
        pictures, objects = canvas.to(self.device)
        self.encoder_passes += len(images)
        return self.model.encode_references(pictures[None], objects[None, :, :1])

    @torch.inference_mode()
    def embed_reference(self, embedding: ImageEmbedding, image: NDArray[Any], mask: NDArray[Any]) -> References:
        """One reference from an image that is encoded already and its mask (row, column).

        It lies on the canvas of the image, not on a square one, and can be joined with others of the same size.
        """
        if not np.any(mask):
            raise ValueError("the mask of the reference is empty")
        geometry = embedding.geometry
        picture = geometry.image_to_model(image)[None, None].to(self.device)
        share = geometry.mask_to_model(np.asarray(mask, dtype=bool))
        return self.model.encode_references(picture, _objects(share)[None, None].to(self.device), embedding.features)

    @torch.inference_mode()
    def predict(
        self,
        *,
        class_name: str | None = None,
        clicks: Sequence[Click] = (),
        scribbles: NDArray[Any] | None = None,
        previous_mask: NDArray[Any] | None = None,
        references: References | None = None,
        embedding: ImageEmbedding | None = None,
    ) -> Prediction:
        """Segment one object of the image that was set, or of `embedding`.

        Knowledge, at least one kind of it: a registered class, clicks, scribbles (row, column) of 1 inside, -1 outside
        and 0 elsewhere, references. `previous_mask` (row, column), a mask or probabilities, is what the clicks or
        scribbles correct. ValueError for no knowledge, a class together with references, an unknown class, points
        outside the image, or arrays of another size than the image.
        """
        embedding = embedding or self._embedding
        if embedding is None:
            raise ValueError("no image is set: call set_image first or give an embedding")
        query = Query(embedding, class_name, references, tuple(clicks), scribbles, previous_mask)
        return self.answer([query])[0]

    @torch.inference_mode()
    def answer(self, queries: Sequence[Query], *, minimum_presence: float | None = None) -> list[Prediction]:
        """Answers to queries of one kind (see `Query.kind`) in one pass; `predict_batch` sorts any others."""
        features, prompts = build_prompts(queries, self.registry, self.device, minimum_presence=minimum_presence)
        decoded = self.model.decode(features, prompts)
        presence = decoded.presence.sigmoid().tolist()
        answers = []
        for query, logits, present in zip(queries, decoded.logits[-1], presence, strict=True):
            probability = query.embedding.geometry.logits_to_image(logits)[0].sigmoid().cpu().numpy()
            answers.append(Prediction(probability >= THRESHOLD, probability, present))
        return answers

    @torch.inference_mode()
    def predict_classes(
        self,
        class_names: Sequence[str],
        *,
        embeddings: Sequence[ImageEmbedding] | None = None,
        minimum_presence: float | None = None,
        batch: int = 8,
    ) -> list[dict[str, Prediction]]:
        """Every class in every image, `batch` pairs a pass: one dict from name to prediction for each image.

        Classes are asked for whatever the image is of; `image_kind` tells which of them can be in it.

        With `minimum_presence`, a class that is less probable to be in an image stops at the coarsest scale, which is
        much faster, and has an empty mask.
        """
        if embeddings is None:
            if self._embedding is None:
                raise ValueError("no image is set: call set_image first or give embeddings")
            embeddings = [self._embedding]
        for name in class_names:
            self.registry.index(name)
        queries = [Query(embedding, name) for embedding in embeddings for name in class_names]
        answers: dict[int, Prediction] = {}
        for rows in batches(queries, batch):
            found = self.answer([queries[row] for row in rows], minimum_presence=minimum_presence)
            answers.update(zip(rows, found, strict=True))
        by_name = iter(answers[row] for row in range(len(queries)))
        return [{name: next(by_name) for name in class_names} for _ in embeddings]


def _objects(share: Tensor) -> Tensor:
    """Canvas pixels, as 0 and 1, of an object that covers them by `share`.

    An object thinner than a canvas pixel covers none by half; its best covered ones stand for it.
    """
    return (share >= min(THRESHOLD, float(share.max()))).to(share.dtype)


def merge_classes(
    predictions: Mapping[str, Prediction], order: Sequence[str], *, presence_threshold: float = THRESHOLD
) -> NDArray[np.uint8]:
    """One index map of several predictions of one image: pixel value k is the k-th name of `order`, 0 is none.

    Each pixel goes to the most probable structure among those that are probable enough to be in the image at all and
    whose mask holds it; the earlier name wins a tie. Names of `order` without a prediction leave their value unused.
    """
    shapes = {prediction.mask.shape for prediction in predictions.values()}
    if len(shapes) != 1 or len(order) > 255:
        raise ValueError(f"need predictions of one shape and at most 255 names, got {shapes} and {len(order)}")
    merged = np.zeros(shapes.pop(), dtype=np.uint8)
    best = np.zeros(merged.shape, dtype=np.float32)
    for value, name in enumerate(order, start=1):
        prediction = predictions.get(name)
        if prediction is None or prediction.presence < presence_threshold:
            continue
        wins = prediction.mask & (prediction.probability > best)
        merged[wins] = value
        best[wins] = prediction.probability[wins]
    return merged


__all__ = ["Query", "predict_batch"]


def predict_batch(
    predictor: Predictor, queries: Sequence[Query], *, batch: int = 16, minimum_presence: float | None = None
) -> list[Prediction]:
    """The answers that `Predictor.predict` gives to each query, in order, `batch` rows of one kind a pass.

    With `minimum_presence`, an object that is less probable to be in its image stops at the coarsest scale, which is
    much faster, and has an empty mask.
    """
    answers: dict[int, Prediction] = {}
    for rows in batches(queries, batch):
        found = predictor.answer([queries[row] for row in rows], minimum_presence=minimum_presence)
        answers.update(zip(rows, found, strict=True))
    return [answers[row] for row in range(len(queries))]
