# SPDX-License-Identifier: Apache-2.0
"""Answers that come in frames, as the viewer's modules read them: Node.js runs these as the browser does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.planes import pack
from lib.imaging.medical_image import planes_of

GRID = (4, 3, 5)

ASK = """
import { server } from MODULES/server.js';
const { chunks, failed, abort } = INPUT;
const control = new AbortController();
let left = false;
const body = new ReadableStream({
  pull(stream) {
    if (chunks.length) {
      stream.enqueue(Uint8Array.from(chunks.shift()));
    } else if (failed) {
      stream.error(new TypeError('network error'));
    } else {
      stream.close();
    }
  },
  cancel() { left = true; },
}, { highWaterMark: 0 });
let asked;
globalThis.fetch = async (address, { signal }) => {
  asked = [address, signal === control.signal];
  return new Response(body);
};
const list = planes => [...planes].map(([k, plane]) => [k, [...plane]]);
const parts = [];
const onPart = part => {
  parts.push({ ...part, planes: list(part.planes) });
  if (parts.length === abort) { control.abort(); }
};
const said = { parts };
try {
  const answer = await server.inferStream('interactive', 'a b', {}, null, { onPart, signal: control.signal });
  said.answer = { ...answer, planes: list(answer.planes) };
} catch (error) {
  said.error = { name: error.name, message: error.message, status: error.status };
}
process.stdout.write(JSON.stringify({ ...said, asked, left }));
"""


def run(node: str, repository: Path, script: str, **content: Any) -> dict[str, Any]:
    """What a script says about the modules."""
    folder = (repository / "apps" / "kprism" / "viewer" / "core").as_uri()
    text = script.replace("MODULES", f"'{folder}").replace("INPUT", json.dumps(content))
    done = subprocess.run(
        [node, "--input-type=module", "--eval", text], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def frame(header: dict[str, Any], *planes: int) -> bytes:
    """A frame whose planes hold their number."""
    labels = SliceMap(planes_of(GRID), np.dtype(np.uint8), {k: np.full(GRID[1::-1], k, np.uint8) for k in planes})
    message = pack(header, labels, planes)
    return len(message).to_bytes(4, "little") + message


def shown(*planes: int) -> list[Any]:
    return [[k, [k] * (GRID[0] * GRID[1])] for k in planes]


def part(done: int, *planes: int) -> bytes:
    return frame({"part": {"done": done, "total": 5, "names": {"liver": 1}}}, *planes)


FIRST, SECOND, LAST = part(1, 1, 2), part(2), frame({"result": {"label_names": {"liver": 1}}}, 1, 3)


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_frames_are_read_however_the_network_cuts_them(node: str, repository: Path, size: int) -> None:
    content = FIRST + SECOND + LAST
    chunks = [list(content[at : at + size]) for at in range(0, len(content), size)]
    chunks.insert(1, [])
    said = run(node, repository, ASK, chunks=chunks)
    server = (repository / "apps").as_uri()  # the modules ask the server that they come from
    assert said["asked"] == [f"{server}/kprism/api/infer/interactive?image=a%20b&stream=1", True]
    assert said["parts"] == [
        {"done": 1, "total": 5, "names": {"liver": 1}, "planes": shown(1, 2)},
        {"done": 2, "total": 5, "names": {"liver": 1}, "planes": []},
    ]
    assert said["answer"] == {"result": {"label_names": {"liver": 1}}, "planes": shown(1, 3)}
    assert "error" not in said


def test_a_part_is_told_before_the_rest_comes(node: str, repository: Path) -> None:
    said = run(node, repository, ASK, chunks=[list(FIRST), list(LAST)], abort=1)
    assert [one["done"] for one in said["parts"]] == [1]
    assert said["error"]["name"] == "AbortError" and "answer" not in said
    assert said["left"]


@pytest.mark.parametrize(
    ("content", "failed"),
    [(FIRST, False), (FIRST, True), (FIRST + LAST[:2], False), (FIRST + LAST[:-1], False), (FIRST + LAST[:-1], True)],
    ids=["no last frame", "failed between frames", "within the length", "within the message", "failed within"],
)
def test_an_answer_that_breaks_off_is_told(node: str, repository: Path, content: bytes, failed: bool) -> None:
    said = run(node, repository, ASK, chunks=[list(content)], failed=failed)
    assert len(said["parts"]) == 1 and "answer" not in said
    assert said["error"]["message"].startswith("The server stopped in the middle of its answer.")


def test_a_failure_of_the_server_is_told_in_its_words(node: str, repository: Path) -> None:
    error = frame({"error": {"detail": "the store does not answer", "status": 503}})
    said = run(node, repository, ASK, chunks=[list(FIRST + error)])
    assert said["error"] == {"name": "Error", "message": "The store does not answer", "status": 503}


PREVIEW = """
import { Preview } from MODULES/preview.js';
import { LabelmapOfCase } from MODULES/labelmap.js';
import { merged } from MODULES/edits.js';
const { planes, parts, between, kept } = INPUT;
const pixels = planes.map(plane => Uint8Array.from(plane));
const events = [];
const segments = { 1: { label: 'liver', segmentIndex: 1 }, 2: { label: 'spleen', segmentIndex: 2 } };
let active = 2;
const imageIds = planes.map((_, k) => `label ${k}`);
globalThis.window = {
  cornerstone: { cache: { getImage: id => ({ voxelManager: {
    getScalarData: () => pixels[imageIds.indexOf(id)],
    setAtIndex: (at, value) => { pixels[imageIds.indexOf(id)][at] = value; },
  } }) } },
  cornerstoneTools: { segmentation: {
    state: { getSegmentation: () => ({ representationData: { Labelmap: {
      imageIds, referencedImageIds: planes.map((_, k) => `/instances/1.${k}/frames/1`),
    } } }) },
    segmentIndex: { getActiveSegmentIndex: () => active },
    triggerSegmentationEvents: { triggerSegmentationDataModified: () => events.push(labelmap.passing) },
  } },
};
const segmentationService = {
  getSegmentation: () => ({ segments }),
  addSegment: (_, { segmentIndex, label }) => {
    segments[segmentIndex] = { label, segmentIndex };
    active = segmentIndex;
  },
  removeSegment: (_, segment) => { delete segments[segment]; },
  setActiveSegment: (_, segment) => { active = segment; },
};
const scene = { services: { segmentationService }, viewports: [] };
const labelmap = new LabelmapOfCase(scene, 'id', planes.map((_, k) => [`1.${k}`, 1]));
const drawing = names => {
  const values = new Map(Object.entries(names).map(([name, value]) =>
    [value, labelmap.segmentOf({ name, colour: [1, 2, 3] })]));
  return (plane, part) => merged(plane, part, values, true);
};
const preview = new Preview(labelmap, drawing);
const list = () => pixels.map(plane => [...plane]);
const seen = parts.map(({ planes: found, names }) => {
  preview.show(new Map(found.map(([k, plane]) => [k, Uint8Array.from(plane)])), names);
  return list();
});
for (const [k, at, value] of between) { pixels[k][at] = value; }
preview.end(kept);
process.stdout.write(JSON.stringify({ seen, after: list(), names: [...labelmap.segments.keys()], active, events }));
"""

BEFORE = [[0, 1, 2, 0], [0, 0, 0, 2]]
PARTS = [
    {"planes": [[0, [5, 5, 5, 0]]], "names": {"liver": 5, "kidney": 6, "polyp": 7}},
    {"planes": [[0, [0, 5, 0, 6]], [1, [6, 6, 0, 6]]], "names": {"liver": 5, "kidney": 6, "polyp": 7}},
]


def test_parts_are_shown_beside_other_structures_and_taken_back_exactly(node: str, repository: Path) -> None:
    said = run(node, repository, PREVIEW, planes=BEFORE, parts=PARTS, between=[], kept=False)
    assert said["seen"] == [[[1, 1, 2, 0], BEFORE[1]], [[0, 1, 2, 3], [3, 3, 0, 2]]]
    assert said["after"] == BEFORE
    assert said["names"] == ["liver", "spleen"] and said["active"] == 2  # a structure that was new is gone again
    assert said["events"] == [True] * 3  # none of it is the user's work


def test_what_is_drawn_while_parts_come_stays(node: str, repository: Path) -> None:
    said = run(node, repository, PREVIEW, planes=BEFORE, parts=PARTS, between=[[0, 3, 2], [1, 2, 1]], kept=False)
    assert said["after"] == [[0, 1, 2, 2], [0, 0, 1, 2]]


def test_structures_of_an_answer_that_comes_stay(node: str, repository: Path) -> None:
    said = run(node, repository, PREVIEW, planes=BEFORE, parts=PARTS, between=[], kept=True)
    assert said["after"] == BEFORE
    assert said["names"] == ["liver", "spleen", "kidney"]
