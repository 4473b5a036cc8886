# SPDX-License-Identifier: Apache-2.0
"""The references that a structure is segmented after, encoded only when the answer is not kept already."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from kprism_model.network.references import References


class StructureReferences(NamedTuple):
    """References of a structure: a key that names their content, their entries in the answer's JSON, their encoding."""

    key: Hashable
    used: list[dict[str, Any]]
    encode: Callable[[], References]


def told(found: Mapping[str, StructureReferences]) -> dict[str, list[dict[str, Any]]]:
    """References by structure, as entries of the answer's JSON."""
    return {name: references.used for name, references in found.items()}
