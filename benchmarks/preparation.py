# SPDX-License-Identifier: Apache-2.0
"""Seconds and peak memory of `kprism prepare` for many gigabytes of volumes, which are made up from noise.

    python -m benchmarks.preparation --gigabytes 10 --work FOLDER [--workers 2] [--out FILE.json]

The volumes are 512 x 512 x 320 CT-like values in the layout of LiTS (`volume-N.nii.gz` beside `segmentation-N.nii.gz`).
Noise cannot be compressed, so the bytes on disk are nearly those in memory. The command runs three times: on an empty
folder; again, with nothing to do; and after it was killed halfway, to go on. Everything is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.places import ROOT

SHAPE = (512, 512, 320)
DIFFERENT = 4  # volumes; the others are copies of them, which takes less time than making noise


def main() -> int:
    """Make the volumes, prepare them three times, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of voxels (default: 10)")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the volumes, on a disk with room for twice"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    work = arguments.work / "preparation"
    count = max(1, round(arguments.gigabytes * 1e9 / (2 * np.prod(SHAPE))))
    try:
        figures = measure(work, count, arguments.workers, arguments.seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(figures, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(work: Path, count: int, workers: int, seed: int) -> dict[str, float]:
    """Seconds and peak memory of the three runs."""
    start = time.monotonic()
    size = write_download(work / "download", count, seed)
    figures = {"volumes": count, "bytes on disk": size, "seconds to make them": round(time.monotonic() - start, 1)}
    figures["seconds"] = round(run(work, workers), 1)
    figures["seconds of a second run"] = round(run(work, workers), 1)
    shutil.rmtree(work / "out")
    kill_after(work, workers, figures["seconds"] / 2)
    figures["cases there after a kill halfway"] = len(list((work / "out" / "labels").glob("[!.]*")))
    figures["seconds to go on"] = round(run(work, workers), 1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux
    figures["peak resident memory in MB"] = round(peak / 1024)
    return figures


def command(work: Path, workers: int) -> list[str]:
    """The command that is measured."""
    words = ["lits_ct", str(work / "download"), "--out", str(work / "out"), "--workers", str(workers)]
    return [sys.executable, "-m", "kprism_model", "prepare", *words]


def run(work: Path, workers: int) -> float:
    """Seconds of one run; an error if a case is faulty."""
    start = time.monotonic()
    subprocess.run(command(work, workers), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def kill_after(work: Path, workers: int, seconds: float) -> None:
    """Run the command and kill it."""
    with subprocess.Popen(command(work, workers), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.kill()


def write_download(folder: Path, count: int, seed: int) -> int:
    """Write the volumes and segmentations; returns their bytes on disk."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    affine = np.diag([0.75, 0.75, 1.0, 1.0])
    for number in range(count):
        volume, label = folder / f"volume-{number}.nii.gz", folder / f"segmentation-{number}.nii.gz"
        if number < DIFFERENT:
            values = rng.integers(-1000, 1000, SHAPE, dtype=np.int16)
            labels = np.zeros(SHAPE, np.uint8)
            labels[100:400, 120:380, 60:260] = 1
            labels[200:240, 200:260, 100:140] = 2
            nib.save(nib.Nifti1Image(values, affine), volume)
            nib.save(nib.Nifti1Image(labels, affine), label)
        else:
            shutil.copyfile(folder / f"volume-{number % DIFFERENT}.nii.gz", volume)
            shutil.copyfile(folder / f"segmentation-{number % DIFFERENT}.nii.gz", label)
    os.sync()
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
