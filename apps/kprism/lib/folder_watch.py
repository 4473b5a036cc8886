# SPDX-License-Identifier: Apache-2.0
"""Tells which files of a few folders somebody wrote, moved or removed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

logger = logging.getLogger(__name__)

_POLLED_FILES_PER_SECOND = 2000  # takes about three hundredths of a core


class FolderWatch(FileSystemEventHandler):
    """Calls `changed` with the path of each file that changed, in a thread of its own.

    `folders`: path -> whether its subfolders are watched too. Where the system does not tell of changes (`poll`), the
    folders are listed every second, or less often the more files they hold.
    """

    def __init__(self, folders: Mapping[str, bool], changed: Callable[[str], None], *, poll: bool) -> None:
        self._changed = changed
        self._observer = PollingObserver(timeout=_poll_seconds(folders)) if poll else Observer()
        try:
            for folder, recursive in folders.items():
                self._observer.schedule(self, folder, recursive=recursive)
            self._observer.start()
        except OSError as error:
            logger.error("%s cannot be watched; files that others put there are seen after a restart: %s",
                         " and ".join(folders), error)  # fmt: skip

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Handle an event of the observer."""
        if event.is_directory or event.event_type not in _CHANGES:
            return
        for path in (event.src_path, event.dest_path):
            if path:
                try:
                    self._changed(os.fsdecode(path))
                except Exception as error:  # the observer's thread must go on
                    known = isinstance(error, OSError)
                    logger.warning("The change of %s could not be taken over: %s", path, error, exc_info=not known)


_CHANGES: Collection[str] = ("created", "deleted", "moved", "modified")


def _poll_seconds(folders: Mapping[str, bool]) -> float:
    files = sum(1 for folder, recursive in folders.items() for _ in Path(folder).glob("**/*" if recursive else "*"))
    return max(1.0, files / _POLLED_FILES_PER_SECOND)
