# SPDX-License-Identifier: Apache-2.0
"""Segmentation from labelled cases of the datastore; the weights need not know the structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.volumes.slice_map import SliceMap
from lib.infers.app_context import AppContext
from lib.infers.class_segmentation import WHOLE_IMAGE
from lib.infers.label_layers import Layer, flattened
from lib.infers.reference_selection import REFERENCE_SLICES, ReferenceSelector
from lib.infers.request import InferRequest
from lib.infers.resolve import resolve_structures
from lib.infers.result import InferResult
from lib.infers.scope import labels_to_clean
from lib.infers.structure_references import StructureReferences, references_metadata
from lib.infers.task import KPrismTask
from lib.networks import Network
from lib.options import Option
from lib.routes import IN_CONTEXT


class InContext(KPrismTask):
    """Options: `structures` and `references` (image ids), with commas between them; both may be empty.

    Without `structures`, everything that the references' labels hold is segmented. Without `references`, suitable ones
    are selected, `reference_slices` slices in all for each structure: among the submitted cases, or if these do not
    show the structure, among labels in the datastore that the server has not examined yet.
    """

    name = "in_context"
    options: ClassVar = {
        "structures": Option("", names=True),
        "references": Option("", names=True),
        "reference_slices": Option(REFERENCE_SLICES, low=1, high=16),
        **WHOLE_IMAGE,
    }

    def __init__(self, context: AppContext, selector: ReferenceSelector) -> None:
        super().__init__(context, InferType.SEGMENTATION, "Segments what labelled cases of this datastore show")
        self._selector = selector

    def resolve(self, params: Mapping[str, Any]) -> InferRequest:
        """Names of structures, or none."""
        return resolve_structures(self.context, self.options, params)

    def answer(self, request: InferRequest) -> InferResult:
        """Each structure from its own references, merged: a pixel belongs to the most probable structure of a network.

        Structures of the site's networks are on top of those of the shipped one.
        """
        options = request.options
        references = self._selector.select(
            request, request.labels, cases=options["references"], count=options["reference_slices"]
        )
        layers = []
        for network, names in request.networks.grouped(IN_CONTEXT, references).items():
            layers.append(Layer(self._segment(request, network, {name: references[name] for name in names}), names))
        names = tuple(references)
        metadata = {
            "references": references_metadata(references),
            "answered_by": {name: own.network.name for name, own in references.items()},
        }
        return InferResult(flattened(layers, names), names, request.labels, metadata)

    def _segment(
        self, request: InferRequest, network: Network, references: Mapping[str, StructureReferences]
    ) -> SliceMap[np.uint8]:
        """Index map of one network, in the order of `references`."""
        engine, options, extent = self.context.engine, request.options, request.extent
        clean = labels_to_clean(options, tuple(references))

        def predict() -> SliceMap[np.uint8]:
            encoded = {name: own.encode() for name, own in references.items()}
            volume = engine.volume(network, request.image, request.statistics)
            parts = request.parts(list(references))
            labels = volume.classes_by_slice(
                list(encoded),
                references=encoded,
                minimum_presence=options["presence"],
                slices=None if isinstance(extent, str) else extent,
                largest=clean,
                fill=clean,
                progress=parts.count,
                on_slice=parts.add,
            )
            request.statistics.count(volume)
            return labels

        keys = tuple((name, own.key) for name, own in references.items())
        settings = (extent, options["presence"], options["clean_up"])
        key = ("in_context", network.version, request.image.volume.digest, keys, *settings)
        return engine.cached(key, predict)
