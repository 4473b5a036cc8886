# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's DICOMweb datastore, for every kind of image; every SEG and RTSTRUCT on the server counts as a label.

The newest segmentation of a series is kept as a label map on the series' grid: cropped frames are put back, and the
names are those of the segments. `sync` notices segmentations that anybody stored or deleted.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from lib.dicom.arrival_times import ArrivalTimes
from lib.dicom.images import VOLUME_BYTES, DicomImages
from lib.dicom.label_objects import MODALITIES, read_label_object
from lib.dicom.listing import LISTING_SECONDS
from lib.dicom.refresher import Refresher
from lib.dicom.seg_index import SegIndex, StoredSegmentation, UnusableSegmentation, content_time
from lib.dicom.seg_labelmap import BINARY
from lib.dicom.seg_writer import write_seg
from lib.dicom.series import Series
from lib.dicom.series_cache import EARLIER_SUFFIX, SUFFIX
from lib.dicom.volumes import read_labels, save_volume
from lib.dicom.web import SeriesEntry, StoreDownError, StoreError
from lib.errors import ForbiddenError, RequestError
from lib.imaging.file_labels import FileLabels
from lib.imaging.label_maps import values_in
from lib.imaging.label_names import one_value_each, value_names

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL

STATE = "state"
"""Key in the information about a label: the state of its segmentation, see `DicomSource.state`; left out if empty."""

SYNC_PATIENCE_SECONDS = 1.0
"""A request that needs the labels waits until a check of the server is this old."""

LABELS_PER_NOTICE = 20
"""Labels that are adopted before the listeners hear of them."""

Listener = Callable[[str, str], Any]
"""Called with (image id, label id) for labels that were not stored with `save_label`."""


