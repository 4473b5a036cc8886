# SPDX-License-Identifier: Apache-2.0
"""ISIC 2018, task 1: dermoscopy with the outline of the lesion, in official lists.

    ISIC2018_Task1-2_{Training,Validation,Test}_Input/ISIC_0000000.jpg
    ISIC2018_Task1_{Training,Validation,Test}_GroundTruth/ISIC_0000000_segmentation.png

The ground truth of validation and test was published later, and copies may lack it. Task 2 has files such as
ISIC_0000000_attribute_pigment_network.png, which are not lesions. Sources: challenge.isic-archive.com/landing/2018/45
(names, values, sizes); github.com/constantinpape/torch-em, torch_em/data/datasets/medical/isic.py (folders); they
agree. ISIC 2017 writes `_Segmentation`; the case does not count here. No patient or lesion numbers exist.
"""

from __future__ import annotations

import re
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import folders_above, walk
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import StoredImage
from kprism_model.preparation.labels import MaskPictures
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file, join_equal_pictures, leave_out, paired

OPTIONS: frozenset[str] = frozenset()

_FOLDER = re.compile(r"ISIC2018_Task1(?:-2)?_(?P<list>Training|Validation|Test)_(?P<kind>Input|GroundTruth)", re.I)
_PICTURE = re.compile(r"(?P<stem>ISIC_\d{7})\.(?:jpe?g|png)", re.I)
_MASK = re.compile(r"(?P<stem>ISIC_\d{7})_segmentation\.png", re.I)
_OTHER = re.compile(r"ISIC_\d{7}_(?:attribute_\w+|superpixels)\.png|(?:ATTRIBUTION|LICENSE)\.txt", re.I)
_LISTS: dict[str, Split] = {"training": "training", "validation": "validation", "test": "test"}


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The pictures with a mask, on the official list of their folder."""
    findings = Findings()
    unclear: set[str] = set()
    pictures: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    lists: dict[str, Split] = {}
    for path in walk(folder):
        within = next(filter(None, map(_FOLDER.fullmatch, folders_above(path, folder))), None)
        is_input = within is not None and within["kind"].casefold() == "input"
        match = None if within is None else (_PICTURE if is_input else _MASK).fullmatch(path.name)
        if within is None or match is None:
            if not _OTHER.fullmatch(path.name):
                findings.remark("ignored", str(path))
            continue
        name = match["stem"].upper()
        add_file(pictures if is_input else masks, name, path, findings, unclear)
        if is_input:
            lists.setdefault(name, _LISTS[within["list"].casefold()])
    if not pictures or not masks:
        raise ValueError(
            f"{folder} holds {len(pictures)} pictures and {len(masks)} masks of ISIC 2018 task 1, expected folders "
            "such as ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth"
        )
    findings.remark("note", "no patient numbers exist: pictures of one lesion may be on several lists")
    held_out = {name for name, split in lists.items() if split != "training"}
    (index,) = entry.indices.values()
    for name, path, mask in paired(pictures, masks, findings, held_out):
        findings.cases.append(FoundCase(name, name, lists[name], StoredImage(path), MaskPictures((mask,), index)))
    leave_out(findings, unclear)
    join_equal_pictures(findings)
    return findings
