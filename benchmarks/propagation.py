# SPDX-License-Identifier: Apache-2.0
"""Propagation of a few clicks through a volume: its accuracy, the clicks that it saves, and its speed.

    python -m benchmarks.propagation --data FOLDER... [--cases 4] [--seed 0] [--clicks 3] [--checkpoint PATH]

The simulated user (`kprism_model.interaction.clicks`) segments every structure of each drawn test case:

- one slice: `--clicks` clicks on the middle slice of the structure, each on the largest error; then the mask is
  propagated through the volume. The table has the Dice on that slice and on the whole volume.
- clicks to Dice 0.85 on the volume: each click goes to the slice with the most wrong pixels, once with propagation and
  once without. Volumes that do not reach it after `--limit` clicks count as that many; the table has their share.

Speed is the number of propagated slices of the first part, divided by the time for them, encoding included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.predictor import Predictor
from kprism_model.volumes.predictor import StructurePrompts, Volume, VolumePredictor, VoxelClick

WEIGHTS = Path(__file__).resolve().parent.parent / "apps/kprism/model/kprism_small"
TARGET_DICE = 0.85
MINIMUM_VOXELS = 20  # smaller structures are left out

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sample:
    """A structure in a volume: its true mask is (slice, row, column)."""

    dataset: str
    name: str
    volume: Volume
    true: BoolArray


@dataclass
class Figures:
    """The measurements of the structures of one data set."""

    slice_dice: list[float] = field(default_factory=list)
    volume_dice: list[float] = field(default_factory=list)
    end_error: list[float] = field(default_factory=list)
    propagated: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    clicks_propagated: list[int] = field(default_factory=list)
    clicks_alone: list[int] = field(default_factory=list)


class UserInVolume:
    """Clicks on one structure, and the mask after them."""

    def __init__(self, predictor: Predictor, sample: Sample) -> None:
        self.true = sample.true
        self.clicks: list[VoxelClick] = []
        self.mask = np.zeros_like(sample.true)
        self.seconds = 0.0
        self.propagated = 0
        self._volume = VolumePredictor(predictor)
        self._volume.use_volume(sample.volume)
        self._orientation = sample.volume.orientation

    def click(self, number: int) -> bool:
        """Click on the largest error of a slice; false if there is none."""
        click = next_click(self.mask[number], self.true[number])
        if click is not None:
            voxel = self._orientation.points_to_volume((number, np.floor(click[0]), np.floor(click[1])))
            i, j, k = (int(index) for index in voxel)
            self.clicks.append(VoxelClick((i, j, k), click[2]))
        return click is not None

    def predict(self, propagate: bool) -> None:
        """Replace the mask by the prediction for all clicks so far."""
        start = time.perf_counter()
        prompts = {"structure": StructurePrompts(self.clicks)}
        prediction = self._volume.segment(prompts, extent="volume" if propagate else "slice").masks["structure"]
        self.seconds = time.perf_counter() - start
        self.propagated = len(prediction.confidence) - len(prediction.prompted)
        self.mask = self._orientation.to_slices(prediction.mask)

    def worst(self) -> int:
        """The slice with the most wrong pixels; the middle one before the first click."""
        if not self.clicks:
            return middle(self.true)
        return int((self.mask != self.true).sum(axis=(1, 2)).argmax())


def middle(mask: BoolArray) -> int:
    """The middle one of the slices that are not empty."""
    shown = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(shown[len(shown) // 2])


def samples(folder: Path, cases: int, seed: int) -> Iterator[Sample]:
    """The structures of the drawn test cases."""
    dataset = read_dataset(folder)
    test_cases = dataset.cases("test")
    for number in np.random.default_rng(seed).permutation(len(test_cases))[:cases]:
        loaded = load_case(dataset, test_cases[number])
        if loaded.labels is None or loaded.orientation is None:
            raise ValueError(f"{test_cases[number].image} must be a volume with a label")
        volume = Volume.of_slices(loaded.images, loaded.orientation, test_cases[number].name)
        for value, name in dataset.classes.items():
            true = loaded.labels == value
            if true.sum() >= MINIMUM_VOXELS:
                yield Sample(dataset.name, name, volume, true)


def measure(predictor: Predictor, sample: Sample, clicks: int, limit: int, figures: Figures) -> None:
    """Add one structure's figures."""
    user = UserInVolume(predictor, sample)
    number = middle(sample.true)
    for _ in range(clicks):
        if user.click(number):
            user.predict(propagate=False)
    figures.slice_dice.append(dice(user.mask[number], sample.true[number]))
    user.predict(propagate=True)
    figures.volume_dice.append(dice(user.mask, sample.true))
    beyond = ~sample.true.any(axis=(1, 2))
    figures.end_error.append(float(user.mask[beyond].sum() / max(1, user.mask.sum())))
    figures.propagated.append(user.propagated)
    figures.seconds.append(user.seconds)
    for propagate, counts in ((True, figures.clicks_propagated), (False, figures.clicks_alone)):
        if limit:
            counts.append(clicks_needed(UserInVolume(predictor, sample), propagate, limit))


def clicks_needed(user: UserInVolume, propagate: bool, limit: int) -> int:
    """Clicks until the volume reaches the target Dice; one more than `limit` if it does not."""
    for count in range(1, limit + 1):
        user.click(user.worst())
        user.predict(propagate)
        if dice(user.mask, user.true) >= TARGET_DICE:
            return count
    return limit + 1


def table(results: dict[str, Figures], clicks: int, limit: int) -> Iterator[str]:
    """The figures in Markdown."""
    head = ["structures", f"slice Dice, {clicks} clicks", "volume Dice, propagated", "of it beyond the ends"]
    head += [
        f"clicks to {TARGET_DICE}, propagated",
        "failed",
        f"clicks to {TARGET_DICE}, every slice clicked",
        "failed",
    ]
    yield "| data set | " + " | ".join([*head, "slices/s"]) + " |"
    yield "|" + "---|" * (len(head) + 2)
    for name, figures in results.items():
        cells = [
            str(len(figures.slice_dice)),
            f"{np.mean(figures.slice_dice):.3f}",
            f"{np.mean(figures.volume_dice):.3f}",
        ]
        cells.append(f"{100 * np.mean(figures.end_error):.0f} %")
        for counts in (figures.clicks_propagated, figures.clicks_alone):
            failed = np.mean([count > limit for count in counts]) if counts else float("nan")
            capped = np.mean([min(count, limit) for count in counts]) if counts else float("nan")
            cells += [f"{capped:.1f}", f"{100 * failed:.0f} %"]
        yield f"| {name} | " + " | ".join([*cells, f"{sum(figures.propagated) / sum(figures.seconds):.1f}"]) + " |"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--cases", type=int, default=4, help="test cases of each data set")
    parser.add_argument("--seed", type=int, default=0, help="draws the cases")
    parser.add_argument("--clicks", type=int, default=3, help="on the middle slice")
    parser.add_argument("--limit", type=int, default=60, help="clicks in a volume at most; 0 leaves this part out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    checkpoint = load_checkpoint(arguments.checkpoint)
    predictor = Predictor(checkpoint.model, checkpoint.registry)
    results: dict[str, Figures] = {}
    for folder in arguments.data:
        for sample in tqdm(list(samples(folder, arguments.cases, arguments.seed)), folder.name):
            figures = results.setdefault(sample.dataset, Figures())
            measure(predictor, sample, arguments.clicks, arguments.limit, figures)
    print("\n".join(table(results, arguments.clicks, arguments.limit)))


if __name__ == "__main__":
    main()
