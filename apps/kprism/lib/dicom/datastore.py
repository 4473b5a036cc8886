# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DICOMweb datastore, with every kind of image and with every SEG of the server as a submitted label.

An image is a series, its id the series' identifier. The local copy of a series is one volume on the series' own grid,
and of its newest segmentation one label map on the same grid: cropped frames are put back, names come from the
segments. Segmentations are noticed whoever stored them (`sync`), and the newest one of a series counts.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import numpy as np
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.arrivals import Arrivals
from lib.dicom.seg_index import Found, SegIndex, content_time
from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series, describe_series, read_headers, read_voxels
from lib.dicom.volumes import read_labels, save_volume
from lib.dicom.web import DicomWeb, SeriesEntry, StoreDownError
from lib.errors import NotFoundError, RequestError
from lib.labels import label_values

logger = logging.getLogger(__name__)

FRESH = 2.0
"""Seconds for which an answer of the server about what it holds is used again."""

Listener = Callable[[str, str], Any]
"""Called with (image id, label id) for labels that came by another way than `save_label`."""


class DicomStore(DICOMWebDatastore):  # type: ignore[misc]
    """A DICOMweb server as a datastore. `on_label` hears of labels that others stored, `on_removed` of images whose
    label is gone.
    """

    def __init__(self, client: Any, cache_path: str | None = None, filters: Mapping[str, Any] | None = None) -> None:
        self.web = DicomWeb(client)
        self.on_label: Listener | None = None
        self.on_removed: Callable[[str], object] | None = None
        self._filters = {key: str(value) for key, value in (filters or {}).items()}
        self._listing, self._fetching, self._syncing = Lock(), RLock(), RLock()  # never taken in another order
        self._listed: tuple[float, dict[str, SeriesEntry]] = (-1e9, {})
        self._synced = -1e9
        self._series: dict[str, Series] = {}
        super().__init__(client, dict(self._filters), cache_path)
        self._arrivals = Arrivals(Path(self._datastore_path) / "segmentations.json")
        self._index = SegIndex(self.web, self._arrivals, lambda image_id: image_id in self._entries())

    def list_images(self) -> list[str]:
        """Ids of all series with pictures; the last answer while the server is down."""
        return sorted(self._entries())

    def _entries(self) -> dict[str, SeriesEntry]:
        with self._listing:
            at, known = self._listed
            if time.monotonic() - at > FRESH:
                try:
                    found = self.web.search(**self._filters)
                except StoreDownError as error:
                    logger.warning("%s", error)
                    return known
                known = {entry.series: entry for entry in found if entry.holds_images}
                self._listed = (time.monotonic(), known)
            return known

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of a series; before it is fetched, what the server's list says."""
        info = dict(LocalDatastore.get_image_info(self, image_id))
        entry = self._entries().get(image_id)
        if entry is not None:
            info = {"PatientID": entry.patient, "StudyInstanceUID": entry.study, "Modality": entry.modality, **info}
        return info

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series with a segmentation."""
        self.sync()
        listed = set(self.list_images())
        return [image for image in LocalDatastore.get_labeled_images(self) if image in listed]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series without a segmentation."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def get_image_uri(self, image_id: str) -> str:
        """The local volume of a series, fetched on first use; NotFoundError if the server has no such series."""
        with self._fetching:
            known = LocalDatastore.get_image_uri(self, image_id)
            if known and Path(known).is_file():
                return str(known)
            entry = self._entry(image_id)
            series = self.series(image_id, entry)
            files = {path.stem: path for path in self._folder(image_id).glob("*.dcm")}
            with tempfile.TemporaryDirectory(prefix="kprism-dicom-") as folder:
                path = Path(folder) / f"{image_id}.nii.gz"
                save_volume(read_voxels(series, files), series.affine, path)
                LocalDatastore.add_image(self, image_id, str(path), self._info(entry, series))
            return str(LocalDatastore.get_image_uri(self, image_id))

    def series(self, image_id: str, entry: SeriesEntry | None = None) -> Series:
        """How a series lies in space and which image is which slice; fetched on first use."""
        with self._fetching:
            if image_id not in self._series:
                folder = self._folder(image_id)
                if not folder.is_dir():
                    self._fetch(entry or self._entry(image_id), folder)
                self._series[image_id] = describe_series(list(read_headers(folder.glob("*.dcm")).values()))
            return self._series[image_id]

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep a label; one with the tag `final` goes to the server as a SEG first, and is kept only if that succeeds.

        `.bin` files are raw voxels (uint8, column fastest). Names are those of `label_info`, in the order of values.
        """
        self.get_image_uri(image_id)
        series = self.series(image_id)
        labels = read_labels(Path(label_filename), series)
        info = dict(label_info)
        if label_tag == DefaultLabelTag.FINAL:
            present = [int(value) for value in np.unique(labels) if value]
            try:
                names = label_values(info, {}, present)
            except ValueError as error:
                raise RequestError(str(error)) from error
            names = names or {f"segment {value}": value for value in present}
            title = str(info.get("description") or "K-Prism")
            segmentation = write_seg(labels, names, series, title, str(info.get("model") or ""))
            with self._syncing:
                self.web.store([segmentation])
                self._arrivals.note([str(segmentation.SeriesInstanceUID)])
                info |= {"label_names": names, **_identity(segmentation)}
                return self._keep(image_id, labels, series, label_tag, info)
        return self._keep(image_id, labels, series, label_tag, info)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The local label map."""
        return str(LocalDatastore.get_label_uri(self, label_id, label_tag))

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and label files for training."""
        self.sync(force=True)
        return list(LocalDatastore.datalist(self, full_path))

    def sync(self, force: bool = False) -> list[str]:
        """Take over segmentations that others stored or removed; ids of the images whose label changed.

        What the server says is believed for `FRESH` seconds. A segmentation that cannot be used is logged, once.
        """
        if not self._syncing.acquire(blocking=force or self._synced < 0):
            return []  # somebody is looking already
        try:
            if not force and time.monotonic() - self._synced < FRESH:
                return []
            changed = self._take_over(self.web.search(Modality="SEG"))
            self._synced = time.monotonic()
        except StoreDownError as error:
            logger.warning("%s", error)
            return []
        finally:
            self._syncing.release()
        for image_id in changed:
            is_there = bool(LocalDatastore.get_label_uri(self, image_id, DefaultLabelTag.FINAL))
            if is_there and self.on_label is not None:
                self.on_label(image_id, image_id)
            if not is_there and self.on_removed is not None:
                self.on_removed(image_id)
        return changed

    def _take_over(self, entries: list[SeriesEntry]) -> list[str]:
        newest = self._index.newest(entries)
        changed = [image for image, found in newest.items() if self._take(found)]
        there = {entry.series for entry in entries}
        for image_id in LocalDatastore.get_labeled_images(self):
            current = LocalDatastore.get_label_info(self, image_id, DefaultLabelTag.FINAL)
            if image_id not in newest and current.get("SeriesInstanceUID") not in there:
                logger.info("The segmentation of %s is no longer on the server", image_id)
                LocalDatastore.remove_label(self, image_id, DefaultLabelTag.FINAL)
                changed.append(image_id)
        return changed

    def _take(self, found: Found) -> bool:
        """Make a segmentation the label of its image, unless it is that already or cannot be used."""
        current = LocalDatastore.get_label_info(self, found.image_id, DefaultLabelTag.FINAL)
        if current.get("SeriesInstanceUID") == found.entry.series:
            return False
        try:
            self.get_image_uri(found.image_id)
            series = self.series(found.image_id)
            instance = max(self.web.fetch(found.entry.study, found.entry.series), key=content_time)
            read = read_seg(instance, series)
        except StoreDownError:
            raise
        except (RequestError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
            logger.warning("Segmentation %s cannot be used: %s", found.entry.series, error)
            self._index.leave_out(found.entry.series)
            return False
        info = {"label_names": read.names, "description": found.entry.description, **_identity(instance)}
        self._keep(found.image_id, read.labels, series, DefaultLabelTag.FINAL, info)
        return True

    def _keep(self, image_id: str, labels: NDArray[np.uint8], series: Series, tag: str, info: dict[str, Any]) -> str:
        """Store a label map locally."""
        with tempfile.TemporaryDirectory(prefix="kprism-dicom-") as folder:
            path = Path(folder) / f"{image_id}.nii.gz"
            save_volume(labels, series.affine, path)
            return str(LocalDatastore.save_label(self, image_id, str(path), tag, info))

    def _entry(self, image_id: str) -> SeriesEntry:
        try:
            entry = self.web.find(image_id)
        except StoreDownError:
            raise
        except RequestError as error:
            raise NotFoundError(f"image {image_id!r} is not in this datastore: {error}") from error
        if not entry.holds_images:
            raise NotFoundError(f"series {image_id!r} ({entry.modality}) holds no image")
        return entry

    def _folder(self, image_id: str) -> Path:
        return Path(self._datastore.image_path()) / image_id

    def _fetch(self, entry: SeriesEntry, folder: Path) -> None:
        """Fetch a series; the folder appears only when all of it is there."""
        partial = folder.with_name(f"{folder.name}.partial{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for instance in self.web.fetch(entry.study, entry.series):
                instance.save_as(partial / f"{instance.SOPInstanceUID}.dcm", write_like_original=False)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _info(self, entry: SeriesEntry, series: Series) -> dict[str, Any]:
        """What MONAI Label and its clients want to know of an image."""
        first = series.headers[0]
        return {
            "SeriesInstanceUID": entry.series,
            "StudyInstanceUID": entry.study,
            "Modality": entry.modality,
            "PatientID": entry.patient,
            "StudyDate": str(first.get("StudyDate") or "UNK"),
            "StudyTime": str(first.get("StudyTime") or "UNK"),
            "RetrieveURL": f"{self.web.client.base_url}/studies/{entry.study}/series/{entry.series}",
            "warnings": list(series.warnings),
        }


def open_dicom_store(url: str) -> DicomStore:
    """The store at an address, with MONAI Label's settings for prefixes, credentials, cache folder and filter."""
    session = None
    if settings.MONAI_LABEL_DICOMWEB_USERNAME and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
        from dicomweb_client.session_utils import create_session_from_user_pass

        session = create_session_from_user_pass(
            settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        )
    client = DICOMwebClientX(
        url=url.rstrip("/").strip(),
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    cache = (settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip()
    return DicomStore(client, cache or None, settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)


def _identity(segmentation: Dataset) -> dict[str, str]:
    """What identifies a segmentation on the server."""
    return {
        "SeriesInstanceUID": str(segmentation.SeriesInstanceUID),
        "StudyInstanceUID": str(segmentation.StudyInstanceUID),
        "content_time": content_time(segmentation),
    }
