# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DICOMweb datastore, with every kind of image and with every SEG of the server as a submitted label.

Of the newest segmentation of a series a label map is kept on the series' grid: cropped frames are put back, names come
from the segments. Segmentations are noticed whoever stored or deleted them (`sync`).
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

from lib.dicom.arrivals import Arrivals
from lib.dicom.images import FRESH, DicomImages
from lib.dicom.seg_index import Found, SegIndex, Unusable, content_time
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
"""Called with (image id, label id) for labels that came by another way than `save_label`."""


class DicomStore(DicomImages):
    """A DICOMweb server as a datastore.

    `on_label` hears of labels that others stored, `on_removed` of images whose label is gone; what happens before both
    are there is told later. A store that does not `follow` takes nothing over: processes that the server starts believe
    what the server has noted, and never write over it.

    The lock `_syncing` is taken before those of `DicomImages`.
    """

    def __init__(
        self, client: Any, folder: Path, filters: Mapping[str, Any] | None = None, *, follow: bool = True
    ) -> None:
        super().__init__(client, folder, filters)
        self.on_label: Listener | None = None
        self._follow = follow
        self._syncing = RLock()
        self._synced = -1e9
        self._changed: list[str] = []
        self._arrivals = Arrivals(folder / "segmentations.json")
        self._index = SegIndex(self.web, self._arrivals, lambda image_id: image_id in self._entries())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series with a segmentation."""
        self.sync()
        listed = set(self.list_images())
        return [image for image in super().get_labeled_images() if image in listed]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series without a segmentation, as far as they can be segmented."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled and self.is_usable(image)]

    def status(self) -> dict[str, Any]:
        """How many images there are, and how many have labels."""
        self.sync()  # before the lock of the index is taken
        with self._lock:
            tags = [tag for entry in self._datastore.objects.values() for tag in entry.labels]
        counts = {tag: tags.count(tag) for tag in tags}
        return {"total": len(self.list_images()), "completed": len(self.get_labeled_images()), "label_tags": counts}

    def _forget(self, image_id: str) -> None:
        """Remove the local copy of a series, and of its label, which was made for the copy's grid."""
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
        """Keep a label; one with the tag `final` goes to the server as a SEG first, and is kept only if that succeeds.

        `.bin` files are raw voxels (uint8, column fastest). Names are those of `label_info`, in the order of values.
        """
        self.get_image_uri(image_id)
        series = self.series(image_id)
        labels = read_labels(Path(label_filename), series)
        info = dict(label_info)
        if label_tag != FINAL:
            return self._keep(image_id, labels, series, label_tag, info)
        names = names_of(labels, info)
        title = str(info.get("description") or "K-Prism")
        segmentation = write_seg(labels, names, series, title, str(info.get("model") or ""))
        with self._syncing:
            self.web.store([segmentation])
            self._arrivals.note([str(segmentation.SeriesInstanceUID)])
            info |= {"label_names": names, **_identity(segmentation)}
            return self._keep(image_id, labels, series, label_tag, info)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The local label map."""
        return str(super().get_label_uri(label_id, label_tag))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a draft; ForbiddenError for a submitted label, which is the server's."""
        if label_tag == FINAL:
            series = self.get_label_info(label_id, FINAL).get("SeriesInstanceUID", "none")
            raise ForbiddenError(
                f"the label of image {label_id!r} is segmentation {series} of {self.name()}; delete it there, "
                "and it is forgotten here within seconds"
            )
        super().remove_label(label_id, label_tag)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and label files for training."""
        self.sync(force=True)
        return list(super().datalist(full_path))

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of all images and labels."""
        return str(LocalDatastore.get_dataset_archive(self, limit_cases))  # no lock while the server is asked

    def sync(self, force: bool = False) -> list[str]:
        """Take over segmentations that others stored or removed; ids of the images whose label changed.

        What the server says is believed for `FRESH` seconds. Segmentations that cannot be used are `unusable`.
        """
        if not self._follow or not self._syncing.acquire(blocking=force or self._synced < 0):
            return []  # somebody is looking already
        try:
            if not force and time.monotonic() - self._synced < FRESH:
                return []
            self._synced = time.monotonic()
            changed = self._update_labels(self.web.search(Modality="SEG"))
            self._changed += changed
        except StoreDownError as error:
            logger.warning("%s", error)
            return []
        finally:
            self._syncing.release()
        self._tell()
        return changed

    def unusable(self) -> list[Unusable]:
        """Segmentations on the server that could not be used when they were looked at."""
        return self._index.unusable()

    def _tell(self) -> None:
        """Tell the listeners, once they are there, whose labels changed."""
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
        changed = [image for image, found in newest.items() if self._take(image, found)]
        there = {entry.series for entry in entries}
        for image_id in super().get_labeled_images():
            current = self.get_label_info(image_id, FINAL)
            if image_id not in newest and current.get("SeriesInstanceUID") not in there:
                logger.info("The segmentation of %s is no longer on the server", image_id)
                self._drop_label(image_id)
                changed.append(image_id)
        return changed

    def _take(self, image_id: str, found: Found) -> bool:
        """Make a segmentation the label of its image, unless it is that already or cannot be used."""
        if self.get_label_info(image_id, FINAL).get("SOPInstanceUID") == found.instance:
            return False
        try:
            self.get_image_uri(image_id)
            series = self.series(image_id)
            instances = self.web.fetch(found.entry.study, found.entry.series)
            instance = next(item for item in instances if item.SOPInstanceUID == found.instance)
            read = read_seg(instance, series)
        except StoreDownError:
            raise
        except (RequestError, ValueError, AttributeError, KeyError, NotImplementedError, StopIteration) as error:
            self._index.leave_out(found.entry, str(error))
            return False
        info = {"label_names": read.names, "description": found.entry.description, **_identity(instance)}
        self._keep(image_id, read.labels, series, FINAL, info)
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
    is_server = "monailabel.app" in sys.modules  # not a training or another process of its own
    return DicomStore(client, folder, settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER, follow=is_server)


def names_of(labels: NDArray[np.uint8], info: Mapping[str, Any]) -> dict[str, int]:
    """Name -> value of a label map whose information is `info`; RequestError if names and values do not fit.

    Values that nothing names are called by their number.
    """
    present = [int(value) for value in np.unique(labels) if value]
    try:
        return label_values(info, {}, present) or {f"segment {value}": value for value in present}
    except ValueError as error:
        raise RequestError(str(error)) from error


def _identity(segmentation: Dataset) -> dict[str, str]:
    """What identifies a segmentation on the server."""
    return {
        "SeriesInstanceUID": str(segmentation.SeriesInstanceUID),
        "StudyInstanceUID": str(segmentation.StudyInstanceUID),
        "SOPInstanceUID": str(segmentation.SOPInstanceUID),
        "content_time": content_time(segmentation),
    }
