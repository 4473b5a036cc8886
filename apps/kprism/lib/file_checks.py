# SPDX-License-Identifier: Apache-2.0
"""Which image files cannot be segmented, and why: looked at quickly, read where they look damaged, and remembered.

A file counts as another one when its size, time or identity changes; so one that was mended is looked at again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lib.errors import RETRY_SECONDS, NotFoundError, RequestError
from lib.imaging.completeness import looks_complete
from lib.imaging.reading import files_of

logger = logging.getLogger(__name__)

YOUNG_SECONDS = 3.0
"""A file that was written to so lately may still be copied."""

READ_BYTES = 8 << 20
"""A file of at most so many bytes is read as a whole before it is handed out; it is opened in a moment anyway."""


class Stamp(NamedTuple):
    """What changes whenever an image does: of its files the numbers, times and sizes; `size` is that of all."""

    numbers: tuple[int, ...]
    size: int
    written: tuple[int, ...]
    changed: tuple[int, ...]


class Verdict(NamedTuple):
    """What a look at a file brought: `reason` why it cannot be segmented, None if it can; `read`: whether as a whole.

    A verdict that is not `final` is looked for again after a while, also if the file seems the same.
    """

    stamp: Stamp | None
    reason: str | None
    read: bool
    final: bool = True
    at: float = 0.0


class FileChecks:
    """Looks at image files and remembers what it found, by the ids of the images.

    `read` reads an image file, called by a name, as it is read when it is opened; RequestError says what is wrong.
    """

    def __init__(self, read: Callable[[Path, str], object]) -> None:
        self.read = read
        self._verdicts: dict[str, Verdict] = {}
        self._refused: dict[str, str] = {}

    def known(self, image_id: str) -> Verdict | None:
        """The last verdict about an image."""
        return self._verdicts.get(image_id)

    def forget(self, image_id: str) -> None:
        """Forget an image that is not there any more."""
        self._verdicts.pop(image_id, None)
        self._refused.pop(image_id, None)

    def refused(self) -> dict[str, str]:
        """Image id -> reason of those that cannot be segmented."""
        return self._refused.copy()

    def is_due(self, image_id: str, path: Path) -> bool:
        """Whether a file has to be looked at again: it is another one, or what kept it from being read may be over."""
        known = self._verdicts.get(image_id)
        if known is None or known.stamp != stamp_of(path):
            return True
        return not known.final and time.monotonic() - known.at > RETRY_SECONDS

    def look(self, image_id: str, path: Path, *, hand_out: bool = False) -> str | None:
        """Why a file cannot be segmented; None if it can, as far as a quick look tells. `hand_out`: look closely."""
        known, stamp = self._verdicts.get(image_id), stamp_of(path)
        whole = hand_out and stamp is not None and stamp.size <= READ_BYTES
        is_enough = known is not None and (known.reason is not None or known.read or not whole)
        if known is not None and is_enough and not self.is_due(image_id, path):
            return known.reason
        return self._keep(image_id, self._judge(image_id, path, stamp, whole))

    def refuse(self, image_id: str, path: Path, error: RequestError) -> None:
        """Remember that a file could not be opened."""
        if not error.is_passing and not isinstance(error, NotFoundError):
            self._keep(image_id, self._verdict(image_id, stamp_of(path), error))

    def _judge(self, image_id: str, path: Path, stamp: Stamp | None, whole: bool) -> Verdict:
        is_young = stamp is not None and _is_young(stamp)
        if stamp is not None and stamp.size > 0 and not whole and looks_complete(path, count=not is_young):
            return Verdict(stamp, None, read=False)
        if is_young and not whole:
            reason = "is not complete; it may still be copied"
            return Verdict(None, reason, read=False)  # without a stamp, so it is looked at again at once
        try:
            self.read(path, _name(image_id))
        except RequestError as error:
            if error.is_passing:
                return Verdict(stamp, None, read=False, final=False, at=time.monotonic())
            return self._verdict(image_id, stamp, error)
        except OSError as error:
            return Verdict(stamp, f"cannot be read: {error.strerror or error}", True, False, time.monotonic())
        return Verdict(stamp, None, read=True)

    def _verdict(self, image_id: str, stamp: Stamp | None, error: RequestError) -> Verdict:
        """The verdict about a file that could not be read; an error of the file system may be over in a while."""
        reason = str(error).removeprefix(_name(image_id)).lstrip(" :")
        cause = error.__cause__
        final = not (isinstance(cause, OSError) and cause.errno is not None)
        return Verdict(stamp, reason, True, final, time.monotonic())

    def _keep(self, image_id: str, verdict: Verdict) -> str | None:
        before = self._verdicts.get(image_id)
        self._verdicts[image_id] = verdict
        if verdict.reason is None:
            self._refused.pop(image_id, None)
        else:
            self._refused[image_id] = verdict.reason
        if verdict.reason is not None and (before is None or before.reason != verdict.reason):
            logger.warning("Image %r is not served: it %s", image_id, verdict.reason)
        elif verdict.reason is None and before is not None and before.reason is not None:
            logger.info("Image %r is served again", image_id)
        return verdict.reason


def stamp_of(path: Path | str) -> Stamp | None:
    """What changes whenever an image or label does, whose header is at `path`; None if it cannot be asked for."""
    try:
        states = [file.stat() for file in files_of(Path(path))]
    except (OSError, ValueError):
        return None
    return Stamp(
        tuple(state.st_ino for state in states),
        sum(state.st_size for state in states),
        tuple(state.st_mtime_ns for state in states),
        tuple(state.st_ctime_ns for state in states),
    )


def _is_young(stamp: Stamp) -> bool:
    return abs(time.time() - max(stamp.changed) / 1e9) < YOUNG_SECONDS


def _name(image_id: str) -> str:
    return f"image {image_id!r}"
