# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's datastore, made safe for many threads; and the files of its images by their ids."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from kprism_model.files import write_bytes
from lib.errors import ForbiddenError, NotFoundError, RequestError
from lib.folder_contents import Changes, Gone, as_text, is_stale, reconcile
from lib.folder_listing import split_name
from lib.folder_watch import FolderWatch
from lib.image_ids import check_id
from lib.imaging.hand_names import LABEL_FILE, HandNames
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import files_of
from lib.not_served import NotServed
from lib.worklist import Worklist, canonical, listed

logger = logging.getLogger(__name__)

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_tag(tag: Any) -> str:
    """The label tag, or RequestError if it is not a plain word (MONAI Label uses it as a folder name)."""
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise RequestError(f"label tag {tag!r} is not a plain word like 'final' or 'original'")
    return str(getattr(tag, "value", tag))


def check_info(info: Any) -> dict[str, Any]:
    """Information about an image or label, or RequestError if it is not a JSON object."""
    if not isinstance(info, dict):
        raise RequestError(f"the information is {str(info)[:80]!r}; expected a JSON object")
    return info


def stored_at(info: Mapping[str, Any]) -> float:
    """When an image or label was stored (`ts`), in seconds since 1970; 0 if `ts` is not a number."""
    seconds = info.get("ts")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    return float(seconds) if is_number else 0.0  # type: ignore[arg-type]


def _holds_links(folder: str) -> bool:
    """Whether sub-folders lie elsewhere: the system does not tell of changes in these."""
    with os.scandir(folder) as found:
        return any(entry.is_symlink() and entry.is_dir() for entry in found)


UNSAFE_METHODS = (
    *("name", "set_name", "description", "set_description", "status", "json", "refresh", "datalist", "list_images"),
    *("get_labeled_images", "get_unlabeled_images", "get_labels_by_image_id", "get_label_by_image_id"),
    *("get_image", "get_image_uri", "get_image_info", "add_image", "remove_image", "update_image_info"),
    *("get_label", "get_label_uri", "get_label_info", "save_label", "remove_label", "update_label_info"),
    *("_init_from_datastore_file", "_update_datastore_file", "_reconcile_datastore"),
)
"""Methods of MONAI Label's datastore that read or change what other threads change at the same time."""

Store = TypeVar("Store", bound=type)


