# SPDX-License-Identifier: Apache-2.0
"""Scores of every image for choosing the next case to label, computed in the background for each version.

The scores of an image are computed on a few of its slices: the network's uncertainty about each structure, the
disagreement between its semantic and its in-context prediction, and an embedding that tells which images differ from
all labelled ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.metrics import dice
from kprism_model.network.references import References
from kprism_model.predictor import ImageEmbedding, Prediction, Predictor
from kprism_model.preprocess import evenly_spaced
from lib.files import read_json, write_json
from lib.imaging.medical_image import MedicalImage
from lib.networks import Network, Networks
from lib.routes import IN_CONTEXT, SEMANTIC

logger = logging.getLogger(__name__)

SLICES_PER_IMAGE = 3
"""Slices of an image that are scored, spread evenly."""

_CLASSES_PER_PASS = 4
_IMAGES_PER_SAVE = 20
_POLL_SECONDS = 1.0

FindReferences = Callable[[str, ImageEmbedding], References | None]
"""References for a structure in a slice, by the network that answers it `in_context`; None if there are none."""


@dataclass(frozen=True)
class Scores:
    """The scores of an image: uncertainty (nats) and disagreement (1 - Dice) by structure, and its embedding."""

    uncertainty: Mapping[str, float]
    disagreement: Mapping[str, float]
    embedding: Sequence[float]


def score_image(
    networks: Networks,
    image: MedicalImage,
    find: FindReferences,
    *,
    run: Callable[[Callable[[], Any]], Any] = lambda compute: compute(),
) -> Scores:
    """Score an image: each structure with the networks that answer it. `run` calls a network.

    The embedding is by the shipped network, so that it stays the same whatever the site has trained.
    """
    pixels = [
        np.ascontiguousarray(image.scaled[number]) for number in evenly_spaced(range(image.slices), SLICES_PER_IMAGE)
    ]
    embedded: dict[Network, list[ImageEmbedding]] = {}

    def embeddings(network: Network) -> list[ImageEmbedding]:
        if network not in embedded:
            embedded[network] = [run(partial(network.predictor.embed, [p]))[0] for p in pixels]
        return embedded[network]

    answers: dict[str, list[Prediction]] = {}
    for network, names in networks.grouped(SEMANTIC, networks.semantic_classes.names).items():
        slices = [_answer(network.predictor, names, embedding, run) for embedding in embeddings(network)]
        answers |= {name: [answer[name] for answer in slices] for name in names}
    uncertainty = {name: float(np.mean([entropy(answer) for answer in own])) for name, own in answers.items()}
    disagreement = {}
    for name, own in answers.items():
        network = networks.of(IN_CONTEXT, name)
        differences = []
        for embedding, answer in zip(embeddings(network), own, strict=True):
            references = find(name, embedding)
            if references is not None:
                predict = partial(network.predictor.predict, references=references, embedding=embedding)
                differences.append(1 - dice(answer.mask_if_present, run(predict).mask_if_present))
        if differences:
            disagreement[name] = float(np.mean(differences))
    features = [
        embedding.features.stride16[0].float().mean((1, 2)).cpu().numpy() for embedding in embeddings(networks.shipped)
    ]
    return Scores(uncertainty, disagreement, [round(float(value), 5) for value in np.mean(features, 0)])


def _answer(
    predictor: Predictor, names: Sequence[str], embedding: ImageEmbedding, run: Callable[[Callable[[], Any]], Any]
) -> dict[str, Prediction]:
    """The semantic predictions for a slice, in short passes, so that a user's request does not wait long."""
    predictions: dict[str, Prediction] = {}
    for start in range(0, len(names), _CLASSES_PER_PASS):
        part = names[start : start + _CLASSES_PER_PASS]
        predictions |= run(partial(predictor.predict_classes, part, embeddings=[embedding]))[0]
    return predictions


def entropy(prediction: Prediction) -> float:
    """Entropy in nats of the mask, summed over pixels and divided by the object's size, plus that of its presence.

    The division is there because a longer outline has more uncertain pixels, even if it is as certain.
    """
    pixels = _entropy(prediction.probability).sum() / max(float(prediction.probability.sum()), 1.0)
    present = float(prediction.presence)
    return float(present * min(pixels, np.log(2)) + _entropy(np.array(present)))


