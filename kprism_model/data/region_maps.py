# SPDX-License-Identifier: Apache-2.0
"""Region maps of a slice store: each slice divided into superpixels once, at random settings, and kept compressed.

A map takes a few kilobytes. A data set's maps lie in one file beside its images; those of a data set that is in memory
only, or has no such file, are computed when they are first asked for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.data.superpixels import superpixels
from kprism_model.files import write_bytes

_VERSION = 1  # of what `superpixels` makes of a slice, and of the file
_FILE = "regions.safetensors"
_CANVAS = 256  # pixels along the side of a slice that the settings are meant for

_WORTH_PROCESSES = 64  # slices; fewer are done before other processes have started


@dataclass(frozen=True)
class RegionSettings:
    """The smallest and the largest value of each setting of `superpixels`, drawn uniformly in its logarithm.

    `scale` in grey levels; `sigma` in pixels and `minimum_size` in pixels of a slice of 256 x 256, larger on larger
    canvases.
    """

    scale: tuple[float, float] = (200.0, 4000.0)
    sigma: tuple[float, float] = (0.5, 1.6)
    minimum_size: tuple[float, float] = (20.0, 150.0)

    def __post_init__(self) -> None:
        """Refuse ranges that are none, naming the field."""
        for name, (low, high) in asdict(self).items():
            if not 0 < low <= high:
                raise ValueError(f"RegionSettings.{name} must be a range of positive numbers, got {(low, high)}")


def region_map(
    image: NDArray[np.uint8], content: Sequence[int], rng: np.random.Generator, settings: RegionSettings | None = None
) -> NDArray[np.uint16]:
    """Divide one slice into regions at random settings.

    image: uint8 (S, S, C), of which the `content` = (rows, columns) from the top left are image. Returns uint16 (S, S):
    0 where there is padding, regions from 1 without gaps.
    """
    ranges = settings or RegionSettings()
    scale, sigma, size = (np.exp(rng.uniform(*np.log(pair))) for pair in asdict(ranges).values())
    enlargement = len(image) / _CANVAS
    rows, columns = map(int, content)
    regions = superpixels(
        np.ascontiguousarray(image[:rows, :columns]),
        scale=scale * enlargement,  # regions have four times the pixels at twice the size, and half the slopes
        sigma=sigma * enlargement,
        minimum_size=max(1, round(size * enlargement**2)),
    )
    canvas = np.zeros(image.shape[:2], np.uint16)
    canvas[:rows, :columns] = regions + 1
    return canvas


class RegionMaps:
    """The region maps of one data set, by row: `maps[row]` is uint16 (size, size) as `region_map` makes it.

    `stored` are compressed maps that are there already. The others are computed when they are asked for; they depend
    on `seed`, the name of the data set and the row alone.
    """

    def __init__(
        self,
        part: SliceSet,
        *,
        seed: int = 0,
        settings: RegionSettings | None = None,
        stored: Iterable[bytes] = (),
    ) -> None:
        self._part = part
        self._seed = [seed, zlib.crc32(part.name.encode())]
        self._settings = settings or RegionSettings()
        self._compressed = dict(enumerate(stored))

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, row: int) -> NDArray[np.uint16]:
        size = self._part.images.shape[1]
        return np.frombuffer(zlib.decompress(self.compressed(row)), np.uint16).reshape(size, size)

    def compressed(self, row: int) -> bytes:
        """The map of a row as it is kept."""
        if row not in self._compressed:
            rng = np.random.default_rng([*self._seed, row])
            regions = region_map(self._part.images[row], self._part.content[row], rng, self._settings)
            self._compressed[row] = zlib.compress(regions.tobytes(), level=4)
        return self._compressed[row]


def open_region_maps(
    store: SliceStore, *, seed: int = 0, settings: RegionSettings | None = None
) -> dict[str, RegionMaps]:
    """The maps of each data set of a store by its name, read from its file where there is one of these settings."""
    settings = settings or RegionSettings()
    return {
        part.name: RegionMaps(
            part, seed=seed, settings=settings, stored=_read(store.path / part.name / _FILE, part, seed, settings)
        )
        for part in store.sets
    }


def store_region_maps(
    store: SliceStore,
    *,
    seed: int = 0,
    settings: RegionSettings | None = None,
    processes: int = 1,
    progress: bool = True,
) -> None:
    """Write the maps of all data sets whose folder is in the store, unless they are there with the same settings.

    A data set that is built anew loses its maps with its folder. Data sets without a folder are left out. `processes`
    share the work; ValueError for fewer than 1.
    """
    if processes < 1:
        raise ValueError(f"processes must be 1 or more, got {processes}")
    settings = settings or RegionSettings()
    for part in store.sets:
        path = store.path / part.name / _FILE
        if not path.parent.is_dir() or _read(path, part, seed, settings):
            continue
        made = _compute(store.path, part, seed, settings, processes)
        maps = list(tqdm(made, desc=f"regions of {part.name}", total=len(part), disable=not progress))
        content: dict[str, NDArray[Any]] = {
            "maps": np.frombuffer(b"".join(maps), np.uint8),
            "ends": np.cumsum([len(one) for one in maps], dtype=np.int64),
        }
        write_bytes(path, save(content, {"key": _key(part, seed, settings)}))


def _compute(path: Path, part: SliceSet, seed: int, settings: RegionSettings, processes: int) -> Iterator[bytes]:
    """The compressed maps of a data set, in order."""
    if processes == 1 or len(part) < _WORTH_PROCESSES:
        maps = RegionMaps(part, seed=seed, settings=settings)
        yield from map(maps.compressed, range(len(part)))
        return
    # Processes are started anew: a copy of this one would hang where a thread of torch holds a lock.
    with ProcessPoolExecutor(
        processes, get_context("spawn"), _open_in_worker, (path, part.name, seed, settings)
    ) as pool:
        yield from pool.map(_compute_in_worker, range(len(part)), chunksize=8)


_worker_maps: dict[str, RegionMaps] = {}  # filled in the processes of `_compute` alone


def _open_in_worker(path: Path, name: str, seed: int, settings: RegionSettings) -> None:
    part = next(part for part in SliceStore.open(path).sets if part.name == name)
    _worker_maps["current"] = RegionMaps(part, seed=seed, settings=settings)


def _compute_in_worker(row: int) -> bytes:
    return _worker_maps["current"].compressed(row)


def _key(part: SliceSet, seed: int, settings: RegionSettings) -> str:
    """What the maps in a file depend on, but for the images."""
    return json.dumps([_VERSION, seed, part.name, *part.images.shape, asdict(settings)])


def _read(path: Path, part: SliceSet, seed: int, settings: RegionSettings) -> list[bytes]:
    """The compressed maps in a file; none if it does not exist, is damaged, or of other settings."""
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}).get("key") != _key(part, seed, settings):
                return []
            maps, ends = file.get_tensor("maps").tobytes(), file.get_tensor("ends").tolist()
    except (OSError, SafetensorError):
        return []
    return [maps[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