def locked(store: Store) -> Store:
    """Class decorator: `UNSAFE_METHODS` of a datastore run one at a time, under the lock `_lock` of the object."""

    def under_lock(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            with self._lock:
                return method(self, *arguments, **named)

        return call

    for name in UNSAFE_METHODS:
        setattr(store, name, under_lock(getattr(store, name)))
    return store


@locked
class GuardedDatastore(LocalDatastore):  # type: ignore[misc]
    """MONAI Label's folder of images, for many threads; ids and tags from clients cannot lead out of the folder.

    Labels and the index are written to a new file and renamed, so a kill leaves no partial file. `on_removed` is called
    with the id of an image whose submitted label was removed, `on_names` when somebody changed `labels.json`.
    """

    def __init__(self, *arguments: Any, auto_reload: bool = False, **named: Any) -> None:
        self._lock = RLock()
        self._is_read_only = bool(named.get("read_only"))
        self.on_removed: Callable[[str], object] | None = None
        self.on_names: Callable[[], object] = lambda: None
        self.worklist: Worklist | None = None
        self._gone: Gone = {}
        self._seen: Set[str] = frozenset()
        super().__init__(*arguments, auto_reload=False, **named)
        self._auto_reload = auto_reload
        if auto_reload:
            images = os.path.normpath(self._datastore.image_path())
            folders = {os.path.normpath(self._datastore_path): False, images: False}
            folders[os.path.normpath(self._datastore.label_path(None))] = True
            poll = self._is_on_mount(images) or _holds_links(self._datastore.label_path(None))
            FolderWatch(folders, self._on_change, poll=poll)

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index. One that is damaged is kept under another name, and made anew from what is in the folder."""
        try:
            super()._init_from_datastore_file(throw_exception=throw_exception)
        except ValueError as error:
            path = Path(self._datastore_config_path)
            aside = path.with_name(f"{path.stem}.damaged-{int(time.time())}{path.suffix}")
            reason = " ".join(str(error).split())[:200]
            logger.error(
                "%s cannot be read: %s. A new one is made; the old one is kept as %s", path, reason, aside.name
            )
            if not self._is_read_only:
                os.replace(path, aside)

    def _on_change(self, path: str) -> None:
        """Take over what another process, or a user, has changed. Changes of this process are in the index already."""
        if os.path.normpath(path) == os.path.normpath(self._datastore_config_path):
            self._init_from_datastore_file()
            return
        if os.path.normpath(path) == os.path.normpath(Path(self._datastore_path) / LABEL_FILE):
            self.on_names()
            return
        with self._lock:
            if is_stale(self._datastore, path, self._extensions, self._seen):
                self.refresh()

    def _reconcile_datastore(self) -> None:
        """Bring the index up to date with the files in the folder."""
        self._init_from_datastore_file()
        changes = reconcile(self._datastore, self._extensions, self._gone, self._stays_without_file)
        self._seen = changes.seen
        if changes.entries:
            self._update_datastore_file()
        self._take_note(changes)

    def _take_note(self, changes: Changes) -> None:
        """Called after each look at the folders."""

    def _to_id(self, file: str) -> tuple[str, str]:
        """The id in the name of a file, and its extension as it is spelled."""
        return split_name(file, self._extensions)

    def _stays_without_file(self, image_id: str) -> bool:
        """Whether an image stays in the index while its file is missing."""
        return False

    def not_served(self) -> list[NotServed]:
        """What is in the studies but cannot be segmented, with the reasons, sorted by name."""
        return []

    def can_be_served(self, image_id: str) -> bool:
        """Whether an image can be handed out to be labelled, as far as a look at it tells that takes a moment."""
        return True

    def nothing_to_serve(self) -> str | None:
        """A sentence if there is no image: what was found instead, and what is expected; None if there is one."""
        return None

    def hand_names(self) -> HandNames:
        """The content of `labels.json` in the folder of studies; RequestError for a file that cannot be used."""
        return HandNames.read(Path(self._datastore_path))

    def settle(self) -> None:
        """Wait until all labels are known: a server may have thousands that were not looked at yet."""

    def _served(self, images: Iterable[str]) -> list[str]:
        """Those of the images that are served: the work list names them, if there is one."""
        if self.worklist is None:
            return list(images)
        names = self.worklist.names()
        return [image for image in images if listed(names, image, self._file_name(image))]

    def _file_name(self, image_id: str) -> str:
        """The name of an image's file, which a work list may give too; the id where there is none."""
        entry = self._datastore.objects.get(image_id)
        return image_id if entry is None else image_id + entry.image.ext

    def names_of_images(self) -> set[str]:
        """What a work list may call the images, served or not, as `canonical` names."""
        with self._lock:
            entries = [(image_id, entry.image.ext) for image_id, entry in self._datastore.objects.items()]
        return {canonical(name) for image_id, extension in entries for name in (image_id, image_id + extension)}

    def check_served(self, image_id: str) -> None:
        """ForbiddenError for an image that is not on the work list."""
        if self.worklist is not None and not self.worklist.holds(image_id, self._file_name(image_id)):
            raise ForbiddenError(f"image {image_id!r} is not on the work list of this server ({self.worklist.source})")

    def list_images(self) -> list[str]:
        """Ids of the images that are served."""
        return self._served(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Those of them with a submitted label."""
        return self._served(super().get_labeled_images(label_tag, labels))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Those of them without."""
        return self._served(super().get_unlabeled_images(label_tag, labels))

    def json(self) -> dict[str, Any]:
        """The index of the images that are served."""
        content: dict[str, Any] = super().json()
        served = self._served(content["objects"])
        return {**content, "objects": {image: content["objects"][image] for image in served}}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of image and label files of the images that are served."""
        pairs = self._labelled_pairs()
        kept = [pairs[image] for image in self._served(pairs)]
        return kept if full_path else self._within_folder(kept)

    def _labelled_pairs(self) -> dict[str, dict[str, str]]:
        """Image -> its file and that of its submitted label."""
        with self._lock:
            images = self._datastore.filter_by_tag(DefaultLabelTag.FINAL)
            return dict(zip(images, LocalDatastore.datalist(self), strict=True))

    def _within_folder(self, pairs: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
        """The same pairs with paths from the folder of the datastore on."""
        start = f"{os.path.realpath(self._datastore_path)}/"
        return [{kind: path.removeprefix(start) for kind, path in pair.items()} for pair in pairs]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A new ZIP file of the labelled images, of the first `limit_cases` if given, which the caller removes.

        Nothing is locked meanwhile: it may take minutes.
        """
        pairs = self.datalist()[: limit_cases or None]
        with tempfile.NamedTemporaryFile(prefix="kprism-dataset-", suffix=".zip", delete=False) as file:
            try:
                with zipfile.ZipFile(file, mode="w", strict_timestamps=False) as archive:  # files may be from 1970
                    for pair in pairs:
                        for kind, path in pair.items():
                            for part in files_of(Path(path)):
                                archive.write(part, arcname=f"{kind}/{part.name}")
                    archive.writestr("metadata.json", json.dumps(self.json(), default=str))
            except BaseException:
                Path(file.name).unlink()
                raise
        return file.name

    def check_there(self) -> None:
        """StudiesAwayError while the folder of studies is away."""

    def check_new(self, image_id: str, file: Path) -> None:
        """RequestError for a file that a client sends as an image, but that would not be served."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image under a checked id; it replaces an earlier one in one step, and labels stay."""
        own_id, suffix = self._to_id(Path(image_filename).name)
        image_id, info = check_id(image_id or own_id), check_info(image_info)
        before = self._datastore.objects.get(image_id)
        if before is not None and before.image.ext.lower() != suffix.lower():
            is_there = f"image {image_id!r} is there already, as {image_id}{before.image.ext}"
            raise RequestError(f"{is_there}; expected another name for a file of type {suffix}")
        suffix = suffix if before is None else before.image.ext
        name = self._filename(image_id, suffix)
        with FileLock(self._lock_file):
            write_bytes(Path(self._datastore.image_path()) / name, Path(image_filename).read_bytes())
            image = DataModel(info=info | {"ts": int(time.time()), "name": name}, ext=suffix)
            labels = {} if before is None else before.labels
            self._datastore.objects[image_id] = ImageLabelModel(image=image, labels=labels)
            self._update_datastore_file(lock=False)
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label under a checked id and tag; it replaces an earlier one in one step."""
        entry = self._datastore.objects.get(check_id(image_id))
        tag, info = check_tag(label_tag), check_info(label_info)
        if entry is None:
            raise NotFoundError(f"image {image_id!r} is not in this datastore")
        suffix = self._to_id(Path(label_filename).name)[1]
        folder = Path(self._datastore.label_path(tag))
        folder.mkdir(parents=True, exist_ok=True)
        name, before = self._filename(image_id, suffix), entry.labels.get(tag)
        with FileLock(self._lock_file):
            write_bytes(folder / name, Path(label_filename).read_bytes())
            info |= {"ts": int(time.time()), "name": name}
            entry.labels[tag] = DataModel(info=info, ext=suffix)
            self._update_datastore_file(lock=False)
            if before is not None and before.ext != suffix:
                (folder / self._filename(image_id, before.ext)).unlink(missing_ok=True)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Delete a label."""
        super().remove_label(label_id, label_tag)
        if label_tag == DefaultLabelTag.FINAL and self.on_removed is not None:
            self.on_removed(label_id)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index of images and labels in one step."""
        path = Path(self._datastore_config_path)
        text = as_text(self._datastore).encode()
        with FileLock(self._lock_file) if lock else nullcontext():
            write_bytes(path, text)
            self._config_ts = path.stat().st_mtime

    def opened_image(self, image_id: str, *, begin: bool = False) -> str:
        """The file of an image for `Engine`, which can read one that still arrives; else as `get_image_uri`.

        Only what is read of it is fetched, or all of it with `begin`.
        """
        return str(self.get_image_uri(image_id) or "")

    def state_file(self, image_id: str) -> str:
        """A file that changes whenever the image does; by default the image itself."""
        return self.opened_image(image_id)

    def stamp(self, image_id: str) -> str:
        """Changes whenever the image is replaced, without a look into its file; empty if there is none."""
        try:
            states = [file.stat() for file in files_of(Path(self.get_image_uri(image_id)))]
        except OSError:
            return ""
        return " ".join(f"{state.st_mtime_ns} {state.st_size}" for state in states)

    def grid_image(self, image_id: str, name: str) -> MedicalImage | None:
        """An image without its voxels, called `name`, if its grid is known without its file; None if it is not."""
        return None

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """A copy, without a `strategy` that is not an object: MONAI Label writes into it."""
        info = dict(super().get_image_info(image_id))
        if not isinstance(info.get("strategy", {}), dict):
            del info["strategy"]
        return info

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """A copy, which other threads do not change."""
        return copy.deepcopy(dict(super().get_label_info(label_id, label_tag)))

    def label_infos(self, label_tag: str) -> dict[str, Mapping[str, Any]]:
        """Image id -> information about its label with a tag, of all images that have one; never changed afterwards."""
        with self._lock:
            found = ((image_id, entry.labels.get(label_tag)) for image_id, entry in self._datastore.objects.items())
            return {image_id: label.info for image_id, label in found if label is not None}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Change the information about an image."""
        super().update_image_info(image_id, check_info(info))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Change the information about a label."""
        checked = check_info(info)
        label = self._datastore.label(label_id, label_tag)
        if label is not None:
            label.info = dict(label.info)  # others may be reading the old one, see `label_infos`
        super().update_label_info(label_id, label_tag, checked)
