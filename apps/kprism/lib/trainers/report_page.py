# SPDX-License-Identifier: Apache-2.0
"""One HTML page about a training: verdict, Dice before and after, curves, worst cases, labels used and skipped.

The page is a single file without scripts that needs nothing from the network.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kprism_model.data.partial import AnnotatedCase
from kprism_model.files import write_bytes
from kprism_model.preprocess import to_three_channels
from kprism_model.training.validation import Score, mean_dice
from lib.trainers.finetune_dataset import FinetuneDataset

WORST = 6
"""Cases that are pictured."""

KEPT = 50
"""Pages that are kept."""

MODES = {"semantic": "semantic", "in_context": "in-context", "interactive": "interactive (3 clicks)"}
COLOURS = {"semantic": "#0b6e4f", "in_context": "#c8553d", "interactive": "#3d5a98", "loss": "#555555"}

_TRUTH, _PREDICTION = (90, 220, 120), (255, 90, 70)
_SIDE = 256  # pixels of a picture
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { padding: .8rem 1rem; border-left: 4px solid; background: #f6f6f6; }
figure { display: inline-block; vertical-align: top; margin: 0 1rem 1rem 0; }
figcaption { font-size: .8rem; max-width: 16rem; }
img { display: block; width: 16rem; image-rendering: auto; }
"""


def write_report(
    folder: Path,
    number: int | None,
    verdict: str,
    before: Sequence[Score],
    after: Sequence[Score],
    material: FinetuneDataset,
    log: Path,
    facts: Mapping[str, Any],
) -> Path:
    """Write the page and return its path; the oldest pages are deleted. `log` has a JSON record for each step."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    title = f"Training of {time.strftime('%Y-%m-%d %H:%M')}"
    colour = "#0b6e4f" if number else "#c8553d"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="verdict" style="border-color: {colour}">{escape(verdict)}</p>',
        f"<p>From version {facts['parent']}, {facts['steps']} steps in {facts['minutes']} minutes; "
        f"{round(100 * facts['share_of_new_weights'])} % of the new weights.</p>",
        "<h2>Dice on the validation cases</h2>",
        _dice_table(before, after),
        _not_judged(facts["not_judged"]),
        "<h2>Training</h2>",
        _curves(_read_log(log)),
        "<h2>Worst cases</h2>",
        "<p>Green: the submitted label. Red: the answer.</p>",
        *_pictures(after, material.validation),
        "<h2>Labels</h2>",
        _labels(material),
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<body>{''.join(body)}</body></html>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stamp}-{f'version-{number}' if number else 'not-published'}.html"
    write_bytes(path, page.encode())
    for old in sorted(folder.glob("*.html"))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def _dice_table(before: Sequence[Score], after: Sequence[Score]) -> str:
    old, new = mean_dice(before), mean_dice(after)
    rows = []
    for mode, structure in sorted(old, key=lambda kind: (list(MODES).index(kind[0]), kind[1])):
        values = old[mode, structure], new[mode, structure]
        cells = "".join(f'<td class="number">{value:.4f}</td>' for value in values)
        change = f'<td class="number">{100 * (values[1] - values[0]):+.1f}</td>'
        rows.append(f"<tr><td>{escape(structure)}</td><td>{MODES[mode]}</td>{cells}{change}</tr>")
    head = "<tr><th>structure</th><th>mode</th><th>before</th><th>after</th><th>points</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _not_judged(names: Sequence[str]) -> str:
    """What the figures say nothing of."""
    if not names:
        return ""
    listed = escape(", ".join(names))
    return f"<p>Known to the weights, but shown by no label here, and therefore not judged: {listed}.</p>"


def _read_log(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curves(records: Sequence[Mapping[str, float]]) -> str:
    """Training Dice of each mode and the loss (scaled to its largest value) against the step, smoothed."""
    series = {}
    for name in COLOURS:
        points = [(record["step"], record[name]) for record in records if record.get(name, np.nan) == record.get(name)]
        if len(points) >= 2:
            steps, values = np.array(points).T
            smooth = ndimage.uniform_filter1d(values, max(1, len(values) // 25), mode="nearest")
            series[name] = steps, smooth / smooth.max() if name == "loss" else smooth
    if not series:
        return "<p>Too few steps for curves.</p>"
    last = max(steps[-1] for steps, _ in series.values())
    lines, keys = [], []
    for place, (name, (steps, values)) in enumerate(series.items()):
        line = " ".join(
            f"{40 + 540 * step / max(last, 1):.1f},{210 - 190 * value:.1f}"
            for step, value in zip(steps, values, strict=True)
        )
        lines.append(f'<polyline fill="none" stroke="{COLOURS[name]}" stroke-width="1.5" points="{line}"/>')
        label = "loss / largest loss" if name == "loss" else f"Dice, {MODES[name]}"
        keys.append(f'<text x="{45 + 150 * place}" y="245" fill="{COLOURS[name]}">{label}</text>')
    axes = "".join(
        f'<line x1="40" x2="580" y1="{210 - 190 * tick}" y2="{210 - 190 * tick}" stroke="#ddd"/>'
        f'<text x="34" y="{214 - 190 * tick}" text-anchor="end">{tick:g}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    steps_told = f'<text x="580" y="226" text-anchor="end">{int(last)} steps</text>'
    style = 'style="width: 100%; font-size: 11px" role="img" aria-label="training curves"'
    return f'<svg viewBox="0 0 660 255" {style}>{axes}{"".join(lines)}{"".join(keys)}{steps_told}</svg>'


def _pictures(scores: Sequence[Score], cases: Sequence[AnnotatedCase]) -> list[str]:
    by_name = {case.name: case for case in cases}
    figures = []
    for score in sorted(scores, key=lambda one: one.dice)[:WORST]:
        case = by_name[score.case]
        picture = overlay(case.picture(score.slice), case.mask(score.structure)[score.slice], score.prediction)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        data = base64.b64encode(stream.getvalue()).decode()
        told = f"{score.case}, {score.structure}, {MODES[score.mode]}: Dice {score.dice:.3f}"
        figures.append(
            f'<figure><img alt="{escape(told)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(told)}</figcaption></figure>"
        )
    return figures


def overlay(image: NDArray[Any], truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A slice with the outlines of the label (green) and of the answer (red), uint8 (row, column, 3)."""
    scale = _SIDE / max(truth.shape)
    size = (max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale)))
    pixels = (to_three_channels(image) * 255).astype(np.uint8)
    picture = np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    for mask, colour in ((truth, _TRUTH), (prediction, _PREDICTION)):
        large = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        outline = large & ~ndimage.binary_erosion(large, iterations=2, border_value=0)
        picture[outline] = colour
    return picture


def _labels(material: FinetuneDataset) -> str:
    rows = [
        f"<tr><td>{escape(entry.image_id)}</td><td>{entry.side}</td><td>{escape(', '.join(entry.structures))}</td>"
        f"<td>{escape(entry.by)}</td><td>{time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.at))}</td></tr>"
        for entry in material.used
    ]
    head = "<tr><th>case</th><th>used for</th><th>structures</th><th>by</th><th>submitted</th></tr>"
    used = f"<p>Used: {len(rows)}</p><table>{head}{''.join(rows)}</table>"
    if not material.skipped:
        return used
    items = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in sorted(material.skipped.items()))
    return f"{used}<p>Skipped: {len(material.skipped)}</p><ul>{items}</ul>"
