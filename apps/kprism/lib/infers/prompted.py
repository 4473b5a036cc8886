# SPDX-License-Identifier: Apache-2.0
"""From prompts to an answer, for all models with prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kprism_model.volumes.predictor import Extent, StructureMask, StructurePrompts
from lib.engine import Engine
from lib.infers.scope import to_clean
from lib.infers.task import InferRequest, InferResult


def answer_prompts(
    engine: Engine, job: InferRequest, structures: Mapping[str, StructurePrompts], extent: Extent, **extra: Any
) -> InferResult:
    """The whole mask of every structure, and in the JSON on which slices it was prompted and on which computed."""
    volume = engine.volume(job.network, job.image, job.report)
    clean = to_clean(job.options, structures)
    found = volume.segment(structures, extent=extent, largest=clean, fill=clean)
    job.report.count(volume)
    names = list(structures)
    with job.report.step("compose"):
        labels = found.index_map(names)
    slices = {name: _slices(mask) for name, mask in found.masks.items()}
    followed = sum(len(entry["followed"]) for entry in slices.values())
    return InferResult(labels, names, names, {"slices": slices, "slices_followed": followed, **extra})


def _slices(mask: StructureMask) -> dict[str, list[int]]:
    return {"prompted": sorted(mask.prompted), "followed": sorted(set(mask.changed) - set(mask.prompted))}