def _entropy(probability: NDArray[Any]) -> NDArray[np.float64]:
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    nats: NDArray[np.float64] = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return nats


def calibrated(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Image -> mean over its structures of each value divided by the structure's mean over all images.

    Some structures have blurred edges in every image; the quotient shows which image is worse than others.
    """
    by_structure: dict[str, list[float]] = {}
    for figures in values.values():
        for name, value in figures.items():
            by_structure.setdefault(name, []).append(value)
    means = {name: max(float(np.mean(figures)), 1e-9) for name, figures in by_structure.items()}
    return {
        image: float(np.mean([value / means[name] for name, value in figures.items()]))
        for image, figures in values.items()
        if figures
    }


def distances(pool: Mapping[str, Sequence[float]], labelled: Iterable[Sequence[float]]) -> dict[str, float]:
    """Distance of each image of the pool from the nearest labelled one: 1 - cosine, after subtracting the common mean.

    Without labelled images: the distance from the mean of the pool, so the most typical image comes last.
    """
    known = [np.asarray(vector, np.float64) for vector in labelled]
    vectors = {image: np.asarray(vector, np.float64) for image, vector in pool.items()}
    if not vectors:
        return {}
    centre = np.mean([*vectors.values(), *known], axis=0)
    if not known:
        return {image: float(np.linalg.norm(vector - centre)) for image, vector in vectors.items()}
    directions = _unit(np.stack(known) - centre)
    return {image: float(1 - (directions @ _unit(vector - centre)).max()) for image, vector in vectors.items()}


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    directions: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return directions


class ScoreBoard:
    """Scores with the current version, kept in `folder`; a thread computes the missing ones, one image at a time.

    `version` gives the current version of the weights, `images` the ids to score; `score` scores one image. Nothing is
    computed while `busy`.
    """

    def __init__(
        self,
        folder: Path,
        version: Callable[[], str],
        images: Callable[[], Iterable[str]],
        score: Callable[[str], Scores],
        *,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._version, self._images, self._score, self._busy = folder, version, images, score, busy
        self._scores: dict[str, Scores] = {}
        self._scored_version = ""
        self._failed: set[str] = set()
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None

    def scores(self) -> dict[str, Scores]:
        """The scores with the current version so far, by image id."""
        self._load_version()
        with self._lock:
            return dict(self._scores)

    def step(self) -> bool:
        """Score one image that has no score yet; False if there is none."""
        self._load_version()
        with self._lock:
            version, known = self._scored_version, {*self._scores, *self._failed}
        missing = next((image for image in self._images() if image not in known), None)
        if missing is None:
            return False
        try:
            scores = self._score(missing)
        except (ValueError, OSError) as error:
            logger.warning("Image %r cannot be scored: %s", missing, error)
            self._failed.add(missing)
            return True
        with self._lock:
            if version == self._scored_version:  # else other weights serve by now
                self._scores[missing] = scores
                saved = len(self._scores) % _IMAGES_PER_SAVE == 0
        if saved:
            self.save()
        return True

    def start(self) -> None:
        """Compute missing scores in the background until `stop`."""
        self._thread = Thread(target=self._run, name="scores", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def save(self) -> None:
        """Write the scores of the current version, and delete those of others."""
        with self._lock:
            version, content = self._scored_version, {image: asdict(scores) for image, scores in self._scores.items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(version), content)
        for old in self._folder.glob("scores-*.json"):
            if old != self._path(version):
                old.unlink(missing_ok=True)

    def _run(self) -> None:
        unsaved = False
        while not self._stop.is_set():
            if not self._busy() and self.step():
                unsaved = True
                continue
            if unsaved:
                self.save()
                unsaved = False
            self._stop.wait(_POLL_SECONDS)

    def _load_version(self) -> None:
        """If the version changed, continue with the scores that were saved for the new one."""
        version = self._version()
        with self._lock:
            if version == self._scored_version:
                return
            self._scored_version, self._failed, self._scores = version, set(), {}
            try:
                stored = read_json(self._path(version)) or {}
                self._scores = {image: Scores(**scores) for image, scores in stored.items()}
            except (ValueError, TypeError) as error:
                logger.warning("Scores are computed again: %s", error)

    def _path(self, version: str) -> Path:
        return self._folder / f"scores-{version}.json"
