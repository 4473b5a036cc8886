# SPDX-License-Identifier: Apache-2.0
"""Options that only some downloads have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class LayoutOptions:
    """None means the default of the layout. A layout's `OPTIONS` names those that it knows.

    `images`: the folder of the images, if they are another download than the labels. `channel`: which of several
    channels or sequences becomes the image. `expert`: whose annotation is taken.
    """

    images: Path | None = None
    channel: str | None = None
    expert: str | None = None

    def check(self, known: frozenset[str], name: str) -> None:
        """ValueError for an option that is given though the download `name` has none of the kind."""
        for field in fields(self):
            if getattr(self, field.name) is not None and field.name not in known:
                raise ValueError(f"{name} has no option --{field.name}")
