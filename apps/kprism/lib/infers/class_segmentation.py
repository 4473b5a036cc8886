# SPDX-License-Identifier: Apache-2.0
"""Segmentation of whole images by class, which `semantic` answers with and clicks may start from.

Structures that only an earlier network of the site knew (`lib.learning.earlier_structures`) are segmented
after labelled cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kprism_model.image_kind import NONE, ImageKind
from lib.engine import Engine, Network
from lib.imaging.medical_image import MedicalImage
from lib.infers.scope import CLEAN_UP, SLICES, range_of, to_clean
from lib.infers.structure_references import StructureReferences
from lib.options import Option, read_options
from lib.request_statistics import RequestStatistics

WHOLE: dict[str, Option] = {"presence": Option(0.5, low=0.0, high=1.0), **SLICES, **CLEAN_UP}
"""Options: how probable a structure must be in a slice to be looked for there, which slices, and cleaning up."""

DEFAULTS: dict[str, Any] = read_options(WHOLE, {})


def image_kind(engine: Engine, network: Network, image: MedicalImage, report: RequestStatistics) -> ImageKind | None:
    """What kind of image it is; None for weights that know no kinds."""
    if network.predictor.model.kind_head is None:
        return None

    def look() -> ImageKind | None:
        volume = engine.volume(network, image, report)
        kind = volume.image_kind()
        report.count(volume)
        return kind

    return engine.cached(("kind", network.version, image.digest), look)


@dataclass(frozen=True)
class Searched:
    """An index map (i, j, k), read-only, whose value n is the n-th of `names`; the kind of image where it is known.

    `not_asked` are the other classes of the weights: they cannot be in such an image.
    """

    labels: NDArray[np.uint8]
    names: list[str]
    kind: ImageKind | None = None
    not_asked: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """What the JSON of an answer says of the kind of image and of what was not asked for."""
        if self.kind is None:
            return {}
        told: dict[str, Any] = {"image_kind": self.kind.name, "not_asked": self.not_asked}
        if self.not_asked:
            told["message"] = _message(self.kind.name, self.not_asked)
        return told


def _message(kind: str, not_asked: Sequence[str]) -> str:
    """Which structures were not looked for in an image of this kind, why, and what can be done about it."""
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


def search_classes(
    engine: Engine,
    network: Network,
    image: MedicalImage,
    options: Mapping[str, Any],
    report: RequestStatistics,
    shown: Mapping[str, StructureReferences] | None = None,
) -> Searched:
    """All classes of the weights that can be in an image, where they are present. `options` are those of `WHOLE`.

    `shown` are references of other structures, which are looked for too.
    """
    known, kind = list(network.registry.names), image_kind(engine, network, image, report)
    possible = dict.fromkeys(known, 1.0) if kind is None else kind.possible(known)
    names = [*possible, *(shown or {})]
    if names:
        labels = segment_classes(engine, network, image, names, options, report, possible, shown)
    else:
        labels, _ = image.volume.empty_labels()
    return Searched(labels, names, kind, [name for name in known if name not in possible])


def segment_classes(
    engine: Engine,
    network: Network,
    image: MedicalImage,
    names: Sequence[str],
    options: Mapping[str, Any],
    report: RequestStatistics,
    priors: Mapping[str, float] | None = None,
    shown: Mapping[str, StructureReferences] | None = None,
) -> NDArray[np.uint8]:
    """Index map (i, j, k), read-only: value n is the n-th name. `options` are those of `WHOLE`.

    `priors` are the probabilities that the classes can be in the image at all, 1 by default. `shown` are references for
    those of the names that the weights do not know.
    """
    slices, shown, priors = range_of(options, image), shown or {}, priors or {}
    named = tuple((name, shown[name].key if name in shown else None, priors.get(name)) for name in names)
    key = ("classes", network.version, image.digest, named, slices, options["presence"], options["clean_up"])

    def segment() -> NDArray[np.uint8]:
        volume, clean = engine.volume(network, image, report), to_clean(options, names)
        labels = volume.predict_classes(
            names,
            references={name: references.encode() for name, references in shown.items()},
            minimum_presence=options["presence"],
            slices=slices,
            largest=clean,
            fill=clean,
            priors=priors,
        )
        report.count(volume)
        labels.flags.writeable = False
        return labels

    return engine.cached(key, segment)
