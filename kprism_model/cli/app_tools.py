# SPDX-License-Identifier: Apache-2.0
"""`kprism viewer`, `import`, `export-dataset`, `versions` and `federate`: modules of the app's folder `tools`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from kprism_model.cli.processes import become
from kprism_model.locations import app_folder

MODULES = {
    "viewer": "tools.viewer",
    "import": "tools.import_folder",
    "export-dataset": "tools.export_dataset",
    "versions": "tools.versions",
    "federate": "tools.federate",
}


def run(name: str, words: Sequence[str]) -> NoReturn:
    """Become the tool, in the caller's folder, so that relative paths mean what they say."""
    become(MODULES[name], *words, path=(app_folder(),))
