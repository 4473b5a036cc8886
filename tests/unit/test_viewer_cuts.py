# SPDX-License-Identifier: Apache-2.0
"""Clicks in the three planes of the viewer's panel: its modules, which Node.js runs as the browser does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

GRID = (4, 3, 5)
PLANES = ["sagittal", "coronal", "axial"]

SCRIPT = """
import { imagesOf, locate, pixelsOf } from MODULES/cuts.js';
import { Prompts, ask } from MODULES/prompts.js';
import { pack, unpack } from MODULES/planes.js';
const { grid, planes, labels, axis, place } = INPUT;
const images = new Map(labels.map((image, k) => [k, Uint8Array.from(image)]));
const frames = labels.map((_, k) => [`1.${k}`, 1]);
const { cut, points } = locate(frames, axis, [place]);
const pixels = pixelsOf(cut, grid, k => images.get(k));
let sent;
globalThis.fetch = async (address, { body }) => {
  sent = { params: JSON.parse(body.get('params')), planes: (await unpack(body.get('planes'))).planes };
  return new Response(await pack({ result: {} }, images));
};
const prompts = new Prompts();
const answer = await ask(prompts.add('thing', 7, cut, pixels, { inside: true, points }), { id: 'case', grid, planes });
const empty = new Uint8Array(grid[0] * grid[1]);
const list = map => [...map].map(([k, image]) => [k, [...image]]);
process.stdout.write(JSON.stringify({
  cut, pixels: [...pixels], params: sent.params, sent: list(sent.planes), answer: [...answer.pixels],
  drawn: list(imagesOf(cut, grid, pixels, () => empty)),
  elsewhere: locate(frames, axis, [{ ...place, key: 'none' }]),
}));
"""


def clicked(node: str, repository: Path, labels: np.ndarray, axis: int) -> dict[str, Any]:
    """What the modules make of a click at (2.2, 1.1) in the fourth image, in a view along `axis`."""
    content = {
        "grid": GRID,
        "planes": PLANES,
        "labels": labels.transpose(2, 1, 0).reshape(GRID[2], -1).tolist(),
        "axis": axis,
        "place": {"key": "1.3 1", "column": 2.2, "row": 1.1},
    }
    folder = (repository / "apps" / "kprism" / "viewer" / "core").as_uri()
    script = SCRIPT.replace("MODULES", f"'{folder}").replace("INPUT", json.dumps(content))
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def volume(images: list[Any]) -> np.ndarray:
    """Images [k, pixels] as (column, row, slice)."""
    result = np.zeros(GRID, np.uint8)
    for k, pixels in images:
        result[:, :, k] = np.reshape(pixels, (GRID[1], GRID[0])).T
    return result


@pytest.mark.parametrize(("axis", "index"), [(0, 2), (1, 1), (2, 3)])
def test_a_click_in_a_plane_is_asked_for_in_it(node: str, repository: Path, axis: int, index: int) -> None:
    labels = np.random.default_rng(axis).integers(0, 9, GRID).astype(np.uint8)
    said = clicked(node, repository, labels, axis)
    assert said["cut"] == {"axis": axis, "index": index}
    expected = labels.take(index, axis).ravel(order="F")
    assert said["pixels"] == said["answer"] == expected.tolist()
    on_cut = np.arange(GRID[axis]).reshape([-1 if side == axis else 1 for side in range(3)]) == index
    np.testing.assert_array_equal(volume(said["drawn"]), labels * on_cut)
    np.testing.assert_array_equal(volume(said["sent"]), (labels == 7) & on_cut)
    assert said["params"]["thing"] == said["params"]["click_order"] == [[2, 1, 3]]
    assert said["params"].get("plane") == (None if axis == 2 else PLANES[axis])  # images: as acquired
    assert said["elsewhere"] is None
