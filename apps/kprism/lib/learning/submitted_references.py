# SPDX-License-Identifier: Apache-2.0
"""References from the bank for one request: those whose object is most like something in the image asked about."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from kprism_model.network.references import References
from kprism_model.predictor import ImageEmbedding
from lib.datastore import image_path
from lib.engine import Engine, Network
from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage
from lib.learning.reference_cache import Entry, ReferenceCache
from lib.learning.submission_service import SubmissionService

NEW = 8
"""Labels that a request encodes itself, the newest; the server's own thread encodes the others."""


class SubmittedReferences:
    """The submitted cases, as far as they may be references: never the image itself, nor others of its patient."""

    def __init__(self, bank: ReferenceCache, intake: SubmissionService, engine: Engine) -> None:
        self._bank, self._intake, self._engine = bank, intake, engine

    def update(self, network: Network) -> None:
        """Make references of the labels that have just come."""
        self._bank.update(network.predictor, network.version, self._intake.ledger.submissions(), limit=NEW)

    def structures(self, network: Network, image_id: str | None) -> list[str]:
        """Names of the structures that other cases show."""
        patient = self._intake.patient(image_id) if image_id else None
        return self._bank.structures(network.version, image_id=image_id or "", patient=patient)

    def find(
        self,
        network: Network,
        structure: str,
        image: MedicalImage,
        image_id: str | None,
        slices: Sequence[ImageEmbedding],
        count: int,
    ) -> list[Entry]:
        """At most `count` references for a structure in an image that looks like `slices`; empty if there is none.

        Of images that are the same picture under another name none is taken.
        """
        patient = self._intake.patient(image_id) if image_id else None
        same: set[str] = set()
        while True:
            found = self._bank.find(
                network.version, structure, slices, count=count, image_id=image_id or "", patient=patient, exclude=same
            )
            copies = {entry.image_id for entry in found if not self._is_another(entry.image_id, image)}
            if not copies:
                return found
            same |= copies

    def encoded(self, network: Network, entries: Sequence[Entry]) -> References:
        """What the network keeps of references, where the network is."""
        return on_device(self._bank.references(network.predictor, network.version, entries), network.device)

    def _is_another(self, image_id: str, image: MedicalImage) -> bool:
        try:
            path = image_path(self._intake.datastore, image_id)
            return self._engine.image(path, f"image {image_id!r}").digest != image.digest
        except RequestError:
            return False


def on_device(references: References, device: str) -> References:
    """References where the network is."""
    place = torch.device(device)
    summaries = tuple(summary.to(place) for summary in references.summaries)
    return References(summaries, references.keys.to(place), references.values.to(place))  # type: ignore[arg-type]


def key_of(entries: Sequence[Entry]) -> Hashable:
    """What the references are: the labels and slices."""
    return tuple((entry.key, entry.structure, entry.slice) for entry in entries)


def used(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Images with the slices that serve, as the answer's JSON tells them."""
    slices: dict[str, list[int]] = {}
    for entry in entries:
        slices.setdefault(entry.image_id, []).append(entry.slice)
    return [{"image": image_id, "slices": sorted(numbers)} for image_id, numbers in slices.items()]
