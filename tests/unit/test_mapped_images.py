# SPDX-License-Identifier: Apache-2.0
"""Voxels in mapped files: the same values, no file left behind, and sentences where the disk or the file fails."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from lib.engine import Engine
from lib.errors import RequestError, StorageError
from lib.imaging import mapped
from lib.imaging.mapped import mapped_in
from lib.imaging.medical_image import MedicalImage
from lib.imaging.reading import read_image, read_mask


@pytest.fixture(autouse=True)
def least_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are mapped too."""
    monkeypatch.setattr(mapped, "SMALL", 1 << 20)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume that is too large to be kept in memory."""
    path = tmp_path / "volume.nii.gz"
    values = np.random.default_rng(0).integers(-900, 900, (128, 96, 60), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1])), path)
    return path


def engine(folder: Path, budget: int = 64 << 20) -> Engine:
    """An engine without a network."""
    networks: Any = object()
    return Engine(networks, 1 << 20, budget, mapped_in(folder))


def test_a_mapped_image_is_the_one_in_memory_and_leaves_no_file(volume: Path, tmp_path: Path) -> None:
    image, plain = read_image(volume, "it", allocate=mapped_in(tmp_path / "images")), read_image(volume, "it")
    assert image.is_mapped and not plain.is_mapped
    np.testing.assert_array_equal(image.values, plain.values)
    np.testing.assert_array_equal(np.asarray(image.scaled), np.asarray(plain.scaled))
    assert not list((tmp_path / "images").iterdir())
    assert image.in_plane("coronal").is_mapped and image.part(3).is_mapped


def test_colour_and_labels_are_mapped_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (900, 700, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    picture = read_image(tmp_path / "picture.png", "it", allocate=mapped_in(tmp_path))
    assert picture.is_mapped and picture.is_colour
    np.testing.assert_array_equal(picture.to_slices(picture.array)[0], pixels)
    labels = (pixels[..., 0] > 100).astype(np.uint8).repeat(2, axis=0)
    Image.fromarray(labels).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", "it", allocate=mapped_in(tmp_path))
    assert mask.is_mapped
    np.testing.assert_array_equal(mask.to_slices(mask.array)[0], labels)


def test_small_images_stay_in_memory(tmp_path: Path) -> None:
    allocate = mapped_in(tmp_path / "images")
    assert allocate((mapped.SMALL,), np.uint8).base is None
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("number", "sentence"), [(errno.ENOSPC, "the disk of the server is full"), (errno.EIO, "cannot write to its disk")]
)
def test_a_disk_that_is_full_is_a_sentence_before_anything_is_written(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mapped.os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match=f"it needs 1 MiB while it is in use, and .*{sentence}"):
        read_image(volume, "it", allocate=mapped_in(tmp_path / "images"))
    assert not list((tmp_path / "images").iterdir())


def test_a_file_that_is_shortened_while_it_is_read_or_used_ends_no_process(volume: Path, tmp_path: Path) -> None:
    content = gzip.decompress(volume.read_bytes())
    plain = tmp_path / "plain.nii"
    plain.write_bytes(content)
    image = read_image(plain, "it", allocate=mapped_in(tmp_path))
    expected = image.values.copy()
    os.truncate(plain, 1000)
    np.testing.assert_array_equal(image.values, expected)
    with pytest.raises(RequestError, match=r"it is not a readable \.nii file: the file ends after"):
        read_image(plain, "it", allocate=mapped_in(tmp_path))


def test_a_file_is_read_once_by_many_requests_and_a_budget_of_zero_keeps_nothing(volume: Path, tmp_path: Path) -> None:
    one = engine(tmp_path / "images")
    found: list[Any] = []
    threads = [Thread(target=lambda: found.append(one.image(volume, "it"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and len({id(image) for image in found}) == 1
    assert len(one.images) == 1
    with pytest.raises(RequestError, match="--conf image_mb"):
        engine(tmp_path / "images", 1000).image(volume, "it")


def test_the_images_used_longest_ago_make_room(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (128, 96, 60), dtype=np.int16)
    one = engine(tmp_path / "images", 3 * values.nbytes)
    for number in range(5):
        nibabel.save(nibabel.Nifti1Image(values + number, np.eye(4)), tmp_path / f"{number}.nii")
        one.image(tmp_path / f"{number}.nii", "it")
        assert one.images.bytes <= 3 * values.nbytes
    assert len(one.images) == 3


class Series:
    """A series that was opened; its voxels are there."""

    digest = "the same content"

    def __init__(self) -> None:
        self.made = 0

    def wait(self, planes: Sequence[int]) -> None:
        """Nothing has to be waited for."""

    def image(self, name: str) -> MedicalImage:
        """An image whose voxels arrive through this object."""
        self.made += 1
        array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        return MedicalImage(name, array, np.eye(4), 3, ".nii.gz", self.digest, arrival=self)


def test_an_image_of_a_series_that_was_opened_anew_is_made_anew(tmp_path: Path) -> None:
    one, opened = engine(tmp_path), [Series(), Series()]
    for series in opened:
        one.opener = lambda path, series=series: series
        first = one.image(Path("series.nii"), "it")
        assert one.image(Path("series.nii"), "it") is first and first.arrival is series
        assert series.made == 1
