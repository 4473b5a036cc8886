# SPDX-License-Identifier: Apache-2.0
"""Segmentation of whole images by class with one network; `routed_segmentation` puts the networks' answers together.

Structures that only versions know which do not answer now (`lib.learning.earlier_structures`) are segmented from
references instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kprism_model.image_kind import NONE, ImageKind
from kprism_model.volumes.predictor import Extent
from kprism_model.volumes.slice_map import SliceMap
from lib.engine import Engine
from lib.imaging.medical_image import MedicalImage
from lib.infers.parts import Listener, Parts
from lib.infers.request import InferRequest
from lib.infers.scope import CLEAN_UP, PLANE, SLICES
from lib.infers.structure_references import StructureReferences
from lib.networks import Network
from lib.options import Option
from lib.request_statistics import RequestStatistics

PRESENCE = 0.5
"""Default of the option `presence`."""

WHOLE_IMAGE: dict[str, Option] = {"presence": Option(PRESENCE, low=0.0, high=1.0), **SLICES, **PLANE, **CLEAN_UP}
"""Options of models without prompts: a structure is segmented in a slice only if it is at least so probable to be in
it; which slices, and of which plane; and cleaning up."""


@dataclass(frozen=True, eq=False)
class PresentClasses:
    """An index map whose value n is the n-th of `names`; the kind of image, if it is known.

    `not_asked` are the other structures that are known: they cannot be in such an image.
    """

    labels: SliceMap[np.uint8]
    names: tuple[str, ...]
    kind: ImageKind | None = None
    not_asked: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """What the JSON of an answer says about the kind of image and the structures that were not looked for."""
        if self.kind is None:
            return {}
        metadata: dict[str, Any] = {"image_kind": self.kind.name, "not_asked": list(self.not_asked)}
        if self.not_asked:
            metadata["message"] = _message(self.kind.name, self.not_asked)
        return metadata


def _message(kind: str, not_asked: Sequence[str]) -> str:
    """Which structures were not looked for in an image of this kind, why, and what a user can do about it."""
    names = ", ".join(not_asked)
    if kind == NONE:
        return (
            "This image is unlike those that the weights were trained on, so these structures were not looked for: "
            f"{names}. Clicks and references still work, and a structure that the request names is always looked for."
        )
    return (
        f'This image was taken for "{kind}". These structures cannot be in such an image and were not looked for: '
        f"{names}. A structure that the request names is always looked for."
    )


@dataclass(frozen=True, eq=False)
class ClassSegmentation:
    """Segments one image by class with `network`, which runs only for what is not in the cache.

    presence: the least probability to be in a slice. clean_up: whether each structure is cleaned up. extent: "volume",
    or the first and last slice to look at. listener: who sees slices before the answer.
    """

    engine: Engine
    network: Network
    image: MedicalImage
    statistics: RequestStatistics
    presence: float = PRESENCE
    clean_up: bool = False
    extent: Extent = "volume"
    listener: Listener | None = None

    @classmethod
    def of(cls, engine: Engine, request: InferRequest) -> ClassSegmentation:
        """With the shipped network, for a request of a model with the options `WHOLE_IMAGE`."""
        options = request.options
        return cls(
            engine,
            request.networks.shipped,
            request.image,
            request.statistics,
            presence=options["presence"],
            clean_up=options["clean_up"],
            extent=request.extent,
            listener=request.listener,
        )

    def image_kind(self) -> ImageKind | None:
        """The kind of the image; None for weights that know no kinds."""
        if self.network.predictor.model.kind_head is None:
            return None

        def predict() -> ImageKind | None:
            volume = self.engine.volume(self.network, self.image, self.statistics)
            kind = volume.image_kind()
            self.statistics.count(volume)
            return kind

        return self.engine.cached(("kind", self.network.version, self.image.volume.digest), predict)

    def search(self, references: Mapping[str, StructureReferences] | None = None) -> PresentClasses:
        """All classes of the weights that can be in the image, where they are present.

        `references` are those of other structures, which are looked for too.
        """
        known, kind = self.network.registry.names, self.image_kind()
        possible = dict.fromkeys(known, 1.0) if kind is None else kind.possible(known)
        names = (*possible, *(references or {}))
        if names:
            labels = self.segment(names, references, possible)
        else:
            labels = SliceMap(self.image.orientation, np.dtype(np.uint8))
        return PresentClasses(labels, names, kind, tuple(name for name in known if name not in possible))

    def segment(
        self,
        names: Sequence[str],
        references: Mapping[str, StructureReferences] | None = None,
        priors: Mapping[str, float] | None = None,
    ) -> SliceMap[np.uint8]:
        """Index map: value n is the n-th name.

        `references` are those of the names that the weights do not know. `priors` are the probabilities that classes
        can be in the image at all, 1 by default.
        """
        references, priors = references or {}, priors or {}
        named = tuple((name, references[name].key if name in references else None, priors.get(name)) for name in names)
        clean = tuple(names) if self.clean_up else ()

        def predict() -> SliceMap[np.uint8]:
            volume = self.engine.volume(self.network, self.image, self.statistics)
            first, last = (0, self.image.slices - 1) if isinstance(self.extent, str) else self.extent
            values = {name: value for value, name in enumerate(names, 1)}
            parts = Parts(self.listener, self.image, values, last - first + 1)
            labels = volume.classes_by_slice(
                names,
                references={name: own.encode() for name, own in references.items()},
                minimum_presence=self.presence,
                slices=None if isinstance(self.extent, str) else self.extent,
                largest=clean,
                fill=clean,
                priors=priors,
                progress=parts.count,
                on_slice=parts.add,
            )
            self.statistics.count(volume)
            return labels

        settings = (self.extent, self.presence, self.clean_up)
        key = ("classes", self.network.version, self.image.volume.digest, named, *settings)
        return self.engine.cached(key, predict)
