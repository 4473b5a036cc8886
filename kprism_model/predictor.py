# SPDX-License-Identifier: Apache-2.0
"""Answers in image pixels: `set_image` once, then `predict` as often as wanted, with any kind of knowledge.

Images and masks are (row, column); points are (row, column) with pixel centres at integer coordinates. Everything is
deterministic: the same request gives the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kprism_model.classes import ClassRegistry
from kprism_model.encoder import ImageFeatures
from kprism_model.network import Decoded, KPrism
from kprism_model.preprocess import Geometry
from kprism_model.prompts import Prompts, click_discs
from kprism_model.references import References
from kprism_model.scribbles import check_scribbles, scribble_points

MAXIMUM_CLICKS = 256
"""More clicks than this in one request are refused."""

THRESHOLD = 0.5
"""A pixel belongs to a mask, and a structure to an image, from this probability on."""


@dataclass(frozen=True)
class Click:
    """A point in image pixels that is inside the object (positive) or outside of it."""

    row: float
    column: float
    positive: bool


@dataclass(frozen=True)
class ImageEmbedding:
    """An encoded image: `features` of one image, and how it was laid on the network's canvas."""

    features: ImageFeatures
    geometry: Geometry


@dataclass(frozen=True)
class Prediction:
    """`mask` bool and `probability` float32, (row, column); `presence`: probability that the object is here at all.

    Presence is trained for classes and references without clicks and says nothing else.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    presence: float


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
            share = geometry.mask_to_model(np.asarray(mask, dtype=bool))
            # An object thinner than a canvas pixel covers no pixel by half; its best covered ones stand for it.
            canvas[1, number, :, :rows, :columns] = share >= min(THRESHOLD, float(share.max()))
        pictures, objects = canvas.to(self.device)
        self.encoder_passes += len(images)
        return self.model.encode_references(pictures[None], objects[None, :, :1])

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
        prompts = self._prompts(embedding.geometry, class_name, clicks, scribbles, previous_mask, references)
        decoded = self.model.decode(embedding.features, prompts)
        return self._answers(decoded, [embedding.geometry])[0]

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

        With `minimum_presence`, a class that is less probable to be in an image stops at the coarsest scale, which is
        much faster, and has an empty mask.
        """
        if embeddings is None:
            if self._embedding is None:
                raise ValueError("no image is set: call set_image first or give embeddings")
            embeddings = [self._embedding]
        rows = {name: self.registry.index(name) for name in class_names}
        results: list[dict[str, Prediction]] = [{} for _ in embeddings]
        pairs = [(number, name) for number in range(len(embeddings)) for name in class_names]
        for group in self._passes(pairs, embeddings, batch):
            numbers = sorted({number for number, _ in group})
            features = ImageFeatures(
                *(torch.cat(scales) for scales in zip(*(embeddings[n].features for n in numbers), strict=True))
            )
            prompts = Prompts(
                embeddings[numbers[0]].geometry.padded,
                torch.tensor([numbers.index(number) for number, _ in group], device=self.device),
                class_index=torch.tensor([rows[name] for _, name in group], device=self.device),
                minimum_presence=minimum_presence,
            )
            decoded = self.model.decode(features, prompts)
            answers = self._answers(decoded, [embeddings[number].geometry for number, _ in group])
            for (number, name), answer in zip(group, answers, strict=True):
                results[number][name] = answer
        return results

    @staticmethod
    def _passes(
        pairs: Sequence[tuple[int, str]], embeddings: Sequence[ImageEmbedding], batch: int
    ) -> Iterator[list[tuple[int, str]]]:
        """Pairs of an image's number and a class name, at most `batch` of one canvas size together."""
        by_size: dict[tuple[int, int], list[tuple[int, str]]] = {}
        for pair in pairs:
            by_size.setdefault(embeddings[pair[0]].geometry.padded, []).append(pair)
        for group in by_size.values():
            for start in range(0, len(group), batch):
                yield group[start : start + batch]

    def _prompts(
        self,
        geometry: Geometry,
        class_name: str | None,
        clicks: Sequence[Click],
        scribbles: NDArray[Any] | None,
        previous_mask: NDArray[Any] | None,
        references: References | None,
    ) -> Prompts:
        if class_name is not None and references is not None:
            raise ValueError(f"give a class ({class_name!r}) or references, not both")
        points, labels = _check_clicks(clicks, geometry.size)
        if scribbles is not None:
            drawn_points, drawn_labels = scribble_points(check_scribbles(scribbles, geometry.size))
            points, labels = np.concatenate([points, drawn_points]), np.concatenate([labels, drawn_labels])
        if class_name is None and references is None and not len(labels):
            raise ValueError("nothing to go on: give a class, references, clicks or scribbles")
        index = torch.zeros(1, dtype=torch.long, device=self.device)
        class_index = None if class_name is None else index + self.registry.index(class_name)
        if not len(labels) and previous_mask is None:
            return Prompts(geometry.padded, index, class_index, references)
        model_points = torch.tensor(geometry.points_to_model(points), dtype=torch.float32, device=self.device)[None]
        point_labels = torch.tensor(labels, dtype=torch.long, device=self.device)[None]
        dense = self._dense(geometry, model_points, point_labels, scribbles, previous_mask)
        if not len(labels):
            return Prompts(geometry.padded, index, class_index, references, dense=dense)
        return Prompts(geometry.padded, index, class_index, references, model_points, point_labels, dense)

    def _dense(
        self,
        geometry: Geometry,
        points: Tensor,
        labels: Tensor,
        scribbles: NDArray[Any] | None,
        previous_mask: NDArray[Any] | None,
    ) -> Tensor:
        """The three dense channels (1, 3, rows, columns): positive, negative, previous mask."""
        drawn = click_discs(points, labels, geometry.padded)
        if scribbles is not None:
            for channel, sign in enumerate((1, -1)):
                # Drawn pixel by pixel, so that a thin stroke does not vanish where the canvas is the smaller one.
                pixels = geometry.points_to_model(np.argwhere(np.asarray(scribbles) == sign)).round().astype(np.int64)
                rows, columns = np.clip(pixels, 0, np.array(geometry.padded) - 1).T
                drawn[0, channel, rows, columns] = 1.0
        previous = torch.zeros_like(drawn[:, :1])
        if previous_mask is not None:
            mask = np.asarray(previous_mask, dtype=np.float32)
            if mask.shape != geometry.size:
                raise ValueError(f"previous_mask has shape {mask.shape}, the image {geometry.size}")
            if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
                raise ValueError("previous_mask must hold probabilities from 0 to 1")
            previous[0] = geometry.mask_to_model(mask).to(drawn)
        return torch.cat([drawn, previous], dim=1)

    def _answers(self, decoded: Decoded, geometries: Sequence[Geometry]) -> list[Prediction]:
        presence = decoded.presence.sigmoid().tolist()
        answers = []
        for logits, present, geometry in zip(decoded.logits[-1], presence, geometries, strict=True):
            probability = geometry.logits_to_image(logits)[0].sigmoid().cpu().numpy()
            answers.append(Prediction(probability >= THRESHOLD, probability, present))
        return answers


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


def _check_clicks(clicks: Sequence[Click], size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points (K, 2) and labels (K,) of valid clicks."""
    if len(clicks) > MAXIMUM_CLICKS:
        raise ValueError(f"{len(clicks)} clicks; at most {MAXIMUM_CLICKS} are accepted")
    for click in clicks:
        inside = -0.5 <= click.row <= size[0] - 0.5 and -0.5 <= click.column <= size[1] - 0.5  # false for NaN
        if not (math.isfinite(click.row) and math.isfinite(click.column) and inside):
            raise ValueError(
                f"click at row {click.row}, column {click.column} is outside of the image of {size[0]} x {size[1]}"
            )
    points = np.array([(click.row, click.column) for click in clicks], dtype=np.float64).reshape(-1, 2)
    return points, np.array([int(click.positive) for click in clicks], dtype=np.int64)
