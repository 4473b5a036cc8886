# SPDX-License-Identifier: Apache-2.0
"""The references from which a structure is segmented; they are encoded only if the answer is not in the cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from kprism_model.network.references import References
from lib.networks import Network


class StructureReferences(NamedTuple):
    """References of a structure for the network that answers it.

    key: names their content. entries: what the answer's JSON says of them. encode: encodes them with `network`.
    """

    network: Network
    key: Hashable
    entries: list[dict[str, Any]]
    encode: Callable[[], References]


def references_metadata(references: Mapping[str, StructureReferences]) -> dict[str, list[dict[str, Any]]]:
    """References by structure, as entries of the answer's JSON."""
    return {name: own.entries for name, own in references.items()}
