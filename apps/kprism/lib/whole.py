# SPDX-License-Identifier: Apache-2.0
"""Segmentation of whole images by class, which `semantic` answers with and clicks may start from.

Structures that only an earlier network of the site knew (`lib.earlier`) are segmented after labelled cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lib.engine import Engine, Network
from lib.extent import CLEAN_UP, SLICES, range_of, to_clean
from lib.images import MedicalImage
from lib.options import Option, read_options
from lib.report import Report

if TYPE_CHECKING:
    from lib.infers.in_context import Shown

WHOLE: dict[str, Option] = {"presence": Option(0.5, low=0.0, high=1.0), **SLICES, **CLEAN_UP}
"""Options: how probable a structure must be in a slice to be looked for there, which slices, and cleaning up."""

DEFAULTS: dict[str, Any] = read_options(WHOLE, {})


def segment_classes(
    engine: Engine,
    network: Network,
    image: MedicalImage,
    names: Sequence[str],
    options: Mapping[str, Any],
    report: Report,
    shown: Mapping[str, Shown] | None = None,
) -> NDArray[np.uint8]:
    """Index map (i, j, k), read-only: value n is the n-th name. `options` are those of `WHOLE`.

    `shown` are references for those of the names that the weights do not know.
    """
    slices, shown = range_of(options, image), shown or {}
    asked = tuple((name, shown[name].key if name in shown else None) for name in names)
    key = ("classes", network.version, image.digest, asked, slices, options["presence"], options["clean_up"])

    def segment() -> NDArray[np.uint8]:
        volume, clean = engine.volume(network, image, report), to_clean(options, names)
        labels = volume.predict_classes(
            names,
            references={name: references.encode() for name, references in shown.items()},
            minimum_presence=options["presence"],
            slices=slices,
            largest=clean,
            fill=clean,
        )
        report.count(volume)
        labels.flags.writeable = False
        return labels

    return engine.cached(key, segment)
