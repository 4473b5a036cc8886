# SPDX-License-Identifier: Apache-2.0
"""The figures of a training's report."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lib.trainers.report_figures import curves

WIDTH_OF_A_LETTER = 6.0
"""Of the legend's font, at most, in the units of the picture."""


def test_the_names_of_the_curves_stand_beside_one_another(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    modes = {"semantic": 0.5, "in_context": 0.6, "interactive": 0.7}
    log.write_text("\n".join(json.dumps({"step": step, "loss": 2.0, **modes}) for step in (1, 2, 3)))
    legend = re.findall(r'<text x="(\d+)" y="245"[^>]*>([^<]*)</text>', curves(log))
    assert [name for _, name in legend][2:] == ["Dice, interactive", "loss / largest loss"]
    ends = [int(x) + WIDTH_OF_A_LETTER * len(name) for x, name in legend]
    assert all(end < int(x) for end, (x, _) in zip(ends[:-1], legend[1:], strict=True))
    assert ends[-1] < 660


def test_a_training_of_one_step_has_no_curves(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert curves(log) == "<p>Too few steps for curves.</p>"
    log.write_text(json.dumps({"step": 1, "loss": 2.0}))
    assert curves(log) == "<p>Too few steps for curves.</p>"
