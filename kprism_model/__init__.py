# SPDX-License-Identifier: Apache-2.0
"""K-Prism: one 2-D network that segments by trained classes, labelled references and clicks (arXiv 2509.25594).

    import kprism_model as km
    predictor = km.load("small")
    predictor.set_image(km.scale_intensity(image))                          # (row, column)
    mask = predictor.predict(clicks=[km.Click(181, 179, True)]).mask        # bool (row, column)

The package holds the network and all that it needs to train and to predict. It never imports monailabel. The names
below are imported when they are first used, so importing the package does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kprism_model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from kprism_model.classes import ClassRegistry
    from kprism_model.intensity import scale_intensity
    from kprism_model.network.config import KPrismConfig
    from kprism_model.network.kprism import KPrism
    from kprism_model.network.references import References
    from kprism_model.predictor import Prediction, Predictor
    from kprism_model.presets import load
    from kprism_model.queries import Click
    from kprism_model.volumes.data import Volume
    from kprism_model.volumes.prediction import StructureMask, VolumePrediction
    from kprism_model.volumes.predictor import VolumePredictor
    from kprism_model.volumes.prompts import StructurePrompts, VoxelClick

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "ClassRegistry",
    "Click",
    "KPrism",
    "KPrismConfig",
    "Prediction",
    "Predictor",
    "References",
    "StructureMask",
    "StructurePrompts",
    "Volume",
    "VolumePrediction",
    "VolumePredictor",
    "VoxelClick",
    "__version__",
    "load",
    "load_checkpoint",
    "save_checkpoint",
    "scale_intensity",
]

_MODULES = {
    "Checkpoint": "checkpoint",
    "ClassRegistry": "classes",
    "Click": "queries",
    "KPrism": "network.kprism",
    "KPrismConfig": "network.config",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "References": "network.references",
    "StructureMask": "volumes.prediction",
    "StructurePrompts": "volumes.prompts",
    "Volume": "volumes.data",
    "VolumePrediction": "volumes.prediction",
    "VolumePredictor": "volumes.predictor",
    "VoxelClick": "volumes.prompts",
    "load": "presets",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "scale_intensity": "intensity",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
