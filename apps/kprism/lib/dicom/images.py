# SPDX-License-Identifier: Apache-2.0
"""The images of a DICOMweb server, of every modality: listed, fetched when they are needed, kept as volumes.

An image is a series, and its id is the series' identifier. The local copy of a series is one volume on its own grid.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from monailabel.config import settings
from monailabel.datastore.local import DataModel, ImageLabelModel

from lib.datastore import GuardedDatastore
from lib.dicom.listing import SeriesListing
from lib.dicom.series import Series
from lib.dicom.series_cache import SUFFIX, SeriesCache
from lib.dicom.series_volume import SeriesVolume
from lib.dicom.source import DicomSource
from lib.dicom.web import DicomWeb, SeriesEntry, StoreDownError, StoreError
from lib.errors import ForbiddenError, NotFoundError, RequestError
from lib.image_ids import check_id
from lib.imaging.medical_image import MedicalImage
from lib.not_served import NotServed

logger = logging.getLogger(__name__)

LAYOUT = 4
"""Number of the way in which series are kept: headers as JSON, a volume that is not compressed and arrives by planes,
odd images set aside.

In 3, odd images were among the others, or the series could not be opened. In 2, the instances were kept, and a
compressed volume with the slice axis in its header, phases one after the other. A series that was kept in another way
is kept anew, and its label is read from the server again if it moves."""

SAME_ORDER = (2, 3, LAYOUT)
"""Ways that put the slices in the same order."""

_UID = re.compile(r"[0-9.]{1,64}")

VOLUME_BYTES = 8 << 30
"""Bytes that the local volumes may take on the disk, by default."""


class DicomImages(GuardedDatastore):
    """MONAI Label's datastore over the images of a server; `folder` holds the copies and an index of them.

    A series is known by its headers; its voxels arrive when somebody waits for them, and in the background while it is
    worked on. `volume_bytes` is what the volumes may take on the disk, None for no limit: those that were not used for
    longest are removed, never one in use.

    Locks are taken in this order: that of a series (`SeriesCache`), that of the listing, that of the index (`_lock`).
    """

    def __init__(
        self,
        client: Any,
        folder: Path,
        filters: Mapping[str, Any] | None = None,
        *,
        volume_bytes: int | None = VOLUME_BYTES,
    ) -> None:
        self._client = client
        self.web = self._connected(client)
        self._filters = {key: str(value) for key, value in (filters or {}).items()}
        self._unusable: dict[str, tuple[int, str]] = {}  # series that are no volume: number of instances, reason
        self._prefetched: set[str] = set()
        auto_reload = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        super().__init__(str(folder), extensions=("*.nii.gz", "*.nii"), auto_reload=auto_reload)
        self._series_cache = SeriesCache(self.web, folder, self._entry, volume_bytes, self._note_unusable)
        self._studies: frozenset[str] = frozenset()  # that match the query of the work list
        self._listing = SeriesListing(self._pages, self._stored_entries())

    def _connected(self, client: Any) -> DicomSource:
        """The server through `client`."""
        return DicomWeb(client)

    def name(self) -> str:
        """The server's address."""
        return str(self._client.base_url)

    def list_images(self) -> list[str]:
        """Ids of the series that are served and can be segmented, as far as is known.

        While the server is down, those of the last listing or of the local copies.
        """
        entries = self.served(self._entries())
        return sorted(image_id for image_id in entries if self._reason(image_id, entries) is None)

    def served(self, entries: Mapping[str, SeriesEntry]) -> dict[str, SeriesEntry]:
        """Those of the series that the work list names, by their study or themselves; all of them without one."""
        if self.worklist is None:
            return dict(entries)
        names = self._studies if self.worklist.query else self.worklist.names()
        return {image: entry for image, entry in entries.items() if image in names or entry.study in names}

    def names_of_images(self) -> set[str]:
        """The series and their studies, as far as they are listed."""
        return {name for image_id, entry in self._entries().items() for name in (image_id, entry.study)}

    def check_served(self, image_id: str) -> None:
        """ForbiddenError for a series that is not on the work list."""
        if self.worklist is None:
            return
        entry = self._entries().get(check_id(image_id)) or self._unlisted(image_id)
        if entry is None or not self.served({image_id: entry}):
            raise ForbiddenError(f"image {image_id!r} is not on the work list of this server ({self.worklist.source})")

    def _served(self, images: Iterable[str]) -> list[str]:
        """All of them: they are under the lock of the index here, and `list_images` is not."""
        return list(images)

    def served_studies(self) -> frozenset[str]:
        """The studies of the images that are served."""
        return frozenset(entry.study for entry in self.served(self._entries()).values())

    def not_served(self) -> list[NotServed]:
        """Series that cannot be segmented, and images of opened ones that are set aside, with the reasons."""
        entries = self.served(self._entries())
        found = []
        for image_id, entry in entries.items():
            name = f"series {image_id} of patient {entry.patient or 'unknown'}"
            reason = self._reason(image_id, entries)
            if reason is not None:
                found.append(NotServed(name, reason))
            known = self._datastore.objects.get(image_id)
            for count, why in known.image.info.get("set_aside") or () if known is not None and reason is None else ():
                found.append(NotServed(f"{count} of the images of {name}", why))
        return sorted(found)

    def can_be_served(self, image_id: str) -> bool:
        """Whether a series can be read as a volume, by its headers and one image; True as well if nobody can tell now.

        The other images arrive when the series is opened; only a file with all slices is not fetched for this.
        """
        try:
            volume = self.volume(image_id)
            count = len(volume.series.frames)
            if len({frame.instance for frame in volume.series.frames}) == count:
                volume.wait([count // 2])
        except StoreDownError:
            return True
        except RequestError as error:
            return error.is_passing and not isinstance(error, StoreError)
        return True

    def list_soon(self) -> None:
        """Begin to list the images, while the server starts."""
        self._listing.begin()

    def _entries(self, *, refresh: bool = False, complete: bool = False) -> Mapping[str, SeriesEntry]:
        """Series -> entry, see `SeriesListing.entries`."""
        return self._listing.entries(refresh=refresh, complete=complete)

    def _pages(self) -> Iterator[list[SeriesEntry]]:
        """The series of the server, after the studies that are served of them."""
        if self.worklist is not None and self.worklist.query and isinstance(self.web, DicomWeb):
            self._studies = self.web.studies(self.worklist.query)
        yield from self.web.pages(**self._filters)

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
        """The local volume of a series, complete; it arrives on first use.

        NotFoundError if the server has no such series; StoreDownError if the server does not answer; RequestError if
        an image is missing or cannot be read, and if the disk is full.
        """
        return str(self.volume(image_id).complete())

    def opened_image(self, image_id: str, *, begin: bool = False) -> str:
        """Where the local volume of a series is when it is complete; with `begin` its voxels arrive from now on."""
        volume = self.volume(image_id)
        if begin:
            volume.begin()
        return str(volume.path)

    def state_file(self, image_id: str) -> str:
        """The headers of a series: its volume may be removed at any time, and arrives again as it was."""
        self.open_series(image_id)
        return str(self._series_cache.headers_path(image_id))

    def grid_image(self, image_id: str, name: str) -> MedicalImage:
        """A series without its voxels: none of them is fetched, and no place is taken for them."""
        self.open_series(image_id)
        return self._series_cache.grid_image(image_id, name)

    def volume(self, image_id: str) -> SeriesVolume:
        """A series as a volume whose voxels can arrive; returns when the headers are known.

        Errors as for `get_image_uri`, except for those about pixels.
        """
        self.open_series(image_id)
        return self._series_cache.volume(image_id)

    def local_volume(self, path: Path) -> SeriesVolume | None:
        """The opened series whose local volume `path` is, for `Engine.opener`; None for other files."""
        return self._series_cache.local_volume(path)

    def prefetch(self, image_id: str, k: int = -1) -> None:
        """Let a series arrive in the background, around the slice k first; returns at once. Failures are logged."""
        with self._lock:
            if image_id in self._prefetched:
                return
            self._prefetched.add(image_id)
        Thread(target=self._prefetch, args=(image_id, k), name="dicom-prefetch", daemon=True).start()

    def _prefetch(self, image_id: str, k: int) -> None:
        try:
            self.volume(image_id).begin(k)
        except (RequestError, OSError) as error:
            logger.warning("Series %s cannot be fetched in advance: %s", image_id, error)
        finally:
            self._prefetched.discard(image_id)

    def open_series(self, image_id: str) -> Series:
        """The geometry of a series that the server has, or had while it does not answer; no voxels are fetched.

        A series whose number of images has changed is opened anew, without its label.
        """
        entry = self._entries().get(check_id(image_id)) or self._unlisted(image_id)
        with self._series_cache.lock(image_id):
            if entry is not None and self._has_changed(entry):
                logger.info("Series %s has another number of images now and is fetched again", image_id)
                self._forget(image_id)
            elif self._has_moved(image_id):
                self._forget(image_id)  # its label is on the earlier grid
            if self._layout(image_id) == LAYOUT and self._series_cache.holds(image_id):
                return self.series(image_id)
            entry = entry or self._entry(image_id)
            try:
                series = self.series(image_id)
            except RequestError as error:
                self._note_unusable(image_id, error)
                raise
            self._register(entry, series)
            return series

    def _unlisted(self, image_id: str) -> SeriesEntry | None:
        """The entry of a series that is not listed yet; NotFoundError if there is none, None while the server is down.

        The server is asked for this one series: a listing of all may take half a minute.
        """
        try:
            entry = self.web.find(image_id, **self._filters) if _UID.fullmatch(image_id) else None
        except StoreDownError:
            return None
        if entry is None or not entry.holds_images:
            raise NotFoundError(f"image {image_id!r} is not in this datastore")
        return entry

    def _has_changed(self, entry: SeriesEntry) -> bool:
        """Whether a series has another number of images than was fetched; a listing may be older than what was."""
        try:
            return self._series_cache.is_outdated(entry) and self._series_cache.is_outdated(self._entry(entry.series))
        except StoreDownError:
            return False

    def _has_moved(self, image_id: str) -> bool:
        """Whether an earlier version kept a series with the slices on another grid."""
        layout = self._layout(image_id)
        if layout in (None, LAYOUT):
            return False
        try:
            series = self.series(image_id)
        except RequestError:
            return False
        return bool(series.aside) or (series.volumes > 1 and layout not in SAME_ORDER)

    def _layout(self, image_id: str) -> Any:
        """How a series of the index is kept (1 if it does not say); None for others."""
        known = self._datastore.objects.get(image_id)
        return known.image.info.get("layout", 1) if known is not None else None

    def _note_unusable(self, image_id: str, error: RequestError) -> None:
        """Offer a series that cannot be a volume to nobody, until its number of images changes."""
        entry = self._entries().get(image_id)
        if entry is None:
            with suppress(NotFoundError):  # it may be opened before it is listed
                entry = self._unlisted(image_id)
        if entry is not None and not error.is_passing:
            if self._unusable.get(image_id) != (entry.instances, str(error)):
                logger.warning("Series %s is not served: %s", image_id, error)
            self._unusable[image_id] = entry.instances, str(error)

    def _reason(self, image_id: str, entries: Mapping[str, SeriesEntry]) -> str | None:
        """Why a listed series cannot be a volume; None if it can, or its number of images has changed since."""
        noted = self._unusable.get(image_id)
        return noted[1] if noted is not None and noted[0] == entries[image_id].instances else None

    def series(self, image_id: str) -> Series:
        """The geometry of a series and the order of its slices; its headers are fetched on first use."""
        return self._series_cache.series(image_id)

    def _register(self, entry: SeriesEntry, series: Series) -> None:
        """Add a series to the index; its labels stay."""
        info = {**_image_info(entry, series, self.name()), "ts": int(time.time()), "name": f"{entry.series}{SUFFIX}"}
        info["layout"] = LAYOUT
        reasons = Counter(image.reason for image in series.aside)
        info["set_aside"] = [[count, reason] for reason, count in reasons.items()]
        for count, reason in info["set_aside"]:
            logger.warning("Series %s: %d images are set aside, %s", entry.series, count, reason)
        with self._lock:
            known = self._datastore.objects.setdefault(entry.series, ImageLabelModel(image=DataModel()))
            known.image = DataModel(info=info, ext=SUFFIX)
            self._update_datastore_file()

    def _stays_without_file(self, image_id: str) -> bool:
        """A series whose headers are here stays: its volume can arrive again."""
        return (Path(self._datastore.image_path()) / image_id).exists()

    def _forget(self, image_id: str) -> None:
        """Remove the local copy of a series."""
        self._series_cache.forget(image_id)

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
    first = series.first
    return {
        "SeriesInstanceUID": entry.series,
        "StudyInstanceUID": entry.study,
        "Modality": entry.modality,
        "PatientID": str(first.get("PatientID") or entry.patient),  # Orthanc's listing lacks letters beyond Latin-1
        "StudyDate": str(first.get("StudyDate") or "UNK"),
        "StudyTime": str(first.get("StudyTime") or "UNK"),
        "RetrieveURL": f"{url}/studies/{entry.study}/series/{entry.series}",
        "warnings": list(series.warnings),
    }
