# SPDX-License-Identifier: Apache-2.0
"""What the app asks of MONAI Label's datastore: images by id and nothing else, and labelled cases with their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.errors import NotFoundError, RequestError
from lib.labels import HandNames, stored_names

_ID = re.compile(r"(?!\.)[^/\\\x00-\x1f]{1,200}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_id(image_id: Any) -> str:
    """The image id, or NotFoundError if it can be no id: ids are single names, never paths."""
    if not isinstance(image_id, str) or not _ID.fullmatch(image_id):
        raise NotFoundError(f"image {image_id!r} is no image id of this datastore")
    return image_id


def check_tag(tag: Any) -> str:
    """The label tag, or RequestError if it is not a plain word (MONAI Label makes a folder of it)."""
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise RequestError(f"label tag {tag!r} is not a plain word like 'final' or 'original'")
    return str(getattr(tag, "value", tag))


class GuardedDatastore(LocalDatastore):  # type: ignore[misc]
    """MONAI Label's folder of images; ids and tags from clients cannot lead out of it."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an image under a checked id."""
        return str(super().add_image(check_id(image_id) if image_id else image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label under a checked id and tag."""
        return str(super().save_label(check_id(image_id), label_filename, check_tag(label_tag), label_info))


def image_path(datastore: Datastore, image_id: Any) -> Path:
    """The file of an image of the datastore; NotFoundError for all else, existing files of the server too."""
    missing = NotFoundError(f"image {image_id!r} is not in this datastore")
    check_id(image_id)
    if isinstance(datastore, LocalDatastore) and image_id not in datastore.list_images():
        raise missing
    try:
        uri = datastore.get_image_uri(image_id)
    except Exception as error:  # remote stores raise whatever their client raises
        raise NotFoundError(f"image {image_id!r} cannot be had from this datastore: {error}") from error
    if not uri:
        raise missing
    return Path(uri)


@dataclass(frozen=True)
class LabelledCase:
    """A case with a submitted label (tag final): its files and what names the label's values."""

    image_id: str
    info: Mapping[str, Any]
    by_hand: Mapping[str, int]
    datastore: Datastore

    @property
    def names(self) -> list[str]:
        """Names of the structures that the label may hold; empty if nothing names its values."""
        return list(stored_names(self.info) or self.by_hand)

    @property
    def image(self) -> Path:
        """The image file."""
        return image_path(self.datastore, self.image_id)

    @property
    def label(self) -> Path:
        """The label file."""
        label_id = self.datastore.get_label_by_image_id(self.image_id, DefaultLabelTag.FINAL)
        return Path(self.datastore.get_label_uri(label_id, DefaultLabelTag.FINAL))


def labelled_cases(datastore: Datastore) -> list[LabelledCase]:
    """All cases with a label of tag final, in the order of their ids."""
    local = isinstance(datastore, LocalDatastore)
    by_hand = HandNames.read(Path(datastore._datastore_path)) if local else HandNames({}, {})
    cases = []
    for image_id in sorted(datastore.get_labeled_images()):
        label_id = datastore.get_label_by_image_id(image_id, DefaultLabelTag.FINAL)
        info = datastore.get_label_info(label_id, DefaultLabelTag.FINAL) or {}
        cases.append(LabelledCase(image_id, info, by_hand.of(image_id), datastore))
    return cases


def known_names(datastore: Datastore) -> list[str]:
    """Names of all structures in submitted labels, each once, in the order of first use."""
    return list(dict.fromkeys(name for case in labelled_cases(datastore) for name in case.names))
