# SPDX-License-Identifier: Apache-2.0
"""Chest X-rays of Montgomery County and Shenzhen with lung masks, from any of three downloads, or from several at once.

A. Kaggle, nikhilpandey360/chest-xray-masks-and-labels, the set of the paper:

    Lung Segmentation/CXR_png/CHNCXR_0001_0.png, MCUCXR_0001_0.png
    Lung Segmentation/masks/CHNCXR_0001_0_mask.png, MCUCXR_0001_0.png (Montgomery has no suffix)
    Lung Segmentation/test/CHNCXR_0025_0.png (the pictures without a mask; CXR_png has them too)

B. Montgomery of the National Library of Medicine:

    MontgomerySet/CXR_png/MCUCXR_0001_0.png
    MontgomerySet/ManualMask/{leftMask,rightMask}/MCUCXR_0001_0.png

C. Shenzhen of the same, with the lung masks of Kaggle, yoctoman/shcxr-lung-mask, unpacked into the same folder:

    ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png
    mask/mask/CHNCXR_0001_0_mask.png

Shenzhen's folders of annotations are of tuberculosis, and never read as lungs. 96 pictures of Shenzhen have no mask.
Many of its pictures have a palette. Sources: github.com/constantinpape/torch-em, torch_em/data/datasets/medical/
chest_xray_masks.py and montgomery.py; github.com/dataset-ninja/chest-xray, SUMMARY.md; they agree on names and counts.
The published code (github.com/bangwayne/K-Prism, dataset_conversion/chest_lung_png_norm.py) looks for `_mask` alone,
which Montgomery's files do not have; here both are read. Which side leftMask is of is disputed, so both are joined.
"""

from __future__ import annotations

import re
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.files import folders_above, walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.labels import MaskPictures
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import GreyPicture, add_file, join_equal_pictures, leave_out, paired

OPTIONS: frozenset[str] = frozenset()

_NAME = re.compile(r"(?P<stem>(?:CHNCXR|MCUCXR)_\d{4}_[01])(?P<mask>_mask)?\.(?:png|jpe?g)", re.IGNORECASE)
_PLACES = {"mask": "masks", **{name: name for name in ("cxr_png", "masks", "leftmask", "rightmask", "test")}}
_TEXTS = {".txt", ".pdf", ".docx", ".csv", ".ipynb", ".md"}
_ONE_PATIENT = (("MCUCXR_0113", "MCUCXR_0117"), ("MCUCXR_0162", "MCUCXR_0166", "MCUCXR_0170"))
"""Numbers that stand for one person, by the texts of Montgomery (a single source says so)."""

_PATIENTS = {name: names[0] for names in _ONE_PATIENT for name in names}
_EXPECTED = (
    "folders CXR_png and masks with pictures such as MCUCXR_0001_0.png, or MontgomerySet/ManualMask, "
    "or ChinaSet_AllFiles with the folder mask of yoctoman/shcxr-lung-mask beside it"
)


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The pictures with a mask of both lungs; those of Shenzhen may have none."""
    findings = Findings()
    unclear: set[str] = set()
    files: dict[str, dict[str, Path]] = {place: {} for place in _PLACES.values()}
    for path in walk(folder):
        match = _NAME.fullmatch(path.name)
        parents = folders_above(path, folder)[:-1]
        if match is None or any(name.startswith("annotation") for name in parents):
            if path.suffix.lower() not in _TEXTS:
                findings.remark("ignored", str(path))
            continue
        place = next((_PLACES[name] for name in parents if name in _PLACES), "masks" if match["mask"] else "cxr_png")
        add_file(files[place], match["stem"].upper(), path, findings, unclear)
    pictures, masks, doubles = files["cxr_png"], files["masks"], files["test"]
    if not pictures:
        raise ValueError(f"{folder} holds no chest X-rays: expected {_EXPECTED}")
    joined = _joined(masks, (files["leftmask"], files["rightmask"]), findings)
    if not joined:
        raise ValueError(f"{folder} holds {len(pictures)} chest X-rays but no lung masks: expected {_EXPECTED}")
    if doubles:
        findings.remark("note", f"{len(doubles)} pictures of the folder test are not read: CXR_png has them too")
    for name in sorted(set(doubles) - set(pictures)):
        findings.remark("missing", f"{name} of CXR_png, which {doubles[name]} is a copy of")
    shenzhen = {name for name in pictures if name.startswith("CHN")}
    (index,) = entry.indices.values()
    for name, path, paths in paired(pictures, joined, findings, shenzhen):
        patient = name.rsplit("_", 1)[0]
        label = MaskPictures(paths, index)
        findings.cases.append(FoundCase(name, _PATIENTS.get(patient, patient), None, GreyPicture(path), label))
    published = sum(masks[name].stem.casefold().endswith("_mask") for name in masks if name in pictures)
    if published < len(findings.cases):
        findings.remark("note", f"the published code reads {published} of these, whose masks' names end in _mask")
    leave_out(findings, unclear)
    join_equal_pictures(findings)
    return findings


def _joined(
    masks: dict[str, Path], halves: tuple[dict[str, Path], dict[str, Path]], findings: Findings
) -> dict[str, tuple[Path, ...]]:
    """The mask of both lungs, or the masks of each; remarks if only one lung has a mask."""
    joined: dict[str, tuple[Path, ...]] = {name: (path,) for name, path in masks.items()}
    for name in sorted(set(halves[0]) | set(halves[1])):
        sides = [half[name] for half in halves if name in half]
        if name in joined:
            continue
        if len(sides) == 2:
            joined[name] = tuple(sides)
        else:
            findings.remark("missing", f"the mask of the other lung of {sides[0]}")
    return joined
