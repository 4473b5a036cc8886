# SPDX-License-Identifier: Apache-2.0
"""A work list: the images, or the studies of a DICOMweb server, that are served. What was learned from others stays."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qsl

logger = logging.getLogger(__name__)


class Worklist:
    """Either `query`, filters of a search for studies (QIDO-RS), or a file with a name in each line.

    `source` is what the user gave. The file is read again when it changes.
    """

    def __init__(self, source: str, path: Path | None, query: Mapping[str, str]) -> None:
        self.source, self.query = source, dict(query)
        self._path = path
        self._lock = Lock()
        self._state: tuple[int, ...] = ()
        self._names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Worklist | None:
        """From the setting `worklist`; None for "". ValueError for a file that is not there or is no text."""
        if not text:
            return None
        path = Path(text).expanduser()
        if path.is_file():
            found = cls(text, path.resolve(), {})
            found._read()
            return found
        query = dict(parse_qsl(text.removeprefix("?"), keep_blank_values=True)) if "=" in text else {}
        if not query:
            raise ValueError(
                f"there is no file {text!r}; expected a file with the identifier of a study or image in each line, "
                "or a query such as StudyDate=20240101-&ModalitiesInStudy=CT"
            )
        return cls(text, None, query)

    def names(self) -> frozenset[str]:
        """The names in the file as it is now, or was when it could be read last; empty for a query."""
        try:
            self._read()
        except ValueError as error:
            logger.warning("The work list stays as it was: %s", error)
        return self._names

    def _read(self) -> None:
        if self._path is None:
            return
        with self._lock:
            try:
                status = self._path.stat()
                state = (status.st_mtime_ns, status.st_size, status.st_ino)
                if state == self._state:
                    return
                lines = self._path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeError) as error:
                raise ValueError(f"work list {self._path} cannot be read: {error}") from error
            names = (line.partition("#")[0].strip() for line in lines)
            self._names, self._state = frozenset(name for name in names if name), state
