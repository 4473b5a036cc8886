# SPDX-License-Identifier: Apache-2.0
"""Segmentation after the example of labelled cases of the datastore; structures need not be known to the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from functools import partial
from typing import ClassVar

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from numpy.typing import NDArray

from kprism_model.network.references import References
from kprism_model.preprocess import evenly_spaced
from lib.errors import RequestError
from lib.infers.class_segmentation import WHOLE
from lib.infers.prompts import read_structures
from lib.infers.reference_search import Reference, ReferenceFinder
from lib.infers.scope import range_of, to_clean
from lib.infers.structure_references import StructureReferences, told
from lib.infers.task import AppContext, InferRequest, InferResult, KPrismTask
from lib.learning.submitted_references import SubmittedReferences, key_of, used
from lib.options import Option

LOOKED_AT = 5
"""Slices of the image that are compared with the references' objects, spread evenly."""


class InContext(KPrismTask):
    """Options: `structures` and `references` (image ids), with commas between them; both may be empty.

    Without `structures` all that the references' labels hold are segmented; without `references` suitable ones are
    chosen, `reference_slices` slices in all for each structure: of the submitted cases, or where they do not show the
    structure, of labels in the datastore that have not been taken in.
    """

    name = "in_context"
    options: ClassVar = {
        "structures": Option("", names=True),
        "references": Option("", names=True),
        "reference_slices": Option(3, low=1, high=16),
        **WHOLE,
    }

    def __init__(self, house: AppContext, submitted: SubmittedReferences) -> None:
        super().__init__(house, InferType.SEGMENTATION, "Segments what labelled cases of this datastore show")
        self._submitted = submitted

    def answer(self, job: InferRequest) -> InferResult:
        """Each structure after its own references, merged: a pixel belongs to its most probable structure."""
        asked = read_structures(job.params, job.options["structures"], self.house.book)
        found = self.references(job, asked)
        labels = self._segment(job, found)
        return InferResult(labels, list(found), asked, {"references": told(found)})

    def references(self, job: InferRequest, asked: list[str]) -> dict[str, StructureReferences]:
        """References for the structures `asked`, or if these are none for all that labelled cases show.

        RequestError if there are none for a structure that is asked for, or for any.
        """
        with job.report.step("references"):
            finder = ReferenceFinder(
                self.house.engine,
                self.house.datastore,
                self.house.book,
                job.image,
                job.source.image_id,
                job.options["references"],
                job.report,
            )
            names = asked or finder.structures()
            if not names:
                raise RequestError(
                    "there is no labelled case (tag final) with named structures to serve as a reference; "
                    "submit a label, or name the values of existing ones in labels.json"
                )
        chosen = {} if job.options["references"] else self._find_submitted(job, names)
        with job.report.step("references"):
            return self._find(job, finder, names, chosen, bool(asked))

    def _find(
        self,
        job: InferRequest,
        finder: ReferenceFinder,
        names: list[str],
        chosen: dict[str, StructureReferences],
        strict: bool,
    ) -> dict[str, StructureReferences]:
        """References of every structure; structures that nobody asked for may lack them, but not all of them."""
        found, count = dict(chosen), job.options["reference_slices"]
        problems: list[RequestError] = []
        for name in names:
            if name in found:
                continue
            try:
                found[name] = self._shown(job, finder.find(name, count, strict))
            except RequestError as error:
                if strict:
                    raise
                problems.append(error)
        if not found:
            raise problems[0]
        return {name: found[name] for name in names if name in found}

    def _find_submitted(self, job: InferRequest, names: list[str]) -> dict[str, StructureReferences]:
        """References among the submitted cases, for the structures that these show."""
        self._submitted.update(job.network)
        shown = self._submitted.structures(job.network, job.source.image_id)
        names = [name for name in names if name in shown]
        if not names:
            return {}
        count = job.options["reference_slices"]
        volume = self.house.engine.volume(job.network, job.image, job.report)
        first, last = range_of(job.options, job.image) or (0, job.image.slices - 1)
        slices = volume.embed(evenly_spaced(range(first, last + 1), LOOKED_AT))
        job.report.count(volume)
        found: dict[str, StructureReferences] = {}
        for name in names:
            entries = self._submitted.find(job.network, name, job.image, job.source.image_id, slices, count)
            if entries:
                found[name] = StructureReferences(
                    key_of(entries), used(entries), partial(self._submitted.encoded, job.network, entries)
                )
        return found

    def _segment(self, job: InferRequest, found: dict[str, StructureReferences]) -> NDArray[np.uint8]:
        """Index map (i, j, k), read-only, in the order of `found`."""
        slices, presence = range_of(job.options, job.image), job.options["presence"]
        shown = tuple((name, references.key) for name, references in found.items())
        key = ("shown", job.network.version, job.image.digest, shown, slices, presence, job.options["clean_up"])

        def segment() -> NDArray[np.uint8]:
            encoded = {name: references.encode() for name, references in found.items()}
            volume, clean = self.house.engine.volume(job.network, job.image, job.report), to_clean(job.options, found)
            labels = volume.predict_references(
                encoded, minimum_presence=presence, slices=slices, largest=clean, fill=clean
            )
            job.report.count(volume)
            labels.flags.writeable = False
            return labels

        return self.house.engine.cached(key, segment)

    def _shown(self, job: InferRequest, references: list[Reference]) -> StructureReferences:
        used = [{"image": reference.image_id, "slices": list(reference.slices)} for reference in references]
        return StructureReferences(_key(references), used, partial(self._encode, job, references))

    def _encode(self, job: InferRequest, references: list[Reference]) -> References:
        images = [np.ascontiguousarray(r.image.scaled[number]) for r in references for number in r.slices]
        masks = [mask for reference in references for mask in reference.masks]

        def encode() -> References:
            job.report.encoder_passes += len(images)
            return self.house.engine.run("encode", job.report, job.network.predictor.embed_references, images, masks)

        return self.house.engine.cached(("references", job.network.version, _key(references)), encode)


def _key(references: list[Reference]) -> Hashable:
    """What references are: content of the images, slices, and masks."""
    return tuple((reference.image.digest, reference.slices, _digest(reference)) for reference in references)


def _digest(reference: Reference) -> str:
    content = b"".join(np.packbits(mask).tobytes() for mask in reference.masks)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
