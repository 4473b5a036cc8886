# SPDX-License-Identifier: Apache-2.0
"""Whether two checkpoints have the same network architecture, whatever they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kprism_model.network.config import KPrismConfig

_OF_TRAINING = ("num_classes", "kinds", "kind_centres")  # they depend on the training data


def is_of_earlier_network(config: Mapping[str, Any], shipped: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's `config` is of another network than that of the shipped weights.

    Both are the objects under "config" in a checkpoint's JSON. The networks are the same if these are equal in all but
    the number of classes and the kinds of images. A missing key has the value that `KPrismConfig.from_dict` gives it; a
    configuration that `from_dict` refuses is compared unchanged.
    """
    return _architecture(config) != _architecture(shipped)


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        complete = KPrismConfig.from_dict(config).to_dict()
    except (TypeError, ValueError):
        complete = dict(config)
    return {name: value for name, value in complete.items() if name not in _OF_TRAINING}
