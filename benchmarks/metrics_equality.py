# SPDX-License-Identifier: Apache-2.0
"""MONAI's Dice and HD95 against plain implementations: the greatest difference and the ratio of times, for each set.

    python -m benchmarks.metrics_equality --data FOLDER... [--cases 20] [--seed 0] [--out FILE.json]

Every structure of every test case is compared with a prediction made of it: its outline is moved by smooth noise, and
part of it may be missing. Per-slice Dice and per-case Dice and HD95 are computed, as `evaluate` does. Dice is that of
`kprism_model.metrics`; HD95 is computed here from distance transforms, where MONAI searches for nearest neighbours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model import metrics
from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.evaluation import monai_metrics

BoolArray = NDArray[np.bool_]

_NOISE_SIGMA = 6.0  # pixels
_SHIFT = 3.0  # pixels by which an outline is moved, standard deviation
_MISSING = 0.2  # chance that the lower half of a prediction is missing


@dataclass
class Comparison:
    """One metric on one data set: number of masks, greatest differences, CPU seconds of either implementation.

    `relative` is the difference as a share of the value, where that is more than 1: MONAI computes in float32.
    """

    masks: int = 0
    difference: float = 0.0
    relative: float = 0.0
    ours: float = 0.0
    monai: float = 0.0

    def add(self, ours: Callable[[], float], monai: Callable[[], float]) -> None:
        """Compute a metric in both ways."""
        start = time.process_time()
        expected = ours()
        middle = time.process_time()
        value = monai()
        self.monai += time.process_time() - middle
        self.ours += middle - start
        self.masks += 1
        assert np.isnan(expected) == np.isnan(value), f"{expected} against {value}"
        if not np.isnan(expected):
            self.difference = max(self.difference, abs(value - expected))
            self.relative = max(self.relative, abs(value - expected) / max(1.0, expected))


@dataclass
class SetComparison:
    """The three figures of one data set."""

    slice_dice: Comparison = field(default_factory=Comparison)
    case_dice: Comparison = field(default_factory=Comparison)
    hd95: Comparison = field(default_factory=Comparison)


def distance_transform_hd95(prediction: BoolArray, target: BoolArray, spacing: Sequence[float]) -> float:
    """HD95 in the unit of `spacing` by SciPy's distance transforms; nan where a mask is empty."""
    if not prediction.any() or not target.any():
        return float("nan")
    box = ndimage.find_objects((prediction | target).astype(np.uint8))[0]
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, target)]
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    directed = (distances[1][surfaces[0]], distances[0][surfaces[1]])
    return float(max(np.percentile(values, 95) for values in directed))


def perturbed(mask: BoolArray, rng: np.random.Generator) -> BoolArray:
    """A mask (slice, row, column) whose outline in each slice is moved, and of which a half may be missing."""
    prediction = np.zeros_like(mask)
    for number in np.flatnonzero(mask.any(axis=(1, 2))):
        truth = mask[number]
        depth = ndimage.distance_transform_edt(truth) - ndimage.distance_transform_edt(~truth)
        noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape), _NOISE_SIGMA)
        prediction[number] = depth + _SHIFT * noise / noise.std() > 0
    if rng.random() < _MISSING:
        prediction[:, prediction.shape[1] // 2 :] = False
    return prediction


def compare(folder: Path, cases: int, rng: np.random.Generator) -> SetComparison:
    """Both implementations on the first `cases` test cases of a data set."""
    dataset, result = read_dataset(folder), SetComparison()
    for case in dataset.cases("test")[:cases]:
        loaded = load_case(dataset, case)
        assert loaded.labels is not None
        for index in dataset.classes:
            compare_masks(result, loaded.labels == index, loaded.spacing, rng)
    return result


def compare_masks(
    result: SetComparison, true: BoolArray, spacing: Sequence[float] | None, rng: np.random.Generator
) -> None:
    """Both implementations on one structure (slice, row, column) of one case."""
    predicted = perturbed(true, rng)
    for number in np.flatnonzero(true.any(axis=(1, 2))):
        one, other = predicted[number], true[number]
        result.slice_dice.add(partial(metrics.dice, one, other), partial(monai_metrics.dice, one, other))
    result.case_dice.add(lambda: metrics.dice(predicted, true), lambda: monai_metrics.dice(predicted, true))
    one, other, steps = (predicted, true, spacing) if spacing else (predicted[0], true[0], (1.0, 1.0))
    result.hd95.add(partial(distance_transform_hd95, one, other, steps), partial(monai_metrics.hd95, one, other, steps))


def table(results: dict[str, SetComparison]) -> str:
    """A Markdown table of the sets: differences, milliseconds a mask of ours and of MONAI, and their ratio."""
    lines = [
        "| data set | metric | masks | greatest difference | relative | ours, ms | MONAI, ms | ratio |",
        "|---|---|" + "---:|" * 6,
    ]
    for name, result in results.items():
        for metric, one in vars(result).items():
            ours, monai = (1000 * seconds / max(1, one.masks) for seconds in (one.ours, one.monai))
            ratio = one.monai / one.ours if one.ours else float("nan")
            lines.append(
                f"| {name} | {metric} | {one.masks} | {one.difference:.1e} | {one.relative:.1e} "
                f"| {ours:.2f} | {monai:.2f} | {ratio:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--cases", type=int, default=20, help="test cases of each data set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    square = np.pad(np.ones((4, 4), bool), 2)
    monai_metrics.hd95(square, square, (1.0, 1.0))  # importing MONAI is not timed
    monai_metrics.dice(square, square)
    results = {
        folder.name: compare(folder, arguments.cases, np.random.default_rng(arguments.seed))
        for folder in arguments.data
    }
    print(table(results))
    if arguments.out is not None:
        content: dict[str, Any] = {
            name: {metric: vars(one) for metric, one in vars(result).items()} for name, result in results.items()
        }
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
