# SPDX-License-Identifier: Apache-2.0
"""ACDC 2017: folders of patients, with a 4-D cine file, two labelled frames, and Info.cfg.

    database/{training,testing}/patient001/Info.cfg
    database/training/patient001/patient001_4d.nii.gz
    database/training/patient001/patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz

Frames in names and in Info.cfg count from 1; end-diastole is not always frame 1. Older copies have no labels in
`testing`. Sources: github.com/mathpluscode/CineMA, cinema/data/acdc; github.com/MIC-DKFZ/nnUNet,
nnunetv2/dataset_conversion/Dataset027_ACDC.py; they agree. The values are those of the organisers
(creatis.insa-lyon.fr/Challenge/acdc/evaluation.html); M&Ms has the ventricles the other way round.
"""

from __future__ import annotations

import re
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, roots
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import StoredImage, nifti_suffix
from kprism_model.preparation.labels import LabelVolume
from kprism_model.preparation.options import LayoutOptions

OPTIONS: frozenset[str] = frozenset()

_PATIENT = re.compile(r"patient\d{3}$")
_FRAME = re.compile(r"(patient\d{3}_frame\d{2})(_gt)?$")
_LISTS: dict[str, Split] = {"training": "training", "testing": "test"}


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The two labelled frames of each patient; the official lists are the folders `training` and `testing`."""
    parents = roots(folder, lambda path: any(_PATIENT.fullmatch(inner.name) for inner in entries(path)))
    if not parents:
        raise ValueError(f"{folder} is not ACDC: expected folders such as training/patient001")
    findings = Findings()
    for parent in parents:
        for patient in entries(parent):
            if patient.is_dir() and _PATIENT.fullmatch(patient.name):
                _add_patient(findings, patient, _LISTS.get(parent.name.casefold()), entry)
    return findings


def _add_patient(findings: Findings, patient: Path, split: Split | None, entry: CatalogueEntry) -> None:
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for path in entries(patient):
        match = _FRAME.fullmatch(path.name.removesuffix(nifti_suffix(path)))
        if match:
            (labels if match[2] else images)[match[1]] = path
    for number in _labelled_frames(patient / "Info.cfg"):
        if f"{patient.name}_frame{number:02d}" not in images:
            findings.remark("missing", f"{patient.name}: frame {number} of Info.cfg")
    for name in sorted(set(labels) - set(images)):
        findings.remark("missing", f"{name}: the image of {labels[name].name}")
    indices = {int(value): index for value, index in entry.indices.items()}
    for name, path in sorted(images.items()):
        if name not in labels:
            findings.remark("unlabelled", str(path))
            continue
        label = LabelVolume(labels[name], indices)
        findings.cases.append(FoundCase(name, patient.name, split, StoredImage(path), label))


def _labelled_frames(path: Path) -> list[int]:
    """The frames ED and ES of an Info.cfg (`key: value` in each line); empty if there is no such file."""
    if not path.is_file():
        return []
    pairs = dict(line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
    return [int(pairs[key]) for key in ("ED", "ES") if pairs.get(key, "").strip().isdecimal()]
