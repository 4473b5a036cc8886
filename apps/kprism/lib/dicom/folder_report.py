# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of DICOM files and is not served, with the reasons."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from lib.dicom.folder_index import SETTLED_SECONDS, FolderIndex
from lib.dicom.folder_series import FolderSeries
from lib.dicom.label_objects import MODALITIES
from lib.folder_listing import IGNORED, IGNORED_SUFFIXES, printable
from lib.not_served import NotServed

NAMED = 20
"""Files of one reason that are named; of more there is one line with their number."""

LABELS = "labels"
"""MONAI Label's folder of label files in a folder of studies."""


def not_served(
    listed: Mapping[str, FolderSeries], indexes: Sequence[FolderIndex], *, serves_others: bool
) -> list[NotServed]:
    """Files that cannot be used, folders that cannot be listed, objects without images, and other files, by name.

    `serves_others`: image files of other types are served too, from the folder itself.
    """
    found = [*_without_images(listed.values())]
    for index in indexes:
        found += _files(index, serves_others)
        found += (NotServed(printable(path), reason) for path, reason in index.unreadable.items())
    for series in listed.values():
        found += _doubles(series, indexes)
        if series.other_studies:
            reason = f"lies in several studies; its files in {', '.join(series.other_studies)} are left out"
            found.append(NotServed(f"series {series.facts.series}", reason))
    return sorted(found)


def _without_images(listed: Iterable[FolderSeries]) -> Iterator[NotServed]:
    numbers: Counter[str] = Counter()
    for series in listed:
        numbers.update(series.without_image)
        if not series.facts.may_be_image and series.facts.kind not in MODALITIES:
            numbers[series.facts.kind] += len(series.files)
    for kind, number in numbers.items():
        name = f"{number:,} {kind or 'other'} {'object' if number == 1 else 'objects'}"
        yield NotServed(name, f"{'holds' if number == 1 else 'hold'} no image to segment")


def _doubles(series: FolderSeries, indexes: Sequence[FolderIndex]) -> Iterator[NotServed]:
    """Images that were given the identifier of another one, by a tool that makes data anonymous, for example."""
    reason = f"has the identifier of another image of series {series.facts.series}, with another number or position"
    roots = [index.root for index in indexes]
    names = [
        next((str(path.relative_to(root)) for root in roots if path.is_relative_to(root)), path.name)
        for path in series.doubles
    ]
    if len(names) <= NAMED:
        yield from (NotServed(printable(name), reason) for name in names)
    else:
        yield NotServed(f"{len(names):,} files, such as {printable(names[0])}", reason)


def _files(index: FolderIndex, serves_others: bool) -> Iterator[NotServed]:
    reasons: dict[str, list[str]] = {}
    now = time.time()
    for path, entry in list(index.odd.items()):
        is_changing = 0 <= now - entry.stamp.changed / 1e9 < SETTLED_SECONDS
        if not is_changing and (entry.reason or _is_told(path)):
            kind = PurePosixPath(path).suffix or "unknown"
            reason = entry.reason or f"is of type {printable(kind)}, neither DICOM nor an image"
            reasons.setdefault(reason, []).append(path)
    others = [path for path in index.images if PurePosixPath(path).parts[0] != LABELS]
    if not serves_others and (nested := [path for path in others if "/" in path]):
        reasons["is of another type than DICOM; such images are served directly in the folder, not below it"] = nested
    if not serves_others and (beside := [path for path in others if "/" not in path]):
        reasons["came while only DICOM files were here; start the server again, and it is served"] = beside
    for reason, paths in reasons.items():
        if len(paths) <= NAMED:
            yield from (NotServed(printable(path), reason) for path in paths)
        else:
            yield NotServed(f"{len(paths):,} files, such as {printable(min(paths))}", reason)


def _is_told(path: str) -> bool:
    """Whether somebody should be told that a file is no DICOM: not of notes about images and what systems leave."""
    name = PurePosixPath(path.lower())
    return name.name not in IGNORED and name.stem not in IGNORED and not name.name.endswith(IGNORED_SUFFIXES)
