# SPDX-License-Identifier: Apache-2.0
"""AMOS 2022: CT and MRI in one download, apart by their numbers.

    amos22/dataset.json, imagesTr/amos_0001.nii.gz, labelsTr/amos_0001.nii.gz, imagesVa, labelsVa, imagesTs
    labeled_data_meta_0000_0599.csv (a file of its own in the Zenodo record), __MACOSX

Sources: github.com/MIC-DKFZ/nnUNet, nnunetv2/dataset_conversion/Dataset218_Amos2022_task1.py;
github.com/neuro-ml/amid, amid/amos/dataset.py. They differ over where CT ends (410 or 500); no labelled scan is
between, so 1 to 500 are CT and 501 to 600 MRI. Numbers from 5000 on are another, unlabelled release.

A number is a scan, not a patient: by the table, the same date of birth and sex occur under several numbers, and these
count as one patient, over CT and MRI. The rows of MRI run from 500 to 599, the files from 501 to 600, and nobody says
whether rows are one lower: two MRI scans count as one patient if they are so by either reading. Without the table each
scan counts as a patient.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, walk
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import StoredImage
from kprism_model.preparation.labels import LabelVolume
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pairing import by_number, pair, remark_other_affines

OPTIONS: frozenset[str] = frozenset()

_IMAGE = re.compile(r"(?:^|/)images(?:Tr|Va|Ts)/amos_(?P<number>\d{4})\.nii(\.gz)?$")
_LABEL = re.compile(r"(?:^|/)labels(?:Tr|Va|Ts)/amos_(?P<number>\d{4})\.nii(\.gz)?$")
_NUMBERS = {"amos_ct": range(501), "amos_mr": range(501, 601)}
_LISTS: dict[str, Split] = {"Tr": "training", "Va": "test", "Ts": "test"}
_TABLE = "labeled_data_meta"
_BORDER = 500  # the table has this number twice: the last row of CT, then the first row of MRI

_Person = tuple[str, str]


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The labelled scans of one modality; `imagesTr` is for training, `imagesVa` for test."""
    files = list(walk(folder))
    images, labels = by_number(files, folder, _IMAGE), by_number(files, folder, _LABEL)
    if not images and not labels:
        raise ValueError(f"{folder} is not AMOS: expected imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz")
    findings = Findings()
    wanted = _NUMBERS[entry.name]
    later = [path for number, path in images if int(number) > 600]
    if later:
        findings.remark("ignored", f"scans of another, unlabelled release ({len(later)}): {later[0]} and on")
    pairs = pair(findings, _among(images, wanted), _among(labels, wanted))
    remark_other_affines(findings, pairs)
    _copy_licence(findings, files, entry)
    patients = _patients(findings, [*files, *entries(folder.resolve().parent)])
    indices = {int(value): index for value, index in entry.indices.items()}
    for found in pairs:
        name = f"amos_{int(found.key):04d}"
        split = _LISTS[found.image.parent.name[-2:]]
        label = LabelVolume(found.label, indices)
        patient = patients.get(int(found.key), name)
        findings.cases.append(FoundCase(name, patient, split, StoredImage(found.image), label))
    return findings


def _among(files: Iterable[tuple[str, Path]], numbers: range) -> list[tuple[str, Path]]:
    return [(number, path) for number, path in files if int(number) in numbers]


def _copy_licence(findings: Findings, files: Iterable[Path], entry: CatalogueEntry) -> None:
    for path in files:
        if path.name == "dataset.json":
            try:
                stated = json.loads(path.read_text(encoding="utf-8-sig"))
            except ValueError:
                continue
            if isinstance(stated, dict) and (licence := stated.get("licence") or stated.get("license")):
                findings.about["licence"] = f"{entry.licence}; the download's dataset.json says: {licence}"
                return


def _patients(findings: Findings, files: Iterable[Path]) -> Mapping[int, str]:
    """The patient of each number that the table has; empty, with a remark, if there is no table."""
    for path in files:
        if path.name.casefold().startswith(_TABLE) and path.suffix.casefold() == ".csv":
            with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
                rows = list(csv.DictReader(file))
            if rows and {"amos_id", "Patient's Birth Date", "Patient's Sex"} <= rows[0].keys():
                return _joined(rows)
            findings.remark("faulty", f"{path} has not the columns amos_id, Patient's Birth Date, Patient's Sex")
    findings.remark(
        "note",
        f"no {_TABLE}_0000_0599.csv of the Zenodo record beside the images: each scan counts as a patient, though "
        "several scans of one patient are known",
    )
    return {}


def _joined(rows: Iterable[Mapping[str, str | None]]) -> dict[int, str]:
    """Number of a file -> name of its patient, the lowest number of the scans that may be of the same person."""
    links: list[tuple[int, tuple[str, _Person]]] = []
    is_mri = False
    for row in rows:
        number = (row["amos_id"] or "").strip()
        person = ((row["Patient's Birth Date"] or "").strip(), (row["Patient's Sex"] or "").strip().upper())
        if not number.isdecimal() or not person[0]:
            is_mri |= number == str(_BORDER)
            continue
        if int(number) > _BORDER or (int(number) == _BORDER and is_mri):
            links += [(int(number), ("as numbered", person))] if int(number) > _BORDER else []
            links += [(int(number) + 1, ("one lower", person))]
        else:
            links += [(int(number), (reading, person)) for reading in ("as numbered", "one lower")]
        is_mri |= int(number) == _BORDER
    links = [(number, key) for number, key in links if number <= 600]
    numbers = sorted({number for number, _ in links})
    places = {node: place for place, node in enumerate([*numbers, *dict.fromkeys(key for _, key in links)])}
    ends = [places[number] for number, _ in links], [places[key] for _, key in links]
    graph = coo_array(([1] * len(links), ends), (len(places), len(places)))
    _, groups = connected_components(graph, directed=False)
    lowest: dict[int, int] = {}
    return {number: f"amos_{lowest.setdefault(int(groups[places[number]]), number):04d}" for number in numbers}
