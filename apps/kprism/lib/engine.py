# SPDX-License-Identifier: Apache-2.0
"""The one network of a device, shared by all models, and what is kept between requests to save computing it again.

Requests run in several threads. Passes through the network hold the engine's lock, one pass at a time; reading files
and composing answers do not. A request takes a `Network` once and uses it to its end, so it is answered by one version
of the weights whatever happens meanwhile.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from kprism_model.checkpoint import load_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.predictor import Click, ImageEmbedding, Predictor
from lib.cache import ByteCache
from lib.images import MedicalImage
from lib.reading import read_image, read_mask
from lib.report import Report

logger = logging.getLogger(__name__)

BATCH = 8
"""Slices in one pass of the encoder."""

P = ParamSpec("P")
T = TypeVar("T")


def class_names(model_path: Path) -> list[str]:
    """The class names of a checkpoint, without loading its weights; ValueError names the file if it has none."""
    path = model_path.with_suffix(".json")
    try:
        names: list[str] = json.loads(path.read_bytes())["classes"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} does not name the classes of the weights: {error!r}") from error
    return names


@dataclass(frozen=True)
class Network:
    """One version of the weights on a device."""

    predictor: Predictor
    registry: ClassRegistry
    version: str
    device: str


class Engine:
    """Loads the weights at `model_path` on first use and keeps images, slices and embeddings within `budget` bytes."""

    def __init__(self, model_path: Path, device: str, budget: int) -> None:
        self.model_path = model_path
        self.device = device
        self.cache = ByteCache(budget)
        self._network: Network | None = None
        self._loading = Lock()
        self._passes = Lock()

    def network(self) -> Network:
        """The current weights, the same object for every caller."""
        with self._loading:
            if self._network is None:
                checkpoint = load_checkpoint(self.model_path, device=self.device)
                predictor = Predictor(checkpoint.model, checkpoint.registry, device=self.device)
                self._network = Network(predictor, checkpoint.registry, checkpoint.weights_version, self.device)
                logger.info("Loaded %s, version %s, on %s", self.model_path, self._network.version, self.device)
            return self._network

    def warm_up(self) -> None:
        """Load the weights and run them once, so that the first request does not wait for either."""
        network = self.network()
        side = network.predictor.model.config.native_size
        blank = np.zeros((side, side), np.float32)

        def ask() -> None:
            embedding = network.predictor.embed([blank])[0]
            network.predictor.predict(clicks=[Click(side / 2, side / 2, True)], embedding=embedding)

        self.run("warm up", Report(), ask)

    def image(self, path: Path, name: str) -> MedicalImage:
        """An image file; read again if it changed."""
        return self._file(path, name, read_image)

    def mask(self, path: Path, name: str) -> MedicalImage:
        """A label file; read again if it changed."""
        return self._file(path, name, read_mask)

    def _file(self, path: Path, name: str, read: Callable[[Path, str], MedicalImage]) -> MedicalImage:
        if not path.is_file():
            return read(path, name)  # raises, with a sentence
        state = path.stat()
        key = (read.__name__, str(path), name, state.st_mtime_ns, state.st_size)
        return self.cached(key, lambda: read(path, name), lambda image: image.nbytes)

    def cached(self, key: Hashable, compute: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value of `key`, computed if it is not kept."""
        value = self.cache.get(key)
        if value is None:
            value = compute()
            self.cache.put(key, value, size(value))
        return value

    def embed(
        self, network: Network, image: MedicalImage, slices: Sequence[int], report: Report
    ) -> list[ImageEmbedding]:
        """Embeddings of slices of an image; those that are not kept are encoded in batches."""
        keys = {number: ("embedding", network.version, image.digest, number) for number in slices}
        found: dict[int, ImageEmbedding] = {}
        for number, key in keys.items():
            if (kept := self.cache.get(key)) is not None:
                found[number] = kept
        missing = [number for number in slices if number not in found]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            pixels = [np.ascontiguousarray(image.scaled[number]) for number in part]
            embeddings = self.run("encode", report, network.predictor.embed, pixels)
            report.encoder_passes += len(part)
            for number, embedding in zip(part, embeddings, strict=True):
                found[number] = embedding
                self.cache.put(keys[number], embedding, tensor_bytes(embedding))
        return [found[number] for number in slices]

    def run(self, step: str, report: Report, compute: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run passes through the network, alone on the device; counted as time of `step`."""
        with self._passes, report.step(step):
            return compute(*arguments, **named)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a structure of (data) classes, tuples and tensors."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, tuple | list):
        return sum(tensor_bytes(item) for item in value)
    return sum(tensor_bytes(item) for item in getattr(value, "__dict__", {}).values())
