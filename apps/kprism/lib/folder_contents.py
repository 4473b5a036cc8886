# SPDX-License-Identifier: Apache-2.0
"""The index of MONAI Label's folder against the files that are there.

MONAI Label asks the file system several times for every file, and searches lists for every name. Here each folder is
listed once, so that a folder of many thousand images opens in a fraction of a second.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.folder_listing import FolderListing, fits, is_file, is_segmentation, printable, split_name
from lib.not_served import NotServed

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL.value

SEGMENTATION = ".seg"
"""3D Slicer's ending before `.nrrd`: `x.seg.nrrd` is a label of the image `x`, unless there is an image `x.seg`."""


class Changes(NamedTuple):
    """What a look at the folders brought.

    `entries` counts the images and labels that were added to the index or removed from it. `images` are the ids of new
    images, `labels` those of images whose submitted label came or went, also with the image itself. `left_out` is what
    is in the folders, but not in the index, and `types` how many files of which extension lie among the images. `seen`
    are the names of all that lies among the images, and with the tag before them (`final/x.nrrd`) among the labels.
    """

    entries: int
    images: set[str]
    labels: set[str]
    left_out: list[NotServed]
    types: Mapping[str, int]
    seen: Set[str]


class _Look:
    """One look at the folders of an index, which brings the index up to date.

    All folders are listed at the start: where one is missing, as that of a share which is not mounted, OSError is
    raised and nothing has changed.
    """

    def __init__(
        self, index: LocalDatastoreModel, patterns: Sequence[str], stays: Callable[[str], bool], gone: Gone
    ) -> None:
        self._index, self._patterns, self._stays, self._gone = index, patterns, stays, gone
        self._images = FolderListing(index.image_path(), patterns, of_images=True)
        self._tags: dict[str, FolderListing | None] = {}  # None for one that cannot be listed
        self._left_out: list[NotServed] = []
        with os.scandir(index.label_path(None)) as found:
            tags = sorted((entry.name, entry.path) for entry in found if entry.is_dir())
        for tag, path in tags:
            try:
                self._tags[tag] = FolderListing(path, patterns)
            except OSError as error:
                self._tags[tag] = None
                self._leave_out(f"{index.labels_dir}/{tag}", f"cannot be listed: {error.strerror or error}")
        self._entries = 0
        self._new: set[str] = set()
        self._labels: set[str] = set()

    def take_over(self) -> Changes:
        """Bring the index up to date."""
        self._remove_images()
        self._add_images()
        self._remove_labels()
        for tag, folder in self._tags.items():
            if folder is not None:
                self._add_labels(tag, folder)
        labels = Path(os.path.relpath(self._index.label_path(None), self._index.image_path())).parts[0]
        nested = {name.split("/")[0] for name in self._index.objects if "/" in name}
        left_out = [*self._images.left_out(), *self._images.folders_with_images({labels, *nested}), *self._left_out]
        seen = {f"{tag}/{name}" for tag, folder in self._tags.items() if folder is not None for name in folder.names}
        seen |= self._images.names
        return Changes(self._entries, self._new, self._labels, sorted(left_out), self._images.types(), seen)

    def _remove_images(self) -> None:
        for image_id, entry in list(self._index.objects.items()):
            name = image_id + entry.image.ext
            is_there = not (image_id.startswith(".") or is_segmentation(name)) and self._images.holds(name)
            if not is_there and not self._stays(image_id):
                logger.info("Image %r is no longer there", image_id)
                self._gone[name] = self._index.objects.pop(image_id)
                self._entries += 1
                if FINAL in entry.labels:
                    self._labels.add(image_id)

    def _add_images(self) -> None:
        objects = self._index.objects
        for name in self._images.matching({image_id + entry.image.ext for image_id, entry in objects.items()}):
            image_id, extension = split_name(name, self._patterns)
            if image_id in objects:
                other = image_id + objects[image_id].image.ext
                self._leave_out(name, f"has the same name as {printable(other)}, which comes first; rename one of them")
                continue
            logger.info("Image %r is new: %s", image_id, name)
            # One that was away for a while has the names of its labels again.
            objects[image_id] = self._gone.pop(name, None) or ImageLabelModel(image=_found(name, extension))
            self._entries += 1
            self._new.add(image_id)
            if FINAL in objects[image_id].labels:
                self._labels.add(image_id)

    def _remove_labels(self) -> None:
        for image_id, entry in self._index.objects.items():
            for tag, label in list(entry.labels.items()):
                folder = self._tags.get(tag)
                if (tag in self._tags and folder is None) or (folder and folder.holds(image_id + label.ext)):
                    continue
                logger.info("The label %r of image %r is no longer there", tag, image_id)
                del entry.labels[tag]
                self._entries += 1
                if tag == FINAL:
                    self._labels.add(image_id)

    def _add_labels(self, tag: str, folder: FolderListing) -> None:
        objects = self._index.objects
        known = {image_id + entry.labels[tag].ext for image_id, entry in objects.items() if tag in entry.labels}
        for name in folder.matching(known):
            label_id, extension = label_name(name, self._patterns, objects)
            path = f"{self._index.labels_dir}/{tag}/{name}"
            if label_id not in objects:
                self._leave_out(path, f"is a label without an image: {self._similar(label_id)}")
            elif (other := objects[label_id].labels.get(tag)) is not None:
                used = printable(label_id + other.ext)
                self._leave_out(path, f"is not used: the image has the label {used} already; remove one of them")
            else:
                logger.info("The label %r of image %r is new: %s", tag, label_id, name)
                objects[label_id].labels[tag] = _found(name, extension)
                self._entries += 1
                if tag == FINAL:
                    self._labels.add(label_id)
        if tag == FINAL:
            for found in folder.left_out():
                self._leave_out(f"{self._index.labels_dir}/{tag}/{found.name}", found.reason)

    @cached_property
    def _spellings(self) -> dict[str, str]:
        """Ids of images by what they have in common with those that look the same."""
        return {_spelling(image_id): image_id for image_id in self._index.objects}

    def _similar(self, label_id: str) -> str:
        """That there is no image of a name, or one whose name only looks the same."""
        image_id = self._spellings.get(_spelling(label_id))
        if image_id is None:
            return f"there is none of the name {printable(label_id)}"
        is_case = normalize("NFC", image_id) != normalize("NFC", label_id)
        how = "differs in letter case" if is_case else "encodes its accents in another way, as macOS does"
        return f"the name of the image {printable(image_id)} {how}; rename one of them"

    def _leave_out(self, name: str, reason: str) -> None:
        self._left_out.append(NotServed(printable(name), reason))


