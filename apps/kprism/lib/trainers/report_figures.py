# SPDX-License-Identifier: Apache-2.0
"""The figures of a training's report as HTML: the training curves (SVG), and pictures of the worst cases (PNG)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kprism_model.data.partial import AnnotatedCase
from kprism_model.preprocess import to_three_channels
from kprism_model.training.validation import Score
from lib.trainers.judged_scores import SETTINGS

MODES = {
    "semantic": "semantic",
    "in_context": "in-context",
    "interactive": f"interactive (mean of {SETTINGS.clicks} clicks)",
}
"""What was measured in each mode, for the report."""

PICTURED_CASES = 6
"""Cases that are pictured, those with the lowest Dice."""

_COLOURS = {"semantic": "#0b6e4f", "in_context": "#c8553d", "interactive": "#3d5a98", "loss": "#555555"}
_LABEL_COLOUR, _PREDICTION_COLOUR = (90, 220, 120), (255, 90, 70)
_PICTURE_SIZE = 256  # pixels of the longer side

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and smoothed values."""


def curves(log: Path) -> str:
    """Training Dice of each mode and the loss (divided by its largest value) against the step, smoothed.

    `log` has a JSON record for each step.
    """
    series = _smoothed(_read_log(log))
    if not series:
        return "<p>Too few steps for curves.</p>"
    first = min(steps[0] for steps, _ in series.values())  # a training goes on from the steps of the last one
    last = max(steps[-1] for steps, _ in series.values())
    parts = [_axes(first, last)]
    for position, (name, (steps, values)) in enumerate(series.items()):
        points = " ".join(
            f"{40 + 540 * (step - first) / max(last - first, 1):.1f},{210 - 190 * value:.1f}"
            for step, value in zip(steps, values, strict=True)
        )
        parts.append(f'<polyline fill="none" stroke="{_COLOURS[name]}" stroke-width="1.5" points="{points}"/>')
        label = "loss / largest loss" if name == "loss" else f"Dice, {name.replace('_', '-')}"
        parts.append(f'<text x="{45 + 150 * position}" y="245" fill="{_COLOURS[name]}">{label}</text>')
    style = 'style="width: 100%; font-size: 11px" role="img" aria-label="training curves"'
    return f'<svg viewBox="0 0 660 255" {style}>{"".join(parts)}</svg>'


def _read_log(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _smoothed(records: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    """The curves by name; one with fewer than two values is left out."""
    series: dict[str, Curve] = {}
    for name in _COLOURS:
        points = [(record["step"], record[name]) for record in records if record.get(name, np.nan) == record.get(name)]
        if len(points) >= 2:
            steps, values = np.array(points).T
            smooth = ndimage.uniform_filter1d(values, max(1, len(values) // 10), mode="nearest")
            series[name] = steps, smooth / smooth.max() if name == "loss" else smooth
    return series


def _axes(first_step: float, last_step: float) -> str:
    lines = "".join(
        f'<line x1="40" x2="580" y1="{210 - 190 * tick}" y2="{210 - 190 * tick}" stroke="#ddd"/>'
        f'<text x="34" y="{214 - 190 * tick}" text-anchor="end">{tick:g}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'{lines}<text x="40" y="226">step {int(first_step)}</text>'
        f'<text x="580" y="226" text-anchor="end">step {int(last_step)}</text>'
    )


def pictures(scores: Sequence[Score], cases: Sequence[AnnotatedCase]) -> list[str]:
    """The slices with the lowest Dice, with the outlines of the label and of the prediction."""
    by_name = {case.name: case for case in cases}
    figures = []
    for score in sorted(scores, key=lambda one: one.dice)[:PICTURED_CASES]:
        case = by_name[score.case]
        picture = overlay(case.picture(score.slice), case.mask(score.structure)[score.slice], score.prediction)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        data = base64.b64encode(stream.getvalue()).decode()
        caption = escape(f"{score.case}, {score.structure}, {MODES[score.mode]}: Dice {score.dice:.3f}")
        figures.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return figures


def overlay(image: NDArray[Any], label: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A slice with the outlines of the label (green) and of the prediction (red), uint8 (row, column, 3)."""
    scale = _PICTURE_SIZE / max(label.shape)
    size = (max(1, round(label.shape[1] * scale)), max(1, round(label.shape[0] * scale)))
    pixels = (to_three_channels(image) * 255).astype(np.uint8)
    picture = np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    for mask, colour in ((label, _LABEL_COLOUR), (prediction, _PREDICTION_COLOUR)):
        large = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        outline = large & ~ndimage.binary_erosion(large, iterations=2, border_value=0)
        picture[outline] = colour
    return picture
