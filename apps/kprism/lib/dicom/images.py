# SPDX-License-Identifier: Apache-2.0
"""The images of a DICOMweb server, of every modality: listed, fetched when they are needed, kept as volumes.

An image is a series, and its id is the series' identifier. The local copy of a series is one volume on its own grid.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.datastore.local import DataModel, ImageLabelModel

from lib.datastore import GuardedDatastore, check_id
from lib.dicom.listing import SeriesListing
from lib.dicom.series import Series
from lib.dicom.series_cache import SeriesCache
from lib.dicom.web import DicomWeb, SeriesEntry, StoreError
from lib.errors import ForbiddenError, NotFoundError, RequestError

logger = logging.getLogger(__name__)

LAYOUT = 2
"""Number of the way in which local volumes are written: the slice axis in the header, phases one after the other.

A volume that was written in another way is written anew, and its label is read from the server again if it moves."""


class DicomImages(GuardedDatastore):
    """MONAI Label's datastore over the images of a server; `folder` holds the copies and an index of them.

    Locks are taken in this order: that of a series (`SeriesCache`), that of the listing, that of the index (`_lock`).
    """

    def __init__(self, client: Any, folder: Path, filters: Mapping[str, Any] | None = None) -> None:
        self.web = DicomWeb(client)
        self._filters = {key: str(value) for key, value in (filters or {}).items()}
        self._unusable: dict[str, int] = {}  # series that cannot be a volume, with their numbers of instances
        super().__init__(str(folder), extensions=("*.nii.gz",), auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD)
        self._series_cache = SeriesCache(self.web, folder, self._entry)
        self._listing = SeriesListing(lambda: self.web.pages(**self._filters), self._stored_entries())

    def name(self) -> str:
        """The server's address."""
        return str(self.web.client.base_url)

    def list_images(self) -> list[str]:
        """Ids of all series with images; while the server is down, those of the last listing or of the local copies."""
        return sorted(self._entries())

    def list_soon(self) -> None:
        """Begin to list the images, while the server starts."""
        self._listing.begin()

    def _entries(self, *, refresh: bool = False, complete: bool = False) -> Mapping[str, SeriesEntry]:
        """Series -> entry, see `SeriesListing.entries`."""
        return self._listing.entries(refresh=refresh, complete=complete)

    @property
    def _is_listed(self) -> bool:
        """Whether the server could be asked the last time."""
        return self._listing.is_current

    def _stored_entries(self) -> dict[str, SeriesEntry]:
        """The series that were fetched, from the index of local copies."""
        entries = {}
        for image_id, entry in self._datastore.objects.items():
            info = {key: str(value) for key, value in entry.image.info.items()}
            if info.get("SeriesInstanceUID") == image_id:
                study, modality, patient = (info.get(key, "") for key in ("StudyInstanceUID", "Modality", "PatientID"))
                entries[image_id] = SeriesEntry(study, image_id, modality, "", patient, 0)
        return entries

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Information about a series; before it is fetched, what the server's listing contains."""
        info = super().get_image_info(image_id)
        entry = self._entries().get(image_id)
        if entry is not None:
            info = {"PatientID": entry.patient, "StudyInstanceUID": entry.study, "Modality": entry.modality, **info}
        return info

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The content of the local volume."""
        return self._to_bytes(self.get_image_uri(image_id))

    def get_image_uri(self, image_id: str) -> str:
        """The local volume of a series, fetched on first use.

        NotFoundError if the server has no such series; StoreDownError if the server does not answer.
        """
        entry = self._entries().get(check_id(image_id)) or self._entries(refresh=True).get(image_id)
        if entry is None and self._is_listed:
            raise NotFoundError(f"image {image_id!r} is not in this datastore")
        with self._series_cache.lock(image_id):
            if entry is not None and self._series_cache.is_outdated(entry):
                logger.info("Series %s has another number of images now and is fetched again", image_id)
                self._forget(image_id)
            elif self._holds_earlier_layout(image_id) and self.series(image_id).volumes > 1:
                self._forget(image_id)  # its label is in the earlier order of the slices
            path = Path(self._datastore.image_path()).resolve() / f"{image_id}.nii.gz"
            if not (path.is_file() and super().get_image_uri(image_id) and not self._holds_earlier_layout(image_id)):
                entry = entry or self._entry(image_id)
                try:
                    series = self._series_cache.write_volume(image_id, path)
                except RequestError as error:
                    if not isinstance(error, StoreError):
                        self._unusable[image_id] = entry.instances
                    raise
                self._register(entry, series)
            return str(path)

    def _holds_earlier_layout(self, image_id: str) -> bool:
        """Whether the local volume must be written anew from the copy of the instances."""
        known = self._datastore.objects.get(image_id)
        return known is not None and known.image.info.get("layout") != LAYOUT and self._series_cache.holds(image_id)

    def is_usable(self, image_id: str) -> bool:
        """False for a series that could not be read as a volume, unless its number of images has changed since."""
        entry = self._entries().get(image_id)
        return image_id not in self._unusable or entry is None or self._unusable[image_id] != entry.instances

    def series(self, image_id: str) -> Series:
        """The geometry of a series and the order of its slices; fetched on first use."""
        return self._series_cache.series(image_id)

    def _register(self, entry: SeriesEntry, series: Series) -> None:
        """Add a local volume to the index; its labels stay."""
        info = {**_image_info(entry, series, self.name()), "ts": int(time.time()), "name": f"{entry.series}.nii.gz"}
        info["layout"] = LAYOUT
        with self._lock:
            known = self._datastore.objects.setdefault(entry.series, ImageLabelModel(image=DataModel()))
            known.image = DataModel(info=info, ext=".nii.gz")
            self._update_datastore_file()

    def _forget(self, image_id: str) -> None:
        """Remove the local copy of a series."""
        self._series_cache.forget(image_id)
        (Path(self._datastore.image_path()) / f"{image_id}.nii.gz").unlink(missing_ok=True)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """ForbiddenError: the images belong to the server."""
        raise ForbiddenError(
            f"image {image_id!r} cannot be added over HTTP: the studies are in {self.name()}; "
            "./kprism import turns files into DICOM and stores them there"
        )

    def remove_image(self, image_id: str) -> None:
        """ForbiddenError: the images belong to the server."""
        raise ForbiddenError(f"image {image_id!r} is kept by {self.name()}; delete it there")

    def _entry(self, image_id: str) -> SeriesEntry:
        entry = self.web.find(image_id)
        if entry is None:
            raise NotFoundError(f"image {image_id!r} is not in this datastore: {self.name()} has no such series")
        if not entry.holds_images:
            raise NotFoundError(f"series {image_id!r} ({entry.modality}) has no images")
        return entry


def _image_info(entry: SeriesEntry, series: Series, url: str) -> dict[str, Any]:
    """The information about an image that MONAI Label and its clients use."""
    first = series.headers[0]
    return {
        "SeriesInstanceUID": entry.series,
        "StudyInstanceUID": entry.study,
        "Modality": entry.modality,
        "PatientID": entry.patient,
        "StudyDate": str(first.get("StudyDate") or "UNK"),
        "StudyTime": str(first.get("StudyTime") or "UNK"),
        "RetrieveURL": f"{url}/studies/{entry.study}/series/{entry.series}",
        "warnings": list(series.warnings),
    }
