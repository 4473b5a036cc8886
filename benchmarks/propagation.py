# SPDX-License-Identifier: Apache-2.0
"""Propagation of a few clicks through a volume: its accuracy, its ends, the clicks that it saves, and its speed.

    python -m benchmarks.propagation --data FOLDER... [--split test] [--cases 10] [--seed 0] [--clicks 3] [--limit 20]
        [--next worst proposed spread] [--ct FOLDER] [--speed] [--out STEM] [--checkpoint PATH] [--threads 2]

A simulated user (`benchmarks.volume_user`) segments every structure of the drawn cases. Choices are made on
`--split validation`; the test split is for reports.

- Three clicks: `--clicks` on the middle slice of the structure, each on the largest error; then the mask is propagated
  through the volume: with the structure's name, which may be a class that the network knows, and without; with
  adaptation to the clicked slice and without. The table has the Dice on that slice and on the volume; the share of the
  mask's voxels that lie on slices without the structure; and for each of the two ends, how many slices are claimed
  beyond it and how many are missed before it. Speed is the number of propagated slices, divided by the time for them,
  encoding and adaptation included.
- Clicks to Dice 0.85 on the volume, for each method: with propagation; on every slice that is clicked, and nothing
  elsewhere; and with shapes that are interpolated linearly between clicked slices. `--next` says who chooses the slices
  of propagated masks: `worst` (by the true mask, where most pixels are wrong), `proposed` (the least certain slice) or
  `spread` (the middle of the largest gap). The other methods click where most pixels are wrong. Volumes that do not
  reach it after `--limit` clicks count as that many; the table has their share.
- CT (`--ct`: the folder that holds sample-data and data): the same for the lung tumours of the sample CTs and for
  livers, where the structure must not run through the volume.
- `--speed`: a liver, resampled to 256 x 256 x 100, from three clicks; and one more click on another slice.

`--out STEM` writes STEM.json, with the figures of every structure, and STEM.md, the tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.places import SHIPPED_WEIGHTS
from benchmarks.propagation_speed import speed_of
from benchmarks.propagation_tables import tables
from benchmarks.volume_samples import Sample, drawn_samples, sample_of_files
from benchmarks.volume_user import (
    CLICKED_METHODS,
    METHODS,
    SLICE_CHOICES,
    Method,
    SliceChoice,
    UserInVolume,
    clicks_to_target,
)
from kprism_model.checkpoint import load_checkpoint
from kprism_model.files import write_bytes
from kprism_model.predictor import Predictor

Figures = dict[str, Any]


def after_clicks(predictor: Predictor, sample: Sample, method: Method, clicks: int) -> Figures:
    """The figures of a structure after clicks on its middle slice."""
    user = UserInVolume(predictor, sample, method)
    for _ in range(clicks):
        user.click(sample.middle)
        user.predict(propagate=False)
    slice_dice = user.slice_dice(sample.middle)
    user.predict()
    predicted, true = user.mask.any(axis=(1, 2)), sample.true.any(axis=(1, 2))
    return {
        "slice_dice": slice_dice,
        "volume_dice": user.dice,
        "voxels_beyond": float(user.mask[~true].sum() / max(1, user.mask.sum())),
        "ends": [
            {"beyond": int((predicted & ~true)[half].sum()), "missed": int((true & ~predicted)[half].sum())}
            for half in (slice(None, sample.middle), slice(sample.middle, None))
        ],
        "propagated_slices": user.propagated,
        "seconds": user.seconds,
    }


def clicks_needed(predictor: Predictor, sample: Sample, choices: Sequence[SliceChoice], limit: int) -> Figures:
    """Method and choice of slices -> clicks to the target Dice, None if `limit` clicks do not reach it."""
    counts: Figures = {}
    for name in CLICKED_METHODS:
        method = METHODS[name]
        for choice in choices if name == "propagated" else ("worst",):
            user = UserInVolume(predictor, sample, method)
            counts[f"{name}, {choice}"] = clicks_to_target(user, choice, limit)
    return counts


def measure(predictor: Predictor, sample: Sample, clicks: int, *, memoryless: bool) -> Figures:
    """The figures of one structure after clicks, by each method that propagates; `memoryless` ones if asked for."""
    figures = {
        name: after_clicks(predictor, sample, method, clicks)
        for name, method in METHODS.items()
        if method.rules or (memoryless and method.memoryless)
    }
    return {
        "dataset": sample.dataset,
        "case": sample.case,
        "structure": sample.structure,
        "after_clicks": figures,
    }


def ct_samples(folder: Path) -> Iterator[Sample]:
    """The lung tumours of the sample CTs, and livers."""
    for number in (1, 2):
        image, label = (
            folder / "sample-data" / what / f"pyradiomics_lung{number}.nii.gz" for what in ("images", "labels")
        )
        yield sample_of_files(image, label, "lung tumour", "CT")
    for name in ("chaos_ct", "totalseg_ct"):
        yield from (
            sample for sample in drawn_samples(folder / "data" / name, "test", 1, 0) if sample.structure == "liver"
        )


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--cases", type=int, default=10, help="cases of each data set (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws the cases")
    parser.add_argument("--clicks", type=int, default=3, help="on the middle slice (%(default)s)")
    parser.add_argument("--limit", type=int, default=20, help="clicks in a volume; 0 leaves this out (%(default)s)")
    parser.add_argument("--next", nargs="+", choices=list(SLICE_CHOICES), default=["worst"], help="who chooses slices")
    parser.add_argument(
        "--ct", type=Path, metavar="FOLDER", help="holds sample-data, data/chaos_ct and data/totalseg_ct"
    )
    parser.add_argument("--speed", action="store_true", help="time a volume of 256 x 256 x 100; needs --ct")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--out", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    given = parser.parse_args(arguments)
    if not given.data and given.ct is None:
        parser.error("nothing to measure: give --data or --ct")
    if given.speed and given.ct is None:
        parser.error("--speed resamples the liver CT: give --ct")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write them; returns the exit status."""
    given = read_arguments(arguments)
    torch.set_num_threads(given.threads)
    checkpoint = load_checkpoint(given.checkpoint)
    predictor = Predictor(checkpoint.model, checkpoint.registry)
    settings = {name: getattr(given, name) for name in ("split", "cases", "seed", "clicks", "limit", "next", "threads")}
    report: Figures = {"settings": settings, "weights": checkpoint.weights_version, "structures": [], "ct": []}
    for folder in given.data:
        for sample in tqdm(list(drawn_samples(folder, given.split, given.cases, given.seed)), folder.name):
            found = measure(predictor, sample, given.clicks, memoryless=True)
            if given.limit:
                found["clicks_needed"] = clicks_needed(predictor, sample, given.next, given.limit)
            report["structures"].append(found)
            write(report, given.out)
    ct = [] if given.ct is None else list(ct_samples(given.ct))
    for sample in tqdm(ct, "CT", disable=not ct):
        report["ct"].append(measure(predictor, sample, given.clicks, memoryless=False))
    if given.speed:
        report["speed"] = speed_of(predictor, next(sample for sample in ct if sample.dataset == "chaos_ct"))
    report["finished"] = time.strftime("%Y-%m-%d")
    write(report, given.out)
    print("\n".join(tables(report)))
    return 0


def write(report: Figures, stem: Path | None) -> None:
    """Write the figures so far, and their tables."""
    if stem is not None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(stem.with_name(f"{stem.name}.json"), (json.dumps(report, indent=1) + "\n").encode())
        write_bytes(stem.with_name(f"{stem.name}.md"), ("\n".join(tables(report)) + "\n").encode())


if __name__ == "__main__":
    raise SystemExit(main())
