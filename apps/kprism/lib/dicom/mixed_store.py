# SPDX-License-Identifier: Apache-2.0
"""A folder with DICOM series and image files of other types: one datastore of both, each kept in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.dicom.datastore import DicomStore
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.folder_contents import Changes
from lib.folder_listing import fits
from lib.folder_store import FolderStore
from lib.not_served import NotServed

OF_ONE_IMAGE = (
    *("get_image", "get_image_uri", "get_image_info", "remove_image", "update_image_info", "save_label"),
    *("get_label", "get_label_uri", "get_label_info", "get_labels_by_image_id", "get_label_by_image_id"),
    *("remove_label", "update_label_info", "opened_image", "state_file", "grid_image", "can_be_served"),
    *("check_served", "stamp"),
)
"""Methods whose first argument is an image, or its label, which has the same id."""


def dicom_part(datastore: Datastore) -> DicomStore | None:
    """The DICOM series of a datastore; None if it has none."""
    if isinstance(datastore, MixedStore):
        return datastore.dicom
    return datastore if isinstance(datastore, DicomStore) else None


def store_of(datastore: Datastore, image_id: str) -> DicomStore | None:
    """The part of a datastore that holds an image as a DICOM series; None for an image file of another type."""
    if isinstance(datastore, MixedStore) and not datastore.is_dicom(image_id):
        return None
    return dicom_part(datastore)


def _by_image(store: type[MixedStore]) -> type[MixedStore]:
    """Class decorator: methods for one image go to the DICOM part if it is one of its series."""

    def shared(name: str) -> Callable[..., Any]:
        own = getattr(FolderStore, name)

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
class MixedStore(FolderStore):
    """A folder of image files, and the DICOM series in it and its subfolders.

    `begins_empty`: nothing was found in a first look, so that can be said before the DICOM files are indexed.
    """

    def __init__(self, folder: str, dicom: DicomFolderStore, *, begins_empty: bool = False, **options: Any) -> None:
        self.dicom = dicom
        self._begins_empty = begins_empty
        super().__init__(folder, **options)

    def is_dicom(self, image_id: str) -> bool:
        """Whether an image is a DICOM series; one that is just gone is still known by its copy."""
        is_file = image_id in self._datastore.objects
        return not is_file and (self.dicom.files.lists(image_id) or image_id in self.dicom._datastore.objects)

    def list_images(self) -> list[str]:
        """Ids of the files, then of the series."""
        return [*super().list_images(), *self.dicom.list_images()]

    def names_of_images(self) -> set[str]:
        """Those of the files and of the series."""
        return super().names_of_images() | self.dicom.names_of_images()

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
        tags: dict[str, int] = dict(self.dicom.status()["label_tags"])
        with self._lock:
            for entry in self._datastore.objects.values():
                for tag in entry.labels:
                    name = str(getattr(tag, "value", tag))
                    tags[name] = tags.get(name, 0) + 1
        return {
            "total": len(self.list_images()),
            "completed": len(self.get_labeled_images()),
            "label_tags": tags,
            "not_served": len(self.not_served()),
        }

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and label files for training."""
        return [*super().datalist(full_path), *self.dicom.datalist(full_path)]

    def json(self) -> dict[str, Any]:
        """The index of both parts."""
        content = dict(super().json())
        content["objects"] = {**content["objects"], **self.dicom.json()["objects"]}
        return content

    def settle(self) -> None:
        """Wait until all labels are known."""
        super().settle()
        self.dicom.settle()

    def not_served(self) -> list[NotServed]:
        """What the folder holds and is not served."""
        files = self.dicom.files.not_served(serves_others=True)
        return sorted({*super().not_served(), *DicomStore.not_served(self.dicom), *files})

    def nothing_to_serve(self) -> str | None:
        """A sentence if there is no image at all; None while the DICOM files are not known yet."""
        files = self.dicom.files
        if files.changing or not (files.is_complete or self._begins_empty):
            return None
        sentence = super().nothing_to_serve()
        return None if sentence is None else f"{sentence} DICOM files may also lie in its subfolders."

    def _take_note(self, changes: Changes) -> None:
        """Files of other types are looked at by the DICOM part, which tells of those that are none."""
        folder = Path(self._datastore_path)
        left_out = [
            entry
            for entry in changes.left_out
            if fits(entry.name, self._extensions) or "/" in entry.name or not (folder / entry.name).is_file()
        ]
        super()._take_note(changes._replace(left_out=left_out))
