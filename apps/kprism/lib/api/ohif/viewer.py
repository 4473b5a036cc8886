# SPDX-License-Identifier: Apache-2.0
"""The OHIF that `./kprism viewer` fetches, with our configuration, below any path."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import HTTPException
from fastapi.responses import Response

from kprism_model.locations import data_folder
from lib.api.ohif.files import mode, serve
from lib.api.ohif.relocation import relocated

FOLDER = Path(os.environ.get("KPRISM_VIEWER", data_folder() / "viewer" / "ohif-3.13.2"))
"""The unpacked viewer (tools/ohif.py)."""

BASE = "/viewer/"
"""The path for which it was unpacked."""


def viewer(path: str = "") -> Response:
    """A file of the viewer, its start page for the addresses of its pages; 404 if it is not installed."""
    if path == "app-config.js":
        return mode(path)
    if not (FOLDER / "index.html").is_file():
        raise HTTPException(404, "the viewer is not installed; './kprism viewer' fetches it once")
    return relocated(serve(FOLDER, path, "index.html"), BASE, path)
