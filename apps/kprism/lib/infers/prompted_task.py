# SPDX-License-Identifier: Apache-2.0
"""Models with prompts: a model chooses the prompts of each structure, and the predictor of volumes answers them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from kprism_model.volumes.next_slice import next_slice
from kprism_model.volumes.predictor import StructureMask, StructurePrompts
from lib.imaging.medical_image import MedicalImage
from lib.infers.request import InferRequest
from lib.infers.result import InferResult
from lib.infers.scope import labels_to_clean
from lib.infers.task import KPrismTask


class PromptedTask(KPrismTask):
    """A model that segments what is prompted. Its options include `SCOPE`, `CLEAN_UP` and `use_class`."""

    @abstractmethod
    def prompts(self, request: InferRequest) -> Mapping[str, StructurePrompts]:
        """The policy of the model: what the network gets to know about each label of the request."""

    def answer(self, request: InferRequest) -> InferResult:
        """The whole mask of every label; the JSON says on which slices it was prompted and to which it was propagated,
        and which slice to look at next (`kprism_model.volumes.next_slice`; None if all are certain), numbered as in the
        file.

        Prompted slices and those that a mask is propagated to are new; all others stay as in the initial mask.
        """
        volume = self.context.engine.volume(request.network, request.image, request.statistics)
        clean = labels_to_clean(request.options, request.labels)
        answer = volume.segment(self.prompts(request), extent=request.extent, largest=clean, fill=clean)
        request.statistics.count(volume)
        with request.statistics.step("compose"):
            labels = answer.index_map(request.labels)
        slices = {name: _slices(mask, request.image) for name, mask in answer.masks.items()}
        propagated = sum(len(entry["followed"]) for entry in slices.values())
        metadata = {
            "slices": slices,
            "slices_followed": propagated,
            "next_slice": {name: _next_slice(mask, request.image) for name, mask in answer.masks.items()},
        }
        return InferResult(labels, request.labels, request.labels, metadata)

    @staticmethod
    def known_class(request: InferRequest, label: str) -> str | None:
        """The class that joins in propagation (`kprism_model.volumes.class_prior`): a label that the network knows."""
        return label if label in request.network.registry else None

    @classmethod
    def class_name(cls, request: InferRequest, label: str) -> str | None:
        """The class that the network gets to know besides the prompts: with `use_class`, a label that it knows."""
        return cls.known_class(request, label) if request.options["use_class"] else None


def _slices(mask: StructureMask, image: MedicalImage) -> dict[str, list[int]]:
    """The numbers of the slices as in the file."""
    followed = set(mask.changed) - set(mask.prompted)
    numbered = {"prompted": mask.prompted, "followed": followed}
    return {name: sorted(image.index_of(number) for number in numbers) for name, numbers in numbered.items()}


def _next_slice(mask: StructureMask, image: MedicalImage) -> int | None:
    number = next_slice(mask)
    return None if number is None else image.index_of(number)
