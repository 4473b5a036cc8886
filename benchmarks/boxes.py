# SPDX-License-Identifier: Apache-2.0
"""How many clicks a box around a structure replaces: Dice after a box, and after one click and more.

    python -m benchmarks.boxes --data ../shared/data/kvasir_polyp ../shared/data/isic_dermoscopy [--max-slices 40]

Structures in slices from the test lists get a box whose sides are wrong by a few pixels (`SLACK_PIXELS`, at the
network's size), and separately clicks on the largest error, by the simulated user. Boxes are drawn by the OHIF mode's
own code, which needs Node.js; the network is called as the server calls it.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.places import SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.predictor import Click, ImageEmbedding, Predictor
from kprism_model.queries import Query
from kprism_model.volumes.cleanup import apply_scribbles

STROKES = Path("apps/kprism/viewer/core/strokes.js").resolve()
CLICKS = 5
SLACK_PIXELS = 2
MINIMUM_PIXELS = 30  # smaller structures are left out

BoolArray = NDArray[np.bool_]
Corners = list[list[int]]
"""Two corners [column, row] of a box."""

DRAW = f"""
import {{ drawBox, BEFORE, INSIDE, OUTSIDE }} from {json.dumps(STROKES.as_uri())};
const {{ rows, columns, corners }} = JSON.parse(await new Response(process.stdin).text());
const plane = new Uint8Array(rows * columns);
drawBox(plane, columns, corners);
console.log(JSON.stringify({{ BEFORE, INSIDE, OUTSIDE, plane: Buffer.from(plane).toString('base64') }}));
"""


@dataclass(frozen=True, eq=False)
class Sample:
    """A structure in a slice: image (row, column) or (row, column, 3) and true mask (row, column)."""

    image: NDArray[np.float32]
    true: BoolArray


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.boxes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--max-slices", type=int, default=40, help="structures in slices of each list (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    checkpoint = load_checkpoint(given.checkpoint)
    predictor = Predictor(checkpoint.model, checkpoint.registry)
    print(
        f"| Dice | n | box | {' | '.join(f'{n} clicks' for n in range(1, CLICKS + 1))} | clicks that a box replaces |"
    )
    print("|---|" + "---|" * (CLICKS + 3))
    for folder in given.data:
        rng = np.random.default_rng(given.seed)
        samples = list(drawn(folder, given.max_slices, rng))
        values = [
            measured(predictor, sample, rng) for sample in tqdm(samples, desc=folder.name, leave=False, disable=None)
        ]
        box, *clicks = np.mean(values, axis=0)
        worth = next((str(n) for n, value in enumerate(clicks, 1) if value >= box), f"over {CLICKS}")
        print(f"| {folder.name} | {len(values)} | {box:.3f} | {' | '.join(f'{c:.3f}' for c in clicks)} | {worth} |")
    return 0


def drawn(folder: Path, count: int, rng: np.random.Generator) -> Iterator[Sample]:
    """At most `count` structures: of cases in random order, each in one slice that shows it."""
    dataset = read_dataset(folder)
    cases = dataset.cases("test")
    left = count
    for number in rng.permutation(len(cases)):
        loaded = load_case(dataset, cases[number])
        assert loaded.labels is not None  # test lists are labelled
        for value in dataset.classes:
            masks = loaded.labels == value
            shown = np.flatnonzero(masks.sum(axis=(1, 2)) >= MINIMUM_PIXELS)
            if len(shown) and left:
                k = int(rng.choice(shown))
                yield Sample(loaded.images[k], masks[k])
                left -= 1


def measured(predictor: Predictor, sample: Sample, rng: np.random.Generator) -> list[float]:
    """Dice after a box, and after 1 to `CLICKS` clicks."""
    [embedding] = predictor.embed([sample.image])
    return [boxed(predictor, embedding, sample.true, rng), *clicked(predictor, embedding, sample.true)]


def boxed(predictor: Predictor, embedding: ImageEmbedding, true: BoolArray, rng: np.random.Generator) -> float:
    """Dice after a box around the structure, each side up to `SLACK_PIXELS` pixels off."""
    slack = SLACK_PIXELS * max(1, round(max(true.shape) / predictor.model.config.native_size))
    rows, columns = (np.flatnonzero(true.any(axis=axis)) for axis in (1, 0))
    corners = [[int(columns[end]), int(rows[end])] for end in (0, -1)]
    off = rng.integers(-slack, slack + 1, (2, 2))
    last = [true.shape[1] - 1, true.shape[0] - 1]
    before, scribbles = draw_box(true.shape, np.clip(corners + off, 0, last).tolist())
    mask = predictor.predict_queries([Query(embedding, scribbles=scribbles, previous_mask=before)])[0].mask
    return dice(apply_scribbles(mask, scribbles, before), true)


def draw_box(shape: tuple[int, ...], corners: Corners) -> tuple[BoolArray, NDArray[np.int8]]:
    """What the mode makes of a box: the mask so far and scribbles of 1 and -1, both (row, column)."""
    question = json.dumps({"rows": shape[0], "columns": shape[1], "corners": corners})
    command = ["node", "--input-type=module", "--eval", DRAW]
    drawing = json.loads(subprocess.run(command, input=question, capture_output=True, text=True, check=True).stdout)
    plane = np.frombuffer(base64.b64decode(drawing["plane"]), np.uint8).reshape(shape)
    scribbles = (plane == drawing["INSIDE"]).astype(np.int8) - (plane == drawing["OUTSIDE"]).astype(np.int8)
    return plane == drawing["BEFORE"], scribbles


def clicked(predictor: Predictor, embedding: ImageEmbedding, true: BoolArray) -> list[float]:
    """Dice after each of the clicks; of the last one, where the mask is right before."""
    query, mask = Query(embedding), np.zeros_like(true)
    scores: list[float] = []
    for _ in range(CLICKS):
        click = next_click(mask, true)
        if click is None:
            return scores + [1.0] * (CLICKS - len(scores))
        query = query.with_click(Click(*click), mask.astype(np.float32) if query.clicks else None)
        mask = predictor.predict_queries([query])[0].mask
        scores.append(dice(mask, true))
    return scores


if __name__ == "__main__":
    raise SystemExit(main())
