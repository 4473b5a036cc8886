# SPDX-License-Identifier: Apache-2.0
"""Reading a submitted label file: its values on the image's grid, and the names of the structures in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from numpy.typing import NDArray

from kprism_model.data.partial import AnnotatedCase
from kprism_model.volumes.slice_map import SliceMap
from lib.datastore import GuardedDatastore
from lib.errors import RequestError
from lib.image_files import grid_image, image_path
from lib.imaging.file_labels import FileLabels
from lib.imaging.label_maps import renumbered, values_in
from lib.imaging.label_names import check_both, listed_names, shown, sources, structures, value_names
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.imaging.nrrd_files import segment_names
from lib.imaging.reading import NRRD, read_image, read_mask, suffix_of
from lib.labelled_cases import hand_names
from lib.learning.annotation_notes import Prompts
from lib.learning.submission_store import Submission

ADD, REFUSE = "add", "refuse"
"""What happens when a label names a structure that is not known yet."""

_RULES = 1
"""Counts the changes of how labels are read: what was read by other rules is read again."""


@dataclass(frozen=True)
class SubmittedLabel:
    """A label that can be used: an index map (i, j, k) of 1, 2, ... on its image's grid, and their names.

    Only the grid of `image` counts; its voxels may be missing. `warnings` say what of the file is not in the label.
    """

    image: MedicalImage
    labels: NDArray[np.uint8]
    structures: dict[str, int]
    warnings: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 of the labelled voxels and their names."""
        digest = hashlib.sha256(json.dumps([self.structures, self.labels.shape]).encode())
        for k in range(self.labels.shape[2]):  # all voxels, i fastest, without a copy of the whole
            digest.update(np.ascontiguousarray(self.labels[:, :, k].T).data)
        return digest.hexdigest()

    def on_case(self, prompts: Prompts) -> Prompts:
        """Prompts that number the slices of the image, with the numbers of the case's slices (`LabelReader.read_case`).

        Those on slices that are not in the case are left out.
        """
        kept = _labelled_volumes(self.image.to_slices(self.labels), self.image.volumes)
        numbers = {int(number): place for place, number in enumerate(np.flatnonzero(kept))}
        return {
            name: {numbers[number]: clicks for number, clicks in slices.items() if number in numbers}
            for name, slices in prompts.items()
        }


