# SPDX-License-Identifier: Apache-2.0
"""Automatic segmentation of the structures that the networks know, in every slice where they are present.

If the request names no structure, only those that can be in such an image are looked for; a structure that it names is
always looked for. A structure that only versions know which do not answer now (`earlier_references`) is segmented from
references if the request names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferType

from lib.errors import RequestError
from lib.infers.app_context import AppContext
from lib.infers.class_segmentation import WHOLE_IMAGE
from lib.infers.earlier_references import EarlierReferences
from lib.infers.request import InferRequest
from lib.infers.resolve import resolve_structures
from lib.infers.result import InferResult
from lib.infers.routed_segmentation import RoutedSegmentation
from lib.infers.structure_references import references_metadata
from lib.infers.task import KPrismTask
from lib.options import Option


class Semantic(KPrismTask):
    """Options: `structures` (names with commas between them; empty: all), and `class_segmentation.WHOLE_IMAGE`."""

    name = "semantic"
    options: ClassVar = {"structures": Option("", names=True), **WHOLE_IMAGE}

    def __init__(self, context: AppContext, earlier: EarlierReferences) -> None:
        self._earlier = earlier
        super().__init__(context, InferType.SEGMENTATION, "Segments the structures that the network was trained on")

    def info(self) -> dict[str, Any]:
        """MONAI Label's description; its labels are the structures of all networks, and those of an earlier one."""
        info, networks = super().info(), self.context.engine.networks()
        known = networks.semantic_classes.add(self._earlier.names(networks))
        info["labels"] = {name: number for name, number in info["labels"].items() if name in known}
        return info

    def resolve(self, params: Mapping[str, Any]) -> InferRequest:
        """Names of structures, or none."""
        return resolve_structures(self.context, self.options, params)

    def answer(self, request: InferRequest) -> InferResult:
        """Classes in all slices, merged: a pixel belongs to its most probable class of a network.

        Classes of the site are on top of shipped ones, see `routed_segmentation`.
        """
        segmentation = RoutedSegmentation.of(self.context.engine, request)
        if not request.labels:
            present = segmentation.search()
            metadata = {**present.metadata(), "answered_by": segmentation.answered_by(present.names)}
            return InferResult(present.labels, present.names, metadata=metadata)
        references = self._earlier.find(request, self._unknown(request))
        labels = segmentation.segment(request.labels, references)
        metadata = {"references": references_metadata(references)} if references else {}
        metadata["answered_by"] = segmentation.answered_by(request.labels, references)
        return InferResult(labels, request.labels, request.labels, metadata)

    def _unknown(self, request: InferRequest) -> list[str]:
        """The labels that only versions know which do not answer; RequestError for one that no version knows."""
        classes = request.networks.semantic_classes
        unknown = [name for name in request.labels if name not in classes]
        earlier = self._earlier.names(request.networks) if unknown else []
        for name in unknown:
            if name not in earlier:
                known = ", ".join([*classes.names, *earlier])
                raise RequestError(f"structure {name!r} is unknown to these weights; expected one of {known}")
        return unknown
