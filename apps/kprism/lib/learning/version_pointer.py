# SPDX-License-Identifier: Apache-2.0
"""`current.json`: which version serves, its ancestors, and the highest number ever given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.files import read_json, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pointer:
    """The serving version, its ancestors (nearest first, down to the shipped one) and the highest number given."""

    number: int
    ancestors: tuple[int, ...]
    highest: int


class PointerFile:
    """The pointer in the file at `path`. It is replaced by renaming, so it is always complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, numbers: Callable[[], Sequence[int]]) -> tuple[Pointer, str | None]:
        """The pointer and None; without a file the first version; if it is damaged, the newest one and a warning.

        `numbers` gives the numbers of the versions that may serve, ascending, the shipped one first.
        """
        try:
            content = read_json(self.path)
            if content is None:
                first = numbers()[0]
                return Pointer(first, (), first), None
            ancestors = tuple(int(number) for number in content["ancestors"])
            return Pointer(int(content["number"]), ancestors, int(content["highest"])), None
        except (ValueError, LookupError, TypeError) as error:
            newest, *older = reversed(numbers())
            warning = f"{self.path} is damaged ({error}); the newest version, {newest}, serves instead"
            logger.error("%s", warning)
            return Pointer(newest, tuple(older), newest), warning

    def write(self, pointer: Pointer) -> None:
        """Replace the file."""
        content = {"number": pointer.number, "ancestors": pointer.ancestors, "highest": pointer.highest}
        write_json(self.path, content)

    def stamp(self) -> tuple[int, int]:
        """A value that changes whenever the file is replaced; cheap enough to be asked at every request."""
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return 0, 0
        return state.st_mtime_ns, state.st_ino
