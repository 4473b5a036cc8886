# SPDX-License-Identifier: Apache-2.0
"""What the working resolution of the small network costs: time of a click, and accuracy on validation images.

    python -m benchmarks.native_size --data FOLDER... [--sizes 128 192 256] [--cases 8] [--threads 2]

The same weights work at each size. Of each case the slice that shows most of a class is taken. Times are medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.places import SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.predictor import Click, Predictor

CLICKS = 5

Sample = tuple[str, str, NDArray[np.float32], NDArray[np.bool_]]


def samples(folders: list[Path], cases: int) -> Iterator[Sample]:
    """Data set, class, image and mask: of each drawn validation case the slice with most pixels of each class."""
    for folder in folders:
        dataset = read_dataset(folder)
        found = dataset.cases("validation")
        for number in np.random.default_rng(0).permutation(len(found))[:cases]:
            loaded = load_case(dataset, found[number])
            if loaded.labels is None:
                raise ValueError(f"{found[number].image} has no label")
            for value, name in dataset.classes.items():
                areas = (loaded.labels == value).sum((1, 2))
                best = int(areas.argmax())
                if areas[best]:
                    yield dataset.name, name, loaded.images[best], loaded.labels[best] == value


def measure(predictor: Predictor, chosen: list[Sample]) -> dict[str, float]:
    """Means over data sets of semantic Dice and Dice after 1 and 5 clicks; median milliseconds of encoder and click."""
    scores: dict[str, dict[str, list[float]]] = {"semantic": {}, "1 click": {}, f"{CLICKS} clicks": {}}
    encode, click_times = [], []
    for dataset, name, image, truth in chosen:
        start = time.perf_counter()
        predictor.set_image(image)
        encode.append(time.perf_counter() - start)
        scores["semantic"].setdefault(dataset, []).append(dice(predictor.predict(class_name=name).mask, truth))
        clicks: list[Click] = []
        mask, previous = np.zeros_like(truth), None
        for number in range(1, CLICKS + 1):
            found = next_click(mask, truth)
            if found is not None:
                clicks.append(Click(*found))
                start = time.perf_counter()
                answer = predictor.predict(clicks=clicks, previous_mask=previous)
                click_times.append(time.perf_counter() - start)
                mask, previous = answer.mask, answer.probability
            if number in (1, CLICKS):
                key = f"{number} click" + "s" * (number > 1)
                scores[key].setdefault(dataset, []).append(dice(mask, truth))
    result = {key: float(np.mean([np.mean(v) for v in by_set.values()])) for key, by_set in scores.items()}
    return {"encoder ms": 1000 * float(np.median(encode)), "click ms": 1000 * float(np.median(click_times)), **result}


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 256])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = list(samples(arguments.data, arguments.cases))
    rows = {}
    for size in arguments.sizes:
        checkpoint = load_checkpoint(SHIPPED_WEIGHTS)
        checkpoint.model.config = replace(checkpoint.model.config, native_size=size)
        rows[size] = measure(Predictor(checkpoint.model, checkpoint.registry), chosen)
    columns = list(rows[arguments.sizes[0]])
    print(f"{'size':>6} " + " ".join(f"{column:>11}" for column in columns) + f"   ({len(chosen)} images)")
    for size, row in rows.items():
        print(f"{size:>6} " + " ".join(f"{row[column]:11.3f}" for column in columns))


if __name__ == "__main__":
    main()
