# SPDX-License-Identifier: Apache-2.0
"""What the models of the app share."""

from __future__ import annotations

from dataclasses import dataclass

from monailabel.interfaces.datastore import Datastore

from lib.engine import Engine
from lib.imaging.label_registry import LabelRegistry


@dataclass(frozen=True)
class AppContext:
    """One engine with the network and the cache, one registry of label names, one datastore."""

    engine: Engine
    label_registry: LabelRegistry
    datastore: Datastore
