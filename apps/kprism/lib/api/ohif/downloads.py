# SPDX-License-Identifier: Apache-2.0
"""The label of a case as a file: as it is stored, or as it is drawn on the screen and not submitted yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.api.attachments import attachment
from lib.api.ohif.cases import checked_names
from lib.api.ohif.planes import unpack
from lib.datastore import check_tag
from lib.dicom.mixed_store import store_of
from lib.dicom.rtstruct_writer import write_rtstruct
from lib.dicom.seg_writer import write_seg
from lib.dicom.segments import colour_of
from lib.dicom.series import Series
from lib.dicom.web import as_bytes
from lib.errors import NotFoundError, RequestError
from lib.image_files import grid_image
from lib.image_ids import check_id
from lib.imaging.label_maps import values_in
from lib.imaging.label_names import one_value_each, value_names
from lib.imaging.medical_image import MedicalImage
from lib.imaging.named_labels import nifti_bytes, seg_nrrd_bytes
from lib.imaging.reading import read_mask
from lib.labelled_cases import hand_names

Labels = NDArray[np.uint8]

MAX_STEM = 200
"""Bytes of a file name, in UTF-8, before what the label adds; file systems allow 255."""

_NOT_IN_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]+')


class Format(NamedTuple):
    """The end of the file's name, its media type, and whether it needs the headers of a DICOM series."""

    ending: str
    media_type: str
    needs_dicom: bool


FORMATS = {
    "seg": Format("_seg.dcm", "application/dicom", True),
    "nifti": Format("_label.nii.gz", "application/gzip", False),
    "rtstruct": Format("_rtstruct.dcm", "application/dicom", True),
    "nrrd": Format("_label.seg.nrrd", "application/octet-stream", False),
}


def stored_label(image_id: str, format: str = "seg", tag: str = DefaultLabelTag.FINAL.value) -> Response:
    """The label of a case with a tag, `final` for the submitted one; NotFoundError if there is none."""
    kind, datastore = _format(format), app_instance().datastore()
    tag = check_tag(tag or DefaultLabelTag.FINAL.value)
    image = _grid(datastore, image_id)
    dicom = store_of(datastore, image_id)
    if dicom is not None and tag == DefaultLabelTag.FINAL:
        dicom.see_label(image_id)
    label_id = datastore.get_label_by_image_id(image_id, tag)
    path = Path(datastore.get_label_uri(label_id, tag)) if label_id else None
    if path is None or not path.is_file():
        what = "submitted label" if tag == DefaultLabelTag.FINAL else f"label with the tag {tag!r}"
        raise NotFoundError(f"case {image_id!r} has no {what}")
    title = f"the label of image {image_id!r}"
    mask = read_mask(path, title)
    info = datastore.get_label_info(label_id, tag) or {}
    labels, names = _named(datastore, image_id, info, mask, image.on_grid(mask, title))
    return _file(datastore, image_id, image, labels, names, kind)


async def drawn_label(image_id: str, request: Request, format: str = "seg") -> Response:
    """The planes that are sent, as a submission sends them; nothing is stored."""
    return await run_in_threadpool(_drawn_label, image_id, await request.body(), format)


def _drawn_label(image_id: str, message: bytes, format: str) -> Response:
    kind, datastore = _format(format), app_instance().datastore()
    image = _grid(datastore, image_id)
    header, labels = unpack(message, image.grid)
    return _file(datastore, image_id, image, labels.volume(), checked_names(header.get("names")), kind)


def _format(name: str) -> str:
    if name not in FORMATS:
        raise RequestError(f"format is {name!r}; expected one of {', '.join(FORMATS)}")
    return name


def _grid(datastore: Datastore, image_id: str) -> MedicalImage:
    return grid_image(datastore, check_id(image_id), f"image {image_id!r}", app_instance().engine.image)


def _named(
    datastore: Datastore, image_id: str, info: Mapping[str, Any], mask: MedicalImage, labels: Labels
) -> tuple[Labels, dict[str, int]]:
    """A stored label with one value for each structure, and name -> value.

    Structures that nothing names are called "segment 1" and so on, by their values.
    """
    present = values_in(labels)
    try:
        by_hand = hand_names(datastore).of(image_id)
        named = value_names(info, by_hand, present, mask.file_labels, partial=True)
    except ValueError as error:
        raise RequestError(f"the label of {image_id!r}: {error}") from error
    nameless = {value: f"segment {value}" for value in sorted(present) if value not in named}
    table, values = one_value_each({**named, **nameless})
    return table[labels], values


def _file(
    datastore: Datastore, image_id: str, image: MedicalImage, labels: Labels, names: Mapping[str, int], kind: str
) -> Response:
    """A label (i, j, k) as a download; RequestError if it is empty or cannot be written in the format."""
    present = values_in(labels)
    shown = {name: value for name, value in names.items() if value in present}
    if not present:
        raise RequestError(f"the label of image {image_id!r} is empty: there is nothing to download")
    if unnamed := present - set(shown.values()):
        raise RequestError(f"the label contains the value {min(unnamed)}, which has no name")
    form, dicom = FORMATS[kind], store_of(datastore, image_id)
    series = None if dicom is None else dicom.open_series(image_id)
    if form.needs_dicom:
        if series is None:
            raise RequestError(
                f"image {image_id!r} is a file without DICOM headers (patient, study, references), which format "
                f"{kind!r} needs; expected nifti or nrrd, or a DICOM series (./kprism import makes one)"
            )
        content = as_bytes(DICOM_WRITERS[kind](labels, shown, series, "K-Prism"))
    elif kind == "nifti":
        content = nifti_bytes(labels, shown, image)
    else:
        content = seg_nrrd_bytes(labels, shown, image, {name: colour_of(name) for name in shown})
    name = _stem(image_id, series) + form.ending
    return Response(content, media_type=form.media_type, headers={"Content-Disposition": attachment(name)})


DICOM_WRITERS: Mapping[str, Callable[[Labels, Mapping[str, int], Series, str], Dataset]] = {
    "seg": write_seg,
    "rtstruct": write_rtstruct,
}


def _stem(image_id: str, series: Series | None) -> str:
    """The file's name without its end: patient and series where they are known, else the image's id."""
    header = series.headers[0] if series is not None else Dataset()
    parts = [str(header.get(name) or "").strip() for name in ("PatientID", "SeriesDescription")]
    text = "_".join(part for part in parts if part) or image_id
    short = _NOT_IN_NAMES.sub("_", text).encode()[:MAX_STEM].decode(errors="ignore")
    return short.strip(". ") or "label"
