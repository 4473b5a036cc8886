# SPDX-License-Identifier: Apache-2.0
"""Pictures of a download: grey ones that are stored otherwise, pairs with their masks, and equal ones."""

from __future__ import annotations

import filecmp
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from kprism_model.data.datasets import PICTURE_SUFFIXES
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import PICTURE_ERRORS, Grid, StoredImage, picture_size
from kprism_model.preparation.labels import read_rgb

_COMPARED_BY_PIXELS = 1 << 21
_Masks = TypeVar("_Masks", Path, tuple[Path, ...])


@dataclass(frozen=True)
class GreyPicture:
    """A grey picture that may be stored with a palette, in colour or as JPEG; it becomes a grey PNG."""

    path: Path

    suffix = ".png"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    def grid(self) -> Grid:
        """Rows and columns."""
        return Grid(picture_size(self.path))

    def write(self, path: Path) -> None:
        """Take a grey PNG as it is; of others write the brightness, that of a palette's colours, not their numbers."""
        try:
            with Image.open(self.path) as picture:
                if picture.format != "PNG" or picture.mode in ("P", "PA", "RGB", "RGBA", "LA"):
                    picture.convert("L").save(path, "png")
                    return
        except PICTURE_ERRORS as error:
            raise ValueError(f"{self.path} is damaged or cut off: {error}") from error
        StoredImage(self.path).write(path)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def add_file(files: dict[str, Path], name: str, path: Path, findings: Findings, unclear: set[str]) -> None:
    """Add the file of a case. A copy of one that is there is remarked; another content makes the case `unclear`."""
    first = files.setdefault(name, path)
    if first is path:
        return
    if filecmp.cmp(first, path, shallow=False):
        findings.remark("doubled", f"{path} is a copy of {first}, which is used")
    else:
        findings.remark("faulty", f"{path} differs from {first}, so the case is left out")
        unclear.add(name)


def leave_out(findings: Findings, unclear: Collection[str]) -> None:
    """Leave out the cases of these names."""
    findings.cases = [case for case in findings.cases if case.name not in unclear]


def paired(
    pictures: Mapping[str, Path],
    masks: Mapping[str, _Masks],
    findings: Findings,
    unlabelled: Collection[str] = frozenset(),
) -> Iterator[tuple[str, Path, _Masks]]:
    """Name, picture and masks of the cases that have both, in alphabetical order; remarks about the others.

    Pictures that are `unlabelled` by the layout of the download may have no mask, of others it is missing.
    """
    for name in sorted(set(masks) - set(pictures)):
        mask = masks[name]
        findings.remark("missing", f"the picture of {mask if isinstance(mask, Path) else mask[0]}")
    for name, path in sorted(pictures.items()):
        if name in masks:
            yield name, path, masks[name]
        elif name in unlabelled:
            findings.remark("unlabelled", str(path))
        else:
            findings.remark("missing", f"the mask of {path}")


def join_equal_pictures(findings: Findings) -> None:
    """Give equal pictures one patient, so that they are on one list, and remark them.

    Pictures of up to two megapixels are compared by their pixels, larger ones by their files, which is quick.
    """
    groups = _equal(findings.cases)
    same: dict[str, str] = {}
    for group in groups:
        findings.remark("doubled", _sentence(group))
        first = _root(same, group[0].patient)
        same.update({_root(same, case.patient): first for case in group[1:] if _root(same, case.patient) != first})
    findings.cases = [replace(case, patient=_root(same, case.patient)) for case in findings.cases]


def _root(same: Mapping[str, str], patient: str) -> str:
    while patient in same:
        patient = same[patient]
    return patient


def _sentence(group: list[FoundCase]) -> str:
    names = " and ".join(case.name for case in group)
    try:
        labels = [case.label.read(case.image.grid()).tobytes() for case in group]
    except ValueError:
        labels = []  # the faulty one is named when it is written
    others = " with different labels" if len(set(labels)) > 1 else ""
    return f"{names} are the same picture{others}; they count as one patient"


def _equal(cases: Iterable[FoundCase]) -> list[list[FoundCase]]:
    """Groups of two or more cases with equal pictures."""
    alike: dict[object, list[FoundCase]] = defaultdict(list)
    for case in cases:
        (path,) = case.image.files
        try:
            shape = picture_size(path)
        except ValueError:
            continue
        by_pixels = shape[0] * shape[1] <= _COMPARED_BY_PIXELS
        alike[shape if by_pixels else path.stat().st_size].append(case)
    equal: dict[tuple[object, bytes], list[FoundCase]] = defaultdict(list)
    for kind, group in alike.items():
        for case in group if len(group) > 1 else ():
            (path,) = case.image.files
            try:
                content = read_rgb(path, Grid(kind)).tobytes() if isinstance(kind, tuple) else path.read_bytes()
            except ValueError:
                continue
            equal[kind, hashlib.sha256(content).digest()].append(case)
    return [group for group in equal.values() if len(group) > 1]
