# SPDX-License-Identifier: Apache-2.0
"""Cases for the K-Prism mode: slices, labels, references with thumbnails, submission, and the next case.

Slices are named by their DICOM images (SOP instance and frame), so the mode can never mirror or shift a mask.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from numpy.typing import NDArray
from PIL import Image

from kprism_model.orientation import PLANES, SliceOrientation
from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.planes import pack, unpack
from lib.api.uploads import read_object
from lib.datastore import stored_at
from lib.dicom.datastore import DicomStore
from lib.dicom.segments import colour_of
from lib.dicom.series import Series
from lib.dicom.volumes import save_volume
from lib.errors import NotFoundError, RequestError
from lib.image_ids import check_id
from lib.imaging.label_maps import renumbered, values_in
from lib.imaging.label_names import one_value_each, value_names
from lib.imaging.medical_image import MedicalImage, planes_of
from lib.labelled_cases import LabelledCase, labelled_case, labelled_cases
from lib.learning.strategies import why_none

THUMBNAIL = 112
"""Pixels along the longer side of a reference's thumbnail."""

MAX_NAME = 64
"""Characters in the name of a structure: DICOM's limit."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters and halves of characters, which no file can hold in a name."""

_submitting = Lock()
"""One submission at a time: if two users correct the same label, the second gets a `ConflictError`."""


class ConflictError(RequestError):
    """Somebody else submitted a label for the case in the meantime."""

    status = 409


def store() -> DicomStore:
    """The datastore; RequestError if it is a folder, which OHIF cannot show."""
    datastore = app_instance().datastore()
    if not isinstance(datastore, DicomStore):
        raise RequestError("the K-Prism mode of OHIF needs studies in a DICOMweb server (./kprism viewer)")
    return datastore


def case(image_id: str, k: int = -1) -> dict[str, Any]:
    """The slices of a case in order, warnings about its geometry, and the version and names of its label.

    Its voxels arrive in the background from now on, those around the slice `k` first. NotFoundError if the case does
    not exist, StoreDownError if the store does not answer.

    `planes` names the anatomical plane across each axis of `grid`: the value of the option `plane` to cut it so.
    `volumes` are those of one series (phases, echoes, b-values), one after the other.
    """
    datastore = store()
    volume = datastore.volume(check_id(image_id))
    volume.begin(k)
    series = volume.series
    datastore.see_label(image_id)
    info = LocalDatastore.get_label_info(datastore, image_id, DefaultLabelTag.FINAL)
    return {
        "id": image_id,
        "grid": list(series.grid),
        "planes": planes_across(series),
        "volumes": series.volumes,
        "frames": [[frame.instance, frame.number] for frame in series.frames],
        "warnings": list(series.warnings),
        "label": _described(info) if info else None,
    }


def _described(info: Mapping[str, Any]) -> dict[str, Any]:
    """The version, the names and the notes of a label: sentences about what is not as it was drawn."""
    names, notes = list(info.get("label_names") or {}), list(info.get("notes") or ())
    return {"version": _version(info), "names": names, "notes": notes}


def arrival(image_id: str) -> dict[str, int]:
    """How many slices of a case have arrived on the server, of how many, and how many could not be fetched.

    They arrive while somebody asks; those that failed are fetched again when they are needed.
    """
    volume = store().volume(check_id(image_id))
    volume.begin()
    arrived, total = volume.progress
    return {"arrived": arrived, "total": total, "failed": volume.failed}


def planes_across(series: Series) -> list[str]:
    """The anatomical plane across each axis of a series (column, row, slice)."""
    cuts = [SliceOrientation.of(series.affine, series.grid, plane) for plane in PLANES]
    return [cut.plane for cut in sorted(cuts, key=lambda cut: cut.axes[0])]


def case_label(image_id: str) -> Response:
    """The submitted label of a case: planes and names; 404 if there is no label."""
    datastore = store()
    labelled = _labelled_case(datastore, image_id)
    labels, names = _read_label(labelled, planes_of(datastore.series(image_id).grid))
    header = {"names": names, "version": _version(labelled.info)}
    return Response(pack(header, labels, labels.filled), media_type="application/octet-stream")


def _labelled_case(datastore: Datastore, image_id: str) -> LabelledCase:
    labelled = labelled_case(datastore, image_id)
    if labelled is None:
        raise NotFoundError(f"case {image_id!r} has no submitted label")
    return labelled


async def submit(image_id: str, request: Request) -> dict[str, Any]:
    """Store planes as the case's final label; the header holds `names` and `based_on`, the version that was edited."""
    return await run_in_threadpool(_submit, image_id, await request.body())


def _submit(image_id: str, message: bytes) -> dict[str, Any]:
    app, datastore = app_instance(), store()
    series = datastore.open_series(check_id(image_id))
    header, labels = unpack(message, series.grid)
    names = checked_names(header.get("names"))
    info = {"label_names": names, "client_id": str(header.get("client_id") or ""), "model": "K-Prism"}
    with _submitting, tempfile.TemporaryDirectory(prefix="kprism-label-") as folder:
        datastore.sync_image(image_id)
        current = _version(LocalDatastore.get_label_info(datastore, image_id, DefaultLabelTag.FINAL))
        if current != header.get("based_on") and not header.get("replace"):
            raise ConflictError(
                "somebody else has submitted a label for this case since you opened it; "
                "submit again to replace it, or reload the case to see it"
            )
        path = Path(folder) / f"{image_id}.nii.gz"
        save_volume(labels.volume(), series.affine, path)
        del labels  # the label is read from the file, as one from another viewer
        app.learning_loop.submit(image_id, path, info, by=info["client_id"])
    saved = LocalDatastore.get_label_info(datastore, image_id, DefaultLabelTag.FINAL)
    return {"image": image_id, "label": image_id, "version": _version(saved)}


