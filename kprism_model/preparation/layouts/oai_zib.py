# SPDX-License-Identifier: Apache-2.0
"""OAI-ZIB: masks of knees, whose images are another download, the OAI's baseline (option --images).

    segmentation/segmentation_masks/9001104.segmentation_masks.mhd, 9001104.segmentation_masks.raw     507 knees
    segmentation/doc/oai_mri_paths.txt            9001104: 0.C.2/9001104/20041101/10001104
    segmentation/doc/2foldCrossValidation-List1.txt (253 numbers), 2foldCrossValidation-List2.txt (254)
    classification/segmentation_masks/...         other masks, with other values: never read

--images: the folder of the OAI (results/00m), with a folder of DICOM slices for each path of oai_mri_paths.txt; or a
folder with 9001104.nii.gz, 9001104_0000.nii.gz or 9001104/image.nii.gz.

Sources: the README of the download; github.com/erikbedard/oai-zib-converter. They agree; older downloads have no folder
`segmentation`. The masks have no pose. That converter turns them to slices sorted from right to left; one for
mmsegmentation, to SimpleITK's order from left to right (moveaxis(-1, 0), then the first two axes reversed). Both mean
the same: the axes of a mask run to the patient's left, posterior and superior. So masks are turned by the affine of the
image, whatever its axes are; overview.png shows whether they fit.

Lists: the first of the official two folds; list 1 is for training, list 2 for test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.dicom import DicomSeries, PoselessMask, require_simpleitk
from kprism_model.preparation.files import walk
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.images import ImageSource, StoredImage
from kprism_model.preparation.options import LayoutOptions
from kprism_model.preparation.pairing import same_content

OPTIONS = frozenset({"images"})

_MASK = re.compile(r"(?P<number>\d{7})\.segmentation_masks\.mhd", re.IGNORECASE)
_PATHS_NAME = "oai_mri_paths.txt"
_LIST_NAMES: dict[str, Split] = {
    "2foldcrossvalidation-list1.txt": "training",
    "2foldcrossvalidation-list2.txt": "test",
}
_BELOW_IMAGES = (".", "00m", "results/00m")
_SHOWN = 5


def find(folder: Path, entry: CatalogueEntry, options: LayoutOptions) -> Findings:
    """The knees that have a mask and an image; each is of another patient."""
    findings = Findings()
    files = _files_of_segmentation(folder, findings)
    masks = _masks(folder, files, findings)
    paths = _mri_paths(files, findings)
    if options.images is None:
        named = ", ".join(paths.get(number, f"{number}.nii.gz") for number in sorted(masks)[:_SHOWN])
        raise ValueError(
            f"{folder} holds masks alone: expected --images FOLDER with the OAI's baseline images (results/00m) of "
            f"{len(masks)} knees, or NIfTI files of them: {named}, ..."
        )
    if not options.images.is_dir():
        raise ValueError(f"--images {options.images} is not a folder; expected the OAI's results/00m, or NIfTI files")
    require_simpleitk(entry.title)
    lists = _lists(files, findings)
    indices = {int(value): index for value, index in entry.indices.items()}
    for number, (header, data) in sorted(masks.items()):
        image = _image(options.images, number, paths.get(number))
        if image is None:
            expected = paths.get(number, f"{number}.nii.gz")
            findings.remark("missing", f"the image of {header.name}: expected {expected} in {options.images}")
            continue
        if lists and number not in lists:
            findings.remark("missing", f"{number} is on no list of the two folds; it is taken for training")
        split = lists.get(number, "training" if lists else None)
        mask = PoselessMask(header, data, indices)
        findings.cases.append(FoundCase(f"oai_{number}", number, split, image, mask))
    return findings


def _files_of_segmentation(folder: Path, findings: Findings) -> Sequence[Path]:
    """The files below `folder` without those of the classification masks; ValueError if it has no others."""
    files, others = [], 0
    for path in walk(folder):
        parts = (folder.resolve().name, *path.relative_to(folder).parts[:-1])
        if "classification" in map(str.casefold, parts):
            others += 1
        else:
            files.append(path)
    if others and not any(_MASK.fullmatch(path.name) for path in files):
        raise ValueError(
            f"{folder} holds the masks of the classification experiment, where the values mean other classes; expected "
            "segmentation/segmentation_masks"
        )
    if others:
        findings.remark("ignored", f"{others} files of the classification experiment, whose values mean other classes")
    return files


def _masks(folder: Path, files: Sequence[Path], findings: Findings) -> dict[str, tuple[Path, Path]]:
    masks: dict[str, tuple[Path, Path]] = {}
    unclear: set[str] = set()
    for path in files:
        if not (match := _MASK.fullmatch(path.name)):
            continue
        data = _data_file(path)
        if not data.is_file():
            findings.remark("missing", f"{data}, the voxels of {path.name}")
        elif match["number"] in masks:
            first, first_data = masks[match["number"]]
            if same_content(first_data, data) and same_content(first, path):
                findings.remark("doubled", f"{path} is a copy of {first}, which is used")
            else:
                findings.remark("faulty", f"{path} differs from {first}, so the case is left out")
                unclear.add(match["number"])
        else:
            masks[match["number"]] = (path, data)
    if not masks:
        if any(path.parent.name == "imagesTr" for path in files):
            raise ValueError(f"{folder} is OAIZIB-CM, another set with five classes; expected OAI-ZIB, with .mhd masks")
        reasons = "; ".join(findings.remarks.get("missing", [])[:_SHOWN])
        raise ValueError(
            f"{folder} is not OAI-ZIB: expected segmentation/segmentation_masks/9001104.segmentation_masks.mhd "
            f"with its .raw{': ' + reasons if reasons else ''}"
        )
    return {number: found for number, found in masks.items() if number not in unclear}


def _data_file(header: Path) -> Path:
    """The file of the voxels, as the header says; the .raw of the same name if it does not."""
    match = re.search(r"^ElementDataFile\s*=\s*(.+?)\s*$", header.read_text(errors="replace"), re.MULTILINE)
    if match is None:
        return header.with_suffix(".raw")
    return header if match[1].upper() == "LOCAL" else header.parent / match[1]


def _mri_paths(files: Sequence[Path], findings: Findings) -> Mapping[str, str]:
    """Number -> path of the DICOM series below the OAI's results/00m; lines whose path has another number are named."""
    paths: dict[str, str] = {}
    for path in files:
        if path.name.casefold() != _PATHS_NAME:
            continue
        for line in path.read_text(errors="replace").splitlines():
            number, _, place = (part.strip() for part in line.partition(":"))
            if place and place.replace("\\", "/").split("/")[1:2] != [number]:
                findings.remark("faulty", f"{path.name}: {line.strip()!r} names the path of another number")
            elif place:
                paths[number] = place.replace("\\", "/")
    return paths


def _lists(files: Sequence[Path], findings: Findings) -> Mapping[str, Split]:
    lists: dict[str, Split] = {}
    for path in files:
        split = _LIST_NAMES.get(path.name.casefold())
        for number in path.read_text(errors="replace").split() if split else []:
            if split is not None and lists.setdefault(number, split) != split:
                findings.remark("doubled", f"{number} is on both lists; it is taken for {lists[number]}")
    if not lists:
        findings.remark("missing", "the lists of the two folds (doc/2foldCrossValidation-List1.txt): lists are drawn")
    return lists


def _image(images: Path, number: str, path: str | None) -> ImageSource | None:
    for suffix in (".nii.gz", ".nii"):
        for name in (f"{number}{suffix}", f"{number}_0000{suffix}", f"{number}/image{suffix}"):
            if (images / name).is_file():
                return StoredImage(images / name)
    for below in _BELOW_IMAGES if path else ():
        series = images / below / str(path)
        if series.is_dir() and DicomSeries(series).files:
            return DicomSeries(series)
    return None
