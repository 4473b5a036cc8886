# SPDX-License-Identifier: Apache-2.0
"""What all models share: a request is resolved, answered, and its result written, in this order and each once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.infers.app_context import AppContext
from lib.infers.request import InferRequest
from lib.infers.result import Answer, InferResult
from lib.learning.annotation_notes import Prompts
from lib.options import Option


class KPrismTask(InferTask):  # type: ignore[misc]
    """A model of the app: one way to use the shared network."""

    options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, context: AppContext, kind: InferType, description: str) -> None:
        config = {name: option.shown() for name, option in self.options.items()}
        super().__init__(kind, context.label_registry.indices(), 3, description, config)
        self.context = context

    def info(self) -> dict[str, Any]:
        """MONAI Label's description of the model, with all names that are known now."""
        self.labels = self.context.label_registry.indices()
        return dict(super().info())

    def is_valid(self) -> bool:
        """True: the weights are loaded and checked when the app starts."""
        return True

    def get_path(self, validate: bool = True) -> str:
        """The weights file of the serving version, for MONAI Label's /model."""
        return str(self.context.engine.networks().path)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Answer what a client sent, with a `Source` as `image`: (result file, JSON)."""
        answer = self.answered(request)
        return str(answer.write()), answer.json()

    def answered(self, request: Mapping[str, Any]) -> Answer:
        """The same without a file. What the answer was about is noted for the label that comes of it."""
        resolved = self.resolve(request)
        answer = Answer.of(self.name, resolved, self.answer(resolved), self.context.label_registry)
        if resolved.image_id is not None:
            self.context.notes.note(resolved.image_id, answer.json(), self.prompts_by_slice(resolved))
        return answer

    def prompts_by_slice(self, request: InferRequest) -> Prompts:
        """The prompts of each structure, to be kept with the label that is submitted; none by default."""
        return {}

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in requests."""

    @abstractmethod
    def resolve(self, params: Mapping[str, Any]) -> InferRequest:
        """The request that `params` describe; RequestError says what is wrong with them."""

    @abstractmethod
    def answer(self, request: InferRequest) -> InferResult:
        """The masks that the request asks for."""
