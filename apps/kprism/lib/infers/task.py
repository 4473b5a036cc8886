# SPDX-License-Identifier: Apache-2.0
"""What all models share: from a request to an image, from masks to a file on its grid, and the JSON of an answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from lib.engine import Engine, Network
from lib.errors import RequestError
from lib.imaging.label_maps import renumbered, values_in
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage
from lib.imaging.writing import ResultFormat, write_mask
from lib.infers.prompts import wants_model_numbers
from lib.options import Option, read_options
from lib.request_statistics import RequestStatistics

MAX_LABELS = 255
"""A mask has eight bits a voxel."""


@dataclass(frozen=True)
class Source:
    """The image of a request: a file, and its id where it is in the datastore.

    It is made by the app after its checks and can come from nowhere else: JSON holds no such object.
    """

    path: Path
    name: str
    image_id: str | None = None


@dataclass(frozen=True)
class AppContext:
    """What the app's models have in common."""

    engine: Engine
    book: LabelRegistry
    datastore: Datastore


@dataclass
class InferRequest:
    """One request on its way through a model."""

    params: Mapping[str, Any]
    options: dict[str, Any]
    image: MedicalImage
    source: Source
    network: Network
    report: RequestStatistics


@dataclass
class InferResult:
    """An index map (i, j, k) whose values 1, 2, ... are `names`, and what else the JSON says.

    `asked` are the names that the client named itself; they are answered for even when nothing was found.
    """

    labels: NDArray[np.uint8]
    names: list[str]
    asked: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class KPrismTask(InferTask):  # type: ignore[misc]
    """A model of the app: one way to ask the shared network."""

    options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, house: AppContext, kind: InferType, description: str) -> None:
        shown = {name: option.shown() for name, option in self.options.items()}
        super().__init__(kind, house.book.indices(), 3, description, shown)
        self.house = house

    def info(self) -> dict[str, Any]:
        """MONAI Label's description of the model, with the names known by now."""
        self.labels = self.house.book.indices()
        return dict(super().info())

    def is_valid(self) -> bool:
        """The weights are loaded, and so checked, when the app starts."""
        return True

    def get_path(self, validate: bool = True) -> str:
        """The weights file, for MONAI Label's /model."""
        return str(self.house.engine.network().path)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Answer a request whose `image` is a `Source`: (result file, JSON)."""
        report = RequestStatistics()
        source = request["image"]
        options = read_options(self.options, request)
        with report.step("read"):
            image = self.house.engine.image(source.path, source.name, report)
            form = ResultFormat.parse(request, image)
        network = self.house.engine.network()
        job = InferRequest(request, options, image, source, network, report)
        answer = self.answer(job)
        with report.step("number"):
            values, label_names, absent = self._number(job, answer)
        with report.step("write"):
            path = write_mask(values, image, form)
        return str(path), {
            "label_names": label_names,
            "absent": absent,
            **answer.extra,
            "model": self.name,
            "weights_version": network.version,
            "device": network.device,
            "files_read": report.files_read,
            "encoder_passes": report.encoder_passes,
            "decoder_passes": report.decoder_passes,
            "latencies": report.latencies(),
        }

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in requests."""

    @abstractmethod
    def answer(self, job: InferRequest) -> InferResult:
        """The masks that the request asks for."""

    def _number(self, job: InferRequest, answer: InferResult) -> tuple[NDArray[np.uint8], dict[str, int], list[str]]:
        """The values that the client expects: the model's numbers for OHIF, else 1, 2, ... of the names answered.

        Returns the renumbered map, the number of every name, and the names of which nothing was found.
        """
        found = values_in(answer.labels)
        if wants_model_numbers(job.params):
            numbers = self.house.book.numbers(answer.names)
        else:
            kept = [name for row, name in enumerate(answer.names, 1) if row in found or name in answer.asked]
            numbers = {name: number for number, name in enumerate(kept, 1)}
        if max(numbers.values(), default=0) > MAX_LABELS:
            raise RequestError(
                f"the answer needs label number {max(numbers.values())}; a mask holds at most {MAX_LABELS}"
            )
        absent = [name for row, name in enumerate(answer.names, 1) if row not in found]
        table = np.zeros(256, np.uint8)
        for row, name in enumerate(answer.names, 1):
            table[row] = numbers.get(name, 0)
        return renumbered(answer.labels, table), numbers, absent
