# SPDX-License-Identifier: Apache-2.0
"""Index maps of several networks, put on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.label_maps import MAX_LABELS, renumbered


class Layer(NamedTuple):
    """An index map of one network, whose value n is the n-th of `names`."""

    labels: SliceMap[np.uint8]
    names: Sequence[str]


def flattened(layers: Sequence[Layer], names: Sequence[str]) -> SliceMap[np.uint8]:
    """One index map whose value n is the n-th of `names`; later layers are on top.

    Names of a layer that are not among `names` are erased from it. RequestError for more than 255 names.
    """
    if len(names) > MAX_LABELS:
        raise RequestError(f"the answer holds {len(names)} structures; a mask holds at most {MAX_LABELS}")
    value_of = {name: value for value, name in enumerate(names, 1)}
    result: SliceMap[np.uint8] | None = None
    for layer in layers:
        table = np.zeros(MAX_LABELS + 1, np.uint8)
        for value, name in enumerate(layer.names, 1):
            table[value] = value_of.get(name, 0)
        own = layer.labels if list(layer.names) == list(names) else renumbered(layer.labels, table)
        result = own if result is None else _on_top(own, result)
    if result is None:
        raise ValueError("no layer is given; expected one or more")
    return result


def _on_top(upper: SliceMap[np.uint8], lower: SliceMap[np.uint8]) -> SliceMap[np.uint8]:
    covered = {number: np.where(own > 0, own, lower.on(number)) for number, own in upper.slices.items()}
    return lower.with_slices(covered)
