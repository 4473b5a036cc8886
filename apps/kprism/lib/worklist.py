# SPDX-License-Identifier: Apache-2.0
"""A work list: the images, or the studies of a DICOMweb server, that are served. What was learned from others stays."""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata
from collections.abc import Container, Mapping
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qsl

logger = logging.getLogger(__name__)

_REMARK = re.compile(r"(^|.*?\s)#(\s.*)?$|^#.*$")
"""A line with a remark that is one for sure: `#` at the start, or with blanks around it."""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How files begin that Windows calls Unicode."""


def canonical(name: str) -> str:
    """A name with its accents in one form: macOS writes them in another than people type."""
    return unicodedata.normalize("NFC", name)


def names_in(line: str) -> set[str]:
    """The names in a line: none of a remark alone; two where `#` may begin a remark or be part of the name."""
    remark = _REMARK.match(line)
    found = {line, line.partition("#")[0]} if remark is None else {remark[1] or ""}
    return {canonical(name.strip()) for name in found} - {""}


class Worklist:
    """Either `query`, filters of a search for studies (QIDO-RS), or a file with a name in each line.

    `source` is what the user gave. The file is read again when it changes. `problem` says why it could not be.
    """

    def __init__(self, source: str, path: Path | None, query: Mapping[str, str]) -> None:
        self.source, self.query = source, dict(query)
        self._path = path
        self.problem: str | None = None
        self._lock = Lock()
        self._state: tuple[int, ...] = ()
        self._lines: tuple[tuple[str, set[str]], ...] = ()  # each with its names
        self._names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Worklist | None:
        """From the setting `worklist`; None for "". ValueError for a file that is not there or is no text."""
        if not text:
            return None
        path = Path(text).expanduser()
        if path.is_file():
            found = cls(text, path.absolute(), {})
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
        """The names in the file as it is now, or was when it could be read last; empty for a query.

        They are `canonical`. Whoever asks does so for each request, so a problem is logged once.
        """
        try:
            self._read()
            problem = None
        except ValueError as error:
            problem = f"The work list stays as it was: {error}"
        if problem is not None and problem != self.problem:
            logger.warning("%s", problem)
        self.problem = problem
        return self._names

    def missing(self, known: Container[str]) -> list[str]:
        """Lines of the file that name none of the `known`, which are `canonical`."""
        self.names()
        return [line for line, names in self._lines if not any(name in known for name in names)]

    def names_none_of(self, count: int) -> str:
        """A sentence where nothing of `count` images is served because of the list."""
        images = "not the one image" if count == 1 else f"none of the {count:,} images"
        return f"There is nothing to serve: the work list {self.source} names {images} of the studies."

    def holds(self, *names: str) -> bool:
        """Whether the file names an image by one of its names."""
        return listed(self.names(), *names)

    def _read(self) -> None:
        if self._path is None:
            return
        with self._lock:
            try:
                status = self._path.stat()
                state = (status.st_mtime_ns, status.st_size, status.st_ino)
                if state == self._state:
                    return
                content = self._path.read_bytes()
                lines = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig").splitlines()
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or f"it is no text in UTF-8 ({error})"
                raise ValueError(f"{self._path} cannot be read: {reason}") from error
            named = ((line.strip(), names_in(line)) for line in lines)
            self._lines = tuple((line, names) for line, names in named if names)
            self._names, self._state = frozenset().union(*(names for _, names in self._lines)), state


def listed(names: Container[str], *own: str) -> bool:
    """Whether `names`, which are `canonical`, hold an image by one of its own names."""
    return any(canonical(name) in names for name in own)
