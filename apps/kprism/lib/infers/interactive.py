# SPDX-License-Identifier: Apache-2.0
"""Segmentation from clicks, of any structure, whether the weights know it or not.

A request carries all its clicks and says what they correct. Its answer depends on nothing else: to undo the last click,
send the request again without it.

A click is negative for a label if it is on background, or on another label in a slice where this label is clicked too.
Where labels of one request overlap, a voxel goes to the label that it was clicked as; else to one that is clicked on
this slice; else to the most probable one; else to the one that the request names first (see
`kprism_model.volumes.prediction`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any, ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.queries import MAXIMUM_CLICKS
from kprism_model.volumes.predictor import StructurePrompts
from kprism_model.volumes.prompts import LocatedClick
from lib.errors import RequestError
from lib.infers.app_context import AppContext
from lib.infers.earlier_references import EarlierReferences
from lib.infers.initial_masks import SOURCES
from lib.infers.prompted_slices import clicked_slices
from lib.infers.prompted_task import PromptedTask
from lib.infers.request import Clicks, InferRequest
from lib.infers.resolve import resolve_clicks
from lib.infers.result import InferResult
from lib.infers.scope import CLEAN_UP, PLANE, SCOPE
from lib.learning.annotation_notes import Prompts
from lib.options import Option


class Interactive(PromptedTask):
    """Options: where to segment, see `scope`; `start_from`, the mask that the clicks correct, see `initial_masks`.

    `follow_mask` takes that mask as correct on slices without clicks, and propagates it to the others. `use_class`
    gives the network the class too if the weights know the label.
    """

    name = "interactive"
    options: ClassVar = {
        **SCOPE,
        "start_from": Option(SOURCES[0], choices=SOURCES),
        "follow_mask": Option(False),
        **PLANE,
        **CLEAN_UP,
        "use_class": Option(False),
    }

    def __init__(self, context: AppContext, earlier: EarlierReferences) -> None:
        self._earlier = earlier
        super().__init__(context, InferType.DEEPEDIT, "Segments what is clicked and corrects masks by clicks")

    def resolve(self, params: Mapping[str, Any]) -> InferRequest:
        """Clicks, and the masks that they correct."""
        return resolve_clicks(self.context, self.options, params, self._earlier)

    def prompts(self, request: InferRequest) -> dict[str, StructurePrompts]:
        """Each label's clicks in turn, and its initial mask, to correct or with `follow_mask` to propagate."""
        masks = request.initial_masks.masks
        return {
            label: StructurePrompts(
                clicks=clicks_for(label, request.clicks),
                initial_mask=masks.get(label) if request.options["follow_mask"] else None,
                previous_mask=masks.get(label),
                class_name=self.class_name(request, label),
                known_class=self.known_class(request, label),
            )
            for label in request.labels
        }

    def answer(self, request: InferRequest) -> InferResult:
        """As all models with prompts; the JSON also says where each label's initial mask comes from."""
        result = super().answer(request)
        started_from = {label: request.initial_masks.origin(label) for label in request.labels}
        return replace(result, metadata={**result.metadata, "started_from": started_from})

    def prompts_by_slice(self, request: InferRequest) -> Prompts:
        """The clicks of each label."""
        return {label: clicked_slices(clicks_for(label, request.clicks), request.image) for label in request.labels}


def clicks_for(label: str, clicks: Clicks) -> list[LocatedClick]:
    """The positive and negative clicks of a label, in the order in which they were made.

    If the client does not send the order, positive and negative clicks alternate, as when a user corrects a mask.
    """
    positive = clicks.labels.get(label, ())
    slices = {click.slice for click in positive}
    others = [click for name, own in clicks.labels.items() if name != label for click in own if click.slice in slices]
    negative = [*clicks.background, *(replace(click, positive=False) for click in others)]
    if clicks.order:
        ordered = sorted((*positive, *negative), key=lambda click: clicks.order[click.voxel])
    else:
        ordered = [click for click in chain.from_iterable(zip_longest(positive, negative)) if click is not None]
    for number, count in Counter(click.slice for click in ordered).items():
        if count > MAXIMUM_CLICKS:
            raise RequestError(f"slice {number} has {count} clicks for {label!r}; expected at most {MAXIMUM_CLICKS}")
    return ordered
