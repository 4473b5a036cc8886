# SPDX-License-Identifier: Apache-2.0
"""What `--conf KEY VALUE` may say, and those settings of MONAI Label whose defaults do not suit the app."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monailabel.config import settings

from lib.options import names_in
from lib.reading import NIFTI, NRRD, PICTURES

WEIGHTS = "kprism_small.safetensors"

MONAI_LABEL_SETTINGS: dict[str, Any] = {
    "MONAI_LABEL_TRACKING_ENABLED": False,  # MLflow is not installed
    "MONAI_LABEL_AUTO_UPDATE_SCORING": False,  # there are no scoring methods
    "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": {},  # every modality, not CT alone
    "MONAI_LABEL_DATASTORE_FILE_EXT": [
        *(f"*{suffix}" for suffix in (*NIFTI, *NRRD, *PICTURES)),
        *(f"*{suffix.upper()}" for suffix in PICTURES),
    ],
}


@dataclass(frozen=True)
class AppConfig:
    """`model_path`: weights file; `device`: "cpu", "cuda" or "cuda:N"; `cache_mb`: memory for images and embeddings;
    `labels`: names to offer for clicks beside those that the weights and the datastore know.
    """

    model_path: Path
    device: str
    cache_mb: int
    labels: tuple[str, ...]

    @classmethod
    def parse(cls, conf: Mapping[str, str], app_dir: Path) -> AppConfig:
        """From MONAI Label's `--conf` strings; ValueError names the key and the value."""
        device = conf.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--conf device {device}: this machine has no such device ({error})") from error
        cache = conf.get("cache_mb", "1024")
        if not cache.isdigit():
            raise ValueError(f"--conf cache_mb {cache}: expected a whole number of megabytes")
        model_path = Path(conf.get("model_path") or app_dir / "model" / WEIGHTS)
        if not model_path.is_file():
            raise ValueError(f"{model_path}: there are no weights (--conf model_path FILE names others)")
        return cls(model_path, device, int(cache), tuple(names_in(conf.get("labels", ""))))


def apply_monailabel_settings() -> None:
    """Set what nobody has set, here and for the processes that MONAI Label starts."""
    fields = type(settings).model_fields
    for name, value in MONAI_LABEL_SETTINGS.items():
        if getattr(settings, name) == fields[name].default:
            setattr(settings, name, value)
            os.environ[name] = json.dumps(value)
