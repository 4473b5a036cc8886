# SPDX-License-Identifier: Apache-2.0
"""The cases of a datastore with a submitted label, and the names of the structures in their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib.datastore import GuardedDatastore
from lib.image_files import opened_path
from lib.imaging.hand_names import HandNames
from lib.imaging.label_names import listed_names, structures
from lib.imaging.nrrd_files import segment_names
from lib.imaging.reading import NRRD


@dataclass(frozen=True)
class LabelledCase:
    """A case with a submitted label (tag final): its files and the names of the label's values."""

    image_id: str
    info: Mapping[str, Any]
    hand_names: HandNames
    datastore: Datastore

    @property
    def by_hand(self) -> Mapping[int, str]:
        """Value -> name in `labels.json`, for a label that does not name its values."""
        return self.hand_names.of(self.image_id)

    @property
    def names(self) -> list[str]:
        """Names of the structures that the label may contain; empty if nothing names its values."""
        return listed_names(self.info) or list(structures(self._in_file() or self.by_hand))

    def _in_file(self) -> Mapping[int, str]:
        """The names in the label file itself; only NRRD files have any."""
        is_nrrd = str(self.info.get("name", "")).lower().endswith(NRRD)
        return segment_names(self.label) if is_nrrd else {}

    @property
    def image(self) -> Path:
        """The image file, for `Engine.image`: it may still arrive."""
        return opened_path(self.datastore, self.image_id)

    @property
    def label(self) -> Path:
        """The label file."""
        label_id = self.datastore.get_label_by_image_id(self.image_id, DefaultLabelTag.FINAL)
        return Path(self.datastore.get_label_uri(label_id, DefaultLabelTag.FINAL))


def hand_names(datastore: Datastore) -> HandNames:
    """The content of `labels.json` in the datastore's folder; empty for other datastores."""
    return datastore.hand_names() if isinstance(datastore, GuardedDatastore) else HandNames()


def labelled_cases(datastore: Datastore) -> list[LabelledCase]:
    """All cases with a label of tag final, sorted by id."""
    by_hand = hand_names(datastore)
    infos = _label_infos(datastore, images := labelled_ids(datastore))
    return [LabelledCase(image_id, infos[image_id], by_hand, datastore) for image_id in images if image_id in infos]


def labelled_ids(datastore: Datastore) -> list[str]:
    """The ids of all cases with a label of tag final, sorted."""
    images = sorted(datastore.get_labeled_images())
    infos = _label_infos(datastore, images)
    return [image_id for image_id in images if image_id in infos]


def labelled_case(datastore: Datastore, image_id: str) -> LabelledCase | None:
    """One of the cases with a label of tag final."""
    if image_id not in datastore.get_labeled_images():
        return None
    info = _label_infos(datastore, [image_id]).get(image_id)
    return None if info is None else LabelledCase(image_id, info, hand_names(datastore), datastore)


def _label_infos(datastore: Datastore, images: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Image id -> information about its label of tag final, for `images` at least."""
    tag = DefaultLabelTag.FINAL
    if isinstance(datastore, GuardedDatastore):
        return datastore.label_infos(tag)
    return {
        image_id: datastore.get_label_info(datastore.get_label_by_image_id(image_id, tag), tag) or {}
        for image_id in images
    }


def known_names(datastore: Datastore) -> list[str]:
    """Names of all structures in submitted labels, each once, in the order of first use; those of labels kept here."""
    if not isinstance(datastore, GuardedDatastore):
        return list(dict.fromkeys(name for case in labelled_cases(datastore) for name in case.names))
    by_hand, infos = hand_names(datastore), datastore.label_infos(DefaultLabelTag.FINAL)
    cases = (LabelledCase(image_id, infos[image_id], by_hand, datastore) for image_id in sorted(infos))
    return list(dict.fromkeys(name for case in cases for name in case.names))
