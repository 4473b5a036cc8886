# SPDX-License-Identifier: Apache-2.0
"""Images and labels of general formats, by the suffixes of their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kprism_model.preparation.files import entries
from kprism_model.preparation.findings import Findings
from kprism_model.preparation.images import NIFTI, ImageSource, StoredImage
from kprism_model.preparation.itk_images import ITK_SUFFIXES, ItkImage, ItkLabel
from kprism_model.preparation.labels import LabelSource, LabelVolume
from kprism_model.preparation.pictures import add_file
from kprism_model.preparation.value_pictures import LabelPicture, SinglePicture

PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
SUFFIXES = (*NIFTI, *ITK_SUFFIXES, *PICTURES)


def suffix_of(path: Path) -> str:
    """The suffix of an image file as it is written, "" for other files."""
    known = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[len(path.name) - len(known) :]


def image_files(findings: Findings, folder: Path) -> dict[str, Path]:
    """The images in a folder by their names without suffixes; other files are remarked.

    Of two copies one is taken. Two different files of one name, such as a.nii and a.nii.gz, are both left out.
    """
    found: dict[str, Path] = {}
    unclear: set[str] = set()
    for path in entries(folder):
        suffix = suffix_of(path)
        if not suffix or path.is_dir():
            findings.remark("ignored", str(path))
        else:
            add_file(found, path.name.removesuffix(suffix), path, findings, unclear)
    return {name: path for name, path in found.items() if name not in unclear}


def image_source(path: Path) -> ImageSource:
    """A volume of three axes, or a picture, as it is stored."""
    suffix = suffix_of(path).lower()
    if suffix in ITK_SUFFIXES:
        return ItkImage(path)
    return SinglePicture(path) if suffix in PICTURES else StoredImage(path)


def label_source(path: Path, indices: Mapping[int, int]) -> LabelSource:
    """A label of values beside such an image."""
    suffix = suffix_of(path).lower()
    if suffix in ITK_SUFFIXES:
        return ItkLabel(path, indices)
    return LabelPicture(path, indices) if suffix in PICTURES else LabelVolume(path, indices)
