# SPDX-License-Identifier: Apache-2.0
"""Waiting times and memory at clinical size: a CT of 512 x 512 x 400 voxels, large pictures, and thousands of cases.

    PYTHONPATH=apps/kprism python -m benchmarks.clinical_size [--only GROUP...] [--shape 512 512 400] [--cases 10000]
    PYTHONPATH=apps/kprism python -m benchmarks.clinical_size --shape 96 96 40 --reference 64 64 24 \\
        --picture 600 400 --cases 200 --growth 5 10 20                                        # a try

Each line holds the figure for the clinical input, and how many times that of a small input it is, measured in the same
run: a volume of 128 x 128 x 64, a picture of 512 x 512, a hundredth of the cases. Inputs are made from the sample
datastore. Servers are started as users start them and asked over HTTP, one at a time. The groups:

- `ohif`: the K-Prism mode on a DICOMweb store (Orthanc must be installed). What only a server that streams has is "-".
- `slicer`: 3D Slicer on a folder of files, also with slices that are thinner than the pixels.
- `memory`: the most memory of a server, see `benchmarks.waiting.MemoryWatch`.
- `pictures`: clicks on large pictures.
- `seg`: a label of three structures, submitted as DICOM SEG and read back.
- `many`: lists of many cases in a folder and in a store.
- `growth`: memory after more and more cases.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import requests
from tqdm import tqdm

from benchmarks import clinical_stores, clinical_volumes
from benchmarks.waiting import Figure, Table

Run = tuple[str, Callable[[Path], Iterator[Figure]]]
"""What is measured, in words, and the figures when it is measured in an empty folder."""

SMALL_PICTURE = (512, 512)
PICTURES = [(6000, 4000), (12000, 8000)]

VOLUME_GROUPS = {
    "ohif": clinical_volumes.ohif,
    "slicer": clinical_volumes.slicer,
    "memory": clinical_volumes.memory,
    "seg": clinical_volumes.seg,
}
GROUPS = ("ohif", "slicer", "memory", "pictures", "seg", "many", "growth")


def runs(group: str, arguments: argparse.Namespace) -> list[Run]:
    """The measurements of a group, the small one first."""
    if group == "pictures":
        sizes = [SMALL_PICTURE, *(tuple(size) for size in arguments.picture or PICTURES)]
        return [(times(size), partial(clinical_stores.pictures, size)) for size in sizes]
    if group == "many":
        counts = (max(2, arguments.cases // 100), arguments.cases)
        return [(f"{count:,} cases", partial(clinical_stores.many, count)) for count in counts]
    if group == "growth":
        return [("small cases", partial(clinical_stores.growth, arguments.growth))]
    shapes = [tuple(arguments.reference), tuple(arguments.shape)]
    return [(times(shape), partial(VOLUME_GROUPS[group], shape)) for shape in shapes]


def times(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    return " x ".join(map(str, shape))


def measure(group: str, arguments: argparse.Namespace, table: Table) -> None:
    """Add the rows of a group to the table as they are measured; a request that fails ends its run."""
    reference: dict[str, Figure] | None = None
    listed = runs(group, arguments)
    for title, run in listed:
        figures: dict[str, Figure] = {}
        printed = reference is not None or len(listed) == 1
        with tempfile.TemporaryDirectory(prefix="clinical-") as folder:
            try:
                for figure in tqdm(run(Path(folder)), desc=f"{group}, {title}", unit=" figures"):
                    figures[figure.what] = figure
                    if printed:
                        small = (reference or {}).get(figure.what)
                        table.row(group, f"{figure.what}, {title}", str(figure), figure.ratio(small))
            except requests.RequestException as error:
                answer = error.response.text if error.response is not None else str(error)
                table.row(group, f"stopped, {title}", " ".join(answer.split())[:300], "-")
        reference = reference or figures


def main() -> None:
    """Run the measurement and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Waiting times and memory at clinical size.")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400), help="voxels of the CT")
    parser.add_argument("--reference", type=int, nargs=3, default=(128, 128, 64), help="voxels of the small volume")
    parser.add_argument("--picture", type=int, nargs=2, action="append", help="width and height of a large picture")
    parser.add_argument("--cases", type=int, default=10_000, help="cases of the group many")
    parser.add_argument("--growth", type=int, nargs="+", default=(50, 250, 500), help="numbers of small cases")
    arguments = parser.parse_args()
    table = Table("group", "what", "figure", "ratio to small", at_once=True)
    load = f"{os.getloadavg()[0]:.1f}"
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    table.row("-", "processors, threads, load average at the start", f"{os.cpu_count()}, {threads}, {load}", "-")
    for group in arguments.only:
        measure(group, arguments, table)


if __name__ == "__main__":
    main()
