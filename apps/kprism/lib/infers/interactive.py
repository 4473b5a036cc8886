# SPDX-License-Identifier: Apache-2.0
"""Segmentation from clicks: any structure, known to the weights or not, on the slices that hold clicks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.images import Voxel
from lib.infers.base import Answer, House, Job, KPrismTask
from lib.options import Option
from lib.prompts import Clicks, read_clicks
from lib.refine import Pixel, SliceClicks, refine

LAST_MASK, NOTHING = "last mask", "nothing"


@dataclass
class Edited:
    """One label being corrected: its masks (slice, row, column) before and after, and scores of the slices edited."""

    name: str
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    scores: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    disagreed: int = 0


class Interactive(KPrismTask):
    """Options: `use_class` gives the network the class too where the label is one that it knows; `start_from` says
    whether clicks refine the last mask of the label on this image or start from nothing.
    """

    name = "interactive"
    options: ClassVar = {
        "use_class": Option(False),
        "start_from": Option(LAST_MASK, choices=(LAST_MASK, NOTHING)),
    }

    def __init__(self, house: House) -> None:
        super().__init__(house, InferType.DEEPEDIT, "Segments what is clicked and corrects masks by clicks")

    def answer(self, job: Job) -> Answer:
        """The whole mask of every edited label: clicked slices anew, the others as they were."""
        clicks = read_clicks(job.params, self.house.book, self.options, job.image)
        labels = clicks.edited or self._labels_under(job, clicks)
        edited = [self._edit(job, label, clicks) for label in labels]
        with job.report.step("compose"):
            merged = self._merge(job, edited, clicks)
        missed = sum(label.disagreed for label in edited)
        return Answer(merged, labels, labels, {"clicks_overruled": missed})

    def _labels_under(self, job: Job, clicks: Clicks) -> list[str]:
        """With clicks on background alone: the labels whose last mask holds one of them."""
        if not clicks.background:
            raise RequestError("the request holds no clicks; expected voxels [i, j, k] under a label's name")
        found = []
        for name in self.house.book.indices():
            mask = self.house.memory.last(job.key(name)) if job.options["start_from"] == LAST_MASK else None
            if mask is not None and any(mask[voxel] for voxel in clicks.background):
                found.append(name)
        if not found:
            raise RequestError(
                f"all clicks are on background, the first at {list(clicks.background[0])}, and no earlier mask lies "
                "under them; click the structure itself first"
            )
        return found

    def _edit(self, job: Job, label: str, clicks: Clicks) -> Edited:
        image, memory = job.image, self.house.memory
        round_ = self._round(label, clicks)
        earlier = memory.before(job.key(label), round_) if job.options["start_from"] == LAST_MASK else None
        before = np.zeros(image.grid, bool, order="F") if earlier is None else earlier
        after = before.copy(order="F")
        edited = Edited(label, image.to_slices(before), image.to_slices(after))
        class_name = label if job.options["use_class"] and label in job.network.registry else None
        for number, prompts in _by_slice(job, label, clicks, edited.before).items():
            base = np.ascontiguousarray(edited.before[number])
            score = refine(self.house.engine, job.network, image, number, prompts, base, class_name, job.report)
            edited.disagreed += _overrule(score, prompts)
            edited.scores[number] = score
            edited.after[number] = score >= 0.5
        memory.put(job.key(label), after, earlier, round_)
        return edited

    @staticmethod
    def _round(label: str, clicks: Clicks) -> frozenset[Hashable]:
        positive, _ = clicks.of(label)
        return frozenset([(True, voxel) for voxel in positive] + [(False, voxel) for voxel in clicks.background])

    @staticmethod
    def _merge(job: Job, edited: list[Edited], clicks: Clicks) -> NDArray[np.uint8]:
        """One index map: edited slices before remembered ones, then the more probable label, clicks before all."""
        labels, view = job.image.empty_labels()
        for number in range(job.image.slices):
            best = np.zeros(view.shape[1:], np.float32)
            for value, label in enumerate(edited, 1):
                mask = label.after[number]
                if mask.any():
                    score = np.where(mask, label.scores.get(number, np.float32(0.5)), 0)
                    view[number][score > best] = value
                    best = np.maximum(best, score)
        for value, label in enumerate(edited, 1):
            for voxel in clicks.labels.get(label.name, []):
                labels[voxel] = value
        return labels


def _by_slice(job: Job, label: str, clicks: Clicks, before: NDArray[np.bool_]) -> dict[int, SliceClicks]:
    """The clicks of a label on each slice to be edited: those it is clicked on, and those where background is clicked
    and the label has a mask. Clicks of other labels alone do not change a slice.
    """
    positive, negative = (_pixels(job, voxels) for voxels in clicks.of(label))
    unwanted = {number for number in _pixels(job, clicks.background) if before[number].any()}
    return {
        number: SliceClicks(tuple(positive.get(number, ())), tuple(negative.get(number, ())))
        for number in sorted(set(positive) | unwanted)
    }


def _pixels(job: Job, voxels: list[Voxel]) -> dict[int, list[Pixel]]:
    """Slice -> (row, column) of the voxels in it."""
    found: dict[int, list[Pixel]] = {}
    for voxel in voxels:
        number, row, column = job.image.locate(voxel)
        found.setdefault(number, []).append((row, column))
    return found


def _overrule(score: NDArray[np.float32], clicks: SliceClicks) -> int:
    """What the user clicked is so: set clicked pixels in place where the network says otherwise; returns how many."""
    overruled = 0
    for pixels, wanted in ((clicks.positive, 1.0), (clicks.negative, 0.0)):
        for pixel in pixels:
            overruled += bool(score[pixel] >= 0.5) != bool(wanted)
            score[pixel] = wanted
    return overruled
