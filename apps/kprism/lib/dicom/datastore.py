# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DICOMweb datastore, for every kind of image; every SEG on the server counts as a submitted label.

The newest segmentation of a series is kept as a label map on the series' grid: cropped frames are put back, and the
names are those of the segments. `sync` notices segmentations that anybody stored or deleted.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.utils.others.generic import md5_digest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.images import LISTING_SECONDS, VOLUME_BYTES, DicomImages
from lib.dicom.seg_index import SegIndex, StoredSegmentation, UnusableSegmentation, content_time
from lib.dicom.seg_reader import read_seg
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series
from lib.dicom.volumes import read_labels, save_volume
from lib.dicom.web import SeriesEntry, StoreDownError
from lib.errors import ForbiddenError, RequestError
from lib.imaging.label_registry import label_values

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL

Listener = Callable[[str, str], Any]
"""Called with (image id, label id) for labels that were not stored with `save_label`."""


class DicomStore(DicomImages):
    """A DICOMweb server as a datastore.

    `on_label` is called for labels that others stored, `on_removed` for images whose label was deleted; changes before
    both are set are reported later. A store without `auto_sync` never looks for changes: processes that the server
    starts use what the server has noted, and never overwrite it or remove volumes.

    The lock `_syncing` is taken before those of `DicomImages`.
    """

    def __init__(
        self,
        client: Any,
        folder: Path,
        filters: Mapping[str, Any] | None = None,
        *,
        auto_sync: bool = True,
        volume_bytes: int | None = VOLUME_BYTES,
    ) -> None:
        super().__init__(client, folder, filters, volume_bytes=volume_bytes if auto_sync else None)
        self.on_label: Listener | None = None
        self._auto_sync = auto_sync
        self._syncing = RLock()
        self._synced = -1e9
        self._changed: list[str] = []
        self._arrival_times = ArrivalTimes(folder / "segmentations.json")
        self._index = SegIndex(self.web, self._arrival_times, lambda image_id: image_id in self._entries())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series with a segmentation."""
        self.sync()
        listed = set(self.list_images())
        return [image for image in super().get_labeled_images() if image in listed]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series without a segmentation that can be segmented."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled and self.is_usable(image)]

    def status(self) -> dict[str, Any]:
        """The numbers of images and of labels."""
        self.sync()  # before the lock of the index is taken
        with self._lock:
            tags = [tag for entry in self._datastore.objects.values() for tag in entry.labels]
        counts = {tag: tags.count(tag) for tag in tags}
        return {"total": len(self.list_images()), "completed": len(self.get_labeled_images()), "label_tags": counts}

    def _forget(self, image_id: str) -> None:
        """Remove the local copies of a series and of its label, which is on the grid of the series."""
        self._drop_label(image_id)
        super()._forget(image_id)

    def _drop_label(self, image_id: str) -> None:
        """Remove the local copy of a label."""
        with self._lock:
            file = LocalDatastore.get_label_uri(self, image_id, FINAL)
            if file:
                Path(file).unlink(missing_ok=True)
                self._datastore.objects[image_id].labels.pop(FINAL, None)
                self._update_datastore_file()

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Keep a label; with the tag `final` it is stored on the server as a SEG first, and kept only if that succeeds.

        `.bin` files are raw voxels (uint8, column fastest). The names are those of `label_info` in the order of values.
        """
        series = self.open_series(image_id)
        labels = read_labels(Path(label_filename), series)
        info = dict(label_info)
        if label_tag != FINAL:
            return self._keep(image_id, labels, series, label_tag, info)
        names = names_of(labels, info)
        title = str(info.get("description") or "K-Prism")
        segmentation = write_seg(labels, names, series, title, str(info.get("model") or ""))
        with self._syncing:
            self.web.store([segmentation])
            self._arrival_times.note([str(segmentation.SeriesInstanceUID)])
            info |= {"label_names": names, **_identity(segmentation)}
            return self._keep(image_id, labels, series, label_tag, info)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The local label map."""
        return str(super().get_label_uri(label_id, label_tag))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a draft; ForbiddenError for a submitted label, which belongs to the server."""
        if label_tag == FINAL:
            series = self.get_label_info(label_id, FINAL).get("SeriesInstanceUID", "none")
            raise ForbiddenError(
                f"the label of image {label_id!r} is segmentation {series} of {self.name()}; delete it there, "
                "and it is removed here within seconds"
            )
        super().remove_label(label_id, label_tag)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and label files for training, without images that cannot be read; the others arrive first."""
        self.sync(force=True)
        for image_id in super().get_labeled_images():
            try:
                self.get_image_uri(image_id)
            except StoreDownError:
                raise
            except RequestError as error:
                logger.warning("Image %s is left out of the list: %s", image_id, error)
        return [pair for pair in super().datalist(full_path) if not full_path or Path(pair["image"]).exists()]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of all images and labels."""
        return str(LocalDatastore.get_dataset_archive(self, limit_cases))  # without the lock while the server answers

    def sync(self, force: bool = False) -> list[str]:
        """Adopt segmentations that others stored or deleted; returns the ids of the images whose label changed.

        The server's answer is used again for `LISTING_SECONDS`. Segmentations that cannot be used are `unusable`.
        """
        if not self._auto_sync or not self._syncing.acquire(blocking=force or self._synced < 0):
            return []  # another thread is syncing
        try:
            if not force and time.monotonic() - self._synced < LISTING_SECONDS:
                return []
            self._synced = time.monotonic()
            changed = self._update_labels(self.web.search(Modality="SEG"))
            self._changed += changed
        except StoreDownError as error:
            logger.warning("%s", error)
            return []
        finally:
            self._syncing.release()
        self._notify()
        return changed

    def unusable(self) -> list[UnusableSegmentation]:
        """Segmentations on the server that cannot be used, with the reason."""
        return self._index.unusable()

    def _notify(self) -> None:
        """Call the listeners, if both are set, for the images whose labels changed."""
        if self.on_label is None or self.on_removed is None:
            return
        with self._syncing:
            changed, self._changed = self._changed, []
        for image_id in dict.fromkeys(changed):
            if self.get_label_uri(image_id, FINAL):
                self.on_label(image_id, image_id)
            else:
                self.on_removed(image_id)

    def _update_labels(self, entries: list[SeriesEntry]) -> list[str]:
        newest = self._index.newest(entries)
        changed = [image for image, stored in newest.items() if self._adopt(image, stored)]
        there = {entry.series for entry in entries}
        for image_id in super().get_labeled_images():
            current = self.get_label_info(image_id, FINAL)
            if image_id not in newest and current.get("SeriesInstanceUID") not in there:
                logger.info("The segmentation of %s is no longer on the server", image_id)
                self._drop_label(image_id)
                changed.append(image_id)
        return changed

    def _adopt(self, image_id: str, stored: StoredSegmentation) -> bool:
        """Make a segmentation the label of its image, unless it is that already or cannot be used."""
        if self.get_label_info(image_id, FINAL).get("SOPInstanceUID") == stored.instance:
            return False
        try:
            series = self.open_series(image_id)
            instances = self.web.fetch(stored.entry.study, stored.entry.series)
            instance = next(item for item in instances if item.SOPInstanceUID == stored.instance)
            seg = read_seg(instance, series)
        except StoreDownError:
            raise
        except (RequestError, ValueError, AttributeError, KeyError, NotImplementedError, StopIteration) as error:
            self._index.mark_unusable(stored.entry, str(error))
            return False
        info = {"label_names": seg.names, "description": stored.entry.description, **_identity(instance)}
        self._keep(image_id, seg.labels, series, FINAL, info)
        return True

    def _keep(self, image_id: str, labels: NDArray[np.uint8], series: Series, tag: str, info: dict[str, Any]) -> str:
        """Store a label map locally."""
        with tempfile.TemporaryDirectory(prefix="kprism-dicom-") as folder:
            path = Path(folder) / f"{image_id}.nii.gz"
            save_volume(labels, series.affine, path)
            return str(super().save_label(image_id, str(path), tag, info))


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
    folder = Path(cache or Path.home() / ".cache" / "monailabel" / "dicom") / md5_digest(client.base_url)
    is_server = "monailabel.app" in sys.modules  # a training is another process
    return DicomStore(client, folder, settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, auto_sync=is_server)


def names_of(labels: NDArray[np.uint8], info: Mapping[str, Any]) -> dict[str, int]:
    """Name -> value of a label map whose information is `info`; RequestError if names and values do not fit.

    Without any names, the names are "segment 1", "segment 2" and so on, by the values.
    """
    present = [int(value) for value in np.unique(labels) if value]
    try:
        return label_values(info, {}, present) or {f"segment {value}": value for value in present}
    except ValueError as error:
        raise RequestError(str(error)) from error


def _identity(segmentation: Dataset) -> dict[str, str]:
    """The identifiers of a segmentation on the server."""
    return {
        "SeriesInstanceUID": str(segmentation.SeriesInstanceUID),
        "StudyInstanceUID": str(segmentation.StudyInstanceUID),
        "SOPInstanceUID": str(segmentation.SOPInstanceUID),
        "content_time": content_time(segmentation),
    }
