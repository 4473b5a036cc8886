# SPDX-License-Identifier: Apache-2.0
"""Correction of one label by scribbles, as 3D Slicer sends them: drawn into a labelmap beside the existing masks."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.infers.base import Answer, House, Job, KPrismTask
from lib.options import Option
from lib.prompts import read_scribble_values
from lib.reading import read_mask


class Scribbles(KPrismTask):
    """Option: `use_class` gives the network the class too where the label is one that it knows."""

    name = "scribbles"
    options: ClassVar = {"use_class": Option(False)}

    def __init__(self, house: House) -> None:
        super().__init__(house, InferType.SCRIBBLES, "Corrects one label by scribbles on it and on what it is not")

    def answer(self, job: Job) -> Answer:
        """The mask of the selected label: slices with scribbles anew, the others as they were in the labelmap."""
        upload = job.params.get("label_file")
        if upload is None:
            raise RequestError("the request has no file 'label'; expected a labelmap with the scribbles")
        values = read_scribble_values(job.params)
        with job.report.step("read"):
            labelmap = read_mask(upload.path, "the uploaded labelmap")
            job.image.check_mask(labelmap, labelmap.name)
        name = self.house.book.canonical(values.label)
        drawn = job.image.to_slices(labelmap.array)
        scribbles = np.zeros(drawn.shape, np.int8)
        scribbles[(drawn == values.foreground) & (values.foreground > 0)] = 1
        scribbles[(drawn == values.background) & (values.background > 0)] = -1
        if not scribbles.any():
            raise RequestError(f"the uploaded labelmap holds no scribbles for {name!r}; draw on it and on background")
        labels, view = job.image.empty_labels()
        view[:] = (drawn == values.value) & (values.value > 0)
        class_name = name if job.options["use_class"] and name in job.network.registry else None
        for number in np.flatnonzero(scribbles.any(axis=(1, 2))):
            view[number] = self._correct(job, int(number), scribbles[number], view[number] > 0, class_name)
        self.house.memory.put(job.key(name), labels > 0)
        return Answer(labels, [name], [name])

    def _correct(
        self, job: Job, number: int, scribbles: NDArray[np.int8], before: NDArray[np.bool_], class_name: str | None
    ) -> Any:
        """The mask of one slice; scribbled pixels are as scribbled."""
        [embedding] = self.house.engine.embed(job.network, job.image, [number], job.report)
        job.report.decoder_passes += 1
        if before.any():  # scribbles are drawn over the mask in the labelmap
            before = (before | (scribbles > 0)) & (scribbles >= 0)
        prediction = self.house.engine.run(
            "decode",
            job.report,
            job.network.predictor.predict,
            class_name=class_name,
            scribbles=scribbles,
            previous_mask=before if before.any() else None,
            embedding=embedding,
        )
        return (prediction.mask | (scribbles > 0)) & (scribbles >= 0)
