# SPDX-License-Identifier: Apache-2.0
"""How much of the disk the local volumes may take: those that were not used for longest are removed first."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_SECONDS = 600.0
"""A volume stays for so long after its last use: another process may be about to read it."""

TOUCH_SECONDS = 60.0
"""How exactly the time of use is noted."""


class VolumeBudget:
    """At most `limit` bytes of volumes (`*.nii`) in `folder`, except for volumes in use (by their image id).

    The time of use is the file's access time, which processes share; the file system need not note it itself.
    """

    def __init__(self, folder: Path, limit: int, is_used: Callable[[str], bool]) -> None:
        self._folder, self._limit, self._is_used = folder, limit, is_used

    def touch(self, path: Path) -> None:
        """Note that a volume is used now."""
        with suppress(OSError):
            state, now = path.stat(), time.time()
            if now - state.st_atime > TOUCH_SECONDS:
                os.utime(path, ns=(int(now * 1e9), state.st_mtime_ns))

    def sweep(self, coming: int = 0) -> None:
        """Remove the volumes beyond the limit, oldest use first; `coming` are the bytes of one that arrives next."""
        files = []
        for path in self._folder.glob("*.nii"):
            with suppress(OSError):
                state = path.stat()
                files.append((max(state.st_atime, state.st_mtime), state.st_size, path))
        excess = sum(size for _, size, _ in files) + coming - self._limit
        for used, size, path in sorted(files):
            if excess <= 0:
                return
            if time.time() - used < KEPT_SECONDS or self._is_used(path.name.removesuffix(".nii")):
                continue
            with suppress(OSError):
                path.unlink()
                excess -= size
                logger.info("Removed the local volume %s: the budget for volumes is %d bytes", path.name, self._limit)
