# SPDX-License-Identifier: Apache-2.0
"""Which images can be one data set: nnU-Net wants one file type, and the same channels, for all of a data set."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from kprism_model.intensity import looks_like_hounsfield
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import PICTURES

AIR_HOUNSFIELD = -500
"""CT images hold values below this where they show air."""

VOLUME, PICTURE = "volume", "picture"

CT, UNKNOWN = "CT", "unknown"
"""CT is nnU-Net's and our own name for Hounsfield units; images of other values never have it."""

NAMES = {
    "MR": "MRI",
    "US": "ultrasound",
    "CR": "X-ray",
    "DX": "X-ray",
    "MG": "mammography",
    "ES": "endoscopy",
    "OP": "fundus photography",
    "XC": "photography",
    "GM": "microscopy",
    "SM": "microscopy",
    "PT": "PET",
}
"""Modality of DICOM -> the word for it in data sets; others keep their code."""

NOT_PICTURES = (CT, "MR", "PT", "NM")
"""Modalities whose single slices are volumes of one slice: their values are measured, and their slices have a place."""


@dataclass(frozen=True, order=True)
class Kind:
    """Images of one data set: `form` VOLUME or PICTURE, `modality` the word for what they show, `channels` 1 or 3."""

    form: str
    modality: str
    channels: int

    @property
    def ending(self) -> str:
        """The extension of images and labels."""
        return ".nii.gz" if self.form == VOLUME else ".png"

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels; nnU-Net scales each image by its own mean and deviation unless it is called CT."""
        return (self.modality,) if self.channels == 1 else ("R", "G", "B")

    @property
    def title(self) -> str:
        """The kind as a part of a data set's name: letters and digits."""
        words = ["volumes" if self.modality == UNKNOWN else self.modality, *(["colour"] if self.channels == 3 else [])]
        words += ["pictures"] if self.form == PICTURE and self.modality != PICTURE else []
        parts = re.findall(r"[A-Za-z0-9]+", " ".join(words))
        return "".join(part[0].upper() + part[1:] for part in parts)

    def __str__(self) -> str:
        """The kind in words."""
        colour = "colour " if self.channels == 3 else ""
        if self.modality == UNKNOWN:
            return f"{colour}{self.form}s of unknown modality"
        same = self.form == PICTURE and self.modality == PICTURE
        return f"{colour}{'' if same else f'{self.modality} '}{self.form}s"


def kind_of(image: MedicalImage, modality: str | None, unit: str = "", *, is_file: bool) -> Kind:
    """The kind of an image.

    `modality` is that of DICOM, None if nothing states it; `unit` is DICOM's RescaleType. `is_file`: the image is one
    file, whose type tells volumes from pictures.
    """
    channels = 3 if image.is_colour and not _is_grey(image) else 1
    is_picture = image.suffix in PICTURES if is_file else image.slices == 1 and modality not in NOT_PICTURES
    if is_picture and image.array.dtype in (np.uint8, np.uint16, np.bool_) and image.rescale == (1.0, 0.0):
        return Kind(PICTURE, NAMES.get(modality or PICTURE, modality or PICTURE), channels)
    if modality is None:
        modality = CT if channels == 1 and looks_like_hounsfield(image.values) else UNKNOWN
    elif modality == CT and not _is_hounsfield(image, unit):
        modality = "CT without Hounsfield units"
    return Kind(VOLUME, NAMES.get(modality, modality), channels)


def _is_hounsfield(image: MedicalImage, unit: str) -> bool:
    """Whether the values of a CT image are CT numbers, by what it says or else by its air."""
    if unit.strip():
        return unit.strip().upper() == "HU"
    return float(image.values.min()) <= AIR_HOUNSFIELD


def _is_grey(image: MedicalImage) -> bool:
    """Whether a colour image shows grey alone: all its channels are equal."""
    planes = (image.array[:, :, k] for k in range(image.grid[2]))
    return all((plane[..., :1] == plane[..., 1:]).all() for plane in planes)
