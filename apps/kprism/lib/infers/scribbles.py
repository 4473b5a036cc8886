# SPDX-License-Identifier: Apache-2.0
"""Correction of one label by scribbles, which a client draws into a labelmap beside the existing masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.volumes.predictor import StructurePrompts
from lib.infers.app_context import AppContext
from lib.infers.prompted_slices import scribbled_slices
from lib.infers.prompted_task import PromptedTask
from lib.infers.request import InferRequest
from lib.infers.resolve import resolve_scribbles
from lib.infers.result import InferResult
from lib.infers.scope import CLEAN_UP, PLANE, SCOPE
from lib.learning.annotation_notes import Prompts
from lib.options import Option


class Scribbles(PromptedTask):
    """Options: where to segment, see `scope`; `use_class` gives the network the class too if the weights know it."""

    name = "scribbles"
    options: ClassVar = {**SCOPE, **PLANE, **CLEAN_UP, "use_class": Option(False)}

    def __init__(self, context: AppContext) -> None:
        super().__init__(context, InferType.SCRIBBLES, "Corrects one label by scribbles on it and on what it is not")

    def resolve(self, params: Mapping[str, Any]) -> InferRequest:
        """One label's scribbles, and the mask that they correct."""
        return resolve_scribbles(self.context, self.options, params)

    def prompts(self, request: InferRequest) -> dict[str, StructurePrompts]:
        """The scribbles of the label, and the mask that they correct."""
        [label] = request.labels
        before = request.initial_masks.masks[label]
        prompts = StructurePrompts(
            scribbles=request.scribbles,
            previous_mask=before,
            class_name=self.class_name(request, label),
            known_class=self.known_class(request, label),
        )
        return {label: prompts}

    def answer(self, request: InferRequest) -> InferResult:
        """As all models with prompts, but every voxel that is drawn on is as drawn, whatever the network predicts."""
        result = super().answer(request)
        if request.scribbles is None:
            return result
        drawn = {
            number: np.where(strokes == 0, result.labels.on(number), strokes > 0).astype(np.uint8)
            for number, strokes in request.scribbles.slices.items()
        }
        return replace(result, labels=result.labels.with_slices(drawn))

    def prompts_by_slice(self, request: InferRequest) -> Prompts:
        """The slices that are drawn on."""
        if request.scribbles is None:
            return {}
        return {label: scribbled_slices(request.scribbles, request.image) for label in request.labels}
