# SPDX-License-Identifier: Apache-2.0
"""Programs of the system that tests drive: the browser and its options."""

from __future__ import annotations

import shutil

from tests.conftest import lacking

WINDOW = {"width": 1100, "height": 700}

FLAGS = [
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a graphics card
]


def program(*names: str, package: str) -> str:
    """Path of an installed program."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        lacking(f"the browser tests need {names[0]}, which is not installed (Debian, Ubuntu: apt install {package}).")
    return found
