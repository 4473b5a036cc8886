# SPDX-License-Identifier: Apache-2.0
"""Slices of noise to measure a training on: what a step costs does not depend on what the images show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kprism_model.data.slices import SliceSet, SliceStore

NOISE = "noise"
"""Name of the data set."""


def noise_store(folder: Path, size: int, *, cases: int, slices: int) -> SliceStore:
    """Grey slices of noise with two bright structures, mapped from files in `folder`; `slices` are those of a case."""
    rng = np.random.default_rng(0)
    count = cases * slices
    labels = np.zeros((count, size, size), np.uint8)
    for row in range(count):
        for value in (1, 2):
            top, left = rng.integers(0, size // 2, 2)
            labels[row, top : top + size // 3, left : left + size // 4] = value
    images = (rng.integers(0, 120, labels.shape, dtype=np.uint8) + 60 * labels)[..., None]
    for name, array in (("images", images), ("labels", labels)):
        np.save(folder / f"{name}.npy", array)
    noise = SliceSet(
        name=NOISE,
        modality="MRI",
        anatomy="abdomen",
        classes={1: "liver", 2: "spleen"},
        case_names=tuple(map(str, range(cases))),
        patients=tuple(map(str, range(cases))),
        images=np.load(folder / "images.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy", mmap_mode="r"),
        case=np.repeat(np.arange(cases), slices),
        number=np.tile(np.arange(slices), cases),
        content=np.full((count, 2), size),
        pixels=np.stack([(labels == value).sum(axis=(1, 2)) for value in (1, 2)], axis=1),
    )
    return SliceStore(folder, "training", size, (noise,))
