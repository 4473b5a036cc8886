# SPDX-License-Identifier: Apache-2.0
"""BUS, dataset B (UDIAT): breast ultrasound with one lesion a picture, whose kind is in a table.

    BUS/original/000001.png
    BUS/GT/000001.png
    BUS/DatasetB.xlsx (columns Image, Type, and the diagnosis: 1, Benign, CYST)

The table may be saved as .csv. Sources: github.com/openmedlab/Awesome-Medical-Dataset,
resources/Breast_Ultrasound_DatasetB.md (tree); the article (110 benign and 53 malignant). busbench.midalab.net/datasets
prints 109 and 54: the table decides. No patient numbers exist (163 women by the article, one picture each).
"""

from __future__ import annotations

import re
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import entries, one_root
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import StoredImage
from kprism_model.preparation.labels import MaskPictures
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file, is_picture, join_equal_pictures, leave_out, paired
from kprism_model.preparation.tables import TABLE_SUFFIXES, read_table

OPTIONS: frozenset[str] = frozenset()

_NUMBER = re.compile(r"0*(\d+)(?:\.0+|\.png)?", re.IGNORECASE)


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The pictures that have a mask and a row of the table."""
    root = one_root(folder, _is_root, "folders original and GT with pictures such as 000001.png, and DatasetB.xlsx")
    findings = Findings()
    unclear: set[str] = set()
    table = _table(root)
    kinds = _kinds(table, entry, findings)
    files: dict[str, dict[str, Path]] = {"original": {}, "gt": {}}
    for path in [inner for parent in entries(root) if parent.is_dir() for inner in entries(parent)]:
        match = _NUMBER.fullmatch(path.stem)
        place = files.get(path.parent.name.casefold())
        if place is None or match is None or not is_picture(path):
            findings.remark("ignored", str(path))
        else:
            add_file(place, f"{int(match[1]):06d}", path, findings, unclear)
    for name in sorted(set(kinds) - set(files["original"])):
        findings.remark("missing", f"the picture {name}, which {table} lists")
    findings.remark("note", "no patient numbers exist: each picture counts as a patient")
    for name, path, mask in paired(files["original"], files["gt"], findings):
        if name not in kinds:
            findings.remark("missing", f"the type of {path} in {table}")
        elif kinds[name]:
            findings.cases.append(FoundCase(name, name, None, StoredImage(path), MaskPictures((mask,), kinds[name])))
    leave_out(findings, unclear)
    join_equal_pictures(findings)
    return findings


def _is_root(folder: Path) -> bool:
    return {"original", "gt"} <= {path.name.casefold() for path in entries(folder) if path.is_dir()}


def _table(root: Path) -> Path:
    """The table beside the pictures, or beside their folder."""
    for parent in (root, root.parent):
        found = [path for path in entries(parent) if path.suffix.lower() in TABLE_SUFFIXES]
        named = [path for path in found if "datasetb" in path.name.casefold()]
        if named or (found and parent == root):
            return (named or found)[0]
    raise ValueError(
        f"{root} has no table of the types: expected DatasetB.xlsx or DatasetB.csv beside the folders original and GT; "
        "without it nobody knows which lesions are benign and which are malignant"
    )


def _kinds(table: Path, entry: CatalogueEntry, findings: Findings) -> dict[str, int]:
    """Name of a picture -> label index, 0 if its type is unclear, which is remarked."""
    kinds: dict[str, int] = {}
    for number, row in read_table(table, ("image", "type")):
        match = _NUMBER.fullmatch(row.get("image", ""))
        if match is None:
            findings.remark("ignored", f"{table}, row {number}: {row.get('image', '')!r} is not a number")
            continue
        name = f"{int(match[1]):06d}"
        index = entry.indices.get(row.get("type", "").casefold(), 0)
        if not index:
            sentence = f"the type {row.get('type', '')!r} of {name}, expected {' or '.join(entry.indices)}"
            findings.remark("faulty", f"{table}, row {number}: {sentence}")
        elif kinds.get(name, index) != index:
            findings.remark("faulty", f"{table}, row {number}: {name} has another type in a row before")
            index = 0
        kinds[name] = index
    return kinds
