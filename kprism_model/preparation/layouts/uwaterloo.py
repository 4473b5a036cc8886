# SPDX-License-Identifier: Apache-2.0
"""Skin cancer detection of the University of Waterloo: pictures of DermIS and DermQuest with outlines of the lesion.

    Skin Image Data Set-1/skin_data/melanoma/{dermis,dermquest}/SSM1_orig.jpg, SSM1_contour.png
    Skin Image Data Set-2/skin_data/notmelanoma/{dermis,dermquest}/D1_orig.jpg, D1_contour.png

A `contour` is a filled mask. The same stem may be in several folders. Sources: github.com/constantinpape/torch-em,
torch_em/data/datasets/medical/uwaterloo_skin.py; github.com/zekikus/MedSegBench, medsegbench/info.py (119 and 87
pictures). Descriptions differ over folders around skin_data, and over dermis or dermIS; all are read. No patient
numbers exist.
"""

from __future__ import annotations

import re
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import StoredImage
from kprism_model.preparation.labels import MaskPictures
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file, join_equal_pictures, leave_out, paired

OPTIONS: frozenset[str] = frozenset()

_NAME = re.compile(r"(?P<stem>.+)_(?P<kind>orig|contour)\.(?:jpe?g|png|bmp)", re.IGNORECASE)


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """All pictures with a mask; a name is made of the kind, the source and the stem."""
    findings = Findings()
    unclear: set[str] = set()
    files: dict[str, dict[str, Path]] = {"orig": {}, "contour": {}}
    for path in walk(folder.resolve()):
        match = _NAME.fullmatch(path.name)
        kind = re.sub(r"[ _-]", "", path.parent.parent.name.casefold())
        if match is None or kind not in ("melanoma", "notmelanoma"):
            findings.remark("ignored", str(path))
            continue
        stem = re.sub(r"\s+", "_", match["stem"])
        name = f"{kind}_{path.parent.name.casefold()}_{stem}"
        add_file(files[match["kind"].casefold()], name, path, findings, unclear)
    if not files["orig"] or not files["contour"]:
        raise ValueError(
            f"{folder} holds {len(files['orig'])} pictures and {len(files['contour'])} masks of this download, "
            "expected files such as skin_data/melanoma/dermis/SSM1_orig.jpg and SSM1_contour.png"
        )
    findings.remark("note", "no patient numbers exist: pictures of one person may be on several lists")
    (index,) = entry.indices.values()
    for name, path, mask in paired(files["orig"], files["contour"], findings):
        findings.cases.append(FoundCase(name, name, None, StoredImage(path), MaskPictures((mask,), index)))
    leave_out(findings, unclear)
    join_equal_pictures(findings)
    return findings