Gone = dict[str, ImageLabelModel]
"""File name -> entry of an image that is missing: it may come back, as after a moment without a network."""


def reconcile(
    index: LocalDatastoreModel,
    patterns: Sequence[str],
    gone: Gone,
    stays: Callable[[str], bool] = lambda image_id: False,
) -> Changes:
    """Bring an index up to date with its folders.

    `patterns` are those of the names of images and labels, such as "*.nii.gz". An image whose file is missing is
    removed from the index unless it `stays`, and kept in `gone`. OSError if a folder is missing; then nothing has
    changed.
    """
    return _Look(index, patterns, stays, gone).take_over()


def label_name(name: str, patterns: Sequence[str], images: Mapping[str, object]) -> tuple[str, str]:
    """The image id in the name of a label's file, and its extension, which may be `.seg.nrrd`."""
    label_id, extension = split_name(name, patterns)
    if label_id not in images and label_id.lower().endswith(SEGMENTATION):
        length = len(label_id) - len(SEGMENTATION)
        return label_id[:length], label_id[length:] + extension
    return label_id, extension


def is_stale(index: LocalDatastoreModel, path: str, patterns: Sequence[str], seen: Set[str]) -> bool:
    """Whether an index has to be reconciled because of the file at `path`, which somebody wrote, moved or removed.

    False for the files of the index's owner, who updates the index. `seen`: what the last look saw, see `Changes`.
    """
    file = Path(os.path.normpath(path))
    images, labels = (Path(os.path.normpath(folder)) for folder in (index.image_path(), index.label_path(None)))
    if file.parent == images:
        image_id, place = split_name(file.name, patterns)[0], file.name
        entry = index.objects.get(image_id)
        known = entry.image if entry else None
    elif file.parent.parent == labels:
        image_id, place = label_name(file.name, patterns, index.objects)[0], f"{file.parent.name}/{file.name}"
        entry = index.objects.get(image_id)
        known = entry.labels.get(file.parent.name) if entry else None
    else:
        return False
    if known is not None and file.name == image_id + known.ext:
        return not is_file(file)
    is_hidden = file.name.startswith(".") and not fits(file.name, patterns)
    return not is_hidden and os.path.lexists(file) != (place in seen)


def as_text(index: LocalDatastoreModel) -> str:
    """An index as JSON, with a line for each image: MONAI Label's indented form takes Python ten times as long."""
    encode = json.JSONEncoder(default=str).encode
    content = index.model_dump(exclude={"base_path"})
    objects = ",\n".join(f"{encode(name)}: {encode(entry)}" for name, entry in content.pop("objects").items())
    head = "".join(f"{encode(key)}: {encode(value)},\n" for key, value in content.items())
    return f'{{\n{head}"objects": {{\n{objects}\n}}\n}}\n'


def _spelling(image_id: str) -> str:
    return normalize("NFC", image_id).casefold()


def _found(name: str, extension: str) -> DataModel:
    return DataModel(info={"ts": int(time.time()), "name": name}, ext=extension)
