# SPDX-License-Identifier: Apache-2.0
"""What the server knows about how a mask is being made: the answer that an annotator began with, and the prompts.

Requests carry no history, and a label is submitted much later. So the server notes, for each image, what its answers
were about, until a label of the image is submitted. A restart loses the notes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

Prompts = dict[str, dict[int, tuple[tuple[int, int, bool], ...]]]
"""Structure -> slice -> its clicks (row, column, positive) in their order; no clicks where scribbles were drawn."""

MAX_NOTED_IMAGES = 1000
"""Images with notes; the one that was asked about least recently is forgotten."""


@dataclass(frozen=True)
class AnnotationNote:
    """What is known about one image since its last submission.

    `initial_mask_version`: the version of the weights that made the first mask, None if it is not known.
    `initial_mask_origin`: the `model`, the `structures` of that mask, and `answered_by` if the answer has it.
    `prompts`: slices are numbered as acquired, in the whole image if it holds several volumes.
    """

    initial_mask_version: str | None = None
    initial_mask_origin: Mapping[str, Any] | None = None
    prompts: Prompts = field(default_factory=dict)


class AnnotationNotes:
    """The notes of all images. Any number of threads may use them."""

    def __init__(self, limit: int = MAX_NOTED_IMAGES) -> None:
        self._limit = limit
        self._notes: OrderedDict[str, AnnotationNote] = OrderedDict()
        self._lock = Lock()

    def note(self, image_id: str, answer: Mapping[str, Any], prompts: Prompts) -> None:
        """Note an answer, whose JSON is `answer`, and the prompts of its request.

        The first answer since the last submission made the first mask. A slice's prompts replace those of earlier
        requests. Other slices keep theirs, because OHIF sends the prompts of one slice at a time.
        """
        with self._lock:
            before = self._notes.pop(image_id, None) or AnnotationNote(answer["weights_version"], _origin(answer))
            self._notes[image_id] = replace(before, prompts=merged(before.prompts, prompts))
            while len(self._notes) > self._limit:
                self._notes.popitem(last=False)

    def of(self, image_id: str) -> AnnotationNote:
        """The note of an image; an empty one if nothing is noted."""
        with self._lock:
            return self._notes.get(image_id, AnnotationNote())

    def remove(self, image_id: str) -> None:
        """Forget an image, whose label was submitted."""
        with self._lock:
            self._notes.pop(image_id, None)


def _origin(answer: Mapping[str, Any]) -> dict[str, Any]:
    origin = {"model": answer["model"], "structures": list(answer["label_names"])}
    return {**origin, "answered_by": answer["answered_by"]} if "answered_by" in answer else origin


def merged(earlier: Prompts, later: Prompts) -> Prompts:
    """The prompts of both; where both prompt a slice for a structure, the later ones."""
    return {name: {**earlier.get(name, {}), **later.get(name, {})} for name in {**earlier, **later}}


def renamed(prompts: Prompts, names: Mapping[str, str]) -> Prompts:
    """The prompts of the structures in `names` (old name -> new name), under their new names."""
    found: Prompts = {}
    for name, slices in prompts.items():
        if name in names:
            found = merged(found, {names[name]: slices})
    return found


def prompts_from_json(content: Any) -> Prompts:
    """Prompts as they are in a JSON file, whose keys are strings; ValueError for anything else."""
    try:
        return {
            str(name): {int(number): tuple(_click(click) for click in clicks) for number, clicks in slices.items()}
            for name, slices in content.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected prompts like {{structure: {{slice: [[row, column, positive], ...]}}}}: {error}"
        ) from error


def _click(click: Sequence[Any]) -> tuple[int, int, bool]:
    row, column, positive = click
    return int(row), int(column), bool(positive)
