# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM files as a datastore: the DICOMweb datastore on files, with names for those who see no viewer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.dicom.datastore import DicomStore
from lib.dicom.dicom_files import Facts
from lib.dicom.dicom_folder import DicomFolder
from lib.dicom.images import VOLUME_BYTES
from lib.dicom.series import Series
from lib.dicom.web import SeriesEntry
from lib.errors import ForbiddenError, RequestError
from lib.imaging.hand_names import HandNames
from lib.not_served import NotServed

STATE = "files"
"""Key in the information about an image: the state of the files that its local copy was made from."""


class DicomFolderStore(DicomStore):
    """The series in a `DicomFolder`; `folder` holds the local copies, as for a server.

    An image's id is its SeriesInstanceUID, as with a server, so labels stay with their images when the files go there.
    """

    def __init__(
        self,
        files: DicomFolder,
        folder: Path,
        *,
        auto_sync: bool = True,
        volume_bytes: int | None = VOLUME_BYTES,
    ) -> None:
        self.files = files
        self._unusable_as: dict[str, str] = {}
        super().__init__(files, folder, auto_sync=auto_sync, volume_bytes=volume_bytes)

    def _connected(self, client: DicomFolder) -> DicomFolder:
        return client

    def name(self) -> str:
        """The folder."""
        return str(self.files.root)

    def hand_names(self) -> HandNames:
        """As in any folder of studies: a label that is sent as NIfTI, for example, may not name its values."""
        return HandNames.read(self.files.root)

    @property
    def progress(self) -> tuple[int, int] | None:
        """How many files are indexed and how many there are to index, while many are."""
        return self.files.progress

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Information about a series, with names of the patient, the study and the series."""
        info = super().get_image_info(image_id)
        for key in ("RetrieveURL", STATE):
            info.pop(key, None)
        series = self.files.listed().get(image_id)
        return info if series is None else {**_described(series.facts), **info}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """ForbiddenError: images are files in the folder."""
        raise ForbiddenError(
            f"image {image_id!r} cannot be added over HTTP: copy its DICOM files into {self.name()}, "
            "and the series is served within seconds"
        )

    def not_served(self) -> list[NotServed]:
        """What the folder holds and is not served, and series that are no volumes."""
        return [*super().not_served(), *self.files.not_served()]

    def nothing_to_serve(self) -> str | None:
        """A sentence if there is no series with images; None while the files are not known yet."""
        if not self.files.is_complete or self.files.changing or self.list_images():
            return None
        if self.worklist is not None and (count := len(self._entries())):
            return self.worklist.names_none_of(count)
        examples = "; ".join(f"{entry.name} {entry.reason}" for entry in self.not_served()[:3])
        return (
            f"There is nothing to serve: the folder {self.name()} holds no DICOM series that can be segmented"
            f"{f' ({examples})' if examples else ''}. Expected: DICOM images, in this folder or below it."
        )

    def _note_unusable(self, image_id: str, error: RequestError) -> None:
        self._unusable_as[image_id] = self.files.state(image_id)
        super()._note_unusable(image_id, error)

    def _entries(self, *, refresh: bool = False, complete: bool = False) -> Mapping[str, SeriesEntry]:
        """As for a server; series that could not be read are tried again when their files have changed."""
        for image_id in list(self._unusable):
            if self._unusable_as.get(image_id) != self.files.state(image_id):
                self._unusable.pop(image_id, None)
        return super()._entries(refresh=refresh, complete=complete)

    def _has_changed(self, entry: SeriesEntry) -> bool:
        """Also if files were written over."""
        known = self._datastore.objects.get(entry.series)
        read = known.image.info.get(STATE) if known is not None else None
        now = self.files.state(entry.series)
        return bool(read and now and read != now) or super()._has_changed(entry)

    def _register(self, entry: SeriesEntry, series: Series) -> None:
        super()._register(entry, series)
        with self._lock:
            self._datastore.objects[entry.series].image.info[STATE] = self.files.state_read(entry.series)
            self._update_datastore_file()


def _described(facts: Facts) -> dict[str, str]:
    """What tells people which series it is; attributes without a value are left out."""
    parts = (facts.patient_name or facts.patient, facts.study_date, facts.study_description, facts.modality)
    title = " · ".join(filter(None, (*parts, facts.description or f"series {facts.series_number}")))
    known = {
        "PatientName": facts.patient_name,
        "StudyDate": facts.study_date,
        "StudyDescription": facts.study_description,
        "SeriesNumber": facts.series_number,
        "SeriesDescription": facts.description,
        "title": title,
    }
    return {key: value for key, value in known.items() if value}
