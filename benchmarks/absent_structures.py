# SPDX-License-Identifier: Apache-2.0
"""False positives of `semantic` on absent structures, in the sample images of chest and brain.

    PYTHONPATH=apps/kprism python -m benchmarks.absent_structures [--checkpoint CHECKPOINT] [--everything]

No structure is named, so all classes that can be in the kind of image are predicted in every slice, by the server's
code: hence the app's folder in PYTHONPATH. `results/sample-structures.json` lists the structures that can be in each
image. `--everything` predicts all classes of the weights, as if they knew no kinds of images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.places import ROOT, SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint
from lib.engine import Engine
from lib.infers.class_segmentation import ClassSegmentation, PresentClasses
from lib.networks import Networks, network_of
from lib.request_statistics import RequestStatistics

SAMPLES = ROOT / "sample-datastore"
TABLE = ROOT / "benchmarks" / "results" / "sample-structures.json"
BUDGET = 2 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.absent_structures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--everything", action="store_true", help="predict every class in every image")
    given = parser.parse_args(arguments)
    engine = Engine(Networks(network_of(load_checkpoint(given.checkpoint), "cpu")), BUDGET)
    images = json.loads(TABLE.read_text(encoding="utf-8"))["images"]
    concerned = 0
    print("| image | recognised as | segmented (voxels) | cannot be there |\n|---|---|---|---|")
    for name, entry in images.items():
        present = searched(engine, image_file(name), given.everything)
        painted = painted_voxels(present)
        wrong = [structure for structure in painted if structure not in entry["possible"]]
        concerned += bool(wrong)
        kind = "–"
        if present.kind is not None:
            kind = f"{present.kind.name} ({present.kind.probabilities[present.kind.name]:.2f})"
        counted = ", ".join(f"{structure} {count}" for structure, count in painted.items())
        print(f"| {name} | {kind} | {counted or '–'} | {', '.join(wrong) or '–'} |", flush=True)
    print(f"\n{concerned} of {len(images)} images show a structure that cannot be there.")
    return 0


def image_file(name: str) -> Path:
    """The file of a sample image."""
    [path] = [file for file in SAMPLES.iterdir() if file.name in (f"{name}.png", f"{name}.nii.gz")]
    return path


def searched(engine: Engine, path: Path, everything: bool) -> PresentClasses:
    """The classes that `semantic` segments in an image; with `everything`, as for weights without kinds of images."""
    network, image = engine.networks().shipped, engine.image(path, path.name)
    segmentation = ClassSegmentation(engine, network, image, RequestStatistics())
    if not everything:
        return segmentation.search()
    return PresentClasses(segmentation.segment(network.registry.names), network.registry.names)


def painted_voxels(present: PresentClasses) -> dict[str, int]:
    """Name of each segmented structure -> its voxels."""
    counts = np.zeros(len(present.names) + 1, np.int64)
    for labels in present.labels.slices.values():
        counts += np.bincount(labels.ravel(), minlength=len(counts))
    return {name: int(count) for name, count in zip(present.names, counts[1:], strict=True) if count}


if __name__ == "__main__":
    sys.exit(main())
