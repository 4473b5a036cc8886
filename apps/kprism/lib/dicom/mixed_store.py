# SPDX-License-Identifier: Apache-2.0
"""A folder with DICOM series and image files of other types: one datastore of both, each kept in its own way."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.datastore import GuardedDatastore
from lib.dicom.datastore import DicomStore
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.not_served import NotServed

OF_ONE_IMAGE = (
    *("get_image", "get_image_uri", "get_image_info", "remove_image", "update_image_info", "save_label"),
    *("get_label", "get_label_uri", "get_label_info", "get_labels_by_image_id", "get_label_by_image_id"),
    *("remove_label", "update_label_info", "opened_image", "state_file", "grid_image"),
)
"""Methods whose first argument is an image, or its label, which has the same id."""


def dicom_part(datastore: Datastore) -> DicomStore | None:
    """The DICOM series of a datastore; None if it has none."""
    if isinstance(datastore, MixedStore):
        return datastore.dicom
    return datastore if isinstance(datastore, DicomStore) else None


def _by_image(store: type[MixedStore]) -> type[MixedStore]:
    """Class decorator: methods for one image go to the DICOM part if it is one of its series."""

    def shared(name: str) -> Callable[..., Any]:
        own = getattr(GuardedDatastore, name)

        @wraps(own)
        def call(self: MixedStore, image_id: str, *arguments: Any, **named: Any) -> Any:
            if self.is_dicom(image_id):
                return getattr(self.dicom, name)(image_id, *arguments, **named)
            return own(self, image_id, *arguments, **named)

        return call

    for name in OF_ONE_IMAGE:
        setattr(store, name, shared(name))
    return store


@_by_image
class MixedStore(GuardedDatastore):
    """A folder of image files, and the DICOM series in it and its subfolders."""

    def __init__(self, folder: str, dicom: DicomFolderStore, **options: Any) -> None:
        self.dicom = dicom
        super().__init__(folder, **options)

    def is_dicom(self, image_id: str) -> bool:
        """Whether an image is a DICOM series; one that is just gone is still known by its copy."""
        is_file = image_id in self._datastore.objects
        return not is_file and (self.dicom.files.lists(image_id) or image_id in self.dicom._datastore.objects)

    def list_images(self) -> list[str]:
        """Ids of the files, then of the series."""
        return [*super().list_images(), *self.dicom.list_images()]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of images with a label."""
        return [*super().get_labeled_images(label_tag, labels), *self.dicom.get_labeled_images(label_tag, labels)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of images without a label."""
        return [*super().get_unlabeled_images(label_tag, labels), *self.dicom.get_unlabeled_images(label_tag, labels)]

    def label_infos(self, label_tag: str) -> dict[str, Mapping[str, Any]]:
        """Image id -> information about its label with a tag."""
        return {**super().label_infos(label_tag), **self.dicom.label_infos(label_tag)}

    def status(self) -> dict[str, Any]:
        """The numbers of images and of labels."""
        files, series = self._file_status(), self.dicom.status()
        tags = {
            tag: files["label_tags"].get(tag, 0) + series["label_tags"].get(tag, 0)
            for tag in {**files["label_tags"], **series["label_tags"]}
        }
        return {key: files[key] + series[key] for key in ("total", "completed")} | {"label_tags": tags}

    def _file_status(self) -> dict[str, Any]:
        with self._lock:
            entries = list(self._datastore.objects.values())
            tags = [str(getattr(tag, "value", tag)) for entry in entries for tag in entry.labels]
        return {
            "total": len(entries),
            "completed": tags.count("final"),
            "label_tags": {tag: tags.count(tag) for tag in dict.fromkeys(tags)},
        }

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and label files for training."""
        return [*super().datalist(full_path), *self.dicom.datalist(full_path)]

    def json(self) -> dict[str, Any]:
        """The index of both parts."""
        content = dict(super().json())
        content["objects"] = {**content["objects"], **self.dicom.json()["objects"]}
        return content

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP file of all images and labels."""
        pairs = self.datalist()[: limit_cases or None]
        with tempfile.NamedTemporaryFile(delete=False) as file, zipfile.ZipFile(file, mode="w") as archive:
            for pair in pairs:
                for kind, path in pair.items():
                    archive.write(path, arcname=f"{kind}/{Path(path).name}")
            archive.writestr("metadata.json", json.dumps(self.json(), default=str))
        return file.name

    def settle(self) -> None:
        """Wait until all labels are known."""
        super().settle()
        self.dicom.settle()

    def not_served(self) -> list[NotServed]:
        """What the folder holds and is not served."""
        beside = self.dicom.files.not_served(serves_others=True)
        known = self.dicom.files.index.entries
        files = [item for item in super().not_served() if item.name not in known]  # DICOM is nothing odd here
        return sorted({*files, *DicomStore.not_served(self.dicom), *beside})
