# SPDX-License-Identifier: Apache-2.0
"""The networks of a device, shared by all models, and a cache of images, masks and features.

Requests run in several threads. Passes through the network hold the engine's lock, one pass at a time; reading files
and composing answers do not. A request takes the `Networks` once and keeps them to its end, so one version of the
weights answers it, even if new weights come in the meantime. Everything in the cache can be computed again from files
and weights, and its key names both, so an answer never depends on earlier requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from kprism_model.predictor import Click, Predictor
from kprism_model.store import ByteStore, cached, is_out_of_memory
from kprism_model.volumes.predictor import VolumePredictor
from lib.errors import OutOfMemoryError, RequestError, TooLargeError
from lib.imaging.mapped import SMALL, Allocate, in_memory
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import check_contrast, files_of, read_image, read_mask
from lib.imaging.stored import too_large
from lib.networks import Network, Networks
from lib.request_statistics import RequestStatistics
from lib.turns import Turns

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


LEAST_IMAGE = 64 << 10
"""Bytes that an image counts for at least: a small one takes more than its voxels."""

LEAST_MAPPED = SMALL
"""Bytes that a mapped series counts for at least: each takes one of the files that a process can have open."""

READERS = 16
"""Files that can be read at the same time; a file is read once, also if several requests ask for it."""


class OpenedSeries(Protocol):
    """An image whose voxels may still arrive; `digest` identifies them before they do."""

    @property
    def digest(self) -> str:
        """Identifies the content."""

    def image(self, name: str) -> MedicalImage:
        """The image, called `name` in messages."""


class Engine:
    """Networks, a cache of `budget` bytes of memory, and one of `image_budget` bytes for images in mapped files.

    `allocate` makes the arrays of images, see `lib.imaging.mapped`. `image_budget` is also the limit for one image; by
    default images are in memory, with the rest. `use` replaces the networks by those of another version. `opener` gives
    the series whose local volume a file is, so that it can be used before it is complete; None for other files.
    `refused` hears of image files that could not be read.
    """

    def __init__(
        self,
        networks: Networks,
        budget: int,
        image_budget: int | None = None,
        allocate: Allocate = in_memory,
    ) -> None:
        self.cache = ByteStore(budget)
        self.images = ByteStore(budget if image_budget is None else image_budget)
        self._allocate = allocate
        self._reading = [Lock() for _ in range(READERS)]
        self.refused: Callable[[Path, RequestError], object] = lambda path, error: None
        self.opener: Callable[[Path], OpenedSeries | None] = lambda path: None
        self._networks = networks
        self.passes = Turns()

    def networks(self) -> Networks:
        """The current networks, the same object for every caller."""
        return self._networks

    def use(self, networks: Networks) -> None:
        """Answer new requests with `networks`; requests that have started keep the networks that they have."""
        self._networks = networks

    def warm_up(self) -> None:
        """Run each network once, so that the first request does not wait for PyTorch's preparations."""
        for network in self._networks:
            self._warm_up(network.predictor)

    def _warm_up(self, predictor: Predictor) -> None:
        side = predictor.model.config.native_size
        blank = np.zeros((side, side), np.float32)

        def ask() -> None:
            embedding = predictor.embed([blank])[0]
            predictor.predict(clicks=[Click(side / 2, side / 2, True)], embedding=embedding)

        self.run("warm up", RequestStatistics(), ask)

    def image(self, path: Path, name: str, statistics: RequestStatistics | None = None) -> MedicalImage:
        """An image file; read again if it changed."""
        series = self.opener(path)
        if series is not None:
            return self._of_series(series, name)
        try:
            return self._file(path, name, read_image, statistics or RequestStatistics())
        except RequestError as error:
            self.refused(path, error)
            raise

    def _of_series(self, series: OpenedSeries, name: str) -> MedicalImage:
        key = ("series", series.digest, name)
        kept: MedicalImage | None = self.images.get(key)
        arrivals: tuple[object, ...] = (None, series)
        if kept is None or kept.arrival not in arrivals:  # a series that was opened anew since has another arrival
            kept = series.image(name)
            if kept.nbytes > self.images.budget:
                raise TooLargeError(f"{name} {too_large(kept.grid, kept.nbytes, self.images.budget)}")
            check_contrast(kept)
            self.images.put(key, kept, max(LEAST_MAPPED, kept.nbytes))
        return kept

    def mask(self, path: Path, name: str, statistics: RequestStatistics | None = None) -> MedicalImage:
        """A label file; read again if it changed."""
        return self._file(path, name, read_mask, statistics or RequestStatistics())

    def uploaded_mask(self, path: Path, name: str) -> MedicalImage:
        """A label file that a client sent; it is used once."""
        return read_mask(path, name, self.images.budget, self._allocate, self.cache.budget)

    def _file(
        self, path: Path, name: str, read: Callable[..., MedicalImage], statistics: RequestStatistics
    ) -> MedicalImage:
        limit = self.images.budget
        if not path.is_file():
            return read(path, name, limit)  # raises an error that names the file
        states = [file.stat() for file in files_of(path)]
        key = (read.__name__, str(path), name, *((state.st_mtime_ns, state.st_size) for state in states))
        with self._reading[hash(key) % READERS]:
            kept: MedicalImage | None = self.images.get(key) or self.cache.get(key)
            if kept is None:
                statistics.files_read += 1
                kept = read(path, name, limit, self._allocate, self.cache.budget)
                store = self.images if kept.is_mapped else self.cache
                store.put(key, kept, max(LEAST_IMAGE, kept.nbytes))
        return kept

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key` in the cache; computed if it is not there."""
        return cached(self.cache, key, compute)

    def volume(
        self, network: Network, image: MedicalImage, statistics: RequestStatistics, hurried: bool = False
    ) -> VolumePredictor:
        """A predictor of one image with one network; all predictors share the cache and the device.

        A `hurried` one has its turns on the device before those that work through whole volumes.
        """
        lock = Pass(self, "network", statistics, hurried)
        predictor = VolumePredictor(network.predictor, store=self.cache, version=network.version, lock=lock)
        predictor.use_volume(image.volume)
        return predictor

    def run(
        self, step: str, statistics: RequestStatistics, compute: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """Run passes through the network, alone on the device; the time counts for `step`."""
        with Pass(self, step, statistics):
            return compute(*arguments, **named)


class Pass:
    """A context in which only this request uses the device; it can be entered any number of times.

    If memory runs out, the cache is emptied and OutOfMemoryError is raised.
    """

    def __init__(self, engine: Engine, step: str, statistics: RequestStatistics, hurried: bool = False) -> None:
        self._engine = engine
        self._hurried = hurried
        self._step = step
        self._statistics = statistics
        self._started = 0.0

    def __enter__(self) -> None:
        self._engine.passes.acquire(self._hurried)
        self._started = time.perf_counter()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._statistics.add(self._step, time.perf_counter() - self._started)
        self._engine.passes.release()
        if error is not None and is_out_of_memory(error):
            self._engine.cache.clear()
            raise OutOfMemoryError(f"too little memory on this machine: {error}") from error
