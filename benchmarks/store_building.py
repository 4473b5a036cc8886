# SPDX-License-Identifier: Apache-2.0
"""Time the building of a slice store from volumes made of noise: seconds, memory, slices a second.

    python -m benchmarks.store_building --out FOLDER [--gigabytes 10] [--sizes 256 512] [--workers 1] [--compare COMMIT]

The volumes are like CT: int16, 512 x 512, 200 to 400 slices, .nii.gz; --gigabytes is their size unpacked. Three boxes
are labelled. Volumes and stores lie in a temporary folder in FOLDER, which needs about twice --gigabytes, and are
deleted at the end. Each store is built in a process of its own; --workers gives it more, each with one thread.

Memory is told in two ways. "peak RSS", as the system counts it for the largest process, contains pages of mapped files,
which the kernel drops when it needs room. "own memory" is what the build cannot do without: RssAnon of all its
processes together, sampled every 20 ms. Both contain what the imports of one process take, which is told beside it.

--compare also times an earlier commit, in turns, with one process. Its slices must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import psutil
from isal import igzip
from numpy.typing import NDArray

from benchmarks.against import check_out
from benchmarks.places import ROOT

SIDE = 512
SLICES = (200, 400)

_SECONDS = 0.02  # between two looks at the memory
_NOISE = 1 << 24  # values that are drawn; each slice takes some from a random place on

_CHILD = """
import hashlib, json, resource, sys, time
from pathlib import Path
import torch
from kprism_model.data.building import build_store

torch.set_num_threads(1)
data, out, size, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
status = Path("/proc/self/status").read_text()
imports = 1024 * int(status.split("RssAnon:")[1].split()[0])
start = time.perf_counter()
store = build_store([data], out, size=size, progress=False, **({"workers": workers} if workers > 1 else {}))
seconds = time.perf_counter() - start
peak = 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
digest = hashlib.sha256()
for row in range(len(store.sets[0])):
    digest.update(store.sets[0].images[row].tobytes() + store.sets[0].labels[row].tobytes())
told = {"seconds": seconds, "slices": len(store), "peak": peak, "imports": imports, "digest": digest.hexdigest()}
print(json.dumps(told))
"""


class Written(NamedTuple):
    """What was written: numbers of volumes and slices, bytes of voxels and of files."""

    volumes: int
    slices: int
    voxel_bytes: int
    file_bytes: int


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for volumes and stores, on a disk with room")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of all volumes, unpacked")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the stored slices in pixels")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cases")
    parser.add_argument("--compare", metavar="COMMIT", help="also time this commit, with one process")
    return parser.parse_args()


def main() -> None:
    """Make volumes, build stores, print, delete."""
    arguments = read_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out) as place:
        folder = Path(place)
        trees = [("now", ROOT, arguments.workers)]
        if arguments.compare:
            trees.append((arguments.compare, check_out(arguments.compare, folder), 1))
        start = time.perf_counter()
        written = write_volumes(folder / "noise", round(arguments.gigabytes * 1e9))
        print(
            f"{written.volumes} volumes of {written.slices} slices: {written.voxel_bytes / 1e9:.2f} GB unpacked, "
            f"{written.file_bytes / 1e9:.2f} GB of files, written in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        for size in arguments.sizes:
            digests = [measured(name, tree, folder, size, workers) for name, tree, workers in trees]
            if len(set(digests)) > 1:
                raise SystemExit(f"the slices at {size} px differ")


def write_volumes(folder: Path, size: int) -> Written:
    """Write volumes of about `size` bytes in all, with labels and a dataset.json."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 300, _NOISE).astype(np.int16)
    entries: list[dict[str, str]] = []
    slices = 0
    slice_bytes = SIDE * SIDE * noise.itemsize
    while slices * slice_bytes < size:
        count = min(int(rng.integers(SLICES[0], SLICES[1] + 1)), -(-size // slice_bytes) - slices)
        image = np.empty((SIDE, SIDE, count), np.int16, order="F")
        for number, first in enumerate(rng.integers(_NOISE - SIDE * SIDE, size=count)):
            image[..., number] = noise[first : first + SIDE * SIDE].reshape(SIDE, SIDE)
        name = f"case_{len(entries):04d}.nii.gz"
        _write(folder / "images" / name, image)
        _write(folder / "labels" / name, _boxes(image.shape, rng))
        entries.append({"image": f"images/{name}", "label": f"labels/{name}"})
        slices += count
    labels = {"0": "background", "1": "one", "2": "two", "3": "three"}
    content = {"name": "noise", "modality": {"0": "CT"}, "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    files = sum(path.stat().st_size for path in folder.glob("*/*.nii.gz"))
    return Written(len(entries), slices, slices * slice_bytes, files)


def measured(name: str, tree: Path, folder: Path, size: int, workers: int) -> str:
    """Build a store with the code of `tree` in a process and print what it took; the digest of its slices."""
    store = folder / "store"
    words = [sys.executable, "-c", _CHILD, str(folder / "noise"), str(store), str(size), str(workers)]
    places = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with psutil.Popen(words, env=places, cwd=tree, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, _own_memory(process))
            time.sleep(_SECONDS)
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the build by {name} at {size} px ended with status {process.returncode}")
    told: dict[str, Any] = json.loads(printed)
    stored = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    print(
        f"{name}, {size} px, {workers} process{'es' if workers > 1 else ''}: {told['seconds']:.1f} s, "
        f"{told['slices'] / told['seconds']:.0f} slices a second, own memory {peak / 1e9:.2f} GB, "
        f"peak RSS {told['peak'] / 1e9:.2f} GB, imports {told['imports'] / 1e9:.2f} GB, store {stored / 1e9:.2f} GB",
        flush=True,
    )
    shutil.rmtree(store)
    return str(told["digest"])


def _write(path: Path, volume: NDArray[Any]) -> None:
    with igzip.open(path, "wb", compresslevel=1) as file:
        nib.Nifti1Image(volume, np.diag([0.8, 0.8, 1.25, 1.0])).to_stream(file)


def _boxes(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Labels of three boxes, in the middle half of the slices and less."""
    label = np.zeros(shape, np.uint8, order="F")
    for value in (1, 2, 3):
        row, column = rng.integers(50, 300, 2)
        depth = max(1, shape[2] // (2 * value))
        label[row : row + 100, column : column + 120, shape[2] // 4 : shape[2] // 4 + depth] = value
    return label


def _own_memory(process: psutil.Popen) -> int:
    """Bytes of a process and those that it started which no file holds."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            status = Path(f"/proc/{one.pid}/status").read_text()
            total += 1024 * int(status.split("RssAnon:")[1].split()[0]) if "RssAnon:" in status else 0
    except (psutil.NoSuchProcess, OSError):  # one of them has just ended
        return total
    return total


if __name__ == "__main__":
    main()
