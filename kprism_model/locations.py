# SPDX-License-Identifier: Apache-2.0
"""Where the MONAI Label app and the shipped weights are: in a checkout, or beside the installed package."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder `kprism_model`."""


def checkout() -> Path | None:
    """The root of the checkout that this package is part of, or None where it was installed with pip."""
    root = PACKAGE.parent
    return root if (root / "apps" / "kprism" / "main.py").is_file() else None


def app_folder() -> Path:
    """The folder of the MONAI Label app, which holds `main.py`, `lib`, `tools` and `model`."""
    root = checkout()
    return PACKAGE.parent / "kprism_app" if root is None else root / "apps" / "kprism"


def weights_folder() -> Path:
    """The folder of the shipped weights."""
    return app_folder() / "model"


def data_folder() -> Path:
    """Where the commands keep what they make: `var` in a checkout, else `kprism` in $XDG_DATA_HOME."""
    root = checkout()
    if root is not None:
        return root / "var"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "kprism"
