# SPDX-License-Identifier: Apache-2.0
"""The DICOM objects that can be labels of a series: segmentations and RT structure sets."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from lib.dicom.rtstruct_reader import read_rtstruct
from lib.dicom.rtstruct_writer import RTSTRUCT_SOP_CLASS
from lib.dicom.seg_reader import SEG_SOP_CLASSES, SegLabels, read_seg
from lib.dicom.series import Series
from lib.errors import RequestError

MODALITIES = ("SEG", "RTSTRUCT")
"""The modalities of series that hold labels."""

KINDS = {"SEG": "segmentation", "RTSTRUCT": "structure set"}
"""Modality -> what its objects are called in messages."""


def read_label_object(instance: Dataset, series: Series) -> SegLabels:
    """The label map of a SEG or RTSTRUCT; RequestError for other objects, and if it does not fit on the series."""
    return (read_rtstruct if instance.get("SOPClassUID") == RTSTRUCT_SOP_CLASS else read_seg)(instance, series)


def read_label_file(path: Path, name: str, series: Series) -> SegLabels:
    """The same for a file, which is called `name` in messages."""
    try:
        instance = dcmread(path)
    except Exception as error:  # whatever pydicom raises for a damaged one
        raise RequestError(f"{name} is not a readable DICOM file: {error}") from error
    if instance.get("SOPClassUID") not in (*SEG_SOP_CLASSES, RTSTRUCT_SOP_CLASS):
        kind = getattr(instance.get("SOPClassUID"), "name", "") or instance.get("Modality") or "unknown"
        raise RequestError(f"{name} is a DICOM object of type {kind}; expected a segmentation or an RT structure set")
    try:
        return read_label_object(instance, series)
    except RequestError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        raise RequestError(f"{name} is a damaged DICOM file: {error or type(error).__name__}") from error
