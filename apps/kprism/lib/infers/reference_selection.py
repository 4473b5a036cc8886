# SPDX-License-Identifier: Apache-2.0
"""Which labelled cases serve as references for a structure, and their encoding by the network that answers it.

Cases that the request names are used as they are. Otherwise submitted cases are compared with the image; other labels
in the datastore serve if no submitted case shows the structure. References are cut in the plane that the request asks
for. Submitted cases are encoded in the plane of their acquisition, so for another plane the datastore's labels serve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from kprism_model.network.references import References
from kprism_model.preprocess import evenly_spaced
from lib.errors import RequestError
from lib.infers.app_context import AppContext
from lib.infers.labelled_references import Reference, ReferenceFinder
from lib.infers.request import InferRequest
from lib.infers.structure_references import StructureReferences
from lib.learning.submitted_references import SubmittedReferences, key_of, used
from lib.networks import Network
from lib.routes import IN_CONTEXT

REFERENCE_SLICES = 3
"""Slices in all that serve as references for a structure, by default."""

COMPARED_SLICES = 5
"""Slices of the image, evenly spaced, that are compared with the objects in the references."""


class ReferenceSelector:
    """Selects references for structures in the image of a request, which is never its own reference."""

    def __init__(self, context: AppContext, submitted: SubmittedReferences) -> None:
        self._context, self._submitted = context, submitted

    def select(
        self,
        request: InferRequest,
        structures: Sequence[str],
        *,
        cases: Sequence[str] = (),
        count: int = REFERENCE_SLICES,
    ) -> dict[str, StructureReferences]:
        """References for `structures`, or if there are none, for all structures that labelled cases show.

        `cases` are the image ids to use (empty: any); `count` is the number of slices for each structure. RequestError
        if a structure that is asked for has no reference, or if none has.
        """
        statistics = request.statistics
        with statistics.step("references"):
            finder = self._finder(request, cases)
            names = structures or finder.structures()
            if not names:
                raise RequestError(
                    "there is no labelled case (tag final) with named structures to serve as a reference; "
                    "submit a label, or name the values of existing ones in labels.json"
                )
        acquired = request.image.plane is None
        selected = self._among_submitted(request, names, count) if acquired and not cases else {}
        with statistics.step("references"):
            problems: list[RequestError] = []
            for name in (name for name in names if name not in selected):
                try:
                    selected[name] = self._of_cases(request, name, finder.find(name, count, bool(structures)))
                except RequestError as error:
                    if structures:
                        raise
                    problems.append(error)  # nobody asked for this structure, so others may do
        if not selected:
            raise problems[0]
        return {name: selected[name] for name in names if name in selected}

    def _finder(self, request: InferRequest, cases: Sequence[str]) -> ReferenceFinder:
        context = self._context
        return ReferenceFinder(
            context.engine,
            context.datastore,
            context.label_registry,
            request.image,
            request.image_id,
            cases,
            request.statistics,
        )

    def _among_submitted(
        self, request: InferRequest, structures: Sequence[str], count: int
    ) -> dict[str, StructureReferences]:
        """References among the submitted cases, for those of the structures that they show."""
        selected: dict[str, StructureReferences] = {}
        for network, names in request.networks.grouped(IN_CONTEXT, structures).items():
            selected |= self._for_network(request, network, names, count)
        return selected

    def _for_network(
        self, request: InferRequest, network: Network, structures: Sequence[str], count: int
    ) -> dict[str, StructureReferences]:
        """References among the submitted cases for structures that one network answers."""
        image, image_id = request.image, request.image_id
        self._submitted.update(request.networks, network)
        shown = self._submitted.structures(network, image_id)
        structures = [name for name in structures if name in shown]
        if not structures:
            return {}
        volume = self._context.engine.volume(network, image, request.statistics)
        first, last = (0, image.slices - 1) if isinstance(request.extent, str) else request.extent
        slices = volume.embed(evenly_spaced(range(first, last + 1), COMPARED_SLICES))
        request.statistics.count(volume)
        selected: dict[str, StructureReferences] = {}
        for name in structures:
            entries = self._submitted.find(network, name, image, image_id, slices, count)
            if entries:
                encode = partial(self._submitted.encoded, network, entries)
                selected[name] = StructureReferences(network, key_of(entries), used(entries), encode)
        return selected

    def _of_cases(self, request: InferRequest, structure: str, references: Sequence[Reference]) -> StructureReferences:
        """References from labels in the datastore."""
        network = request.networks.of(IN_CONTEXT, structure)
        entries = [{"image": reference.image_id, "slices": list(reference.slices)} for reference in references]
        encode = partial(self._encoded, request, network, references)
        return StructureReferences(network, _key(references), entries, encode)

    def _encoded(self, request: InferRequest, network: Network, references: Sequence[Reference]) -> References:
        images = [np.ascontiguousarray(r.image.scaled[number]) for r in references for number in r.slices]
        masks = [mask for reference in references for mask in reference.masks]
        engine, statistics = self._context.engine, request.statistics

        def encode() -> References:
            statistics.encoder_passes += len(images)
            return engine.run("encode", statistics, network.predictor.embed_references, images, masks)

        return engine.cached(("references", network.version, _key(references)), encode)


def _key(references: Sequence[Reference]) -> Hashable:
    """What references are: content and plane of the images, slices, and masks."""
    return tuple((reference.image.volume.digest, reference.slices, _digest(reference)) for reference in references)


def _digest(reference: Reference) -> str:
    content = b"".join(np.packbits(mask).tobytes() for mask in reference.masks)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
