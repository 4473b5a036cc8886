# SPDX-License-Identifier: Apache-2.0
"""The files of a download, whatever it was unpacked with: without the traces of other systems, and its real root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

RECORDS_NAME = "preparation.jsonl"
"""File in the folder of a data set that is prepared, or half so."""

_TRACES = {"__MACOSX", ".ipynb_checkpoints", ".git", "Thumbs.db", "desktop.ini"}
_DEEPEST_ROOT = 4


def is_trace(name: str) -> bool:
    """Whether a file or folder is a trace of another system: hidden, of macOS, of Windows, or half downloaded."""
    return name.startswith((".", "._")) or name in _TRACES or name.endswith((".partial", ".crdownload", ".part"))


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in alphabetical order, without traces of other systems; links are followed once.

    Prepared data sets, and links to nowhere, are left out.
    """
    seen: set[tuple[int, int]] = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        status = Path(top).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_trace(name))
        if RECORDS_NAME in names:  # a data set that was prepared, perhaps from this download
            folders.clear()
            continue
        yield from (path for name in sorted(names) if not is_trace(name) and (path := Path(top, name)).exists())


def links_to_nowhere(folder: Path) -> list[Path]:
    """The links below a folder whose file is not there, such as those of git-annex before `datalad get`."""
    tops = os.walk(folder)
    return sorted(
        path for top, _, names in tops for name in names if (path := Path(top, name)).is_symlink() and not path.exists()
    )


def folders_above(path: Path, top: Path) -> list[str]:
    """Names in lower case of the folders that a file below `top` lies in, the innermost first and `top` last."""
    names = [*reversed(path.relative_to(top).parts[:-1]), top.resolve().name]
    return [name.casefold() for name in names]


def entries(folder: Path) -> list[Path]:
    """The files and folders in a folder, in alphabetical order, without traces; empty if there is no such folder.

    Prepared data sets, and links to nowhere, are left out.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not is_trace(path.name) and path.exists() and not (path / RECORDS_NAME).is_file()
    )


def roots(folder: Path, is_root: Callable[[Path], bool]) -> list[Path]:
    """The topmost folders, `folder` included, for which `is_root` holds: archives are unpacked with folders around.

    At most four levels deep, in alphabetical order.
    """
    if is_root(folder):
        return [folder]
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEEPEST_ROOT):
        below = [path for parent in level for path in entries(parent) if path.is_dir()]
        found += [path for path in below if is_root(path)]
        level = [path for path in below if path not in found]
    return sorted(found)


def one_root(folder: Path, is_root: Callable[[Path], bool], expected: str) -> Path:
    """The only root; ValueError that says what is `expected` if there is none, and names them if there are several."""
    found = roots(folder, is_root)
    if not found:
        raise ValueError(f"{folder} is not this download: expected {expected}")
    if len(found) > 1:
        raise ValueError(f"{folder} holds this download more than once: {', '.join(map(str, found[:4]))}")
    return found[0]
