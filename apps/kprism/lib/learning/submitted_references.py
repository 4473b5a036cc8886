# SPDX-License-Identifier: Apache-2.0
"""References for one request from the submitted cases: those whose object is most similar to the image."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch

from kprism_model.network.references import References
from kprism_model.predictor import ImageEmbedding
from lib.engine import Engine
from lib.errors import RequestError
from lib.image_files import image_path
from lib.imaging.medical_image import MedicalImage
from lib.learning.reference_cache import Entry, ReferenceCache
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import Submission
from lib.networks import Network, Networks
from lib.routes import IN_CONTEXT

MAX_ENCODED_PER_REQUEST = 8
"""A request encodes at most this many labels, the newest; the server's thread encodes the others."""


class SubmittedReferences:
    """The submitted cases as references: never the image itself, nor another image of its patient."""

    def __init__(self, reference_cache: ReferenceCache, submissions: SubmissionService, engine: Engine) -> None:
        self._reference_cache, self._submissions, self._engine = reference_cache, submissions, engine

    def update(self, networks: Networks, network: Network) -> None:
        """Encode the labels that were submitted just now with one of the networks."""
        submissions = referred_to(networks, network, self._submissions.store.submissions())
        self._reference_cache.update(network.predictor, network.version, submissions, limit=MAX_ENCODED_PER_REQUEST)

    def structures(self, network: Network, image_id: str | None) -> list[str]:
        """Names of the structures in other cases."""
        patient = self._submissions.patient(image_id) if image_id else None
        return self._reference_cache.structures(network.version, image_id=image_id or "", patient=patient)

    def find(
        self,
        network: Network,
        structure: str,
        image: MedicalImage,
        image_id: str | None,
        slices: Sequence[ImageEmbedding],
        count: int,
    ) -> list[Entry]:
        """At most `count` references for a structure in an image with these slices; empty if there is none.

        The same picture under another name is never a reference.
        """
        patient = self._submissions.patient(image_id) if image_id else None
        same: set[str] = set()
        while True:
            entries = self._reference_cache.find(
                network.version, structure, slices, count=count, image_id=image_id or "", patient=patient, exclude=same
            )
            copies = {entry.image_id for entry in entries if not self._is_another(entry.image_id, image)}
            if not copies:
                return entries
            same |= copies

    def encoded(self, network: Network, entries: Sequence[Entry]) -> References:
        """The encoded references, on the network's device."""
        return on_device(self._reference_cache.references(network.predictor, network.version, entries), network.device)

    def _is_another(self, image_id: str, image: MedicalImage) -> bool:
        try:
            path = image_path(self._submissions.datastore, image_id)
            return self._engine.image(path, f"image {image_id!r}").digest != image.digest
        except RequestError:
            return False


def referred_to(networks: Networks, network: Network, submissions: Iterable[Submission]) -> list[Submission]:
    """The submissions that hold a structure which `network` answers by reference: only these it has to encode."""
    return [
        submission
        for submission in submissions
        if any(networks.of(IN_CONTEXT, name).version == network.version for name in submission.structures)
    ]


def on_device(references: References, device: str) -> References:
    """The references on a device."""
    place = torch.device(device)
    summaries = tuple(summary.to(place) for summary in references.summaries)
    return References(summaries, references.keys.to(place), references.values.to(place))  # type: ignore[arg-type]


def key_of(entries: Sequence[Entry]) -> Hashable:
    """A cache key of references: their labels and slices."""
    return tuple((entry.key, entry.structure, entry.slice) for entry in entries)


def used(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The images of the references with their slices, for the answer's JSON."""
    slices: dict[str, list[int]] = {}
    for entry in entries:
        slices.setdefault(entry.image_id, []).append(entry.slice)
    return [{"image": image_id, "slices": sorted(numbers)} for image_id, numbers in slices.items()]