class LabelReader:
    """Reads labels of the images in a datastore. `unknown` says whether new structures are added or refused."""

    def __init__(
        self,
        datastore: Datastore,
        label_registry: LabelRegistry,
        *,
        unknown: str = ADD,
        read: Callable[[Path, str], MedicalImage] = read_image,
    ) -> None:
        if unknown not in (ADD, REFUSE):
            raise ValueError(f"new structures can be {ADD!r} or {REFUSE!r}, got {unknown!r}")
        self._datastore, self._label_registry, self._unknown = datastore, label_registry, unknown
        self._read_image = read

    def read(self, image_id: str, file: Path, info: Mapping[str, Any], *, is_sent: bool = False) -> SubmittedLabel:
        """Read a label file whose values `info` names; RequestError says why it cannot be used.

        With `is_sent`, `info` is what a client says, so all its names must agree; a store may have added others.
        Of a DICOM series no voxel is needed: submitting a label does not wait for its image.
        """
        image = grid_image(self._datastore, image_id, f"image {image_id!r}", self._read_image)
        title = f"the label of image {image_id!r}"
        mask = read_mask(file, title)
        file_labels = mask.file_labels or FileLabels()
        values = image.on_grid(mask, title)
        present = sorted(values_in(values))
        if not present:
            raise RequestError(f"{title} is empty: no voxel is labelled, so there is nothing to learn from it")
        if is_sent:
            try:
                check_both(info, present, file_labels)
            except RequestError as error:
                raise RequestError(f"{title}: {error}") from error
        named = self._named_values(image_id, title, info, present, file_labels)
        if not named:
            raise RequestError(f"{title} is empty: all its voxels are background")
        table = np.zeros(256, np.uint8)
        for number, own in enumerate(named.values(), 1):
            table[list(own)] = number
        is_numbered = all(table[value] == value for value in present)
        if not is_numbered:
            values = renumbered(SliceMap.of(values, image.orientation), table).volume()
        numbers = {name: number for number, name in enumerate(named, 1)}
        return SubmittedLabel(image, values, numbers, file_labels.warnings)

    def inputs(self, image_id: str, file: Path, sha256: str, info: Mapping[str, Any], patient: str) -> str:
        """A digest of all that `read` depends on: the label file, what names its values, its image, and settings."""
        names, unknown = self._names_beside(image_id, info), []
        if self._unknown == REFUSE:
            known = self._label_registry.indices()
            listed = listed_names(info) or list(structures(segment_names(file) if suffix_of(file) in NRRD else {}))
            listed = listed or (list(structures(names)) if isinstance(names, Mapping) else [])
            unknown = sorted(name for name in listed if self._label_registry.canonical(name) not in known)
        stamp = self._datastore.stamp(image_id) if isinstance(self._datastore, GuardedDatastore) else ""
        sent = [{key: source.get(key) for key in ("label_names", "label_info")} for source in sources(info)]
        beside = sorted(names.items()) if isinstance(names, Mapping) else names
        content = [_RULES, sha256, sent, beside, unknown, stamp, patient]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _names_beside(self, image_id: str, info: Mapping[str, Any]) -> Mapping[int, str] | str:
        """Value -> name in `labels.json`, which counts if no client named the values; why it cannot be read."""
        if listed_names(info):
            return {}
        try:
            return hand_names(self._datastore).of(image_id)
        except RequestError as error:
            return str(error)

    def read_case(self, submission: Submission, label: Path) -> AnnotatedCase:
        """The image of a submission with the stored label file; RequestError if one of them cannot be read.

        Of a series of several volumes (phases, ...), those with a label: the structures may be in the others too.
        """
        image_id = submission.image_id
        image = self._read_image(image_path(self._datastore, image_id), f"image {image_id!r}")
        title = f"the kept label of image {image_id!r}"
        mask = read_mask(label, title)
        labels = np.ascontiguousarray(image.to_slices(image.on_grid(mask, title)))
        images = image.scaled
        if image.volumes > 1:
            labelled = _labelled_volumes(labels, image.volumes)
            images = np.stack([images[int(number)] for number in np.flatnonzero(labelled)])
            labels = labels[labelled]
        return AnnotatedCase(image_id, submission.patient, images, labels, submission.structures)

    def _named_values(
        self, image_id: str, title: str, info: Mapping[str, Any], present: list[int], file: FileLabels
    ) -> dict[str, tuple[int, ...]]:
        """Name -> values of the structures in the label. Every value needs a name; new names may be refused."""
        by_hand = {} if file.names is not None else self._names_beside(image_id, info)
        if isinstance(by_hand, str):
            raise RequestError(f"{title}: {by_hand}")
        try:
            names = value_names(info, by_hand, present, file)
        except RequestError as error:
            raise RequestError(f"{title}: {error}") from error
        nameless = file.in_file(value for value in present if value not in names)
        if nameless:
            raise RequestError(
                f"{title}: nothing names the value{'s' if len(nameless) > 1 else ''} {shown(nameless)[1:-1]}; "
                'expected params like {"label_info": [{"name": "liver"}, ...]} or labels.json in the folder of studies'
            )
        values = structures(
            {value: name for value, name in names.items() if value in present}, self._label_registry.canonical
        )
        known = self._label_registry.indices()
        unknown = [name for name in values if name not in known]
        if unknown and self._unknown == REFUSE:
            raise RequestError(
                f"{title} names {', '.join(map(repr, unknown))}; this server accepts only its own labels: "
                f"{', '.join(known)}"
            )
        return values


def _labelled_volumes(labels: NDArray[np.uint8], volumes: int) -> NDArray[np.bool_]:
    """For each slice of `labels` (slice, row, column), whether a voxel of its volume is labelled; all of one volume."""
    if volumes == 1:
        return np.ones(len(labels), bool)
    return np.repeat(np.ascontiguousarray(labels).reshape(volumes, -1).any(axis=1), len(labels) // volumes)
