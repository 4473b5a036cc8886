# SPDX-License-Identifier: Apache-2.0
"""Predictions in image pixels: `set_image` once, then `predict` as often as wanted, with prompts of any kind.

Images and masks are (row, column); points are (row, column) with pixel centres at integer coordinates. Everything is
deterministic: the same request gives the same mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.image_kind import ImageKind, image_kind
from kprism_model.network.decoder import ABSENT_LOGIT
from kprism_model.network.encoder import ImageFeatures
from kprism_model.network.kprism import KPrism
from kprism_model.network.references import References
from kprism_model.preprocess import Geometry, Pixels
from kprism_model.queries import Click, ImageEmbedding, Query, batches, build_prompts

__all__ = [
    "THRESHOLD",
    "Click",
    "ImageEmbedding",
    "Prediction",
    "Predictor",
    "Query",
    "merge_classes",
    "predict_batch",
]

THRESHOLD = 0.5
"""A pixel belongs to a mask, and a structure is in an image, if the probability is at least this."""


@dataclass(frozen=True)
class Prediction:
    """`mask` bool and `probability` float32, (row, column); `presence`: probability that the object is in the image.

    Presence is trained for classes and references without clicks; with clicks it has no meaning.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    presence: float

    @property
    def mask_if_present(self) -> NDArray[np.bool_]:
        """The mask (row, column) that a user gets: empty if `presence` is below `THRESHOLD`."""
        return self.mask & (self.presence >= THRESHOLD)


