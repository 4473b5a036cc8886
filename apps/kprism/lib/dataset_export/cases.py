# SPDX-License-Identifier: Apache-2.0
"""The labelled cases of a site as they are read for an export: the image, its label, and where both come from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lib.dataset_export.kinds import CT, Kind, kind_of
from lib.dataset_export.origin import BY_CASE, BY_ID, BY_PATTERN, FOUND, SUBMITTED, Origin
from lib.dataset_export.site import Site
from lib.dicom.mixed_store import store_of
from lib.imaging.label_names import listed_names
from lib.imaging.mapped import mapped_in
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image
from lib.labelled_cases import LabelledCase, labelled_cases
from lib.learning.pending_submission import digest_of
from lib.learning.submission_store import Submission, patient_of
from lib.learning.submitted_label import LabelReader


@dataclass(frozen=True)
class ExportCase:
    """One image with its label (i, j, k), and what is known of them.

    `structures`: name -> value in `labels`; the label says nothing about others. `volume` is the number of this volume
    in a series of several (phases, echoes), from 1, None for a single one. `patient` identifies.
    """

    image_id: str
    kind: Kind
    image: MedicalImage = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    structures: Mapping[str, int]
    patient: str
    origin: Origin
    volume: int | None = None


class CaseReader:
    """Reads the cases of a site. `modality` is that of image files that do not state one (None: by their values)."""

    def __init__(self, site: Site, scratch: Path, modality: str | None = None) -> None:
        self._site, self._modality = site, modality
        self._allocate = mapped_in(scratch / "images")
        config = site.config
        self._reader = LabelReader(
            site.datastore, site.registry, unknown=config.unknown_structures, read=self._read_file
        )
        self._last: tuple[tuple[Path, str], MedicalImage] | None = None

    def listed(self) -> list[LabelledCase]:
        """The images with a submitted label, sorted by id."""
        return labelled_cases(self._site.datastore)

    def read(self, case: LabelledCase) -> Iterator[ExportCase]:
        """The case; of an image of several volumes, those with a label. RequestError if it cannot be used."""
        image_id, file = case.image_id, case.label
        recorded = self._site.submissions.get(image_id)
        digest = digest_of(file)
        info = case.info
        if recorded is not None and recorded.sha256 == digest and not listed_names(info):
            info = {**info, **recorded.sent_names}
        label = self._reader.read(image_id, file, info)
        self._site.registry.add(label.structures)  # the next case spells them alike
        is_recorded = recorded is not None and (recorded.sha256 == digest or recorded.content == label.digest())
        image, kind = self._image(image_id)
        facts, pattern = self._facts(image_id), self._site.config.patients
        origin = Origin(
            **_submission(recorded if is_recorded else None, info, file),
            warnings=(*label.warnings, *(info["notes"] if isinstance(info.get("notes"), list) else ())),
            patient_by=_how(image_id, facts, pattern),
            is_dicom=store_of(self._site.datastore, image_id) is not None,
        )
        made = partial(ExportCase, image_id, kind, patient=patient_of(image_id, facts, pattern), origin=origin)
        if image.volumes == 1:
            yield made(image, label.labels, label.structures)
            return
        count = image.grid[2] // image.volumes
        for number in range(image.volumes):
            labels = label.labels[:, :, number * count : (number + 1) * count]
            if labels.any():
                yield made(image.part(number * count), labels, label.structures, volume=number + 1)

    def _image(self, image_id: str) -> tuple[MedicalImage, Kind]:
        """The image with all voxels, and its kind."""
        name, store = f"image {image_id!r}", store_of(self._site.datastore, image_id)
        if store is None:
            image = self._read_file(Path(self._site.datastore.get_image_uri(image_id)), name)
            return image, kind_of(image, self._modality, is_file=True)
        store.get_image_uri(image_id)  # waits for the voxels
        volume = store.volume(image_id)
        modality, image = str(self._facts(image_id).get("Modality") or "OT"), volume.image(name)
        unit = volume.series.headers[0].get("RescaleType") if modality == CT else None
        return image, kind_of(image, modality, str(unit or ""), is_file=False)

    def _read_file(self, path: Path, name: str) -> MedicalImage:
        """An image file; the last one is kept, as its label is read by its grid first."""
        if self._last is None or self._last[0] != (path, name):
            config = self._site.config
            limit, memory = (config.image_mb or config.cache_mb) << 20, config.cache_mb << 20
            self._last = (path, name), read_image(path, name, limit, self._allocate, memory)
        return self._last[1]

    def _facts(self, image_id: str) -> Mapping[str, Any]:
        return self._site.datastore.get_image_info(image_id) or {}


def _submission(recorded: Submission | None, info: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """When and by whom a label was submitted, as the server has `recorded` it, or else as the label says itself."""
    if recorded is None:
        return {"at": _stored_at(info, file), "by": "", "way": FOUND, "first_mask": None}
    at = _moment(recorded.at)
    return {"at": at, "by": recorded.by, "way": SUBMITTED, "first_mask": _first_mask(recorded)}


def _how(image_id: str, facts: Mapping[str, Any], pattern: re.Pattern[str] | None) -> str:
    if patient_of(image_id, facts, None) != image_id:
        return BY_ID
    return BY_PATTERN if pattern is not None and pattern.search(image_id) else BY_CASE


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _stored_at(info: Mapping[str, Any], file: Path) -> str:
    """When a label was stored: as its segmentation says, in the time of that machine, or by its file."""
    stated = re.match(r"(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})", str(info.get("content_time") or ""))
    if stated is not None:
        year, month, day, hour, minute, second = stated.groups()
        return f"{year}-{month}-{day}T{hour}:{minute}:{second}"
    return "" if "SOPInstanceUID" in info else _moment(file.stat().st_mtime)


def _first_mask(recorded: Submission) -> Mapping[str, Any] | None:
    """The mask that the annotator corrected, as far as known."""
    if recorded.initial_mask_version is None and recorded.initial_mask_origin is None:
        return None
    return {"weights": recorded.initial_mask_version, **(recorded.initial_mask_origin or {})}