class DicomStore(DicomImages):
    """A DICOMweb server as a datastore.

    `on_label` is called for labels that others stored, `on_removed` for images whose label was deleted; changes before
    both are set are reported later. A store without `auto_sync` never looks for changes: processes that the server
    starts use what the server has noted, and never overwrite it or remove volumes.

    The lock `_storing` is taken before those of `DicomImages`, for one label at a time.
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
        self._auto_sync = auto_sync  # the index is read, and reconciled, by the next line
        super().__init__(client, folder, filters, volume_bytes=volume_bytes if auto_sync else None)
        self.on_label: Listener | None = None
        self.seg_type = BINARY
        """How segmentations are stored, one of `SEG_TYPES`."""
        self._storing = RLock()
        self._syncing = Refresher(self._sync, LISTING_SECONDS, "dicom-sync")
        self._changed: list[str] = []  # not told to the listeners yet
        self._last_changed: list[str] = []  # by the last `_sync`
        self._down = ""  # why the server could not be asked by the last `_sync`
        self._arrival_times = ArrivalTimes(folder / "segmentations.json")
        index = folder / "segmentation_headers.json"
        self._index = SegIndex(self.web, self._arrival_times, lambda: self._entries(complete=True), index)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series with a segmentation."""
        self.sync()
        listed = set(self.list_images())
        return [image for image in super().get_labeled_images() if image in listed]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of series without a segmentation that can be segmented."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def status(self) -> dict[str, Any]:
        """The numbers of images and of labels, as far as known now."""
        listed = set(self.list_images())
        with self._lock:
            labels = [(image, tag) for image, entry in self._datastore.objects.items() for tag in entry.labels]
        completed = sum(1 for image, tag in labels if tag == FINAL and image in listed)
        counts = Counter(str(getattr(tag, "value", tag)) for _, tag in labels)
        return {"total": len(listed), "completed": completed, "label_tags": dict(counts)}

    def _on_change(self, path: str) -> None:
        """As for a folder, but for volumes: a series stays while its volume comes and goes."""
        folder, name = os.path.split(os.path.normpath(path))
        is_volume = name.endswith((SUFFIX, EARLIER_SUFFIX)) and folder == os.path.normpath(self._datastore.image_path())
        if not is_volume:
            super()._on_change(path)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index, which only the server does."""
        if self._auto_sync:
            super()._update_datastore_file(lock)

    def _forget(self, image_id: str) -> None:
        """Remove the local copies of a series and of its label, which is on the grid of the series.

        A process beside the server only does without the label.
        """
        if not self._auto_sync:
            with self._lock:
                known = self._datastore.objects.get(image_id)
                if known is not None:
                    known.labels.pop(FINAL, None)
            return
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

        `.bin` files are raw voxels (uint8, column fastest). The names are read as for every label file (`label_names`).
        """
        series = self.open_series(image_id)
        labels, file = read_labels(Path(label_filename), series)
        info = dict(label_info)
        if label_tag != FINAL and file is None:
            return self._keep(image_id, labels, series, label_tag, info)
        labels, names = names_of(labels, info, file)
        if label_tag != FINAL:  # what is kept has no header that names the values, nor values above 255
            return self._keep(image_id, labels, series, label_tag, {**info, "label_names": names})
        title = str(info.get("description") or "K-Prism")
        model = str(info.get("model") or "")
        segmentation = write_seg(labels, names, series, title, model, seg_type=self.seg_type)
        with self._storing:
            self.web.store([segmentation])
            self._index.add(segmentation)
            info |= {
                "label_names": names,
                **_identity(segmentation, self.web.state(str(segmentation.SeriesInstanceUID))),
            }
            return self._keep(image_id, labels, series, label_tag, info)

    def stamp(self, image_id: str) -> str:
        """Always the same: a series that changes on the server is forgotten with its label."""
        return ""

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
        arrived = []
        for image_id in self.get_labeled_images():
            try:
                self.get_image_uri(image_id)
                arrived.append(image_id)
            except StoreDownError:
                raise
            except RequestError as error:
                logger.warning("Image %s is left out of the list: %s", image_id, error)
        pairs = self._labelled_pairs()
        kept = [pairs[image_id] for image_id in arrived if image_id in pairs]
        there = [pair for pair in kept if Path(pair["image"]).exists()]  # the local copies have a budget
        return there if full_path else self._within_folder(there)

    def json(self) -> dict[str, Any]:
        """The index of the images that are served."""
        content = super().json()
        listed = content["objects"] if self.worklist is None else set(self.list_images())
        return {**content, "objects": {image: entry for image, entry in content["objects"].items() if image in listed}}

    def sync(self, force: bool = False) -> list[str]:
        """Adopt segmentations that others stored or deleted; those that cannot be used are `unusable`.

        The server's answer is used again for a while; where it takes long, the labels are adopted in the background.
        With `force` all that is on the server now is adopted; returns the ids of the images whose label changed.
        """
        if not self._auto_sync:
            return []
        if not force:
            self._syncing.ask(patience=SYNC_PATIENCE_SECONDS if self._syncing.may_be_quick else 0.0)
            return []
        self._syncing.now()
        return list(self._last_changed)

    def settle(self) -> None:
        """Wait until all segmentations on the server are adopted, minutes at the first start with thousands."""
        self.sync(force=True)

    def sync_image(self, image_id: str, *, tell: bool = True) -> None:
        """Adopt the newest segmentation of one image now; nothing waits for labels of other studies, and for `_sync`.

        Segmentations in other studies than the image's count from the next `_sync` on. So long the listeners wait if
        they are not to be told here.
        """
        entry = (self._entries().get(image_id) or self.web.find(image_id)) if self._auto_sync else None
        if entry is None:
            return
        found = self.web.search(StudyInstanceUID=entry.study)  # one request, as two modalities would need two
        entries = [
            label for label in found if label.study == entry.study and label.modality in MODALITIES
        ]  # filters may be ignored
        stored = self._index.newest_of(image_id, entry.study, entries)
        if self._update_label(image_id, stored, {segmentation.series for segmentation in entries}) and tell:
            self._notify([image_id])

    def see_label(self, image_id: str) -> None:
        """Adopt the newest segmentation of an image that is opened; while the server is down, what is known counts."""
        try:
            self.sync_image(image_id, tell=False)  # whoever opens it does not wait until it is learned from
        except StoreDownError as error:
            logger.warning("The label of %s is as it was known: %s", image_id, error)

    @property
    def sync_pause(self) -> float:
        """Seconds for which the server should be left alone after the last `sync`."""
        return self._syncing.pause

    def _sync(self) -> float:
        """Adopt what has changed; returns how long the server was listing its segmentations, 0 if it is down."""
        self._last_changed = []
        begun, busy = time.monotonic(), 0.0
        try:
            entries = self._listed_labels()
            busy = time.monotonic() - begun
            self._update_labels(entries)
            self._down = ""
        except StoreDownError as error:
            if str(error) != self._down:  # once, not at every attempt for as long as it lasts
                logger.warning("%s", error)
            self._down = str(error)
        self._notify()
        return busy

    def _listed_labels(self) -> list[SeriesEntry]:
        """All segmentations and structure sets on the server; one that ignores filters is asked once."""
        found: dict[str, SeriesEntry] = {}
        for modality in MODALITIES:
            if all(entry.modality in MODALITIES for entry in found.values()):
                found |= {entry.series: entry for entry in self.web.search(Modality=modality)}
        return [entry for entry in found.values() if entry.modality in MODALITIES]

    def unusable(self) -> list[UnusableSegmentation]:
        """Segmentations on the server that cannot be used, with the reason."""
        return self._index.unusable()

    def _notify(self, images: Container[str] | None = None) -> None:
        """Call the listeners, if both are set, for the images whose labels changed, or those of them in `images`.

        If a listener fails, the images that it has not heard of are kept for the next time.
        """
        if self.on_label is None or self.on_removed is None:
            return
        with self._storing:
            changed = [image for image in dict.fromkeys(self._changed) if images is None or image in images]
            self._changed = [image for image in self._changed if image not in changed]
        try:
            while changed:
                image_id = changed[0]
                if self.get_label_uri(image_id, FINAL):
                    self.on_label(image_id, image_id)
                else:
                    self.on_removed(image_id)
                changed.pop(0)
        finally:
            if changed:
                with self._storing:
                    self._changed = [*changed[1:], changed[0], *self._changed]  # the one that failed after the others

    def _update_labels(self, entries: list[SeriesEntry]) -> None:
        newest = self._index.newest(entries)
        there = {entry.series for entry in entries}
        known = self.label_infos(FINAL)
        for image_id in {**newest, **known}:
            stored = newest.get(image_id)
            if stored is None or not self._is_kept(stored, known.get(image_id, {})):
                if self._update_label(image_id, stored, there):
                    self._last_changed.append(image_id)
                if len(self._changed) >= LABELS_PER_NOTICE:
                    self._notify()

    def _update_label(self, image_id: str, stored: StoredSegmentation | None, there: Container[str]) -> bool:
        """Make a segmentation the label of an image, or remove a label that is not `there` any more (series).

        Nothing changes while the label's own segmentation is on the server and no newer one is. The lock is held for
        one label only, so that users can submit while thousands are adopted.
        """
        with self._storing:
            current = self.get_label_info(image_id, FINAL)
            if stored is not None and self._is_kept(stored, current):
                return False
            series = current.get("SeriesInstanceUID")
            if series and series not in there and self.web.find(series) is not None:
                return False  # it was stored after the listing, or missed because others came between two pages
            if stored is not None:
                changed = self._adopt(image_id, stored)
            else:
                changed = bool(self.get_label_uri(image_id, FINAL)) and series not in there
                if changed:
                    logger.info("The segmentation of %s is no longer on the server", image_id)
                    self._drop_label(image_id)
            if changed:
                self._changed.append(image_id)
            return changed

    def _is_kept(self, stored: StoredSegmentation, label: Mapping[str, Any]) -> bool:
        """Whether a label, by its information, is that of a segmentation as it is now."""
        return label.get("SOPInstanceUID") == stored.instance and label.get(STATE, "") == self.web.state(
            stored.entry.series
        )

    def _adopt(self, image_id: str, stored: StoredSegmentation) -> bool:
        """Make a segmentation the label of its image, unless it cannot be used."""
        if self._index.is_postponed(stored.entry):
            return False
        try:
            series = self.open_series(image_id)
            state = self.web.state(stored.entry.series)  # before the content, which may change meanwhile
            instances = self.web.fetch(stored.entry.study, stored.entry.series)
            instance = next((item for item in instances if item.SOPInstanceUID == stored.instance), None)
            if instance is None:
                raise StoreError(f"the DICOMweb server does not send instance {stored.instance} of it")
            seg = read_label_object(instance, series)
            info = {"label_names": seg.names, "description": stored.entry.description, **_identity(instance, state)}
            if seg.notes:
                info["notes"] = list(seg.notes)
                logger.warning("Segmentation %s: %s", stored.entry.series, " ".join(seg.notes))
            self._keep(image_id, seg.labels, series, FINAL, info)
        except StoreDownError:
            raise
        except Exception as error:  # whatever pydicom raises for a malformed one; it must not end the others
            self._index.mark_unusable(stored.entry, error)
            return False
        return True

    def _keep(self, image_id: str, labels: NDArray[np.uint8], series: Series, tag: str, info: dict[str, Any]) -> str:
        """Store a label map locally."""
        with tempfile.TemporaryDirectory(prefix="kprism-dicom-") as folder:
            path = Path(folder) / f"{image_id}.nii.gz"
            save_volume(labels, series.affine, path)
            return str(super().save_label(image_id, str(path), tag, info))


def names_of(
    labels: NDArray[np.uint8], info: Mapping[str, Any], file: FileLabels | None = None
) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """A label map with one value for each structure, and name -> value, from its information and what its file says.

    Without any names, the names are "segment 1", "segment 2" and so on, by the values. RequestError if names and values
    do not fit.
    """
    present = values_in(labels)
    names = value_names(info, {}, present, file) or {value: f"segment {value}" for value in sorted(present)}
    table, values = one_value_each(names)
    if any(table[value] != value for value in present):
        labels = table[labels]
    return labels, values


def _identity(segmentation: Dataset, state: str) -> dict[str, str]:
    """What a segmentation is known by, in the information about its label."""
    known = {
        "SeriesInstanceUID": str(segmentation.SeriesInstanceUID),
        "StudyInstanceUID": str(segmentation.StudyInstanceUID),
        "SOPInstanceUID": str(segmentation.SOPInstanceUID),
        "content_time": content_time(segmentation),
    }
    return {**known, STATE: state} if state else known
