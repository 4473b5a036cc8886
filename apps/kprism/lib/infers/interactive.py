# SPDX-License-Identifier: Apache-2.0
"""Segmentation from clicks: any structure, known to the weights or not.

A request carries all its clicks and says what they start from, and its answer depends on nothing else: taking back the
last click is asking without it.

A click is negative for a label if it is on background, or on another label in a slice where this one is clicked too.
Where labels of one request overlap, a voxel is the label's that it was clicked as; else one's that is clicked on the
slice; else the more probable one's; else the one's that the request names first (`kprism_model.volumes.prediction`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.queries import MAXIMUM_CLICKS
from kprism_model.volumes.predictor import StructurePrompts, VoxelClick
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.infers.earlier_references import EarlierReferences
from lib.infers.initial_masks import START, InitialMasks
from lib.infers.prompted import answer_prompts
from lib.infers.prompts import Clicks, read_clicks
from lib.infers.scope import CLEAN_UP, SCOPE, extent_of, filled_slices
from lib.infers.task import AppContext, InferRequest, InferResult, KPrismTask
from lib.options import Option


class Interactive(KPrismTask):
    """Options: where to answer, see `scope`; `start_from`, the mask that the clicks correct, see `initial_masks`;
    `follow_mask` takes that mask as right where it is not clicked, so that the label is followed from its slices;
    `use_class` gives the network the class too where the label is one that it knows.
    """

    name = "interactive"
    options: ClassVar = {
        **SCOPE,
        "start_from": Option(START[0], choices=START),
        "follow_mask": Option(False),
        **CLEAN_UP,
        "use_class": Option(False),
    }

    def __init__(self, house: AppContext, earlier: EarlierReferences) -> None:
        self._earlier = earlier
        super().__init__(house, InferType.DEEPEDIT, "Segments what is clicked and corrects masks by clicks")

    def answer(self, job: InferRequest) -> InferResult:
        """The whole mask of every edited label: clicked slices and those that it is followed to anew, the others as
        they were.
        """
        clicks = read_clicks(job.params, self.house.book, self.options, job.image)
        first = InitialMasks(job, self.house, clicks.edited, self._earlier)
        labels = clicks.edited or self._labels_without_clicks(job, first, clicks)
        structures = {label: self._prompts(job, label, clicks, first) for label in labels}
        prompted = {number for prompts in structures.values() for number in _prompted(prompts, job.image)}
        extent = extent_of(job.options, job.image, prompted)
        return answer_prompts(self.house.engine, job, structures, extent, started_from=first.origins)

    @staticmethod
    def _labels_without_clicks(job: InferRequest, first: InitialMasks, clicks: Clicks) -> list[str]:
        """With clicks on background alone: the labels whose first mask holds one of them."""
        if not clicks.background:
            if job.options["follow_mask"] and first.names():
                return first.names()
            raise RequestError("the request holds no clicks; expected voxels [i, j, k] under a label's name")
        found = first.under(clicks.background)
        if not found:
            raise RequestError(
                f"all clicks are on background, the first at {list(clicks.background[0])}, and no mask to start from "
                "lies under them; click the structure itself first, or set start_from"
            )
        return found

    @staticmethod
    def _prompts(job: InferRequest, label: str, clicks: Clicks, first: InitialMasks) -> StructurePrompts:
        before = first.mask(label)
        known = job.options["use_class"] and label in job.network.registry
        return StructurePrompts(
            clicks=in_turn(label, clicks, job.image),
            initial_mask=before if job.options["follow_mask"] else None,
            previous_mask=before,
            class_name=label if known else None,
        )


def in_turn(label: str, clicks: Clicks, image: MedicalImage) -> Sequence[VoxelClick]:
    """A label's clicks in the order in which they were made; where the client does not send it, positive and negative
    ones by turns, as one corrects a mask.
    """
    positive, others = clicks.of(label)
    clicked = {image.locate(voxel)[0] for voxel in positive}
    negative = [*clicks.background, *(voxel for voxel in others if image.locate(voxel)[0] in clicked)]
    pairs = zip_longest(
        (VoxelClick(voxel, True) for voxel in positive), (VoxelClick(voxel, False) for voxel in negative)
    )
    turn = [click for click in chain.from_iterable(pairs) if click is not None]
    if clicks.order:
        place = {voxel: number for number, voxel in enumerate(clicks.order)}
        turn.sort(key=lambda click: place[click.voxel])
    for number, count in Counter(image.locate(click.voxel)[0] for click in turn).items():
        if count > MAXIMUM_CLICKS:
            raise RequestError(f"slice {number} has {count} clicks for {label!r}; expected at most {MAXIMUM_CLICKS}")
    return turn


def _prompted(prompts: StructurePrompts, image: MedicalImage) -> set[int]:
    """The slices with clicks, or with a mask that is taken as right."""
    given = [] if prompts.initial_mask is None else filled_slices(prompts.initial_mask, image)
    return {*(image.locate(click.voxel)[0] for click in prompts.clicks), *given}
