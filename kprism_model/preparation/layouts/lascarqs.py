# SPDX-License-Identifier: Apache-2.0
"""LAScarQS 2022: folders of scans, with one mask for the left atrium and in task 1 one for its scar.

    LAScarQS2022/task1/train_data/train_1/{enhanced, atriumSegImgMO, scarSegImgM}.nii.gz     60 scans
    LAScarQS2022/task2/train_data/train_1/{enhanced, atriumSegImgMO}.nii.gz                 130 scans
    LAScarQS2022/task1_val, task2_val (images only)

Sources: github.com/openmedlab/Awesome-Medical-Dataset, resources/LAScarQS_2022.md; github.com/constantinpape/torch-em,
torch_em/data/datasets/medical/lascarqs.py. They agree; renamed copies have "LA scar quantification" and "LA cavity
segmentation" for the tasks. A cavity is stored as 420 and a scar as 1: any one positive value is read. Where the two
overlap, the scar lies on top, as in the second source.

The scans of task 1 are in task 2 too, under other numbers. So if `folder` has both tasks, the data set has the left
atrium alone, of task 2 and of those scans of task 1 whose voxels are not among them. The scar would be background in
most scans there; to have it, give the folder of task 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import StoredImage, nifti_values, open_nifti
from kprism_model.preparation.labels import MaskVolumes
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pairing import pair, remark_other_affines

OPTIONS: frozenset[str] = frozenset()

_FILE = re.compile(r"(enhanced|atriumSegImgMO|scarSegImgM)\.nii(\.gz)?", re.IGNORECASE)
_IMAGE, _CAVITY, _SCAR = "enhanced", "atriumsegimgmo", "scarsegimgm"
_TASKS = {
    1: re.compile(r"task[ _-]?1|scar quantification", re.IGNORECASE),
    2: re.compile(r"task[ _-]?2|cavity segmentation", re.IGNORECASE),
}
_HELD_BACK = re.compile(r"(^|[^a-z])(val|validation|test)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class _Scan:
    """A labelled scan of a task; `scar` is None if it has no scar mask."""

    name: str
    task: int
    image: Path
    cavity: Path
    scar: Path | None


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The training scans of the tasks that `folder` has; there are no official lists of labelled scans."""
    findings = Findings()
    scans = _scans(folder, findings)
    tasks = {scan.task for scan in scans}
    cavity, scar = entry.indices["atriumSegImgMO"], entry.indices["scarSegImgM"]
    if tasks == {1}:
        for scan in scans:
            if scan.scar is None:
                findings.remark("missing", f"scarSegImgM beside {scan.image}")
            else:
                _add(findings, scan, scan.name, ((scan.cavity, cavity), (scan.scar, scar)))
        return findings
    findings.classes = {cavity: entry.classes[cavity]}
    if tasks == {1, 2}:
        findings.remark("note", "the scar is labelled in task 1 only: give its folder to prepare it")
    known: dict[str, str] = {}
    for scan in sorted(scans, key=lambda scan: -scan.task):  # task 2 first
        voxels = _voxels(scan.image) if len(tasks) == 2 else scan.name
        other = known.setdefault(voxels, scan.name)
        if other != scan.name and scan.task == 1:
            findings.remark("doubled", f"{scan.name} is the scan {other}, which is taken")
        else:
            _add(findings, scan, other, ((scan.cavity, cavity),))
    return findings


def _add(findings: Findings, scan: _Scan, patient: str, masks: Sequence[tuple[Path, int]]) -> None:
    findings.cases.append(FoundCase(scan.name, patient, None, StoredImage(scan.image), MaskVolumes(tuple(masks))))


def _scans(folder: Path, findings: Findings) -> list[_Scan]:
    folders: dict[Path, dict[str, Path]] = {}
    for path in walk(folder):
        if match := _FILE.fullmatch(path.name):
            folders.setdefault(path.parent, {})[match[1].casefold()] = path
    if not any(_IMAGE in files or _CAVITY in files for files in folders.values()):
        raise ValueError(
            f"{folder} is not LAScarQS 2022: expected folders such as task1/train_data/train_1 with enhanced.nii.gz "
            "and atriumSegImgMO.nii.gz"
        )
    images: list[tuple[str, Path]] = []
    cavities: list[tuple[str, Path]] = []
    tasks: dict[str, int] = {}
    scars: dict[str, Path] = {}
    for place, files in folders.items():
        if _CAVITY not in files:
            held_back = any(_HELD_BACK.search(part) for part in place.relative_to(folder).parts)
            first = next(iter(files.values()))
            if held_back or _SCAR not in files:
                findings.remark("unlabelled", str(first))
            else:
                findings.remark("missing", f"the cavity of {first}")
            continue
        task = _task(folder, place, files)
        name = f"task{task}_{place.name}"
        tasks[name] = task
        cavities.append((name, files[_CAVITY]))
        images += [(name, files[_IMAGE])] if _IMAGE in files else []
        if _SCAR in files:
            scars.setdefault(name, files[_SCAR])
    pairs = pair(findings, images, cavities)
    remark_other_affines(findings, pairs)
    return [_Scan(found.key, tasks[found.key], found.image, found.label, scars.get(found.key)) for found in pairs]


def _task(folder: Path, place: Path, files: dict[str, Path]) -> int:
    """By the nearest folder with the name of a task, which may be above `folder`; else by whether there is a scar."""
    parts = (*folder.resolve().parts[-2:], *place.relative_to(folder).parts)
    for part in reversed(parts):
        for task, pattern in _TASKS.items():
            if pattern.search(part):
                return task
    return 1 if _SCAR in files else 2


def _voxels(path: Path) -> str:
    """A digest of the values of an image, whatever their type; the path if it cannot be read."""
    try:
        values = nifti_values(open_nifti(path), path).astype(np.float32, copy=False)
    except ValueError:
        return str(path)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()
