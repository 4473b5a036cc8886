# SPDX-License-Identifier: Apache-2.0
"""Series that OHIF fails at: what its own function gets to see of them, and what users are told. In Node.

tests/e2e/viewer opens such series in OHIF itself.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import { mendUnplaced } from MODULES/unplaced.js';
const { instances, fails } = INPUT;
const positions = () => instances.map(image => image.ImagePositionPatient ?? null);
let seen;
const handler = {
  getDisplaySetsFromSeries() {
    seen = positions();
    if (fails) { throw new Error('no such thing'); }
    return ['a stack'];
  },
};
const told = [];
for (let entered = 0; entered < 2; entered++) {
  mendUnplaced({ getModuleEntry: () => handler }, sentence => told.push(sentence));
}
let made = null;
try { made = handler.getDisplaySetsFromSeries(instances); } catch { /* told */ }
process.stdout.write(JSON.stringify({ made, seen, after: positions(), told }));
"""

A, B, C = [0, 0, 1], [0, 0, 2], ["0", "0", "3.5"]


def made(node: str, repository: Path, instances: list[dict[str, Any]], fails: bool = False) -> dict[str, Any]:
    """What happens when display sets are made of a series, in a mode that was entered twice."""
    folder = (repository / "apps" / "kprism" / "viewer" / "core").as_uri()
    content = json.dumps({"instances": instances, "fails": fails})
    script = SCRIPT.replace("MODULES", f"'{folder}").replace("INPUT", content)
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("missing", [None, [], [1, 2], [0, 0, None], [0, 0, "x"]])
@pytest.mark.parametrize("fails", [False, True])
def test_no_image_has_a_position_while_a_series_with_an_unplaced_one_is_made(
    node: str, repository: Path, missing: list[Any] | None, fails: bool
) -> None:
    found = made(node, repository, [{"ImagePositionPatient": position} for position in (A, missing, C)], fails)
    assert found["seen"] == [None, None, None]
    assert found["after"] == [A, None, C]
    assert found["made"] == (None if fails else ["a stack"])


@pytest.mark.parametrize("positions", [[A, B, C], [None, None], [A]])
def test_other_series_are_left_as_they_are(node: str, repository: Path, positions: list[Any]) -> None:
    found = made(node, repository, [{"ImagePositionPatient": position} for position in positions])
    assert found == {"made": ["a stack"], "seen": positions, "after": positions, "told": []}


def test_an_image_of_many_frames_keeps_its_position(node: str, repository: Path) -> None:
    found = made(node, repository, [{"ImagePositionPatient": A, "NumberOfFrames": 3}, {"ImagePositionPatient": None}])
    assert found["seen"] == found["after"] == [A, None]


@pytest.mark.parametrize("name", [{"SeriesDescription": "Thorax"}, {"SeriesInstanceUID": "1.2.3"}])
def test_a_series_that_cannot_be_shown_is_told_once(node: str, repository: Path, name: dict[str, str]) -> None:
    found = made(node, repository, [{"ImagePositionPatient": A, **name}], fails=True)
    [value] = name.values()
    assert found["told"] == [f'The viewer cannot show the series "{value}": no such thing']
