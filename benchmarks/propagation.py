# SPDX-License-Identifier: Apache-2.0
"""How far a few clicks go in a volume: accuracy of following a structure, clicks that it saves, and its speed.

    python -m benchmarks.propagation --data FOLDER... [--cases 4] [--seed 0] [--clicks 3] [--checkpoint PATH]

Of each drawn test case every structure is annotated by the simulated annotator (`kprism_model.interaction.clicks`):

- one slice: `--clicks` clicks on the middle one of the slices that show the structure, each at the largest error; then
  the structure is followed through the volume. Given are Dice on that slice and of the whole volume.
- clicks to Dice 0.85 of the volume: each click goes to the slice with most wrong pixels, once with following and once
  with prompted slices alone. Volumes that are not there after `--limit` clicks count as that many; their share is
  given.

Speed is the followed slices of the first part over the time that this took, encoding included.
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
ENOUGH = 0.85
SMALLEST = 20  # structures of fewer voxels are left out

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
    """What was measured of the structures of one data set."""

    slice_dice: list[float] = field(default_factory=list)
    volume_dice: list[float] = field(default_factory=list)
    end_error: list[float] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    clicks_followed: list[int] = field(default_factory=list)
    clicks_alone: list[int] = field(default_factory=list)


class Annotator:
    """Clicks on one structure; the answer is asked for after each click."""

    def __init__(self, predictor: Predictor, sample: Sample) -> None:
        self.true = sample.true
        self.clicks: list[VoxelClick] = []
        self.mask = np.zeros_like(sample.true)
        self.seconds = 0.0
        self.changed = 0
        self._volume = VolumePredictor(predictor)
        self._volume.use_volume(sample.volume)
        self._orientation = sample.volume.orientation

    def click(self, number: int) -> bool:
        """Click at the largest error on a slice; false where there is none."""
        found = next_click(self.mask[number], self.true[number])
        if found is not None:
            voxel = self._orientation.points_to_volume((number, np.floor(found[0]), np.floor(found[1])))
            i, j, k = (int(index) for index in voxel)
            self.clicks.append(VoxelClick((i, j, k), found[2]))
        return found is not None

    def ask(self, follow: bool) -> None:
        """Replace the mask by the answer to all clicks so far."""
        start = time.perf_counter()
        prompts = {"structure": StructurePrompts(self.clicks)}
        answer = self._volume.segment(prompts, extent="volume" if follow else "slice").masks["structure"]
        self.seconds = time.perf_counter() - start
        self.changed = len(answer.confidence) - len(answer.prompted)
        self.mask = self._orientation.to_slices(answer.mask)

    def worst(self) -> int:
        """The slice with most wrong pixels; at first the middle one."""
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
    found = dataset.cases("test")
    for number in np.random.default_rng(seed).permutation(len(found))[:cases]:
        loaded = load_case(dataset, found[number])
        if loaded.labels is None or loaded.orientation is None:
            raise ValueError(f"{found[number].image} must be a volume with a label")
        volume = Volume.of_slices(loaded.images, loaded.orientation, found[number].name)
        for value, name in dataset.classes.items():
            true = loaded.labels == value
            if true.sum() >= SMALLEST:
                yield Sample(dataset.name, name, volume, true)


def measure(predictor: Predictor, sample: Sample, clicks: int, limit: int, figures: Figures) -> None:
    """Add one structure's figures."""
    annotator = Annotator(predictor, sample)
    number = middle(sample.true)
    for _ in range(clicks):
        if annotator.click(number):
            annotator.ask(follow=False)
    figures.slice_dice.append(dice(annotator.mask[number], sample.true[number]))
    annotator.ask(follow=True)
    figures.volume_dice.append(dice(annotator.mask, sample.true))
    beyond = ~sample.true.any(axis=(1, 2))
    figures.end_error.append(float(annotator.mask[beyond].sum() / max(1, annotator.mask.sum())))
    figures.followed.append(annotator.changed)
    figures.seconds.append(annotator.seconds)
    for follow, counts in ((True, figures.clicks_followed), (False, figures.clicks_alone)):
        if limit:
            counts.append(clicks_needed(Annotator(predictor, sample), follow, limit))


def clicks_needed(annotator: Annotator, follow: bool, limit: int) -> int:
    """Clicks until the volume is good enough; one more than `limit` if it is not by then."""
    for count in range(1, limit + 1):
        annotator.click(annotator.worst())
        annotator.ask(follow)
        if dice(annotator.mask, annotator.true) >= ENOUGH:
            return count
    return limit + 1


def table(results: dict[str, Figures], clicks: int, limit: int) -> Iterator[str]:
    """The figures in Markdown."""
    head = ["structures", f"slice Dice, {clicks} clicks", "volume Dice, followed", "of it beyond the ends"]
    head += [f"clicks to {ENOUGH}, followed", "failed", f"clicks to {ENOUGH}, every slice clicked", "failed"]
    yield "| data set | " + " | ".join([*head, "slices/s"]) + " |"
    yield "|" + "---|" * (len(head) + 2)
    for name, found in results.items():
        cells = [str(len(found.slice_dice)), f"{np.mean(found.slice_dice):.3f}", f"{np.mean(found.volume_dice):.3f}"]
        cells.append(f"{100 * np.mean(found.end_error):.0f} %")
        for counts in (found.clicks_followed, found.clicks_alone):
            failed = np.mean([count > limit for count in counts]) if counts else float("nan")
            capped = np.mean([min(count, limit) for count in counts]) if counts else float("nan")
            cells += [f"{capped:.1f}", f"{100 * failed:.0f} %"]
        yield f"| {name} | " + " | ".join([*cells, f"{sum(found.followed) / sum(found.seconds):.1f}"]) + " |"


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
