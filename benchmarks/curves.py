# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks' curves look."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def save_curves(path: Path, figure: Figure, axes: Axes) -> None:
    """Finish a figure of labelled lines, with a legend and without a frame, and write it as PNG."""
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
