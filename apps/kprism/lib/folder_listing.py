# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder: files that can be images or labels by their names, and why the others are not served."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from lib.image_ids import problem_of_id
from lib.imaging.metaimage import DATA_SUFFIXES
from lib.not_served import NotServed

IGNORED = {"thumbs.db", "desktop.ini", "license", "readme", "dicomdir", "lost+found", "__macosx"}
"""Names, in lower case, of what lies in folders and is no image; nobody has to be told of it."""

IGNORED_SUFFIXES = (".json", ".txt", ".md", ".rst", ".csv", ".tsv", ".bval", ".bvec", ".log", ".yaml", ".yml", ".part")
"""Extensions, in lower case, of notes about images; nobody has to be told of them."""

APPLE_DOUBLE = "._"
"""How the name of a file begins in which macOS keeps the attributes of another."""

MANY = 3
"""More files of one unknown type are one entry."""

SEARCHED = 5000
"""Files and folders that are looked at, in all sub-folders together, to find out whether they hold images."""


class FolderListing:
    """The files of a folder that match `patterns` such as "*.nii.gz", in any letter case; the rest with reasons.

    In a folder of images (`of_images`), segmentations are of the rest.
    """

    def __init__(self, path: str, patterns: Sequence[str], *, of_images: bool = False) -> None:
        self._of_images = of_images
        self._path, self._patterns = Path(path), [pattern.lower() for pattern in patterns]
        self._broken: dict[str, str] = {}
        self.files: set[str] = set()
        self.folders: set[str] = set()
        with os.scandir(path) as found:
            for entry in found:
                self._add(entry)

    def _add(self, entry: os.DirEntry[str]) -> None:
        try:
            if entry.is_file():
                self.files.add(entry.name)
                return
            is_folder = entry.is_dir()
        except OSError as error:
            self._broken[entry.name] = f"cannot be looked at: {error.strerror or error}"
            return
        if is_folder and not self._fits(entry.name):
            self.folders.add(entry.name)
        else:
            self._broken[entry.name] = _kind_of(entry, is_folder)

    @property
    def names(self) -> set[str]:
        """The names of all that is there."""
        return self.files | self.folders | set(self._broken)

    def holds(self, name: str) -> bool:
        """Whether a file is there; names can be paths, and some file systems ignore case."""
        return name in self.files or is_file(self._path / name)

    def matching(self, known: Iterable[str]) -> list[str]:
        """The names beside those that are `known` which match a pattern and can be ids, in the order of patterns."""
        names = sorted(self.files.difference(known))
        lower = [name.lower() for name in names]
        places: dict[str, int] = {}
        for place, pattern in enumerate(self._patterns):
            fitting = set(fnmatch.filter(lower, pattern))
            for name in names:
                if name.lower() in fitting:
                    places.setdefault(name, place)
        usable = (name for name in places if self._name_problem(name) is None)
        return sorted(usable, key=lambda name: (places[name], name))

    def left_out(self) -> list[NotServed]:
        """What is no image by its kind, type or name; many files of one unknown type are told of together."""
        found = [NotServed(printable(name), reason) for name, reason in self._broken.items() if self._is_told(name)]
        unknown: dict[str, list[str]] = {}
        for name in sorted(self.files):
            if not self._fits(name):
                if self._is_told(name) and not self._is_part_of_another(name):
                    unknown.setdefault(PurePath(name).suffix.lower(), []).append(name)
            elif (reason := self._name_problem(name)) is not None:
                found.append(NotServed(printable(name), reason))
        for suffix, names in unknown.items():
            is_many = len(names) > MANY
            first = f"{printable(names[0])} and {len(names) - 1:,} more" if is_many else ""
            reason = f"of type {printable(suffix) or 'unknown'}; expected one of {expected(self._patterns)}"
            found += [NotServed(first, f"are {reason}")] if is_many else []
            found += [NotServed(printable(name), f"is {reason}") for name in names if not is_many]
        return found

    def folders_with_images(self, without: Iterable[str]) -> list[NotServed]:
        """The sub-folders that hold files of images, but those that are served anyway."""
        left, found = SEARCHED, []
        for name in sorted(self.folders.difference(without)):
            if not self._is_told(name):
                continue
            for folder, _, files in os.walk(self._path / name):
                left -= 1 + len(files)
                if any(self._fits(file) and not file.startswith(".") for file in files):
                    where = printable(os.path.relpath(folder, self._path))
                    found.append(
                        NotServed(
                            printable(name),
                            f"is a sub-folder with images (in {where}); move them into the folder of studies",
                        )
                    )
                    break
                if left < 0:
                    return found
        return found

    def types(self) -> dict[str, int]:
        """How many files of which extension there are, without hidden ones and notes."""
        counts: dict[str, int] = {}
        for name in self.files:
            if self._is_told(name):
                suffix = printable(split_name(name, self._patterns)[1].lower()) or "none"
                counts[suffix] = counts.get(suffix, 0) + 1
        return counts

    def _fits(self, name: str) -> bool:
        return fits(name, self._patterns)

    def _name_problem(self, name: str) -> str | None:
        """Why a file of a known type cannot be served for its name alone."""
        if name.startswith(APPLE_DOUBLE):
            return f"is no image: macOS keeps the attributes of {printable(name[len(APPLE_DOUBLE) :])} in it"
        if self._of_images and is_segmentation(name):
            return "is a segmentation by its name; put it into labels/final under the name of its image"
        return problem_of_id(split_name(name, self._patterns)[0])

    def _is_told(self, name: str) -> bool:
        lower = name.lower()
        if lower.startswith(".") and not self._fits(name):
            return False
        return lower not in IGNORED and PurePath(lower).stem not in IGNORED and not lower.endswith(IGNORED_SUFFIXES)

    def _is_part_of_another(self, name: str) -> bool:
        path = PurePath(name)
        headers = (path.stem + suffix for suffix in (".mhd", ".MHD"))
        return path.suffix.lower() in DATA_SUFFIXES and any(header in self.files for header in headers)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches a pattern such as "*.nii.gz"; letter case does not matter."""
    lower = name.lower()
    return any(fnmatch.fnmatchcase(lower, pattern.lower()) for pattern in patterns)


def split_name(name: str, patterns: Sequence[str]) -> tuple[str, str]:
    """The id in a file's name, and the extension as it is spelled: the longest of the patterns' that fits."""
    endings = (pattern.replace("*", "").lower() for pattern in patterns)
    fitting = [ending for ending in endings if ending and name[-len(ending) :].lower() == ending]
    length = len(max(fitting, key=len, default=PurePath(name).suffix))
    return name[: len(name) - length], name[len(name) - length :]


def is_segmentation(name: str) -> bool:
    """Whether a file has the name of one of 3D Slicer's segmentations."""
    return name.lower().endswith(".seg.nrrd")


def expected(patterns: Sequence[str]) -> str:
    """The extensions of patterns, each once, for messages."""
    return ", ".join(dict.fromkeys(pattern.replace("*", "").lower() for pattern in patterns))


def is_file(path: Path) -> bool:
    """Whether a regular file is there that can be asked for; False whatever the file system says against it."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def printable(name: str) -> str:
    """A name for messages and JSON: bytes that are not UTF-8 and control characters are replaced."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _kind_of(entry: os.DirEntry[str], is_folder: bool) -> str:
    if is_folder:
        return "is a folder; expected a file"
    if entry.is_symlink() and not Path(entry).exists():
        return f"is a link to {printable(str(Path(entry).readlink()))}, which is not there"
    return "is not a file that can be read: it is a pipe, a socket or a device"
