# SPDX-License-Identifier: Apache-2.0
"""What the models of the app share."""

from __future__ import annotations

from dataclasses import dataclass, field

from monailabel.interfaces.datastore import Datastore

from lib.engine import Engine
from lib.imaging.label_registry import LabelRegistry
from lib.learning.annotation_notes import AnnotationNotes


@dataclass(frozen=True)
class AppContext:
    """One engine with the network and the cache, one registry of label names, one datastore.

    `notes`: what answers were about, for the labels that come of them.
    """

    engine: Engine
    label_registry: LabelRegistry
    datastore: Datastore
    notes: AnnotationNotes = field(default_factory=AnnotationNotes)
