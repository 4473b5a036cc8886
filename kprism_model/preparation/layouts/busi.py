# SPDX-License-Identifier: Apache-2.0
"""BUSI: breast ultrasound in a folder for each kind of finding, with one or several masks a picture.

    Dataset_BUSI_with_GT/benign/benign (1).png, benign (1)_mask.png
    Dataset_BUSI_with_GT/benign/benign (4).png, benign (4)_mask.png, benign (4)_mask_1.png
    Dataset_BUSI_with_GT/normal/normal (1).png, normal (1)_mask.png (all zero)

Sources: github.com/openmedlab/Awesome-Medical-Dataset, resources/BUSI.md; github.com/constantinpape/torch-em,
torch_em/data/datasets/medical/busi.py. They differ over the further masks of 17 pictures, which the second leaves out,
as the published code does; here all masks of a picture are joined. No patient numbers exist (600 women, 780 pictures).
Some pictures are there twice, also as benign and malignant (Pawlowska et al., doi:10.1016/j.dib.2023.109247): equal
ones count as one patient. Those that were cropped or scaled anew are not found.
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
from kprism_model.preparation.pictures import add_file, join_equal_pictures

OPTIONS: frozenset[str] = frozenset()

_NAME = re.compile(r"(?P<stem>(?P<kind>[a-z]+) ?\((?P<number>\d+)\))(?P<mask>_mask(_\d+)?)?\.png", re.IGNORECASE)


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The pictures of lesions, and the normal ones with empty labels; each picture counts as a patient."""
    root = one_root(folder, _is_root, "folders benign and malignant with pictures such as benign (1).png")
    findings = Findings()
    findings.remark("note", "no patient numbers exist: pictures of one woman may be on several lists")
    for kind in entries(root):
        index = entry.indices.get(kind.name.casefold(), 0)
        if not kind.is_dir() or not (index or kind.name.casefold() == "normal"):
            findings.remark("ignored", str(kind))
            continue
        _add_folder(findings, kind, index)
    join_equal_pictures(findings)
    return findings


def _is_root(folder: Path) -> bool:
    return {"benign", "malignant"} <= {path.name.casefold() for path in entries(folder)}


def _add_folder(findings: Findings, folder: Path, index: int) -> None:
    files: dict[str, dict[str, Path]] = {}
    unclear: set[str] = set()
    for path in entries(folder):
        match = _NAME.fullmatch(path.name)
        if match is None:
            findings.remark("ignored", str(path))
            continue
        name = f"{match['kind'].casefold()}_{int(match['number']):03d}"
        of_name: set[str] = set()
        add_file(files.setdefault(name, {}), (match["mask"] or "").casefold(), path, findings, of_name)
        if of_name:
            unclear.add(name)
    for name in sorted(files.keys() - unclear):
        masks = tuple(path for suffix, path in files[name].items() if suffix)
        picture = files[name].get("")
        if picture is None:
            findings.remark("missing", f"the picture of {masks[0]}")
        elif not masks:
            findings.remark("missing", f"the mask of {picture}")
        else:
            findings.cases.append(FoundCase(name, name, None, StoredImage(picture), MaskPictures(masks, index)))
