# SPDX-License-Identifier: Apache-2.0
"""What `semantic` claims to see in the sample images of chest and brain that cannot be there.

    PYTHONPATH=apps/kprism python -m benchmarks.absent_structures [--checkpoint CHECKPOINT] [--everything]

Nothing is named, so all that the weights know is looked for in every slice, by the code that the server answers with:
hence the app's folder in PYTHONPATH. `results/sample-structures.json` lists what can be in each image. `--everything`
also asks for what cannot be in the kind of image that the weights see, as without them knowing kinds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kprism_model.checkpoint import load_checkpoint
from lib.engine import Engine, network_of
from lib.infers.class_segmentation import ClassSegmentation, PresentClasses
from lib.request_statistics import RequestStatistics

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample-datastore"
TABLE = ROOT / "benchmarks" / "results" / "sample-structures.json"
WEIGHTS = ROOT / "apps" / "kprism" / "model" / "kprism_small"
BUDGET = 2 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.absent_structures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
    parser.add_argument("--everything", action="store_true", help="ask for every class in every image")
    given = parser.parse_args(arguments)
    engine = Engine(network_of(load_checkpoint(given.checkpoint), "cpu"), BUDGET)
    images = json.loads(TABLE.read_text(encoding="utf-8"))["images"]
    concerned = 0
    print("| image | looks like | painted (voxels) | cannot be there |\n|---|---|---|---|")
    for name, told in images.items():
        found = searched(engine, image_file(name), given.everything)
        painted = painted_voxels(found)
        wrong = [structure for structure in painted if structure not in told["possible"]]
        concerned += bool(wrong)
        kind = "–" if found.kind is None else f"{found.kind.name} ({found.kind.probabilities[found.kind.name]:.2f})"
        counted = ", ".join(f"{structure} {count}" for structure, count in painted.items())
        print(f"| {name} | {kind} | {counted or '–'} | {', '.join(wrong) or '–'} |", flush=True)
    print(f"\n{concerned} of {len(images)} images show a structure that cannot be there.")
    return 0


def image_file(name: str) -> Path:
    """The file of a sample image."""
    [path] = [file for file in SAMPLES.iterdir() if file.name in (f"{name}.png", f"{name}.nii.gz")]
    return path


def searched(engine: Engine, path: Path, everything: bool) -> PresentClasses:
    """What an unnamed request to `semantic` finds in an image; with `everything`, as for weights that know no kinds."""
    network, image = engine.network(), engine.image(path, path.name)
    segmentation = ClassSegmentation(engine, network, image, RequestStatistics())
    if not everything:
        return segmentation.search()
    return PresentClasses(segmentation.segment(network.registry.names), network.registry.names)


def painted_voxels(found: PresentClasses) -> dict[str, int]:
    """Name of each structure that was found -> its voxels."""
    counts = np.bincount(found.labels.ravel(), minlength=len(found.names) + 1)
    return {name: int(count) for name, count in zip(found.names, counts[1:], strict=True) if count}


if __name__ == "__main__":
    sys.exit(main())
