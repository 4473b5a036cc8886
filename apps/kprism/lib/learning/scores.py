# SPDX-License-Identifier: Apache-2.0
"""What speaks for labelling a case next, computed in the background for every image and kept for each version.

Of a few slices of an image: how unsure the network is of each structure, how far what it learned and what the labelled
cases show disagree, and an embedding by which images that are like no labelled one can be found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.metrics import dice
from kprism_model.network.references import References
from kprism_model.orientation import evenly_spaced
from kprism_model.predictor import ImageEmbedding, Prediction, Predictor
from lib.files import read_json, write_json
from lib.imaging.medical_image import MedicalImage

logger = logging.getLogger(__name__)

SLICES = 3
"""Slices of an image that are looked at, spread evenly."""

_TOGETHER = 4  # structures in one pass
_SAVED_EVERY = 20  # images between two writes of the file
_PAUSE = 1.0  # seconds between two looks for something to do

FindReferences = Callable[[str, ImageEmbedding], References | None]
"""References for a structure in a slice, None where there are none."""


@dataclass(frozen=True)
class Scores:
    """Of one image: uncertainty (nats) and disagreement (1 - Dice) of each structure, and its embedding."""

    uncertainty: Mapping[str, float]
    disagreement: Mapping[str, float]
    embedding: Sequence[float]


def score_image(
    predictor: Predictor,
    image: MedicalImage,
    find: FindReferences,
    *,
    run: Callable[[Callable[[], Any]], Any] = lambda compute: compute(),
) -> Scores:
    """Score an image with the network of `predictor`; `run` is how the network may be called."""
    pixels = [np.ascontiguousarray(image.scaled[number]) for number in evenly_spaced(range(image.slices), SLICES)]
    embeddings: list[ImageEmbedding] = [run(lambda p=p: predictor.embed([p])[0]) for p in pixels]
    names = list(predictor.registry.names)
    answers = [_answer(predictor, names, embedding, run) for embedding in embeddings]
    uncertainty = {name: float(np.mean([entropy(answer[name]) for answer in answers])) for name in names}
    disagreement = {}
    for name in names:
        differences = []
        for embedding, answer in zip(embeddings, answers, strict=True):
            references = find(name, embedding)
            if references is not None:
                shown = run(lambda r=references, e=embedding: predictor.predict(references=r, embedding=e))
                differences.append(1 - dice(answer[name].mask_if_present, shown.mask_if_present))
        if differences:
            disagreement[name] = float(np.mean(differences))
    features = [embedding.features.stride16[0].float().mean((1, 2)).cpu().numpy() for embedding in embeddings]
    return Scores(uncertainty, disagreement, [round(float(value), 5) for value in np.mean(features, 0)])


def _answer(
    predictor: Predictor, names: Sequence[str], embedding: ImageEmbedding, run: Callable[[Callable[[], Any]], Any]
) -> dict[str, Prediction]:
    """The semantic answer for a slice, in passes that are short, so that a user's request need not wait long."""
    found: dict[str, Prediction] = {}
    for start in range(0, len(names), _TOGETHER):
        part = names[start : start + _TOGETHER]
        found |= run(lambda part=part: predictor.predict_classes(part, embeddings=[embedding])[0])
    return found


def entropy(prediction: Prediction) -> float:
    """Entropy of a binary mask in nats, summed over pixels, by the size of the object; and of its presence.

    A sure outline of a large object has as many unsure pixels as that of many small ones, hence the division.
    """
    pixels = _entropy(prediction.probability).sum() / max(float(prediction.probability.sum()), 1.0)
    present = float(prediction.presence)
    return float(present * min(pixels, np.log(2)) + _entropy(np.array(present)))


def _entropy(probability: NDArray[Any]) -> NDArray[np.float64]:
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


def calibrated(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One figure an image from figures for each structure: each is divided by the structure's mean over all images.

    Some structures have blurred edges in every image; what counts is which image is worse than usual.
    """
    by_structure: dict[str, list[float]] = {}
    for figures in values.values():
        for name, value in figures.items():
            by_structure.setdefault(name, []).append(value)
    usual = {name: max(float(np.mean(found)), 1e-9) for name, found in by_structure.items()}
    return {
        image: float(np.mean([value / usual[name] for name, value in figures.items()]))
        for image, figures in values.items()
        if figures
    }


def distances(pool: Mapping[str, Sequence[float]], labelled: Iterable[Sequence[float]]) -> dict[str, float]:
    """How far each image of the pool is from the nearest labelled one: 1 - cosine after taking off the common mean.

    Without labelled images: from the mean of the pool, so that the most typical one comes last.
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
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


class ScoreBoard:
    """Scores of the present version, kept in `folder`; a thread computes those that are missing, one at a time.

    `version` is the present version of the weights, `images` are the ids to score, `score` scores one of them, and
    while `busy` nothing is computed.
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
        self._of = ""
        self._failed: set[str] = set()
        self._lock = Lock()
        self._stop = Event()
        self._thread: Thread | None = None

    def scores(self) -> dict[str, Scores]:
        """What is known of the present version by now, by image id."""
        self._follow()
        with self._lock:
            return dict(self._scores)

    def step(self) -> bool:
        """Score one image that has no score yet; False if there is none."""
        self._follow()
        with self._lock:
            version, known = self._of, {*self._scores, *self._failed}
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
            if version == self._of:  # else the weights were exchanged meanwhile
                self._scores[missing] = scores
                saved = len(self._scores) % _SAVED_EVERY == 0
        if saved:
            self.save()
        return True

    def start(self) -> None:
        """Compute what is missing, in the background, until `stop`."""
        self._thread = Thread(target=self._work, name="scores", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def save(self) -> None:
        """Write the scores of the present version; those of others are deleted."""
        with self._lock:
            version, content = self._of, {image: asdict(scores) for image, scores in self._scores.items()}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(version), content)
        for old in self._folder.glob("scores-*.json"):
            if old != self._path(version):
                old.unlink(missing_ok=True)

    def _work(self) -> None:
        unsaved = False
        while not self._stop.is_set():
            if not self._busy() and self.step():
                unsaved = True
                continue
            if unsaved:
                self.save()
                unsaved = False
            self._stop.wait(_PAUSE)

    def _follow(self) -> None:
        """Scores belong to one version of the weights: another one starts with those that were kept of it."""
        version = self._version()
        with self._lock:
            if version == self._of:
                return
            self._of, self._failed, self._scores = version, set(), {}
            try:
                kept = read_json(self._path(version)) or {}
                self._scores = {image: Scores(**scores) for image, scores in kept.items()}
            except (ValueError, TypeError) as error:
                logger.warning("Scores are computed again: %s", error)

    def _path(self, version: str) -> Path:
        return self._folder / f"scores-{version}.json"
