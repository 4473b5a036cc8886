# SPDX-License-Identifier: Apache-2.0
"""TotalSegmentator: a folder for each CT image, with one mask for each of more than a hundred structures.

    meta.csv (separator ";", with a byte order mark: image_id;age;gender;institute;study_type;split;...)
    s0000/ct.nii.gz
    s0000/segmentations/liver.nii.gz, kidney_right.nii.gz, ... (all zero where a structure is not in the image)

Sources: github.com/wasserth/TotalSegmentator, resources/convert_dataset_to_nnunet.py and improvements_in_v3.md;
github.com/constantinpape/torch-em, torch_em/data/datasets/medical/totalsegmentator.py. They agree on the tree. Version
2.0.1 unpacks without a folder around, versions 1 and 3 with one. Version 1 has 104 structures, version 2 has 117; the
lists are train, val and test, in version 3 train and test. The first source lets an absent mask count as empty.

Here a structure is used if more than half of the images have a file of it. An image without that file is left out:
nobody said that the structure is not in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, one_root
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import Grid, StoredImage, nifti_suffix
from kprism_model.preparation.labels import LabelMap, MaskVolumes
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file
from kprism_model.preparation.tables import read_table

OPTIONS: frozenset[str] = frozenset()

_CASE = re.compile(r"s\d{4,}")
_LISTS: dict[str, Split] = {"train": "training", "val": "validation", "test": "test"}
_KNOWN_FAULTS = {
    "s0184": "version 2.0.0 has wrong values in the image (issue 193)",
    "s0224": "version 2.0.0 has wrong values in the image (issue 193)",
    "s0830": "version 2.0.0 has wrong values in the image (issue 193)",
    "s0864": "the image is damaged in version 1 and has wrong values in version 2.0.0 (issues 92, 193)",
    "s0992": "version 2.0.0 has wrong values in the image (issue 193)",
    "s0143": "version 2.0.1 has a wrong label of the heart (issue 299)",
    "s0201": "version 2.0.1 has a wrong label of the heart (issue 299)",
    "s1196": "version 2.0.1 has a wrong label of the heart (issue 299)",
}
"""Image -> what users reported at github.com/wasserth/TotalSegmentator; files do not tell which version they are of."""


@dataclass(frozen=True)
class NamedMasks:
    """One mask for each structure of the case `name`, as `MaskVolumes`; tells how many voxels are in several masks."""

    name: str
    masks: Sequence[tuple[Path, int]]
    remarks: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, in their order."""
        return tuple(path for path, _ in self.masks)

    def read(self, grid: Grid) -> LabelMap:
        """Read and join the masks; a later one lies on top."""
        labels = np.zeros(grid.shape, np.uint8)
        stems = {index: path.name.removesuffix(nifti_suffix(path)) for path, index in self.masks}
        overlaps: Counter[tuple[str, str]] = Counter()
        for path, index in self.masks:
            mask = MaskVolumes(((path, index),)).read(grid) > 0
            for below, count in zip(*np.unique(labels[mask], return_counts=True), strict=True):
                if below:
                    overlaps[stems[index], stems[int(below)]] += int(count)
            labels[mask] = index
        self.remarks.clear()
        if overlaps:
            pairs = ", ".join(f"{upper} over {lower} {count:,}" for (upper, lower), count in overlaps.most_common(5))
            more = f" and {len(overlaps) - 5} more pairs" if len(overlaps) > 5 else ""
            self.remarks.append(f"{self.name}: voxels in two masks: {pairs}{more}")
        return labels


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The images with a mask of each structure; the official lists are those of meta.csv."""
    root = one_root(folder, _is_root, "folders such as s0000 with ct.nii.gz and segmentations/liver.nii.gz")
    findings = Findings()
    masks: dict[str, dict[str, Path]] = {}
    for path in entries(root):
        if path.is_dir() and _CASE.fullmatch(path.name):
            masks[path.name] = _masks(findings, path / "segmentations")
        elif path.is_dir() or path.name != "meta.csv":
            findings.remark("ignored", str(path))
    names = _structures(findings, masks, entry)
    if len(names) > 255:
        raise ValueError(f"{root} has masks of {len(names)} structures, expected 255 or fewer")
    findings.classes = {index: _class_name(name, entry) for index, name in enumerate(names, start=1)}
    lists = _lists(findings, root / "meta.csv", set(masks))
    for case, files in masks.items():
        _add_case(findings, root / case, names, files, lists.get(case))
    return findings


def _is_root(folder: Path) -> bool:
    return any(_CASE.fullmatch(path.name) and (path / "segmentations").is_dir() for path in entries(folder))


def _masks(findings: Findings, folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    unclear: set[str] = set()
    for path in entries(folder):
        name = path.name.removesuffix(nifti_suffix(path))
        if not nifti_suffix(path):
            findings.remark("ignored", str(path))
        else:
            add_file(found, name, path, findings, unclear)
    return {name: path for name, path in found.items() if name not in unclear}


def _structures(findings: Findings, masks: dict[str, dict[str, Path]], entry: CatalogueEntry) -> list[str]:
    """The files that most of the images have, in the order of the catalogue, others behind them."""
    labelled = [files for files in masks.values() if files]
    counts = Counter(name for files in labelled for name in files)
    order = {name: place for place, name in enumerate(entry.values)}
    names = sorted(counts, key=lambda name: (order.get(name, len(order)), name))
    chosen = [name for name in names if 2 * counts[name] > len(labelled)]
    for name in names:
        if name not in chosen:
            findings.remark(
                "ignored", f"{name}: only {counts[name]} of {len(labelled)} images have a file of it; it is no class"
            )
    return chosen


def _class_name(name: str, entry: CatalogueEntry) -> str:
    return entry.values.get(name, name.replace("_", " "))


def _lists(findings: Findings, path: Path, cases: set[str]) -> dict[str, Split]:
    if not path.is_file():
        findings.remark("note", f"no {path.name}: the official lists are not known")
        return {}
    told = {row["image_id"]: row.get("split", "") for _, row in read_table(path, ("image_id", "split"))}
    for name in sorted(set(told) - cases):
        findings.remark("missing", f"the folder {name}, which is in {path.name}")
    for name in sorted(cases - set(told)):
        findings.remark("note", f"{name} is not in {path.name}; it counts as training")
    return {name: _LISTS[split.casefold()] for name, split in told.items() if split.casefold() in _LISTS}


def _add_case(
    findings: Findings, folder: Path, names: Sequence[str], files: dict[str, Path], split: Split | None
) -> None:
    image = next((path for path in entries(folder) if path.name in ("ct.nii.gz", "ct.nii")), None)
    absent = [name for name in names if name not in files]
    if image is None:
        findings.remark("missing", str(folder / "ct.nii.gz"))
    elif not files:
        findings.remark("unlabelled", str(image))
    elif absent:
        shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        findings.remark(
            "missing", f"{folder.name}: no mask of {shown}; left out, because that does not say that it is empty"
        )
    else:
        if folder.name in _KNOWN_FAULTS:
            findings.remark("note", f"{folder.name} is known: {_KNOWN_FAULTS[folder.name]}")
        masks = tuple((files[name], index) for index, name in enumerate(names, start=1))
        label = NamedMasks(folder.name, masks)
        findings.cases.append(FoundCase(folder.name, folder.name, split, StoredImage(image), label))
