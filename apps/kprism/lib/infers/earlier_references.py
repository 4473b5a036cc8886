# SPDX-License-Identifier: Apache-2.0
"""Structures that only versions know which do not answer now: segmented from references, as `in_context` does."""

from __future__ import annotations

from collections.abc import Sequence

from lib.infers.reference_selection import ReferenceSelector
from lib.infers.request import InferRequest
from lib.infers.structure_references import StructureReferences
from lib.learning.earlier_structures import EarlierStructures
from lib.networks import Networks


class EarlierReferences:
    """Selects references for such structures, by the rules and with the defaults of `in_context`."""

    def __init__(self, structures: EarlierStructures, selector: ReferenceSelector) -> None:
        self._structures, self._selector = structures, selector

    def names(self, networks: Networks) -> list[str]:
        """The structures that these networks do not segment by name, but that a version knows."""
        return self._structures.unknown_to(networks.semantic_classes)

    def find(self, request: InferRequest, names: Sequence[str]) -> dict[str, StructureReferences]:
        """References for the structures `names` in the image of a request.

        RequestError if there are none for one of them: no other case, or none of another patient, shows it.
        """
        return self._selector.select(request, names) if names else {}
