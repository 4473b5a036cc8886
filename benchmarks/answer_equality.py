# SPDX-License-Identifier: Apache-2.0
"""The answers of this tree beside those of an earlier commit, voxel by voxel, on volumes of odd shapes and axes.

    python -m benchmarks.answer_equality COMMIT [--volumes 20] [--seed 0]

Each volume is asked about by name, by clicks, by clicks on an uploaded mask, by scribbles, and followed; in the plane
of its acquisition and in another one. Volumes have at most 16 slices, from which the range of intensities is taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import inv_ornt_aff
from numpy.typing import NDArray

from benchmarks.against import check_out
from benchmarks.places import ROOT, SHIPPED_WEIGHTS

ANSWERS = """
import sys
from pathlib import Path
tree, studies, weights, out = map(Path, sys.argv[1:])
sys.path[:0] = [str(tree), str(tree / "apps" / "kprism")]
import nibabel, numpy as np, json
from main import KPrismApp
from lib.infers.request import Source
app = KPrismApp(str(studies.parent), str(studies), {"model_path": str(weights), "state": str(out.parent / out.stem)})
answers = {}
for number, asked in enumerate(json.loads((studies.parent / "requests.json").read_text())):
    if "upload" in asked:
        asked["label_file"] = Source(Path(asked.pop("upload")), "the label")
    result = app.infer({**asked, "result_extension": ".nii"})
    answers[str(number)] = np.asarray(nibabel.load(result["file"]).dataobj)
    Path(result["file"]).unlink()
np.savez_compressed(out, **answers)
"""
"""Answers every request with one tree; runs in a process of its own."""


def make_volumes(folder: Path, count: int, rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Volumes with a bright blob in noise, in random shapes, spacings and storage orders: name and voxels."""
    for number in range(count):
        shape = [int(rng.integers(30, 60)), int(rng.integers(30, 60)), int(rng.integers(1, 13))]
        centre, grid = np.array(shape) / 2, np.indices(shape).transpose(1, 2, 3, 0)
        distance = np.linalg.norm((grid - centre) / (np.array(shape) / 4), axis=-1)
        values = (rng.normal(0, 40, shape) - 800 + 900 * (distance < 1)).astype(np.int16)
        pixel = rng.uniform(0.5, 0.9)
        spacing = [pixel, pixel, float(rng.choice([0.4, 1.0, 5.0]))]
        change = np.stack([rng.permutation(3), rng.choice([-1, 1], 3)], axis=1).astype(float)
        stored = nibabel.orientations.apply_orientation(values, change)
        affine = np.diag([*spacing, 1]) @ inv_ornt_aff(change, shape)
        image = nibabel.Nifti1Image(stored, affine)
        if number % 4 == 3:
            image.header.set_slope_inter(0.5, -100)
        nibabel.save(image, folder / f"volume{number}.nii.gz")
        yield f"volume{number}", stored


def requests_about(name: str, stored: NDArray[np.int16], folder: Path, plane: str) -> Iterator[dict[str, Any]]:
    """One request of each kind."""
    middle = [side // 2 for side in stored.shape]
    beside = [max(0, side // 2 - side // 3) for side in stored.shape]
    beside[int(np.argmin(stored.shape))] = middle[int(np.argmin(stored.shape))]
    drawn = (stored > -100).astype(np.uint8)
    drawn[tuple(middle)] = 2
    drawn[tuple(beside)] = 3
    path = folder.parent / f"{name}.nii"
    nibabel.save(nibabel.Nifti1Image(drawn, nibabel.Nifti1Image.from_filename(folder / f"{name}.nii.gz").affine), path)
    info = [{"name": "blob", "id": 1}, {"name": "foreground_scribbles", "id": 2}]
    strokes = [*info, {"name": "background_scribbles", "id": 3}]
    about = {"image": name, "plane": plane}
    clicks = {"blob": [middle], "background": [beside]}
    if plane == "as acquired":
        yield {**about, "model": "semantic", "presence": 0.0, "structures": ["lung tumour", "spleen"]}
    yield {**about, "model": "interactive", **clicks}
    yield {**about, "model": "interactive", **clicks, "scope": "whole volume", "clean_up": True}
    yield {**about, "model": "interactive", **clicks, "upload": str(path), "label_info": info[:1]}
    yield {**about, "model": "scribbles", "upload": str(path), "label_info": strokes, "selected_label_name": "blob"}


def all_requests(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Requests about all volumes, which are written to `folder`; in another plane only where that has slices."""
    asked: list[dict[str, Any]] = []
    for name, stored in make_volumes(folder, count, np.random.default_rng(seed)):
        planes = ["as acquired"] if 1 in stored.shape else ["as acquired", "coronal"]
        for plane in planes:
            asked += requests_about(name, stored, folder, plane)
    return asked


def main() -> None:
    """Ask both trees and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kprism-equality-") as name:
        work = Path(name)
        studies = work / "studies"
        studies.mkdir()
        asked = all_requests(studies, given.volumes, given.seed)
        (work / "requests.json").write_text(json.dumps(asked))
        answers = []
        for side, tree in (("commit", check_out(given.commit, work)), ("this", ROOT)):
            out = work / f"{side}.npz"
            command = [sys.executable, "-c", ANSWERS, tree, studies, SHIPPED_WEIGHTS.with_suffix(".safetensors"), out]
            subprocess.run([*map(str, command)], check=True)
            answers.append(np.load(out))
    one, other = answers
    differing = [number for number in one.files if not np.array_equal(one[number], other[number])]
    voxels = sum(int((one[number] > 0).sum()) for number in one.files)
    print(f"{len(one.files)} answers with {voxels:,} labelled voxels; {len(differing)} differ")
    for number in differing:
        count = int((one[number] != other[number]).sum())
        print(f"{count} voxels: {asked[int(number)]}")


if __name__ == "__main__":
    main()