class Predictor:
    """A network with its class names; predicts masks in the pixels of the images that it is given.

    `encoder_passes` counts the images that were encoded, including references.
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
    def embed(self, images: Sequence[NDArray[Any] | Pixels]) -> list[ImageEmbedding]:
        """Encode images (row, column) or (row, column, 3) with values in [0, 1]; images of one size share a batch."""
        embeddings: dict[int, ImageEmbedding] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            if len(image.shape) not in (2, 3) or min(image.shape[:2]) < 1:
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
        """Encode `image`; later predictions are about it, until the next image is set."""
        self._embedding = self.embed([image])[0]
        return self._embedding

    def image_kind(
        self, embeddings: Sequence[ImageEmbedding], weights: Sequence[float] | None = None
    ) -> ImageKind | None:
        """The kind of image that slices are from, and the classes that can be in it; None if the network has no kinds.

        `weights` say how much each slice counts; by default all count the same.
        """
        return image_kind(self.model, self.registry, embeddings, weights)

    @torch.inference_mode()
    def embed_references(self, images: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any]]) -> References:
        """Encode R reference images with their masks (row, column) of one structure, for any number of queries.

        Images may have different sizes: each one is placed on a square canvas of the native size. ValueError if there
        is no image, the counts differ, a mask has another size than its image, or a mask is empty.
        """
        if not images or len(images) != len(masks):
            raise ValueError(
                f"expected one or more images and a mask for each, got {len(images)} images, {len(masks)} masks"
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
    def embed_reference(
        self, embedding: ImageEmbedding, image: NDArray[Any] | Pixels, mask: NDArray[Any]
    ) -> References:
        """One reference from an image that is already encoded, and its mask (row, column).

        Its canvas is that of the image, not a square one; it can be joined with references of the same canvas size.
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

        At least one prompt is needed: a registered class, references, clicks, or scribbles (row, column) of 1 inside,
        -1 outside and 0 elsewhere. Clicks and scribbles correct `previous_mask` (row, column): probabilities, or a bool
        mask, whose outline is taken as uncertain.
        ValueError for no prompt, a class together with references, an unknown class, points outside the image, or
        arrays of another size than the image.
        """
        embedding = embedding or self._embedding
        if embedding is None:
            raise ValueError("no image is set: call set_image first or give an embedding")
        query = Query(embedding, class_name, references, tuple(clicks), scribbles, previous_mask)
        return self.predict_queries([query])[0]

    @torch.inference_mode()
    def predict_queries(self, queries: Sequence[Query], *, minimum_presence: float | None = None) -> list[Prediction]:
        """Predictions for queries of one `Query.batch_key`, in one pass; `predict_batch` takes any queries."""
        features, prompts = build_prompts(queries, self.registry, self.device, minimum_presence=minimum_presence)
        decoded = self.model.decode(features, prompts)
        presence = decoded.presence.sigmoid().tolist()
        highest = decoded.logits[-1].flatten(1).amax(1).tolist()
        predictions = []
        for row, query in enumerate(queries):
            geometry = query.embedding.geometry
            if highest[row] <= ABSENT_LOGIT:  # stopped early; nothing to enlarge
                probability = np.zeros(geometry.size, np.float32)
                predictions.append(Prediction(np.zeros(geometry.size, bool), probability, presence[row]))
                continue
            probability = geometry.logits_to_image(decoded.logits[-1][row])[0].sigmoid().cpu().numpy()
            predictions.append(Prediction(probability >= THRESHOLD, probability, presence[row]))
        return predictions

    @torch.inference_mode()
    def predict_classes(
        self,
        class_names: Sequence[str],
        *,
        embeddings: Sequence[ImageEmbedding] | None = None,
        minimum_presence: float | None = None,
        batch: int = 8,
    ) -> list[dict[str, Prediction]]:
        """Every class in every image, `batch` pairs a pass: a dict from name to prediction for each image.

        All classes are predicted, whatever the image shows; `image_kind` says which of them can be in it. With
        `minimum_presence`, a class whose presence is less probable stops at the coarsest scale, which is much faster,
        and gets an empty mask of zeros; so does a class that has no plausible pixel at stride 8.
        """
        if embeddings is None:
            if self._embedding is None:
                raise ValueError("no image is set: call set_image first or give embeddings")
            embeddings = [self._embedding]
        for name in class_names:
            self.registry.index(name)
        queries = [Query(embedding, name) for embedding in embeddings for name in class_names]
        predictions = predict_batch(self, queries, batch=batch, minimum_presence=minimum_presence)
        by_name = iter(predictions)
        return [{name: next(by_name) for name in class_names} for _ in embeddings]


def _objects(share: Tensor) -> Tensor:
    """An object's canvas pixels as 0 and 1, from the `share` of each pixel that it covers.

    An object that is thinner than a canvas pixel covers no pixel by half; then the best covered pixels are used.
    """
    return (share >= min(THRESHOLD, float(share.max()))).to(share.dtype)


def merge_classes(
    predictions: Mapping[str, Prediction], order: Sequence[str], *, presence_threshold: float = THRESHOLD
) -> NDArray[np.uint8]:
    """One index map from several predictions of one image: value k is the k-th name of `order`, 0 is background.

    A pixel goes to the most probable structure whose mask holds it and whose presence reaches `presence_threshold`; the
    earlier name wins a tie. A name of `order` without a prediction leaves its value unused.
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


def predict_batch(
    predictor: Predictor,
    queries: Sequence[Query],
    *,
    batch: int = 16,
    minimum_presence: float | None = None,
    lock: AbstractContextManager[object] | None = None,
) -> list[Prediction]:
    """The result of `Predictor.predict` for each query, in order, with at most `batch` rows in one pass.

    With `minimum_presence`, an object whose presence is less probable stops at the coarsest scale, which is much
    faster, and gets an empty mask of zeros; so does an object that has no plausible pixel at stride 8. `lock` is held
    during each pass, so that others have their turns in between.
    """
    predictions: dict[int, Prediction] = {}
    for rows in batches(queries, batch):
        with lock or nullcontext():
            of_rows = predictor.predict_queries([queries[row] for row in rows], minimum_presence=minimum_presence)
        predictions.update(zip(rows, of_rows, strict=True))
    return [predictions[row] for row in range(len(queries))]
