# SPDX-License-Identifier: Apache-2.0
"""The settings of the server's app, as far as the command line must know them: which there are, and which are files."""

from __future__ import annotations

import difflib
from pathlib import Path

WORKLIST = "worklist"

FILES = (
    *("model_path", "state", WORKLIST),
    *("dicomweb_token_file", "dicomweb_client_certificate", "dicomweb_client_key", "dicomweb_ca"),
)
"""Settings that are paths; a work list may be a query instead."""

SETTINGS = (
    *FILES,
    *("device", "labels", "cache_mb", "image_mb", "train_after", "train_minutes", "train_processes", "tracking_uri"),
    *("unknown_structures", "patients", "strategy", "seg_type", "keep_versions", "root_path", "allow_origin"),
)
"""All of them: a wrong one would have no effect, and a work list that has none serves everything."""


def check_setting(key: str, value: str) -> tuple[str, str]:
    """A setting with its path as the current folder has it; ValueError for one that the app does not know.

    The server runs in another folder. Links stay: what they point to may be exchanged while the server runs.
    """
    if key not in SETTINGS:
        near = difflib.get_close_matches(key, SETTINGS, n=1)
        meant = f"perhaps {near[0]} is meant" if near else f"expected one of {', '.join(sorted(SETTINGS))}"
        raise ValueError(f"there is no setting {key!r}; {meant}")
    if key in FILES and value:
        path = Path(value).expanduser()
        if key != WORKLIST or path.is_file():
            return key, str(path.absolute())
    return key, value
