# SPDX-License-Identifier: Apache-2.0
"""Files of images beside files of labels: which belong together, and which are missing, doubled or not downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from kprism_model.data.volume_files import DAMAGE, open_gzip
from kprism_model.preparation.findings import Findings
from kprism_model.preparation.images import open_nifti

_AT_ONCE = 1 << 22
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Pair:
    """An image and its label, both of the case `key`."""

    key: str
    image: Path
    label: Path


def by_number(paths: Iterable[Path], root: Path, pattern: re.Pattern[str]) -> list[tuple[str, Path]]:
    """The files whose path below `root`, with "/" between its parts, ends as `pattern` says, each with its number.

    The pattern has a group `number`; the numbers have no leading zeros.
    """
    found = []
    for path in paths:
        if match := pattern.search(path.relative_to(root).as_posix()):
            found.append((str(int(match["number"])), path))
    return found


def pair(
    findings: Findings, images: Iterable[tuple[str, Path]], labels: Iterable[tuple[str, Path]], *, hint: str = ""
) -> list[Pair]:
    """Pair images and labels of the same key, in the order of the keys (as numbers, where they are numbers).

    Remarks name labels without an image (`hint` says where it comes from), images without a label, and files that are
    there twice: the first is taken if all have the same content, else the case is left out.
    """
    image_of, unclear = _only(findings, images)
    label_of, more_unclear = _only(findings, labels)
    pairs = []
    for key in sorted((image_of.keys() | label_of.keys()) - unclear - more_unclear, key=_order):
        if key not in image_of:
            findings.remark("missing", f"the image of {label_of[key]}{hint}")
        elif key not in label_of:
            findings.remark("unlabelled", str(image_of[key]))
        elif pointer := next((path for path in (image_of[key], label_of[key]) if is_pointer(path)), None):
            findings.remark("missing", f"{pointer} is a pointer of git-lfs, the file itself was not downloaded{hint}")
        else:
            pairs.append(Pair(key, image_of[key], label_of[key]))
    return pairs


def remark_other_affines(findings: Findings, pairs: Iterable[Pair]) -> None:
    """Name labels whose affine is not that of the image: their voxels are paired as they are stored."""
    for found in pairs:
        image, label = stored_affine(found.image), stored_affine(found.label)
        if image is not None and label is not None and not np.allclose(image, label, atol=1e-2):
            findings.remark(
                "note", f"{found.label} has another affine than {found.image.name}; voxels are paired as stored"
            )


def stored_affine(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    """The affine of a NIfTI file, from its header; None if the file cannot be read."""
    try:
        return np.asarray(open_nifti(path).affine, np.float64)
    except ValueError:
        return None


def is_pointer(path: Path) -> bool:
    """Whether git-lfs left a short text in place of the file."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes once they are unpacked; a damaged file is like no other."""
    if one.suffix == other.suffix and one.stat().st_size != other.stat().st_size:
        return False
    try:
        with _unpacked(one) as first, _unpacked(other) as second:
            while (part := first.read(_AT_ONCE)) == second.read(_AT_ONCE):
                if not part:
                    return True
        return False
    except DAMAGE:
        return False


def _only(findings: Findings, files: Iterable[tuple[str, Path]]) -> tuple[dict[str, Path], set[str]]:
    """The file of each key, and the keys that have several different ones."""
    paths: dict[str, list[Path]] = {}
    for key, path in files:
        paths.setdefault(key, []).append(path)
    unclear = set()
    for key, (first, *others) in paths.items():
        for other in others:
            same = same_content(first, other)
            findings.remark(
                "doubled", f"{first} and {other} {'are the same' if same else 'differ, so the case is left out'}"
            )
            if not same:
                unclear.add(key)
    return {key: found[0] for key, found in paths.items() if key not in unclear}, unclear


def _unpacked(path: Path) -> BinaryIO:
    return cast(BinaryIO, open_gzip(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _order(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdecimal() else (0, key)
