# SPDX-License-Identifier: Apache-2.0
"""Segmentation of whole images by name: the answer of `semantic`, and an initial mask for clicks.

Each network is asked for its structures as if nothing else was requested, so the shipped weights give the answer that
they gave before the site trained anything. A structure of the site is on top where masks overlap: it may lie inside a
shipped one, as a tumour in a liver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kprism_model.classes import ClassRegistry
from kprism_model.volumes.slice_map import SliceMap
from lib.engine import Engine
from lib.infers.class_segmentation import ClassSegmentation, PresentClasses
from lib.infers.label_layers import Layer, flattened
from lib.infers.request import InferRequest
from lib.infers.structure_references import StructureReferences
from lib.networks import Network, Networks
from lib.routes import SEMANTIC

BY_REFERENCES = "references"
"""What answers a structure that only an earlier network knew."""

References = Mapping[str, StructureReferences]
"""References of structures that no network segments by name."""


@dataclass(frozen=True, eq=False)
class RoutedSegmentation:
    """Segments one image by name: `shipped` with the settings of the request, the other networks with the same."""

    networks: Networks
    shipped: ClassSegmentation

    @classmethod
    def of(cls, engine: Engine, request: InferRequest) -> RoutedSegmentation:
        """For a request of a model with the options `class_segmentation.WHOLE_IMAGE`."""
        return cls(request.networks, ClassSegmentation.of(engine, request))

    def segment(self, names: Sequence[str], references: References | None = None) -> SliceMap[np.uint8]:
        """Index map: value n is the n-th name. `references` are those of unknown structures."""
        return flattened(self._layers(names, references or {}), names)

    def search(self, references: References | None = None) -> PresentClasses:
        """All structures that can be in the image, where they are present, and those that have `references`.

        The shipped network sees the kind of image. A structure of the site is asked for if the site has labelled it in
        such images, or if that is not known.
        """
        references = references or {}
        of_shipped = {name: own for name, own in references.items() if own.network is self.networks.shipped}
        found = self.shipped.search(of_shipped)
        routed = ClassRegistry(self.networks.routes.names(SEMANTIC))
        asked = [name for name in routed.names if self._can_be_in(name, found)]
        others = [*asked, *(name for name in references if name not in of_shipped)]
        if not routed.names and not others:
            return found
        own = [name for name in found.names if name not in routed]
        names = (*own, *others)
        layers = [Layer(found.labels, ["" if name in routed else name for name in found.names])]
        layers += self._layers(others, references)
        left = [name for name in self.networks.semantic_classes.names if name not in ClassRegistry(names)]
        return PresentClasses(flattened(layers, names), names, found.kind, tuple(left))

    def answered_by(self, names: Sequence[str], references: References | None = None) -> dict[str, str]:
        """Structure -> name of what answers it."""
        by_reference = references or {}
        return {
            name: BY_REFERENCES if name in by_reference else self.networks.of(SEMANTIC, name).name for name in names
        }

    def _layers(self, names: Sequence[str], references: References) -> list[Layer]:
        """The answer of each network for its part of the names, that of the shipped one first."""
        groups: dict[Network, list[str]] = {network: [] for network in self.networks}
        for name in names:
            known = name not in references
            groups[self.networks.of(SEMANTIC, name) if known else references[name].network].append(name)
        layers = []
        for network, own in groups.items():
            if own:
                shown = {name: references[name] for name in own if name in references}
                labels = replace(self.shipped, network=network).segment(own, shown)
                layers.append(Layer(labels, own))
        return layers

    def _can_be_in(self, structure: str, found: PresentClasses) -> bool:
        """Whether a structure of the site can be in an image in which the shipped network has `found` its classes."""
        if found.kind is None or structure in ClassRegistry(found.names):
            return True
        kinds = self.networks.kinds_of(structure)
        return found.kind.name in kinds if kinds else structure not in self.networks.shipped.registry
