# SPDX-License-Identifier: Apache-2.0
"""Index maps of several networks, put on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.imaging.label_maps import MAX_LABELS, renumbered


class Layer(NamedTuple):
    """An index map (i, j, k) of one network, whose value n is the n-th of `names`."""

    labels: NDArray[np.uint8]
    names: Sequence[str]


def flattened(layers: Sequence[Layer], names: Sequence[str]) -> NDArray[np.uint8]:
    """One index map (i, j, k), read-only, whose value n is the n-th of `names`; later layers are on top.

    Names of a layer that are not among `names` are erased from it. RequestError for more than 255 names.
    """
    if len(names) > MAX_LABELS:
        raise RequestError(f"the answer holds {len(names)} structures; a mask holds at most {MAX_LABELS}")
    value_of = {name: value for value, name in enumerate(names, 1)}
    result: NDArray[np.uint8] | None = None
    for layer in layers:
        if result is None and list(layer.names) == list(names):
            result = layer.labels
            continue
        table = np.zeros(MAX_LABELS + 1, np.uint8)
        for value, name in enumerate(layer.names, 1):
            table[value] = value_of.get(name, 0)
        labels = renumbered(layer.labels, table)
        result = labels if result is None else np.where(labels > 0, labels, result)
    if result is None:
        raise ValueError("no layer is given; expected one or more")
    result.flags.writeable = False
    return result
