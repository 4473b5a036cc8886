# SPDX-License-Identifier: Apache-2.0
"""Correction of one label by scribbles, as 3D Slicer sends them: drawn into a labelmap beside the existing masks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.volumes.predictor import StructurePrompts
from lib.errors import RequestError
from lib.infers.input_masks import read_uploaded, uploaded_values
from lib.infers.prompted import answer_prompts
from lib.infers.prompts import read_scribble_values
from lib.infers.scope import CLEAN_UP, SCOPE, extent_of, filled_slices
from lib.infers.task import AppContext, InferRequest, InferResult, KPrismTask
from lib.options import Option


class Scribbles(KPrismTask):
    """Options: where to answer, see `scope`; `use_class` gives the network the class too where it knows it."""

    name = "scribbles"
    options: ClassVar = {**SCOPE, **CLEAN_UP, "use_class": Option(False)}

    def __init__(self, house: AppContext) -> None:
        super().__init__(house, InferType.SCRIBBLES, "Corrects one label by scribbles on it and on what it is not")

    def answer(self, job: InferRequest) -> InferResult:
        """The mask of the selected label: slices with scribbles and those that it is followed to anew, the others as
        they were in the labelmap.
        """
        upload = job.params.get("label_file")
        if upload is None:
            raise RequestError("the request has no file 'label'; expected a labelmap with the scribbles")
        values = read_scribble_values(job.params, uploaded_values(job.params, self.house.book), self.house.book)
        with job.report.step("read"):
            labelmap = read_uploaded(upload.path, upload.name, job.image, self.house.engine.cache.budget)
        scribbles = np.zeros(job.image.grid, np.int8, order="F")
        scribbles[(labelmap == values.foreground) & (values.foreground > 0)] = 1
        scribbles[(labelmap == values.background) & (values.background > 0)] = -1
        name, drawn = values.label, filled_slices(scribbles, job.image)
        if not drawn:
            raise RequestError(f"the uploaded labelmap holds no scribbles for {name!r}; draw on it and on background")
        before = (labelmap == values.value) & (values.value > 0)
        class_name = name if job.options["use_class"] and name in job.network.registry else None
        prompts = StructurePrompts(scribbles=scribbles, previous_mask=before, class_name=class_name)
        extent = extent_of(job.options, job.image, drawn)
        answer = answer_prompts(self.house.engine, job, {name: prompts}, extent)
        answer.labels[scribbles > 0] = 1  # what was drawn is so, whatever the network finds
        answer.labels[scribbles < 0] = 0
        return answer
