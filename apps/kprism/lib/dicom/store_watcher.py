# SPDX-License-Identifier: Apache-2.0
"""Checks the server every few seconds for segmentations that others stored, so that they count as submitted."""

from __future__ import annotations

import logging
from threading import Event, Thread

from lib.dicom.datastore import DicomStore
from lib.errors import RequestError

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""Seconds between two checks; longer if the server needs long to list its segmentations."""


class StoreWatcher:
    """A thread that keeps a store in sync with its server, from `start` to `stop`."""

    def __init__(self, store: DicomStore, interval: float = POLL_SECONDS) -> None:
        self._store = store
        self._interval = interval
        self._ended = Event()
        self._thread = Thread(target=self._run, name="dicom-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the check that is running."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        said = ""
        while not self._ended.wait(max(self._interval, self._store.sync_pause)):
            try:
                self._store.sync(force=True)
                problem = ""
            except (RequestError, OSError) as error:
                problem = str(error)
            if problem and problem != said:  # once, not every two seconds for as long as it lasts
                logger.warning("The DICOMweb server could not be checked; it is tried again: %s", problem)
            elif said and not problem:
                logger.info("The DICOMweb server can be checked again")
            said = problem
