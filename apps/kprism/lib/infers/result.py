# SPDX-License-Identifier: Apache-2.0
"""From the masks of a model to its answer: values that the client expects, a file on the image's grid, and JSON.

OHIF ignores the JSON of an answer: it takes a value for the label's number in the model's `labels`. Its requests are
known by the key `restore_label_idx`. 3D Slicer takes value n for the n-th name of the answer's `label_names` and
empties the segments whose names do not occur. So Slicer and all other clients get the values 1, 2, ... of the names in
the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.label_maps import MAX_LABELS, renumbered, values_in
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.writing import write_mask
from lib.infers.request import InferRequest


@dataclass(frozen=True, eq=False)
class InferResult:
    """An index map whose values 1, 2, ... are `names`, and what else the JSON says.

    `requested` are the names that the client sent; they are in the answer even if their mask is empty.
    """

    labels: SliceMap[np.uint8]
    names: tuple[str, ...]
    requested: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of `model` as the client gets it: `labels` in the slices of the request's image, and their `numbers`.

    `absent` are the names whose mask is empty.
    """

    model: str
    request: InferRequest
    labels: SliceMap[np.uint8]
    numbers: Mapping[str, int]
    absent: Sequence[str]
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, model: str, request: InferRequest, result: InferResult, label_registry: LabelRegistry) -> Answer:
        """The result of a model with the values that the client expects."""
        with request.statistics.step("number"):
            present = values_in(result.labels)
            numbers = _numbers(request, result, label_registry, present)
            table = np.zeros(MAX_LABELS + 1, np.uint8)
            for value, name in enumerate(result.names, 1):
                table[value] = numbers.get(name, 0)
            is_numbered = all(table[value] == value for value in present)
            labels = result.labels if is_numbered else renumbered(result.labels, table)
        absent = [name for value, name in enumerate(result.names, 1) if value not in present]
        return cls(model, request, labels, numbers, absent, result.metadata)

    def on_planes(self) -> SliceMap[np.uint8]:
        """The labels as planes k of the stored image (row j, column i)."""
        return self.request.image.on_stored_planes(self.labels)

    def write(self) -> Path:
        """A new temporary file, which is the caller's to remove."""
        with self.request.statistics.step("write"):
            return write_mask(self.labels, self.request.image, self.request.result_format)

    def json(self) -> dict[str, Any]:
        """What the client gets to know about the labels, and about how they were made."""
        request, statistics = self.request, self.request.statistics
        return {
            "label_names": dict(self.numbers),
            "absent": list(self.absent),
            **self.metadata,
            "model": self.model,
            "plane": request.image.orientation.plane,
            **_turned(request.image.exif_orientation),
            "weights_version": request.networks.version,
            "device": request.networks.device,
            "files_read": statistics.files_read,
            "encoder_passes": statistics.encoder_passes,
            "decoder_passes": statistics.decoder_passes,
            "latencies": statistics.latencies(),
        }


def _turned(orientation: int) -> dict[str, Any]:
    """Says that the picture in the file was turned, so that its columns and rows are others than those of the file."""
    if orientation == 1:
        return {}
    note = f"The file states EXIF orientation {orientation}; clicks and mask are on the upright picture."
    return {"exif_orientation": orientation, "notice": note}


def wants_registry_numbers(params: Mapping[str, Any]) -> bool:
    """Whether values of the answer must be the numbers of the model's `labels` (OHIF) instead of 1, 2, ..."""
    return "restore_label_idx" in params


def _numbers(
    request: InferRequest, result: InferResult, label_registry: LabelRegistry, present: set[int]
) -> dict[str, int]:
    """The value of every name in the answer; `present` are the values that the index map holds."""
    if request.registry_numbers:
        numbers = label_registry.numbers(result.names)
    else:
        names = [name for value, name in enumerate(result.names, 1) if value in present or name in result.requested]
        numbers = {name: number for number, name in enumerate(names, 1)}
    highest = max(numbers.values(), default=0)
    if highest > MAX_LABELS:
        raise RequestError(f"the answer needs label number {highest}; a mask holds at most {MAX_LABELS}")
    return numbers
