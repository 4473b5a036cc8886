# SPDX-License-Identifier: Apache-2.0
"""The sample studies are what their README says: slices of their volumes, named labels on the same grid, small."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def samples(repository: Path) -> Path:
    return repository / "sample-datastore"


def axial(path: Path, number: int) -> np.ndarray:
    """Slice of a volume as (row, column): front of the body up, the patient's left on the right."""
    volume = nibabel.as_closest_canonical(nibabel.load(path))
    return np.flip(np.asanyarray(volume.dataobj)[:, :, number].T, (0, 1))


@pytest.mark.parametrize(
    ("picture", "volume", "number", "window"),
    [
        ("mni152_axial60", "mni152_t1", 60, (0, 255)),
        ("mni152_axial72", "mni152_t1", 72, (0, 255)),
        ("mni152_axial85", "mni152_t1", 85, (0, 255)),
        ("lung1_axial11", "pyradiomics_lung1", 11, (-1000, 400)),
        ("lung2_axial17", "pyradiomics_lung2", 17, (-1000, 400)),
    ],
)
def test_pictures_are_slices_of_the_volumes(
    samples: Path, picture: str, volume: str, number: int, window: tuple[int, int]
) -> None:
    low, high = window
    stored = axial(samples / f"{volume}.nii.gz", number).astype(float)
    expected = np.rint(np.clip((stored - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(np.asarray(Image.open(samples / f"{picture}.png")), expected)


def test_the_label_of_a_picture_is_the_slice_of_the_label(samples: Path) -> None:
    labels = samples / "labels" / "final"
    expected = axial(labels / "pyradiomics_lung1.nii.gz", 11)
    np.testing.assert_array_equal(np.asarray(Image.open(labels / "lung1_axial11.png")), expected)


def test_every_label_is_named_and_fits_its_image(samples: Path) -> None:
    objects = json.loads((samples / "datastore_v2.json").read_text())["objects"]
    labels = {path.name.split(".")[0]: path for path in (samples / "labels" / "final").iterdir()}
    assert {name for name, entry in objects.items() if entry["labels"]} == labels.keys()
    for name, path in labels.items():
        image = samples / f"{name}{objects[name]['image']['ext']}"
        if path.suffix == ".png":
            values = np.asarray(Image.open(path))
            assert values.shape == np.asarray(Image.open(image)).shape
        else:
            volume = nibabel.load(path)
            values = np.asanyarray(volume.dataobj)
            assert volume.shape == nibabel.load(image).shape
            np.testing.assert_allclose(volume.affine, nibabel.load(image).affine)
        named = [entry["idx"] for entry in objects[name]["labels"]["final"]["info"]["label_info"]]
        assert named == [int(value) for value in np.unique(values) if value]


def test_the_samples_stay_small(samples: Path) -> None:
    files = [path for path in samples.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
