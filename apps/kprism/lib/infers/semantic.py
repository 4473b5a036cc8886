# SPDX-License-Identifier: Apache-2.0
"""Automatic segmentation of the structures that the weights know, in every slice where they are present."""

from __future__ import annotations

from typing import Any, ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.predictor import merge_classes
from lib.engine import BATCH
from lib.errors import RequestError
from lib.infers.base import Answer, House, Job, KPrismTask
from lib.options import Option
from lib.prompts import read_structures


class Semantic(KPrismTask):
    """Options: `structures` (names with commas between them; empty: all), `presence` (how sure that one is there)."""

    name = "semantic"
    options: ClassVar = {"structures": Option(""), "presence": Option(0.5, low=0.0, high=1.0)}

    def __init__(self, house: House, classes: list[str]) -> None:
        self._classes = classes
        super().__init__(house, InferType.SEGMENTATION, "Segments the structures that the network was trained on")

    def info(self) -> dict[str, Any]:
        """MONAI Label's description; only trained classes can be asked for."""
        info = super().info()
        info["labels"] = {name: number for name, number in info["labels"].items() if name in self._classes}
        return info

    def answer(self, job: Job) -> Answer:
        """All asked classes in all slices, merged: a pixel belongs to its most probable class."""
        asked = read_structures(job.params, job.options["structures"], self.house.book)
        for name in asked:
            if name not in job.network.registry:
                known = ", ".join(job.network.registry.names)
                raise RequestError(f"structure {name!r} is unknown to these weights; expected one of {known}")
        names = asked or list(job.network.registry.names)
        labels = self._segment(job, names)
        for row, name in enumerate(names, 1):
            self.house.memory.put(job.key(name), labels == row)
        return Answer(labels, names, asked)

    def _segment(self, job: Job, names: list[str]) -> Any:
        engine, network, report, image = self.house.engine, job.network, job.report, job.image
        labels, view = image.empty_labels()
        for start in range(0, image.slices, BATCH):
            numbers = range(start, min(start + BATCH, image.slices))
            embeddings = engine.embed(network, image, numbers, report)
            predictions = engine.run(
                "decode",
                report,
                network.predictor.predict_classes,
                names,
                embeddings=embeddings,
                minimum_presence=job.options["presence"],
            )
            report.decoder_passes += len(names) * len(embeddings)
            with report.step("compose"):
                for number, found in zip(numbers, predictions, strict=True):
                    view[number] = merge_classes(found, names, presence_threshold=job.options["presence"])
        return labels
