# SPDX-License-Identifier: Apache-2.0
"""Region maps of a slice store: a slice is divided into superpixels when it is first drawn, and the map is cached.

A map takes a few kilobytes, in memory and in a file beside the data set's images. The file's name is a digest of
everything that the map depends on, and the file is written atomically. So trainings that share a store never read an
incomplete map or one of other data. Data sets that exist only in memory keep their maps in memory.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.superpixels import superpixels
from kprism_model.files import write_bytes

_VERSION = 1  # of the result of `superpixels` and of the file format
_FOLDER = "regions"
_CANVAS_PIXELS = 256  # side of the canvas that the settings are for


@dataclass(frozen=True)
class RegionSettings:
    """The smallest and the largest value of each setting of `superpixels`; drawn uniformly in the logarithm.

    `scale` in grey levels; `sigma` and `minimum_size` in pixels of a slice of 256 x 256, scaled for other canvases.
    """

    scale: tuple[float, float] = (200.0, 4000.0)
    sigma: tuple[float, float] = (0.5, 1.6)
    minimum_size: tuple[float, float] = (20.0, 150.0)

    def __post_init__(self) -> None:
        """Refuse invalid ranges, naming the field."""
        for name, (low, high) in asdict(self).items():
            if not 0 < low <= high:
                raise ValueError(f"RegionSettings.{name} must be a range of positive numbers, got {(low, high)}")


def region_map(
    image: NDArray[np.uint8], content: Sequence[int], rng: np.random.Generator, settings: RegionSettings | None = None
) -> NDArray[np.uint16]:
    """Divide one slice into regions at random settings.

    image: uint8 (S, S, C); `content` = (rows, columns) from the top left are not padding. Returns uint16 (S, S): 0 for
    padding, regions from 1 without gaps.
    """
    ranges = settings or RegionSettings()
    scale, sigma, size = (np.exp(rng.uniform(*np.log(pair))) for pair in asdict(ranges).values())
    enlargement = len(image) / _CANVAS_PIXELS
    rows, columns = map(int, content)
    regions = superpixels(
        np.ascontiguousarray(image[:rows, :columns]),
        scale=scale * enlargement,  # at twice the size, regions have four times the pixels and half the slopes
        sigma=sigma * enlargement,
        minimum_size=max(1, round(size * enlargement**2)),
    )
    canvas = np.zeros(image.shape[:2], np.uint16)
    canvas[:rows, :columns] = regions + 1
    return canvas


class RegionMaps:
    """The region maps of one data set, by row: `maps[row]` is uint16 (size, size) as `region_map` makes it.

    A map is computed at its first use, and depends on `seed`, the settings, the slice, its row and the name of the data
    set. With a `folder` it is stored there; several processes may share the folder.
    """

    def __init__(
        self, slice_set: SliceSet, *, seed: int = 0, settings: RegionSettings | None = None, folder: Path | None = None
    ) -> None:
        self._slice_set = slice_set
        self._seed = seed
        self._settings = settings or RegionSettings()
        self._folder = folder
        self._compressed: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._slice_set)

    def __getitem__(self, row: int) -> NDArray[np.uint16]:
        size = self._slice_set.images.shape[1]
        return np.frombuffer(zlib.decompress(self.compressed(row)), np.uint16).reshape(size, size)

    def compressed(self, row: int) -> bytes:
        """The compressed map of a row."""
        if row not in self._compressed:
            self._compressed[row] = self._compute(row) if self._folder is None else self._from_file(row, self._folder)
        return self._compressed[row]

    def _compute(self, row: int) -> bytes:
        rng = np.random.default_rng([self._seed, zlib.crc32(self._slice_set.name.encode()), row])
        regions = region_map(self._slice_set.images[row], self._slice_set.content[row], rng, self._settings)
        return zlib.compress(regions.tobytes(), level=4)

    def _from_file(self, row: int, folder: Path) -> bytes:
        """The map of a row from its file; it is computed and written if the file is missing or damaged."""
        path = folder / f"{self._digest(row)}.zlib"
        with suppress(OSError, zlib.error):
            kept = path.read_bytes()
            zlib.decompress(kept)  # raises if the file is incomplete: the stream ends with a checksum
            return kept
        computed = self._compute(row)
        with suppress(OSError):  # if the disk is full or the store read-only, the map stays in memory
            folder.mkdir(exist_ok=True)
            write_bytes(path, computed)
        return computed

    def _digest(self, row: int) -> str:
        """A digest of everything that the map of a row depends on, with pixels: the data set may be built again."""
        image, content = self._slice_set.images[row], self._slice_set.content[row].tolist()
        about = json.dumps(
            [_VERSION, self._seed, asdict(self._settings), self._slice_set.name, row, image.shape, content]
        )
        return blake2b(about.encode() + image.tobytes(), digest_size=16).hexdigest()


def open_region_maps(
    store: SliceStore, *, seed: int = 0, settings: RegionSettings | None = None
) -> dict[str, RegionMaps]:
    """Name of a data set -> its maps, stored in the folder of the data set if it has one."""
    return {
        slice_set.name: RegionMaps(slice_set, seed=seed, settings=settings, folder=_folder(store.path / slice_set.name))
        for slice_set in store.sets
    }


def _folder(dataset: Path) -> Path | None:
    return dataset / _FOLDER if dataset.is_dir() else None