def _version(info: Any) -> str | None:
    """Identifies one of the labels that were submitted for a case; None without a label."""
    return str(info.get("SeriesInstanceUID") or info.get("ts") or "") or None if info else None


def checked_names(names: Any) -> dict[str, int]:
    """Name -> value; RequestError if a name or value cannot be stored."""
    if not isinstance(names, dict) or not names:
        raise RequestError(
            f"the label's names are {names!r:.80}; expected an object of at least one name and its value"
        )
    for name, value in names.items():
        fits = name.strip() and len(name) <= MAX_NAME and not _UNPRINTABLE.search(name)
        if not fits or isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:
            raise RequestError(
                f"structure {name[:80]!r} has value {value!r:.80}; expected a name of 1 to {MAX_NAME} characters "
                "and a value from 1 to 255"
            )
    return dict(names)


def references(limit: int | None = None) -> list[dict[str, Any]]:
    """The labelled cases with the structures in their labels, the newest first; all of them without a limit."""
    cases = sorted(labelled_cases(app_instance().datastore()), key=lambda entry: -stored_at(entry.info))
    cases = cases if limit is None else cases[: max(limit, 0)]
    return [{"id": entry.image_id, "names": entry.names, "title": _title(entry)} for entry in cases]


def _title(entry: LabelledCase) -> str:
    info = entry.datastore.get_image_info(entry.image_id)
    return str(info.get("PatientID") or entry.image_id)


def thumbnail(image_id: str, structure: str = "") -> Response:
    """A picture of a labelled case: the slice with most voxels of a structure (by default: of all), masks in colour."""
    datastore = app_instance().datastore()
    labelled = _labelled_case(datastore, image_id)
    image: MedicalImage = app_instance().engine.image(labelled.image, f"image {image_id!r}")
    labels, names = _read_label(labelled, image.orientation)
    value = names.get(structure)
    areas = {k: np.count_nonzero(values == value if value else values) for k, values in labels.slices.items()}
    number = max(areas, key=lambda k: (areas[k], -k), default=0)
    colours = {value: colour_of(name) for name, value in names.items()}
    picture = overlay(image.scaled[number], labels.on(number), colours)
    stream = io.BytesIO()
    _small(picture, image).save(stream, "PNG")
    return Response(stream.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=60"})


def overlay(
    pixels: NDArray[np.float32], labels: NDArray[np.uint8], colours: dict[int, tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """A slice (row, column[, 3]) of intensities in [0, 1] as RGB, blended in halves with the colours of its labels."""
    grey = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    picture: NDArray[np.float32] = np.clip(grey, 0, 1) * 255.0
    for value, colour in colours.items():
        inside = labels == value
        picture[inside] = picture[inside] * 0.5 + np.array(colour) * 0.5
    painted: NDArray[np.uint8] = np.rint(picture).astype(np.uint8)
    return painted


def _small(picture: NDArray[np.uint8], image: MedicalImage) -> Image.Image:
    """The picture in true proportions, with `THUMBNAIL` pixels along the longer side."""
    _, row_axis, column_axis = image.orientation.axes
    height = picture.shape[0] * image.spacing[row_axis]
    width = picture.shape[1] * image.spacing[column_axis]
    scale = THUMBNAIL / max(height, width)
    return Image.fromarray(picture).resize((max(1, round(width * scale)), max(1, round(height * scale))))


def _read_label(entry: LabelledCase, orientation: SliceOrientation) -> tuple[SliceMap[np.uint8], dict[str, int]]:
    """The label of a case in slices, and the values of its names."""
    engine = app_instance().engine
    label: MedicalImage = engine.mask(entry.label, f"the label of {entry.image_id!r}")
    key = ("labels", label.digest, orientation)
    labels: SliceMap[np.uint8] = engine.cached(key, lambda: SliceMap.of(label.array, orientation))
    try:
        names = value_names(entry.info, entry.by_hand, values_in(labels), label.file_labels)
    except ValueError as error:
        raise RequestError(f"the label of {entry.image_id!r}: {error}") from error
    table, values = one_value_each(names)
    return renumbered(labels, table), values


async def next_case(strategy: str, request: Request) -> dict[str, Any]:
    """The next case by a strategy, with the study to open in the viewer; a message if every case is labelled."""
    return await run_in_threadpool(
        _next_case, strategy, read_object((await request.body()).decode(errors="replace"), "the request")
    )


def _next_case(strategy: str, body: dict[str, Any]) -> dict[str, Any]:
    app, datastore = app_instance(), store()
    if strategy not in app._strategies:
        raise NotFoundError(f"strategy {strategy!r} is unknown; expected one of {', '.join(app._strategies)}")
    chosen = app.next_sample({**body, "strategy": strategy}) or {}
    if not chosen.get("id"):
        return {"message": why_none(datastore)}
    datastore.prefetch(chosen["id"])
    info = datastore.get_image_info(chosen["id"])
    return {"id": chosen["id"], "study": info.get("StudyInstanceUID"), "title": info.get("PatientID")}
