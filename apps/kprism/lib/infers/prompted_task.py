# SPDX-License-Identifier: Apache-2.0
"""Models with prompts: a model chooses the prompts of each structure, and the predictor of volumes answers them.

A label that one network answers may overlap one of another: then the rules of `resolve_overlaps` apply to all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from kprism_model.volumes.next_slice import next_slice
from kprism_model.volumes.prediction import StructureMask, VolumePrediction, resolve_overlaps
from kprism_model.volumes.predictor import StructurePrompts
from lib.imaging.medical_image import MedicalImage
from lib.infers.request import InferRequest
from lib.infers.result import InferResult
from lib.infers.scope import labels_to_clean
from lib.infers.task import KPrismTask
from lib.routes import INTERACTIVE


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
        answer = self._segment(request)
        with request.statistics.step("compose"):
            labels = answer.labels(request.labels)
        slices = {name: _slices(mask, request.image) for name, mask in answer.masks.items()}
        propagated = sum(len(entry["followed"]) for entry in slices.values())
        metadata = {
            "slices": slices,
            "slices_followed": propagated,
            "next_slice": {name: _next_slice(mask, request.image) for name, mask in answer.masks.items()},
            "answered_by": {name: request.networks.of(INTERACTIVE, name).name for name in request.labels},
        }
        return InferResult(labels, request.labels, request.labels, metadata)

    def _segment(self, request: InferRequest) -> VolumePrediction:
        """The masks of all labels, each by the network that answers it.

        The prompts of a label name all clicks of the request, whatever network answers the other labels.
        """
        prompts = self.prompts(request)
        predictions = []
        for network, labels in request.networks.grouped(INTERACTIVE, request.labels).items():
            hurried = request.extent == "slice"
            volume = self.context.engine.volume(network, request.image, request.statistics, hurried)
            clean = labels_to_clean(request.options, labels)
            own = {label: prompts[label] for label in labels}
            parts = request.parts(request.labels, len(labels))
            predictions.append(
                volume.segment(
                    own,
                    extent=request.extent,
                    largest=clean,
                    fill=clean,
                    progress=parts.count,
                    on_slice=None if request.listener is None else parts.add_mask,
                )
            )
            request.statistics.count(volume)
        if len(predictions) == 1:
            return predictions[0]
        masks = {label: mask for prediction in predictions for label, mask in prediction.masks.items()}
        return VolumePrediction(
            resolve_overlaps({label: masks[label] for label in request.labels}),
            sum(prediction.encoded_slices for prediction in predictions),
            sum(prediction.decoded_rows for prediction in predictions),
        )

    @staticmethod
    def known_class(request: InferRequest, label: str) -> str | None:
        """The class that joins in propagation (`kprism_model.volumes.class_prior`): a label that its network knows."""
        return label if label in request.networks.of(INTERACTIVE, label).registry else None

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
