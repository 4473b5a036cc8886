# SPDX-License-Identifier: Apache-2.0
"""Automatic segmentation of the structures that the weights know, in every slice where they are present.

Where nothing is named, only what can be in such an image is asked for; what the user names is always asked for. A
structure that only an earlier network of the site knew (`earlier_structures`) is segmented after labelled cases where
it is named, until a training has taught it to the present network.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.errors import RequestError
from lib.infers.class_segmentation import WHOLE, search_classes, segment_classes
from lib.infers.earlier_references import EarlierReferences
from lib.infers.prompts import read_structures
from lib.infers.structure_references import told
from lib.infers.task import AppContext, InferRequest, InferResult, KPrismTask
from lib.options import Option


class Semantic(KPrismTask):
    """Options: `structures` (names with commas between them; empty: all), and those of `class_segmentation.WHOLE`."""

    name = "semantic"
    options: ClassVar = {"structures": Option("", names=True), **WHOLE}

    def __init__(self, house: AppContext, earlier: EarlierReferences) -> None:
        self._earlier = earlier
        super().__init__(house, InferType.SEGMENTATION, "Segments the structures that the network was trained on")

    def info(self) -> dict[str, Any]:
        """MONAI Label's description; only classes that are trained, or were in an earlier network, can be asked for."""
        info, network = super().info(), self.house.engine.network()
        known = network.registry.add(self._earlier.names(network))
        info["labels"] = {name: number for name, number in info["labels"].items() if name in known}
        return info

    def answer(self, job: InferRequest) -> InferResult:
        """Classes in all slices, merged: a pixel belongs to its most probable class."""
        asked = read_structures(job.params, job.options["structures"], self.house.book)
        unknown = [name for name in asked if name not in job.network.registry]
        earlier = self._earlier.names(job.network) if unknown else []
        for name in unknown:
            if name not in earlier:
                known = ", ".join([*job.network.registry.names, *earlier])
                raise RequestError(f"structure {name!r} is unknown to these weights; expected one of {known}")
        engine, network = self.house.engine, job.network
        if not asked:
            found = search_classes(engine, network, job.image, job.options, job.report)
            return InferResult(found.labels, found.names, extra=found.told())
        shown = self._earlier.find(job, unknown, job.options)
        labels = segment_classes(engine, network, job.image, asked, job.options, job.report, shown=shown)
        return InferResult(labels, asked, asked, {"references": told(shown)} if shown else {})
