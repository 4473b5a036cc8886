# SPDX-License-Identifier: Apache-2.0
"""The planes of one series as they arrive from the server, in the background and in the order of their urgency."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.dicom.fetch_pool import FetchPool, Job
from lib.dicom.pixel_type import PixelType, TooWideError
from lib.dicom.pixels import decode
from lib.dicom.plane_queue import PlaneQueue
from lib.dicom.series import Series
from lib.dicom.volume_file import VolumeFile, VolumeStorageError
from lib.dicom.web import StoreDownError
from lib.errors import OutOfMemoryError, RequestError
from lib.imaging.medical_image import describe

logger = logging.getLogger(__name__)

BACKGROUND_SECONDS = 60.0
"""A series arrives in the background for so long after somebody has asked about it."""


class ClosedError(RequestError):
    """The series has changed, or its voxels need another type: it must be opened again."""

    status = 409


class WidenedError(TooWideError, ClosedError):
    """A value does not fit, but it will when the series is opened again."""

    status = ClosedError.status


class Arrival:
    """Fetches the instances of a series with `fetch` (identifier -> DICOM file) and writes their planes to `file`.

    A failure of the server or the disk stops everything until the next `wait` or `start`, which goes on where it
    stopped. A failure of one instance concerns those who wait for its planes; the others arrive. Nothing is fetched
    before `wait` or `start`. What arrives in the background ends if nobody calls either for `BACKGROUND_SECONDS`.
    """

    def __init__(
        self, series: Series, kind: PixelType, file: VolumeFile, fetch: Callable[[str], bytes], pool: FetchPool
    ) -> None:
        self._series, self._kind, self._file, self._fetch, self._pool = series, kind, file, fetch, pool
        self._identifiers = list(dict.fromkeys(frame.instance for frame in series.frames))
        number = {identifier: row for row, identifier in enumerate(self._identifiers)}
        self._instances = [number[frame.instance] for frame in series.frames]
        self._planes: list[list[int]] = [[] for _ in self._identifiers]
        self._counts = dict.fromkeys(self._identifiers, 0)
        for plane, (instance, frame) in enumerate(zip(self._instances, series.frames, strict=True)):
            self._planes[instance].append(plane)
            self._counts[frame.instance] = max(self._counts[frame.instance], frame.number)
        self._queue = PlaneQueue(self._instances, series.volumes)
        self._changed = Condition()
        self._arrived = bytearray(len(series.frames))
        self._background_until = 0.0
        self._stopped_by: RequestError | None = None
        self._failed: dict[int, RequestError] = {}
        self._closed: RequestError | None = None
        self.on_complete: Callable[[], object] = lambda: None
        self.on_too_wide: Callable[[], bool] = lambda: False
        """Whether the series is read with a larger type when it is opened again."""
        self.on_unreadable: Callable[[RequestError], object] = lambda error: None

    @property
    def progress(self) -> tuple[int, int]:
        """The number of planes that have arrived, and of all."""
        return sum(self._arrived), len(self._arrived)

    @property
    def failed(self) -> int:
        """The number of planes that could not be fetched, and are not until somebody waits for them."""
        with self._changed:
            return sum(len(self._planes[instance]) for instance in self._failed)

    def prepare(self) -> None:
        """Make the file, so that it can be mapped; VolumeStorageError if the disk is full."""
        if self._closed is not None:
            raise self._closed
        self._file.create()

    def start(self, k: int = -1) -> None:
        """Fetch everything in the background, around the plane k first (by default: around the middle)."""
        with self._changed:
            if k >= 0:
                self._queue.look_at(k)
            if self._closed is not None or all(self._arrived):
                return
            self._background_until, self._stopped_by = time.monotonic() + BACKGROUND_SECONDS, None
        self._pool.serve(self)

    def stop(self) -> None:
        """Fetch nothing more in the background; what somebody waits for is still fetched."""
        with self._changed:
            self._background_until = 0.0

    def close(self, reason: RequestError | None = None) -> None:
        """End for good and remove what has arrived, unless it is complete; those who wait get an error."""
        with self._changed:
            self._closed = reason or ClosedError(f"series {self._series.uid} has changed; open it again")
            self._changed.notify_all()
        self._file.discard()

    def wait(self, planes: Sequence[int]) -> None:
        """Return when these planes are in the file. They are fetched next, and those around them before the others.

        StoreDownError if the server does not answer; RequestError if an image is missing or cannot be read, and if the
        disk is full.
        """
        if all(self._arrived[plane] for plane in planes):
            return
        with self._changed:
            self._retry(planes)
        self._pool.serve(self)
        with self._changed:
            while not all(self._arrived[plane] for plane in planes):
                failed = (self._failed.get(self._instances[plane]) for plane in planes)
                error = self._closed or self._stopped_by or next(filter(None, failed), None)
                if error is not None:
                    raise error
                self._changed.wait()

    def wait_for_all(self) -> None:
        """Return when the file is complete and has its final name; errors as for `wait`."""
        self.wait(range(len(self._arrived)))
        if self._closed is not None:
            raise self._closed
        self._finish()
        if self._file.is_lost:
            raise VolumeStorageError(f"the local volume {self._file.path.name} was removed; open the series again")

    def take(self, *, urgent: bool) -> Job | None:
        """The next instance to fetch, see `JobSource`."""
        with self._changed:
            if self._closed is not None or self._stopped_by is not None:
                return None
            instance = self._queue.take(urgent=urgent or not self._is_in_background)
        return None if instance is None else partial(self._receive, instance)

    @property
    def _is_in_background(self) -> bool:
        return time.monotonic() < self._background_until

    def _retry(self, planes: Sequence[int]) -> None:
        self._stopped_by = None
        if self._is_in_background:
            self._background_until = time.monotonic() + BACKGROUND_SECONDS
        for instance in {self._instances[plane] for plane in planes} & self._failed.keys():
            del self._failed[instance]
            self._queue.put_back(instance)
        if len(planes) < len(self._arrived):
            self._queue.look_at(planes[len(planes) // 2])
        self._queue.want(plane for plane in planes if not self._arrived[plane])

    def _receive(self, instance: int) -> None:
        """Fetch one instance and write its planes; a failure is kept for those who wait."""
        try:
            self._file.create()
            self._write(instance)
            if all(self._arrived):
                self._finish()
        except (StoreDownError, VolumeStorageError) as error:
            logger.warning("Series %s: %s", self._series.uid, error)
            with self._changed:
                self._stopped_by = error
                if not self._arrived[self._planes[instance][0]]:
                    self._queue.put_back(instance)
                    self._queue.want(self._planes[instance])  # somebody may begin again before all who wait have heard
        except Exception as error:
            logger.warning("Series %s: %s", self._series.uid, error, exc_info=not isinstance(error, RequestError))
            self._fail(instance, error)
        with self._changed:
            self._changed.notify_all()

    def _fail(self, instance: int, error: Exception) -> None:
        """Keep a failure of one image for those who wait, then tell of it."""
        if isinstance(error, TooWideError) and self._tell(self.on_too_wide):
            self.close(WidenedError(f"{error}; open the series again, and it is read with a larger type"))
            return
        failure = _explained(error, self._identifiers[instance])
        with self._changed:
            self._failed[instance] = failure
            self._changed.notify_all()
        if not isinstance(error, OSError | MemoryError):  # these say nothing of the image
            self._tell(partial(self.on_unreadable, failure))

    def _tell(self, listener: Callable[[], object]) -> bool:
        """Whether a listener says yes. Its failure is logged: whatever it does, those who wait must hear."""
        try:
            return bool(listener())
        except Exception:
            logger.exception("Series %s: not everybody could be told how its images arrive", self._series.uid)
            return False

    def _finish(self) -> None:
        if self._file.finish():
            self._tell(self.on_complete)

    def _write(self, instance: int) -> None:
        identifier = self._identifiers[instance]
        planes = self._kind.convert(self._decoded(identifier), identifier)
        for plane in self._planes[instance]:
            self._file.write(plane, planes[self._series.frames[plane].number - 1])
        with self._changed:
            for plane in self._planes[instance]:
                self._arrived[plane] = 1

    def _decoded(self, identifier: str) -> NDArray[Any]:
        """The planes (frame, row, column[, 3]) of an instance; RequestError if they are not those of its header."""
        planes = decode(self._fetch(identifier), identifier)
        columns, rows, _ = self._series.grid
        shape = (rows, columns, 3) if self._kind.channels == 3 else (rows, columns)
        needed = self._counts[identifier]
        if planes.shape[1:] != shape or len(planes) < needed:
            raise RequestError(
                f"image {identifier} has other pixels than its header says: {describe(planes.shape[::-1])}, "
                f"expected {describe((*shape[::-1], needed))}"
            )
        return np.ascontiguousarray(planes)


def _explained(error: Exception, image: str) -> RequestError:
    """What those who wait for an image get: an error that has a message for them already, or one that names it."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"the server has too little memory to read image {image}")
    failure = RequestError(f"image {image} cannot be read: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
