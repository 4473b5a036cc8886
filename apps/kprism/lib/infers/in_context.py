# SPDX-License-Identifier: Apache-2.0
"""Segmentation after the example of labelled cases of the datastore; structures need not be known to the weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType

from kprism_model.predictor import Prediction, merge_classes
from kprism_model.references import References
from lib.engine import tensor_bytes
from lib.errors import RequestError
from lib.infers.base import Answer, House, Job, KPrismTask
from lib.options import Option, names_in
from lib.prompts import read_structures
from lib.references import Reference, ReferenceFinder


class InContext(KPrismTask):
    """Options: `structures` and `references` (image ids), with commas between them; both may be empty.

    Without `structures` all that the references' labels hold are segmented; without `references` suitable cases are
    chosen, `reference_slices` slices in all for each structure.
    """

    name = "in_context"
    options: ClassVar = {
        "structures": Option(""),
        "references": Option(""),
        "reference_slices": Option(3, low=1, high=16),
        "presence": Option(0.5, low=0.0, high=1.0),
    }

    def __init__(self, house: House) -> None:
        super().__init__(house, InferType.SEGMENTATION, "Segments what labelled cases of this datastore show")

    def answer(self, job: Job) -> Answer:
        """Each structure after its own references, merged: a pixel belongs to its most probable structure."""
        asked = read_structures(job.params, job.options["structures"], self.house.book)
        with job.report.step("references"):
            finder = ReferenceFinder(
                self.house.engine,
                self.house.datastore,
                self.house.book,
                job.image,
                job.source.image_id,
                names_in(job.options["references"]),
            )
            names = asked or finder.structures()
            if not names:
                raise RequestError(
                    "there is no labelled case (tag final) with named structures to serve as a reference; "
                    "submit a label, or name the values of existing ones in labels.json"
                )
            found = self._find(finder, names, job.options["reference_slices"], bool(asked))
        names = list(found)
        labels = self._segment(job, found)
        for row, name in enumerate(names, 1):
            self.house.memory.put(job.key(name), labels == row)
        used = {
            name: [{"image": reference.image_id, "slices": list(reference.slices)} for reference in references]
            for name, references in found.items()
        }
        return Answer(labels, names, asked, {"references": used})

    @staticmethod
    def _find(finder: ReferenceFinder, names: list[str], count: int, strict: bool) -> dict[str, list[Reference]]:
        """References of every structure; structures that nobody asked for may lack them, but not all of them."""
        found: dict[str, list[Reference]] = {}
        problems: list[RequestError] = []
        for name in names:
            try:
                found[name] = finder.find(name, count, strict)
            except RequestError as error:
                if strict:
                    raise
                problems.append(error)
        if not found:
            raise problems[0]
        return found

    def _segment(self, job: Job, found: dict[str, list[Reference]]) -> Any:
        engine, network, report, image = self.house.engine, job.network, job.report, job.image
        encoded = {name: self._encode(job, name, references) for name, references in found.items()}
        labels, view = image.empty_labels()
        for number in range(image.slices):
            [embedding] = engine.embed(network, image, [number], report)
            predictions: dict[str, Prediction] = {}
            for name, references in encoded.items():
                predictions[name] = engine.run(
                    "decode", report, network.predictor.predict, references=references, embedding=embedding
                )
                report.decoder_passes += 1
            with report.step("compose"):
                view[number] = merge_classes(predictions, list(found), presence_threshold=job.options["presence"])
        return labels

    def _encode(self, job: Job, name: str, references: list[Reference]) -> References:
        chosen = tuple((reference.image.digest, reference.slices, _digest(reference)) for reference in references)
        images = [np.ascontiguousarray(r.image.scaled[number]) for r in references for number in r.slices]
        masks = [mask for reference in references for mask in reference.masks]

        def encode() -> References:
            job.report.encoder_passes += len(images)
            return self.house.engine.run("encode", job.report, job.network.predictor.embed_references, images, masks)

        return self.house.engine.cached(("references", job.network.version, chosen), encode, tensor_bytes)


def _digest(reference: Reference) -> int:
    return hash(tuple(np.packbits(mask).tobytes() for mask in reference.masks))
