# SPDX-License-Identifier: Apache-2.0
"""A folder of image files as a datastore: what cannot be segmented is not served, and what others change is noticed.

A thread looks at the headers of the images at a gentle pace, gives out labels that others put into `labels/final`, and
lists the folder and compares the times of its files now and then, in case the system told of a change only in part.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag

from lib.datastore import GuardedDatastore, locked
from lib.errors import RETRY_SECONDS, RequestError, StudiesAwayError
from lib.file_checks import FileChecks, Stamp, stamp_of
from lib.folder_contents import Changes, label_name
from lib.folder_listing import expected, split_name
from lib.image_ids import check_id
from lib.imaging.reading import files_of, read_image
from lib.label_arrivals import LabelArrivals
from lib.not_served import NotServed

logger = logging.getLogger(__name__)

FINAL = DefaultLabelTag.FINAL

LOOK_SECONDS = 0.02
"""Time for headers of images at a turn of the thread."""

BUSY_PAUSE_SECONDS, PAUSE_SECONDS = 0.1, 0.5
"""Pauses between two turns, while there are images that were not looked at and after that."""

LIST_SECONDS = 30.0
"""The folder is listed, and the times of its files are compared, so often, also if nobody tells of a change."""

CHECKED_AT_ONCE = 20
"""New images that are looked at before they are listed; of more, the thread finds those that cannot be segmented."""

LOGGED = 20
"""Names of what is not served that are logged at once."""


@locked
class FolderStore(GuardedDatastore):
    """A folder of images. Its thread runs in the server only, where `auto_reload` is set.

    `on_label` and `on_removed` are called with the id of an image whose submitted label others put there or removed.
    """

    def __init__(self, *arguments: Any, auto_reload: bool = False, **named: Any) -> None:
        self.checks = FileChecks(lambda path, name: read_image(path, name))
        self.on_label: Callable[[str, str], object] | None = None
        self._arrivals = LabelArrivals(self._label_stamp)
        self._own: dict[str, Stamp | None] = {}  # labels that this process has written
        self._seen_labels: dict[str, Stamp | None] = {}
        self._opened: dict[str, str] = {}  # file -> image id
        self._unchecked: dict[str, None] = {}
        self._beside: dict[str, str] = {}  # name of a file of voxels -> the image whose header names it
        self._left_out: list[NotServed] = []
        self._types: dict[str, int] = {}
        self._is_watched = self._is_known = False
        super().__init__(*arguments, auto_reload=auto_reload, **named)
        self._is_empty, self._is_known = False, self._has_own_files()
        self._say_if_empty()
        if auto_reload:
            self._is_watched = True
            self._is_listed = not named.get("read_only")
            self._listed_at = time.monotonic()
            self._unchecked = dict.fromkeys(self._datastore.objects)
            self._compare()
            Thread(target=_work, args=(weakref.ref(self),), name="folder", daemon=True).start()

    # what is served

    def _served(self, images: Iterable[str]) -> list[str]:
        """Those of the images that can be segmented, as far as known, and that the work list names."""
        refused = self.checks.refused()
        return [image for image in super()._served(images) if image not in refused]

    def status(self) -> dict[str, Any]:
        """The numbers of images, of labels, and of what is not served."""
        return {**super().status(), "not_served": len(self.not_served())}

    def not_served(self) -> list[NotServed]:
        """What is in the folder but is not served, with the reasons, sorted by name."""
        with self._lock:
            objects = self._datastore.objects
            refused = [
                NotServed(image_id + objects[image_id].image.ext, reason)
                for image_id, reason in self.checks.refused().items()
                if image_id in objects
            ]
            return sorted([*self._left_out, *refused])

    def nothing_to_serve(self) -> str | None:
        """A sentence if there is no image: what was found instead, and what is expected."""
        if self.list_images():
            return None
        if self.worklist is not None and (count := len(self._datastore.objects)):
            return self.worklist.names_none_of(count)
        found = [
            f"{count} file{'s' if count > 1 else ''} of type {kind}" for kind, count in sorted(self._types.items())
        ]
        others = [entry for entry in self.not_served() if "of type" not in entry.reason]
        examples = "; ".join(f"{entry.name} {entry.reason}" for entry in others[:3])
        return (
            f"There is nothing to serve: the folder {self._datastore_path} holds no image that can be segmented. "
            f"Found: {', '.join(found) or 'no file'}{f' ({examples})' if examples else ''}. "
            f"Expected: files of type {expected(self._extensions)}, directly in this folder."
        )

    def can_be_served(self, image_id: str) -> bool:
        """Whether an image can be segmented; a small file is read as a whole, because it is opened in a moment."""
        with self._lock:
            path = self.get_image_uri(image_id)
        return bool(path) and self.checks.look(image_id, Path(path), hand_out=True) is None

    def check_all(self) -> None:
        """Look at the headers of all images now."""
        with self._lock:
            images = list(self._datastore.objects)
        for image_id in images:
            self.checks.look(image_id, Path(self.get_image_uri(image_id)))

    def opened_image(self, image_id: str, *, begin: bool = False) -> str:
        """The file of an image that is opened."""
        path = super().opened_image(image_id, begin=begin)
        self._opened[path] = image_id
        return path

    def refuse(self, path: Path, error: RequestError) -> None:
        """Do not serve an image whose file could not be opened, until the file changes."""
        image_id = self._opened.get(str(path))
        if image_id is not None:
            self.checks.refuse(image_id, path, error)

    # what others change

    def check_new(self, image_id: str, file: Path) -> None:
        """RequestError for a file that cannot be segmented."""
        self.checks.read(file, f"image {check_id(image_id)!r}")

    def check_there(self) -> None:
        """StudiesAwayError while the folder is away: what is written at its place is hidden once it is back."""
        if self._is_known and not self._has_own_files():
            raise StudiesAwayError(
                f"the folder of studies {self._datastore_path} is not there, or without its index; is its share "
                "mounted? Nothing was changed"
            )

    def _has_own_files(self) -> bool:
        """Whether the index or the labels are there: the place of a share is there without the share, they are not."""
        return any(os.path.lexists(path) for path in (self._datastore_config_path, self._datastore.label_path(None)))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image, see `GuardedDatastore`."""
        self.check_there()
        return super().add_image(image_id, image_filename, image_info)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the index, but not to where the folder was."""
        self.check_there()
        super()._update_datastore_file(lock)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label, see `GuardedDatastore`."""
        self.check_there()
        saved = super().save_label(image_id, label_filename, label_tag, label_info)
        if label_tag == FINAL:
            self._own[image_id] = self._label_stamp(image_id)
        return saved

    def _on_change(self, path: str) -> None:
        """Note which image or label changed, after what is new in the folder was taken over."""
        super()._on_change(path)
        file = Path(path)
        with self._lock:
            if file.parent == Path(self._datastore.label_path(FINAL)):
                image_id = label_name(file.name, self._extensions, self._datastore.objects)[0]
                if image_id in self._datastore.objects:
                    self._arrivals.add(image_id)
            elif file.parent == Path(self._datastore.image_path()):
                image_id = self._beside.get(file.name) or split_name(file.name, self._extensions)[0]
                entry = self._datastore.objects.get(image_id)
                if entry is not None and (file.name in self._beside or file.name == image_id + entry.image.ext):
                    self._unchecked[image_id] = None

    def _take_note(self, changes: Changes) -> None:
        new = [entry for entry in changes.left_out if entry not in self._left_out]
        for entry in new[:LOGGED]:
            logger.warning("Not served: %s %s", entry.name, entry.reason)
        if len(new) > LOGGED:
            logger.warning("Not served: %d more, see the status page", len(new) - LOGGED)
        self._left_out, self._types = changes.left_out, dict(changes.types)
        for image_id in self.checks.refused():
            if image_id not in self._datastore.objects:
                self.checks.forget(image_id)
        if not self._is_watched:
            return  # whoever opens the folder reads all its labels
        for image_id in changes.labels:
            self._arrivals.add(image_id)
        self._unchecked.update(dict.fromkeys(changes.images))
        if len(changes.images) <= CHECKED_AT_ONCE:
            for image_id in changes.images:
                self._check(image_id)

    def _label_stamp(self, image_id: str) -> Stamp | None:
        path = self.get_label_uri(image_id, FINAL)
        return stamp_of(path) if path else None

    # the thread

    def work(self) -> float:
        """One turn of the thread; returns the seconds until the next."""
        if self._is_listed and time.monotonic() - self._listed_at > LIST_SECONDS:
            self._listed_at = time.monotonic()
            self.refresh()
            self._compare()
        self._give_out_labels()
        for image_id in self.checks.refused():
            path = self.get_image_uri(image_id)
            if path and self.checks.is_due(image_id, Path(path)):
                self._unchecked[image_id] = None
        end = time.monotonic() + LOOK_SECONDS
        for image_id in list(self._unchecked):
            self._check(image_id)
            if time.monotonic() > end:
                break
        self._say_if_empty()
        return BUSY_PAUSE_SECONDS if self._unchecked else PAUSE_SECONDS

    def _compare(self) -> None:
        """Find the files that changed and of which the system did not tell, such as those behind links."""
        with self._lock:
            images = list(self._datastore.objects)
            labelled = [image for image, entry in self._datastore.objects.items() if FINAL in entry.labels]
        self._unchecked.update(dict.fromkeys(images))
        for image_id in labelled:
            stamp = self._label_stamp(image_id)
            before = self._seen_labels.get(image_id)
            self._seen_labels[image_id] = stamp
            if before is not None and before != stamp:
                self._arrivals.add(image_id)

    def _say_if_empty(self) -> None:
        """Log it once when there is nothing to serve: at the start, or after all images were looked at."""
        was_empty, self._is_empty = self._is_empty, not self.list_images()
        if self._is_empty and not was_empty:
            logger.warning("%s", self.nothing_to_serve())

    def _check(self, image_id: str) -> None:
        """Look at an image; the label of one that others changed may fit now, or not any more."""
        self._unchecked.pop(image_id, None)
        path = self.get_image_uri(image_id)
        before = self.checks.known(image_id)
        if not path or not self.checks.is_due(image_id, Path(path)):
            return
        self.checks.look(image_id, Path(path))
        self._beside |= {file.name: image_id for file in files_of(Path(path))[1:]}
        if before is not None and self._label_stamp(image_id) is not None:
            self._own.pop(image_id, None)
            self._arrivals.add(image_id)

    def _give_out_labels(self) -> None:
        """Tell of the labels that others put there or removed, once somebody listens."""
        if self.on_label is None or self.on_removed is None:
            return
        for image_id in self._arrivals.quiet():
            stamp = self._label_stamp(image_id)
            if stamp is not None and stamp == self._own.get(image_id):
                continue
            try:
                if stamp is not None and image_id in self._datastore.objects:
                    self.on_label(image_id, image_id)
                else:
                    self.on_removed(image_id)
            except Exception:  # the others are not lost for it
                logger.exception("The label of image %r could not be taken over; it is tried again", image_id)
                self._arrivals.add(image_id, RETRY_SECONDS)


def _work(reference: weakref.ref[FolderStore]) -> None:
    """The thread, which ends with its datastore."""
    while (store := reference()) is not None:
        pause = PAUSE_SECONDS
        try:
            pause = store.work()
        except (OSError, StudiesAwayError) as error:  # such as a share that is not mounted for a moment
            logger.warning("The folder of studies cannot be looked at: %s", error)
        except Exception:
            logger.exception("The folder of studies could not be looked at; it is tried again")
        del store
        time.sleep(pause)
