# SPDX-License-Identifier: Apache-2.0
"""Tells which files of a few folders somebody wrote, moved or removed."""

from __future__ import annotations

import inspect
import logging
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from weakref import WeakMethod

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

logger = logging.getLogger(__name__)

_POLLED_FILES_PER_SECOND = 2000  # takes about three hundredths of a core


class FolderWatch(FileSystemEventHandler):
    """Calls `changed` with the path of each file that changed, in a thread of its own.

    If `changed` is a method, the thread ends with the object that it belongs to.

    `folders`: path -> whether its subfolders are watched too. Where the system does not tell of changes (`poll`), or
    has no watch left, the folders are listed every second, or less often the more files they hold.
    """

    def __init__(self, folders: Mapping[str, bool], changed: Callable[[str], None], *, poll: bool) -> None:
        is_method = inspect.ismethod(changed)
        self._changed: Callable[[], Callable[[str], None] | None] = (
            WeakMethod(changed) if is_method else lambda: changed
        )
        self._owner = weakref.ref(changed.__self__) if is_method else None  # type: ignore[attr-defined]
        if poll or not self._watch(folders, Observer):
            self._watch(folders, lambda: PollingObserver(timeout=_poll_seconds(folders)))

    def _watch(self, folders: Mapping[str, bool], make: Callable[[], BaseObserver]) -> bool:
        """Begin to watch; whether the system can: one user may have only some hundred watches."""
        try:
            observer = make()
            for folder, recursive in folders.items():
                observer.schedule(self, folder, recursive=recursive)
            observer.start()
            if self._owner is not None and (owner := self._owner()) is not None:
                weakref.finalize(owner, observer.stop)
        except OSError as error:
            logger.warning("%s cannot be watched in the best way: %s", " and ".join(folders), error)
            return False
        return True

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Handle an event of the observer."""
        if event.event_type not in (_CHANGES_OF_FOLDERS if event.is_directory else _CHANGES):
            return
        changed = self._changed()
        for path in (event.src_path, event.dest_path):
            if path and changed is not None:
                try:
                    changed(os.fsdecode(path))
                except Exception as error:  # the observer's thread must go on
                    known = isinstance(error, OSError)
                    logger.warning("The change of %s could not be taken over: %s", path, error, exc_info=not known)


_CHANGES: Collection[str] = ("created", "deleted", "moved", "modified")
_CHANGES_OF_FOLDERS: Collection[str] = ("created", "deleted", "moved")  # modified: by each file in it


def _poll_seconds(folders: Mapping[str, bool]) -> float:
    files = sum(1 for folder, recursive in folders.items() for _ in Path(folder).glob("**/*" if recursive else "*"))
    return max(1.0, files / _POLLED_FILES_PER_SECOND)
