# SPDX-License-Identifier: Apache-2.0
"""The index of MONAI Label's folder against the files that are there.

MONAI Label asks the file system several times for every file, and searches lists for every name. Here each folder is
listed once, so that a folder of many thousand images opens in a fraction of a second.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel

logger = logging.getLogger(__name__)

Identify = Callable[[str], tuple[str, str]]
"""File name -> (id, extension)."""


def reconcile(
    index: LocalDatastoreModel,
    extensions: Sequence[str],
    identify: Identify,
    stays: Callable[[str], bool] = lambda image_id: False,
) -> int:
    """Bring an index up to date with its folders; returns the number of entries that were added or removed.

    `extensions` are the patterns of the names of images and labels, such as "*.nii.gz". An image whose file is missing
    is removed from the index unless it `stays`.
    """
    changes = 0
    images = _Folder(index.image_path())
    for image_id, entry in list(index.objects.items()):
        if not images.holds(image_id + entry.image.ext) and not stays(image_id):
            logger.info("Image %r is no longer there", image_id)
            del index.objects[image_id]
            changes += 1
    known = {image_id + entry.image.ext for image_id, entry in index.objects.items()}
    before = set(index.objects)
    for name in images.matching(extensions, known):
        image_id, extension = identify(name)
        if image_id not in before:
            logger.info("Image %r is new: %s", image_id, name)
            index.objects[image_id] = ImageLabelModel(image=_found(name, extension))
            changes += 1
    return changes + _reconcile_labels(index, extensions, identify)


def _reconcile_labels(index: LocalDatastoreModel, extensions: Sequence[str], identify: Identify) -> int:
    changes = 0
    with os.scandir(index.label_path(None)) as found:
        folders = {entry.name: _Folder(entry.path) for entry in found if entry.is_dir()}
    known: dict[str, set[str]] = {tag: set() for tag in folders}
    for image_id, entry in index.objects.items():
        for tag, label in list(entry.labels.items()):
            name = image_id + label.ext
            if tag in folders and folders[tag].holds(name):
                known[tag].add(name)
            else:
                logger.info("The label %r of image %r is no longer there", tag, image_id)
                del entry.labels[tag]
                changes += 1
    for tag, folder in folders.items():
        orphans = []
        for name in folder.matching(extensions, known[tag]):
            label_id, extension = identify(name)
            if label_id not in index.objects:
                orphans.append(name)
            elif tag not in index.objects[label_id].labels:
                logger.info("The label %r of image %r is new: %s", tag, label_id, name)
                index.objects[label_id].labels[tag] = _found(name, extension)
                changes += 1
        if orphans:
            shown = ", ".join(sorted(orphans)[:5])
            logger.warning("%d labels with the tag %r belong to no image: %s ...", len(orphans), tag, shown)
    return changes


def is_stale(index: LocalDatastoreModel, path: str, extensions: Sequence[str], identify: Identify) -> bool:
    """Whether an index has to be reconciled because of the file at `path`, which somebody wrote, moved or removed.

    False for the files of the index's owner, who updates the index, and for files that the index cannot use.
    """
    file = Path(os.path.normpath(path))
    label_id, extension = identify(file.name)
    entry = index.objects.get(label_id)
    is_image = file.parent == Path(os.path.normpath(index.image_path()))
    if not is_image and (entry is None or file.parent.parent != Path(os.path.normpath(index.label_path(None)))):
        return False  # no file of this index, or a label without an image
    known = entry and (entry.image if is_image else entry.labels.get(file.parent.name))
    if file.exists():
        return known is None and any(fnmatch.fnmatch(file.name, pattern) for pattern in extensions)
    return known is not None and known.ext == extension


def as_text(index: LocalDatastoreModel) -> str:
    """An index as JSON, with a line for each image: MONAI Label's indented form takes Python ten times as long."""
    encode = json.JSONEncoder(default=str).encode
    content = index.model_dump(exclude={"base_path"})
    objects = ",\n".join(f"{encode(name)}: {encode(entry)}" for name, entry in content.pop("objects").items())
    head = "".join(f"{encode(key)}: {encode(value)},\n" for key, value in content.items())
    return f'{{\n{head}"objects": {{\n{objects}\n}}\n}}\n'


class _Folder:
    """The names of what a folder holds, without links that lead nowhere."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        with os.scandir(path) as found:
            self._names = {entry.name for entry in found if not entry.is_symlink() or Path(entry.path).exists()}

    def holds(self, name: str) -> bool:
        """Whether a file is there; names can be paths, and some file systems ignore case."""
        return name in self._names or (self._path / name).exists()

    def matching(self, patterns: Sequence[str], known: Iterable[str]) -> list[str]:
        """The names beside those that are `known` which match a pattern, in the order of the patterns."""
        names = sorted(self._names.difference(known))
        return list(dict.fromkeys(name for pattern in patterns for name in fnmatch.filter(names, pattern)))


def _found(name: str, extension: str) -> DataModel:
    return DataModel(info={"ts": int(time.time()), "name": name}, ext=extension)
