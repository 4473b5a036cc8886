# SPDX-License-Identifier: Apache-2.0
"""M&Ms-2 2021: cine MRI in short-axis stacks (SA) and one long-axis slice (LA), each with two labelled phases.

    MnM2/dataset_information.csv (SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD; empty rows at its end)
    MnM2/dataset/001/001_SA_CINE.nii.gz, 001_SA_ED.nii.gz, 001_SA_ED_gt.nii.gz, 001_SA_ES.nii.gz, 001_SA_ES_gt.nii.gz
    MnM2/dataset/001/001_LA_CINE.nii.gz, 001_LA_ED.nii.gz, 001_LA_ED_gt.nii.gz, 001_LA_ES.nii.gz, 001_LA_ES_gt.nii.gz

Official lists by number: 1 to 160 training, 161 to 200 validation, 201 to 360 test. Sources:
github.com/mathpluscode/CineMA, cinema/data/mnms2; github.com/q-cardIA/qcardia-data,
src/qcardia_data/setup/reformat/mm2.py. They agree on all files; copies of the time of the challenge have folders
`training`, `validation` and `test` in the place of `dataset`, which are read too. Values as in M&Ms, not as in ACDC.

`channel` is the view: SA (default), LA or both. The public code of the published experiment does not say which one it
used; the short axis is that of M&Ms and ACDC, beside which it is listed. Cases are called `001_SA_ED`.
"""

from __future__ import annotations

import re
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, roots, walk
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import StoredImage, nifti_suffix
from kprism_model.preparation.labels import LabelVolume
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.tables import read_table, whole_number

OPTIONS = frozenset({"channel"})

_NUMBER = re.compile(r"\d{3}")
_VIEWS = {"sa": ("SA",), "la": ("LA",), "both": ("SA", "LA")}
_PHASES = ("ED", "ES")
_LAST = 360


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """Both phases of each patient in the chosen views."""
    views = _VIEWS.get((options.channel or "SA").casefold())
    if views is None:
        raise ValueError(f"--channel is {options.channel}, expected SA (short axis), LA (long axis) or both")
    parents = roots(folder, lambda path: any(_is_patient(inner) for inner in entries(path)))
    if not parents:
        raise ValueError(f"{folder} is not M&Ms-2: expected folders such as dataset/001 with 001_SA_ED.nii.gz")
    findings = Findings()
    patients: dict[str, Path] = {}
    twice: set[str] = set()
    for path in (inner for parent in parents for inner in entries(parent)):
        if not path.is_dir() or not _NUMBER.fullmatch(path.name) or not 1 <= int(path.name) <= _LAST:
            if path.is_dir() and path not in parents:
                findings.remark("ignored", str(path))
        elif path.name in patients:
            findings.remark("faulty", f"patient {path.name} is in {path} and {patients[path.name]}; left out")
            twice.add(path.name)
        else:
            patients[path.name] = path
    for number in sorted(_numbers(folder) - set(patients)):
        findings.remark("missing", f"the folder {number}, which is in the table")
    indices = {int(value): index for value, index in entry.indices.items()}
    for number, path in sorted((number, path) for number, path in patients.items() if number not in twice):
        files = {file.name.removesuffix(nifti_suffix(file)): file for file in entries(path) if nifti_suffix(file)}
        for view in views:
            for phase in _PHASES:
                _add_phase(findings, f"{number}_{view}_{phase}", files, path, indices)
    return findings


def _is_patient(path: Path) -> bool:
    if not _NUMBER.fullmatch(path.name):
        return False
    return any(re.match(rf"{path.name}_(SA|LA)_", file.name) for file in entries(path))


def _numbers(folder: Path) -> set[str]:
    """The patients of the table, as folders are called; empty if there is no table."""
    found: set[str] = set()
    for path in walk(folder):
        if path.name.lower() == "dataset_information.csv":
            codes = [whole_number(row["subject_code"]) for _, row in read_table(path, ("subject_code",))]
            found |= {f"{code:03d}" for code in codes if code is not None}
    return found


def _add_phase(findings: Findings, name: str, files: dict[str, Path], patient: Path, indices: dict[int, int]) -> None:
    image, label = files.get(name), files.get(f"{name}_gt")
    if image is None:
        findings.remark("missing", f"{patient / name}.nii.gz" + (", the image of a label" if label else ""))
    elif label is None:
        findings.remark("unlabelled", str(image))
    else:
        split = _list(int(patient.name))
        findings.cases.append(FoundCase(name, patient.name, split, StoredImage(image), LabelVolume(label, indices)))


def _list(number: int) -> Split:
    return "training" if number <= 160 else "validation" if number <= 200 else "test"
