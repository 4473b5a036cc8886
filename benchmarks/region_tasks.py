# SPDX-License-Identifier: Apache-2.0
"""What tasks without labels look like, as a picture, and how long they take.

    python -m benchmarks.region_tasks --data ../shared/data/kvasir_polyp ../shared/data/fives_fundus \
        --store /tmp/slices --out region_tasks.png [--rows 8]

Builds a slice store, unless it is there, and writes a contact sheet of random tasks of each data set: two views of a
slice side by side, with the outline of the object to find. Prints processor time in milliseconds for a region map and
for a group of two views of a slice whose map is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from kprism_model.data.augment import Augmentation
from kprism_model.data.building import build_store
from kprism_model.data.region_maps import RegionMaps
from kprism_model.data.region_tasks import RegionSampler

OUTLINE = (255, 220, 0)
GAP = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with a dataset.json")
    parser.add_argument("--store", type=Path, required=True, help="folder of the slice store")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--rows", type=int, default=8, help="tasks of each data set")
    parser.add_argument("--size", type=int, default=192, help="pixels along the side of a view")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store = build_store(options.data, options.store, size=256)
    columns = []
    for part in store.sets:
        per_map = _milliseconds(RegionMaps(part).compressed, min(20, len(part)) - 1)
        others = {other.name: 0.0 for other in store.sets if other is not part}
        sampler = RegionSampler(store, others)
        draw = partial(_task, sampler, options.size, options.seed)
        columns.append(np.concatenate([draw(row) for row in range(1, options.rows + 1)]))
        per_group = _milliseconds(draw, options.rows)
        print(f"{part.name}: {per_map:.1f} ms for a region map, {per_group:.1f} ms for a group of two views")
    Image.fromarray(np.concatenate(columns, axis=1)).save(options.out)
    return 0


def _task(sampler: RegionSampler, size: int, seed: int, row: int) -> NDArray[np.uint8]:
    """Two views of a task side by side, uint8 (size + gap, 2 * size + gaps, 3)."""
    rng = np.random.default_rng([seed, row])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images, masks, _ = sampler.group(2, size, generator, Augmentation(), rng)
    tiles = []
    for image, mask in zip(images.permute(0, 2, 3, 1).numpy(), masks[:, 0].numpy() > 0, strict=True):
        tile = np.full((size + GAP, size + GAP, 3), 255, np.uint8)
        tile[:size, :size] = (image * 255).round()
        tile[:size, :size][mask ^ ndimage.binary_erosion(mask)] = OUTLINE
        tiles.append(tile)
    return np.concatenate([*tiles, np.full((size + GAP, GAP, 3), 255, np.uint8)], axis=1)


def _milliseconds(work: Callable[[int], object], repetitions: int) -> float:
    """Processor time of `work(number)`, the mean over some numbers after one to warm up."""
    work(0)
    start = time.process_time()
    for number in range(1, repetitions + 1):
        work(number)
    return 1000 * (time.process_time() - start) / repetitions


if __name__ == "__main__":
    raise SystemExit(main())
