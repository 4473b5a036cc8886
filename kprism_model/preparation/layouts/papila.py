# SPDX-License-Identifier: Apache-2.0
"""PAPILA: fundus photographs of both eyes, with contours of the optic disc and cup by two experts.

    PapilaDB-PAPILA-17f8fa77.../FundusImages/RET002OD.jpg, RET002OS.jpg
    .../ExpertsSegmentations/Contours/RET002OD_{disc,cup}_{exp1,exp2}.txt (a point "x y" in each line)
    .../ExpertsSegmentations/ImagesWithContours, ClinicalData, HelpCode (not read)

Eleven contour files are there twice, as `RET062OD_cup_exp2 2.txt`. Sources: github.com/constantinpape/torch-em,
torch_em/data/datasets/medical/papila.py; github.com/bangwayne/K-Prism, dataset_conversion/PAPILA_png_norm.py (the disc
of expert 1 alone, lists by picture). They agree on names and points. One description writes RET002_OD.jpg, which is
read too. The rim is the disc without the cup, so rim and cup together are the disc.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.contours import NestedContours, contour_mask, read_contour
from kprism_model.preparation.files import entries, folders_above, one_root, walk
from kprism_model.preparation.findings import Findings, FoundCase
from kprism_model.preparation.images import PICTURE_ERRORS, Grid, StoredImage
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pictures import add_file, join_equal_pictures, leave_out

OPTIONS: frozenset[str] = frozenset({"expert"})

_PICTURE = re.compile(r"(RET\d+)_?(O[DS])\.(?:jpe?g|png)", re.IGNORECASE)
_CONTOUR = re.compile(r"(RET\d+)_?(O[DS])_(disc|cup)_exp([12])\.txt", re.IGNORECASE)
_COPY = re.compile(r"(RET\d+_?O[DS]_(?:disc|cup)_exp[12])( \d+| ?\(\d+\)| ?copy)\.txt", re.IGNORECASE)
_NOT_READ = {"imageswithcontours", "clinicaldata", "helpcode"}
_EXPERTS = {"1": ("1",), "2": ("2",), "both": ("1", "2")}
_COMPARED = 9  # pictures in which the brightness tells whether x and y are swapped


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The pictures with a disc and a cup of the chosen expert, 1 unless another is named; both eyes are one patient."""
    expert = "1" if options.expert is None else options.expert
    if expert not in _EXPERTS:
        raise ValueError(f"--expert must be 1, 2 or both (where both agree), got {expert!r}")
    root = one_root(folder, _is_root, "the folders FundusImages and ExpertsSegmentations/Contours")
    findings = Findings()
    unclear: set[str] = set()
    pictures: dict[str, Path] = {}
    contours: dict[str, Path] = {}
    for path in walk(root):
        name = path.name
        if _NOT_READ & set(folders_above(path, root)[:-1]):
            continue
        if picture := _PICTURE.fullmatch(name):
            add_file(pictures, (picture[1] + picture[2]).upper(), path, findings, unclear)
        elif contour := _CONTOUR.fullmatch(name):
            eye, part = (contour[1] + contour[2]).upper(), contour[3].lower()
            add_file(contours, f"{eye}_{part}_exp{contour[4]}.txt", path, findings, unclear)
        elif _COPY.fullmatch(name):
            findings.remark("doubled", f"{path}, a copy that is not read")
        else:
            findings.remark("ignored", str(path))
    for key in sorted(key for key in contours if key.split("_")[0] not in pictures):
        findings.remark("missing", f"the picture of {contours[key]}")
    for name, path in sorted(pictures.items()):
        _add_eye(findings, name, path, contours, _EXPERTS[expert], entry)
    leave_out(findings, {name.split("_")[0] for name in unclear})
    findings.about["expert"] = expert
    _check_axes(findings)
    for case in findings.cases:
        _remark_cup(findings, case)
    join_equal_pictures(findings)
    return findings


def _is_root(folder: Path) -> bool:
    return {"fundusimages", "expertssegmentations"} <= {path.name.casefold() for path in entries(folder)}


def _add_eye(
    findings: Findings,
    name: str,
    path: Path,
    contours: dict[str, Path],
    experts: tuple[str, ...],
    entry: CatalogueEntry,
) -> None:
    wanted = [f"{name}_{part}_exp{expert}.txt" for part in ("disc", "cup") for expert in experts]
    if missing := [key for key in wanted if key not in contours]:
        findings.remark("missing", f"{' and '.join(missing)} of {path}")
        return
    files = [contours[key] for key in wanted]
    discs, cups = tuple(files[: len(experts)]), tuple(files[len(experts) :])
    label = NestedContours(discs, cups, entry.indices["disc without cup"], entry.indices["cup"])
    patient = re.sub(r"O[DS]$", "", name)
    findings.cases.append(FoundCase(name, patient, None, StoredImage(path), label))


def _remark_cup(findings: Findings, case: FoundCase) -> None:
    """Remark a cup that leaves its disc; a contour that cannot be read is named when the case is written."""
    assert isinstance(case.label, NestedContours)
    try:
        outer, inner = case.label.masks(case.image.grid())
    except ValueError:
        return
    outside = int((inner & ~outer).sum())
    if 0 < outside < inner.sum():
        sentence = f"{outside} of {int(inner.sum())} pixels of the cup are outside the disc and are left out"
        findings.remark("note", f"{case.name}: {sentence}")


def _check_axes(findings: Findings) -> None:
    """ValueError if the discs lie on brighter places of most pictures once x and y are swapped."""
    step = max(1, len(findings.cases) // _COMPARED)
    verdicts = [verdict for case in findings.cases[::step][:_COMPARED] if (verdict := _is_swapped(case)) is not None]
    if len(verdicts) >= 3 and sum(verdicts) > 0.75 * len(verdicts):
        case = findings.cases[0]
        raise ValueError(
            f"the contours, such as {case.label.files[0]}, lie on bright discs only if x and y are swapped; "
            "expected x, the column, and then y, the row, in each line"
        )


def _is_swapped(case: FoundCase) -> bool | None:
    """Whether the picture is brighter where the disc would be with x and y swapped; None if that cannot be said."""
    try:
        grid = case.image.grid()
        disc = read_contour(case.label.files[0], grid)
        there = contour_mask(disc, grid)
        with Image.open(case.image.files[0]) as picture:
            grey = np.asarray(picture.convert("L"))
    except (ValueError, *PICTURE_ERRORS):
        return None
    swapped = disc[:, ::-1]
    square = Grid((max(grid.shape),) * 2)
    elsewhere = contour_mask(swapped, square)[: grid.shape[0], : grid.shape[1]] & ~there
    only_there = there & ~contour_mask(swapped, square)[: grid.shape[0], : grid.shape[1]]
    if not elsewhere.any() or not only_there.any():
        return None
    return bool(grey[elsewhere].mean() > grey[only_there].mean())
