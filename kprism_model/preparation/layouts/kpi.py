# SPDX-License-Identifier: Apache-2.0
"""KPI 2024, task 1: patches of stained mouse kidney with masks of glomeruli, in official lists by animal.

    Task1_patch_level/train/56Nx/12_116/img/56Nx_12_116_4_4096_0_img.jpg
    Task1_patch_level/train/56Nx/12_116/mask/56Nx_12_116_4_4096_0_mask.jpg
    Task1_patch_level/validation/normal/normal_M1/{img,mask}/, Task1_patch_level/test/DN/11-362/{img,mask}/

Groups are 56Nx, DN, NEP25 and normal. The first release called `train` `data`. Masks are JPEG. Numbers of animals have
hyphens in later releases; NEP25/08_368_01, _02 and _03 are taken for three sections of one animal, which the names
suggest. Task 2 has whole slides, which are not read. Sources: github.com/hrlblab/KPIs2024, README (groups, cases,
names); github.com/bangwayne/K-Prism, dataset_conversion/KPI_png_norm.py (threshold 128). github.com/openmedlab/
Awesome-Medical-Dataset, resources/KPIs.md, calls masks `_img.jpg` too: a file in `mask` is a mask by any name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, folders_above, walk
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import StoredImage
from kprism_model.preparation.labels import MaskPictures
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file, is_picture, join_equal_pictures, leave_out, paired

OPTIONS: frozenset[str] = frozenset()

_LISTS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "data"), "training"),
    **dict.fromkeys(("validation", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SUFFIX = re.compile(r"_(?:img|mask)$", re.IGNORECASE)
_SECTION = re.compile(r"(\d+_\d+)_\d+")
_WHOLE_SLIDE = re.compile(r".*_(?:wsi|mask)\.tiff?", re.IGNORECASE)
_EXPECTED = "folders such as Task1_patch_level/train/56Nx/12_116/img and mask"


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The patches with a mask; their list is that of the folder, their patient is the animal."""
    findings = Findings()
    unclear: set[str] = set()
    masks: dict[str, Path] = {}
    pictures: dict[str, Path] = {}
    places: dict[str, tuple[str, Split | None]] = {}
    slides = 0
    cases: set[Path] = set()
    for path in walk(folder):
        kind = path.parent.name.casefold()
        if kind in ("img", "mask") and is_picture(path) and not _WHOLE_SLIDE.fullmatch(path.name):
            cases.add(path.parent.parent)
        elif _WHOLE_SLIDE.fullmatch(path.name):
            slides += 1
        else:
            findings.remark("ignored", str(path))
    for case in sorted(cases):
        split = next((_LISTS[name] for name in folders_above(case, folder) if name in _LISTS), None)
        for name, path, is_mask in _files(case):
            add_file(masks if is_mask else pictures, name, path, findings, unclear)
            places.setdefault(name, (_animal(case), split))
    if slides and not cases:
        raise ValueError(f"{folder} holds {slides} whole slides (task 2), expected the patches of task 1: {_EXPECTED}")
    if not pictures or not masks:
        raise ValueError(f"{folder} holds no patches with masks: expected {_EXPECTED}")
    if slides:
        findings.remark("note", f"{slides} whole slides (task 2) are not read")
    (index,) = entry.indices.values()
    for name, path, mask in paired(pictures, masks, findings):
        patient, split = places[name]
        findings.cases.append(FoundCase(name, patient, split, StoredImage(path), MaskPictures((mask,), index)))
    leave_out(findings, unclear)
    join_equal_pictures(findings)
    return findings


def _files(case: Path) -> Iterator[tuple[str, Path, bool]]:
    """The name of the patch in the data set, its file, and whether that is a mask. The name tells group and animal."""
    group = case.parent.name
    whole = case.name if _plain(case.name).startswith(_plain(group)) else f"{group}_{case.name}"
    for folder in entries(case):
        kind = folder.name.casefold()
        for path in entries(folder) if kind in ("img", "mask") else ():
            if is_picture(path):
                stem = _SUFFIX.sub("", path.stem)
                known = next((part for part in (whole, case.name) if _plain(stem).startswith(_plain(part) + "_")), None)
                rest = stem if known is None else stem[len(known) + 1 :]
                yield f"{whole}_{rest}", path, kind == "mask"


def _animal(case: Path) -> str:
    name = _plain(case.name)
    section = _SECTION.fullmatch(name)
    return f"{case.parent.name.casefold()}_{section[1] if section else name}"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
