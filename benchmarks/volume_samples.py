# SPDX-License-Identifier: Apache-2.0
"""Structures in volumes for `benchmarks.propagation`: drawn from data sets, from files, and enlarged for timings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.orientation import SliceOrientation
from kprism_model.volumes.predictor import Volume

MINIMUM_VOXELS = 20
"""Smaller structures are left out."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sample:
    """A structure in a volume: its true mask is (slice, row, column)."""

    dataset: str
    case: str
    structure: str
    volume: Volume
    true: BoolArray

    @property
    def middle(self) -> int:
        """The middle one of the slices that show the structure."""
        shown = np.flatnonzero(self.true.any(axis=(1, 2)))
        return int(shown[len(shown) // 2])


def drawn_samples(folder: Path, split: str, cases: int, seed: int) -> Iterator[Sample]:
    """The structures of the cases that are drawn from a split of a data set."""
    dataset = read_dataset(folder)
    listed = dataset.cases(split)
    for number in np.random.default_rng(seed).permutation(len(listed))[:cases]:
        case = listed[number]
        loaded = load_case(dataset, case)
        if loaded.labels is None or loaded.orientation is None:
            raise ValueError(f"{case.image} must be a volume with a label")
        volume = Volume.of_slices(loaded.images, loaded.orientation, f"{dataset.name}/{case.name}")
        for value, name in dataset.classes.items():
            true = loaded.labels == value
            if true.sum() >= MINIMUM_VOXELS:
                yield Sample(dataset.name, case.name, name, volume, true)


def sample_of_files(image: Path, label: Path, structure: str, modality: str) -> Sample:
    """The structure with value 1 in a NIfTI label, in a NIfTI image of a modality such as "CT"."""
    stored = nibabel.Nifti1Image.from_filename(image)
    volume = Volume.of(np.asarray(stored.dataobj), stored.affine, modality=modality)
    labels = np.asarray(nibabel.Nifti1Image.from_filename(label).dataobj)
    name = image.name.split(".")[0]
    return Sample(name, name, structure, volume, volume.orientation.to_slices(labels) == 1)


def resampled(sample: Sample, shape: tuple[int, int, int]) -> Sample:
    """The sample with `shape` (slices, rows, columns): linear interpolation of the image, nearest of the mask."""
    zoom = np.divide(shape, sample.true.shape)
    images = np.clip(ndimage.zoom(sample.volume.images, zoom, order=1), 0, 1).astype(np.float32)
    true = ndimage.zoom(sample.true.astype(np.uint8), zoom, order=0) > 0
    # The axes (i, j, k) are (column, row, slice), and rows and columns run backwards: left-posterior-superior from RAS.
    spacing = np.divide(sample.volume.orientation.spacing, zoom)
    slices, rows, columns = shape
    affine = np.diag([spacing[2], spacing[1], spacing[0], 1.0])
    orientation = SliceOrientation.of(affine, (columns, rows, slices), "axial")
    digest = f"{sample.volume.digest} as {shape}"
    return replace(sample, volume=Volume.of_slices(images, orientation, digest), true=true)
