# SPDX-License-Identifier: Apache-2.0
"""Structures that only an earlier network of the site knew: segmented after labelled cases, as `in_context` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lib.engine import Network
from lib.infers.in_context import InContext
from lib.infers.structure_references import StructureReferences
from lib.infers.task import InferRequest
from lib.learning.earlier_structures import EarlierStructures
from lib.options import read_options


class EarlierReferences:
    """Finds references for such structures, by the rules and with the defaults of `in_context`."""

    def __init__(self, structures: EarlierStructures, in_context: InContext) -> None:
        self._structures, self._in_context = structures, in_context

    def names(self, network: Network) -> list[str]:
        """The structures that these weights do not know and a version of an earlier network did."""
        return self._structures.unknown_to(network.registry)

    def find(
        self, job: InferRequest, names: Sequence[str], options: Mapping[str, Any]
    ) -> dict[str, StructureReferences]:
        """References for the structures `names` in the image of `job`; `options` as `class_segmentation.WHOLE`.

        RequestError if there are none for one of them: no other case, or none of another patient, shows it.
        """
        if not names:
            return {}
        defaults = read_options(self._in_context.options, {})
        return self._in_context.references(replace(job, options={**defaults, **options}), list(names))
