# SPDX-License-Identifier: Apache-2.0
"""What was read of files, kept in a file of JSON lines that grows; torn and outdated lines are left out.

A line is the facts of a series, `{"facts": [...], "number": 3}`; or a file: path, time, size and then the SOP instance,
the number of its facts and its mark, or the reason why it has no object.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kprism_model.files import write_bytes
from lib.dicom.dicom_files import DicomObject, Facts

logger = logging.getLogger(__name__)

HEAD = json.dumps({"kprism": "index of DICOM files", "layout": 1})
"""The first line; a file with another one is written anew."""

Note = tuple[str, tuple[int, int], DicomObject | None, str]
"""Path, (time, size), object, reason."""


class IndexNotes:
    """The notes in the file `path`; for one thread. If they cannot be written, the next start reads the files again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[Facts, int] = {}
        self._facts: dict[int, Facts] = {}
        self._last = 0
        self._is_begun = False

    def read(self) -> list[Note]:
        """What is noted, each path once with what was noted last; the file is written anew if half of it is old."""
        notes: dict[str, Note] = {}
        lines = 0
        for content in self._lines():
            lines += 1
            try:
                note = self._note(content)
            except (LookupError, TypeError, ValueError):
                continue
            if note is not None:
                notes[note[0]] = note
        if lines > 2 * len(notes) + 1000:
            self._numbers, self._facts, self._is_begun = {}, {}, False
            self.add(notes.values())
        return list(notes.values())

    def add(self, notes: Iterable[Note]) -> None:
        """Append notes."""
        lines = []
        for path, stamp, found, reason in notes:
            if found is None:
                lines.append(json.dumps([path, *stamp, reason]))
                continue
            if found.facts not in self._numbers:
                self._last += 1
                number = self._last
                self._numbers[found.facts], self._facts[number] = number, found.facts
                lines.append(json.dumps({"facts": found.facts, "number": number}))
            lines.append(json.dumps([path, *stamp, found.instance, self._numbers[found.facts], found.mark]))
        if lines:
            self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        try:
            if self._is_begun:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(text)
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self._path, f"{HEAD}\n{text}".encode())
                self._is_begun = True
        except OSError as error:
            logger.warning("The index of DICOM files cannot be kept in %s: %s", self._path, error.strerror or error)

    def _lines(self) -> Iterator[Any]:
        try:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                if file.readline().rstrip("\n") != HEAD:
                    return
                self._is_begun = True
                is_whole = True
                for line in file:
                    is_whole = line.endswith("\n")
                    try:
                        yield json.loads(line)
                    except ValueError:
                        continue
            if not is_whole:
                self._write("\n")
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("The index of DICOM files in %s cannot be read: %s", self._path, error.strerror or error)

    def _note(self, content: Any) -> Note | None:
        """The note in a line; None for the facts of a series, which are kept for the lines after it."""
        if isinstance(content, dict):
            facts, number = Facts(*map(str, content["facts"])), int(content["number"])
            self._numbers[facts], self._facts[number] = number, facts
            self._last = max(self._last, number)
            return None
        path, changed, size, said, *more = content  # earlier versions wrote no mark
        found = DicomObject(str(said), self._facts[more[0]], *map(str, more[1:2])) if more else None
        return str(path), (int(changed), int(size)), found, "" if found else str(said)
