# SPDX-License-Identifier: Apache-2.0
"""M&Ms 2020: short-axis cine MRI of several centres; two phases of each 4-D file are labelled, a table names them.

    OpenDataset/211230_M&Ms_Dataset_information_diagnosis_opendataset.csv (External code, ..., ED, ES, ...)
    OpenDataset/Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz, A0S9V9_sa_gt.nii.gz
    OpenDataset/Training/Unlabeled/..., Validation/A5C2D2/..., Testing/A1K2P5/...

ED and ES count from 0. Labels are zero in all other frames, and in all frames of `Unlabeled`. Sources:
github.com/MIC-DKFZ/nnUNet, nnunetv2/dataset_conversion/Dataset114_MNMs.py; github.com/q-cardIA/qcardia-data,
src/qcardia_data/setup/reformat/mm1.py. They differ: the second has all patients in one folder `dataset` with
`dataset_information.csv` and no lists, and finds the labelled frames in the label files, because the table is wrong for
some; the first goes by the table. Here both trees are read, and the table counts if its frames are labelled.
The values are the other way round than in ACDC: 1 is the left ventricle, 3 the right one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import folders_above, walk
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import Frame, nifti_suffix, nifti_values, open_nifti
from kprism_model.preparation.labels import LabelVolume
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file
from kprism_model.preparation.tables import read_table, whole_number

OPTIONS: frozenset[str] = frozenset()

_FILE = re.compile(r"(?P<code>[A-Za-z0-9]+)_sa(?P<label>_gt)?$")
_COLUMNS = ("external code", "ed", "es")
_LISTS: dict[str, Split] = {
    "training": "training",
    "validation": "validation",
    "testing": "test",
    "test": "test",
}
_LEFT_VENTRICLE = 1


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The two labelled frames of each patient, `A0S9V9_ED` and `A0S9V9_ES`; the official lists are the folders."""
    findings = Findings()
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    tables: list[Path] = []
    unclear: set[str] = set()
    for path in walk(folder):
        match = _FILE.fullmatch(path.name.removesuffix(nifti_suffix(path))) if nifti_suffix(path) else None
        if match:
            add_file(labels if match["label"] else images, match["code"], path, findings, unclear)
        elif path.suffix.lower() == ".csv" and _has_columns(path):
            tables.append(path)
    if not images and not labels:
        raise ValueError(f"{folder} is not M&Ms: expected files such as Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz")
    phases = _phases(findings, tables)
    for code in sorted(set(phases) - set(images)):
        findings.remark("missing", f"{code}_sa.nii.gz, which is in the table")
    indices = {int(value): index for value, index in entry.indices.items()}
    for code in sorted((set(images) | set(labels)) - unclear):
        if code not in images:
            findings.remark("missing", f"the image of {labels[code]}")
        elif code not in labels or {"unlabeled", "unlabelled"} & set(folders_above(images[code], folder)):
            findings.remark("unlabelled", str(images[code]))
        else:
            _add_patient(findings, code, images[code], labels[code], phases, indices, _list(images[code], folder))
    return findings


def _has_columns(path: Path) -> bool:
    try:
        return bool(read_table(path, _COLUMNS))
    except ValueError:
        return False


def _phases(findings: Findings, tables: list[Path]) -> dict[str, dict[str, int | None]]:
    """Code -> ED and ES of the table; None for a value that is not a number."""
    if not tables:
        findings.remark("note", "no table with the columns External code, ED, ES: the frames are those with a label")
        return {}
    if len(tables) > 1:
        findings.remark("doubled", f"tables {', '.join(map(str, tables))}; the last one is taken")
    return {
        row["external code"]: {"ED": whole_number(row.get("ed", "")), "ES": whole_number(row.get("es", ""))}
        for _, row in read_table(tables[-1], _COLUMNS)
        if row.get("external code")
    }


def _list(path: Path, top: Path) -> Split | None:
    return next((_LISTS[name] for name in folders_above(path, top) if name in _LISTS), None)


def _add_patient(
    findings: Findings,
    code: str,
    image: Path,
    label: Path,
    phases: Mapping[str, Mapping[str, int | None]],
    indices: Mapping[int, int],
    split: Split | None,
) -> None:
    try:
        values = _values(label)
    except ValueError as error:
        findings.remark("faulty", str(error))
        return
    labelled = np.flatnonzero(values.any(axis=(0, 1, 2))).tolist()
    if not labelled:
        findings.remark("unlabelled", f"{image}: its label is empty")
        return
    told = phases.get(code, {})
    if {told.get("ED"), told.get("ES")} <= set(labelled) and told.get("ED") != told.get("ES"):
        frames = {name: number for name, number in told.items() if number is not None}
    elif len(labelled) == 2:
        frames = _frames(values, labelled, told)
        if phases:
            given = f"ED {told.get('ED')} and ES {told.get('ES')}" if told else "no frames"
            findings.remark(
                "note", f"{code}: the table has {given}, the labels are in {labelled}; ED {frames['ED']} is taken"
            )
    else:
        findings.remark("faulty", f"{label}: frames with a label are {labelled}, expected two or those of the table")
        return
    for name, number in frames.items():
        source = LabelVolume(label, indices, frame=number)
        findings.cases.append(FoundCase(f"{code}_{name}", code, split, Frame(image, number), source))


def _values(path: Path) -> NDArray[Any]:
    image = open_nifti(path)
    if len(image.shape) != 4:
        raise ValueError(f"{path} has the shape {tuple(image.shape)}, expected four axes with the frames last")
    return nifti_values(image, path)


def _frames(values: NDArray[Any], labelled: list[int], told: Mapping[str, int | None]) -> dict[str, int]:
    """Which of the two labelled frames is end-diastole: as the table says of one, else that of the larger ventricle."""
    first, second = labelled
    if told.get("ED") in labelled or told.get("ES") in labelled:
        is_first = told.get("ED") == first or told.get("ES") == second
    else:
        sizes = (values[..., labelled] == _LEFT_VENTRICLE).sum(axis=(0, 1, 2))
        is_first = bool(sizes[0] >= sizes[1])
    return {"ED": first, "ES": second} if is_first else {"ED": second, "ES": first}
