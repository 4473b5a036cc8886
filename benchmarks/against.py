# SPDX-License-Identifier: Apache-2.0
"""A benchmark of this tree beside the same benchmark of an earlier commit, in turns on the same machine, as ratios.

    python -m benchmarks.against COMMIT [--rounds 2] [--threads N] latency --rounds 1
    python -m benchmarks.against COMMIT --own=--site latency --rounds 1
    python -m benchmarks.against COMMIT training_speed --data FOLDER... --store {work}/slices --threads 1

What follows the benchmark's name goes to both, `--own` to this tree alone; `{work}` stands for a temporary folder of
each side's own. Each line of the benchmarks that holds numbers is one row: its first cell, or its text up to the first
number, the medians of both sides over the rounds, and this tree's divided by the commit's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import median

from benchmarks.places import ROOT

Figures = dict[str, list[list[float]]]
"""Label of a line -> for each round the numbers in it."""

_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*\w)")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=2, help="times that each side is measured")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of both sides")
    parser.add_argument("--own", action="append", default=[], help="an option of the benchmark for this tree alone")
    parser.add_argument("benchmark", help="name of a module of benchmarks/")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    return parser.parse_args()


def check_out(commit: str, folder: Path) -> Path:
    """The tree of `commit` in a new folder, with this tree's Python environment; ValueError if git has none."""
    found = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True)
    if found.returncode:
        raise ValueError(f"git cannot give the tree of {commit!r}: {found.stderr.decode().strip()}")
    tree = folder / "tree"
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(tree, filter="data")
    (tree / ".venv").symlink_to(ROOT / ".venv")
    return tree


def run(tree: Path, benchmark: str, options: Sequence[str], work: Path, threads: int | None) -> str:
    """What a benchmark of `tree` prints; its progress goes to the terminal."""
    work.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{benchmark}",
        *(option.replace("{work}", str(work)) for option in options),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'apps' / 'kprism'}"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{benchmark} of {tree} ended with status {done.returncode}")
    return done.stdout


def collect(output: str, figures: Figures) -> None:
    """Add the numbers in each line of `output` to those of the rounds before."""
    for line in output.splitlines():
        label, rest = split_label(line)
        numbers = [float(number.replace(",", "")) for number in _NUMBER.findall(rest)]
        if label and numbers:
            figures.setdefault(label, []).append(numbers)


def split_label(line: str) -> tuple[str, str]:
    """What a line is about, and the rest: the first cell of a table's row, else the text before the first number."""
    if line.startswith("|"):
        label, _, rest = line.strip("| ").partition("|")
        return label.strip(), rest
    first = _NUMBER.search(line)
    return (line[: first.start()].strip(" :"), line[first.start() :]) if first else ("", "")


def table(before: Figures, after: Figures) -> str:
    """A Markdown table of what both sides measured."""
    rows = ["| | commit | this tree | ratio |", "|---|---|---|---|"]
    for label in (label for label in after if label in before):
        old, new = ([median(values) for values in zip(*side[label], strict=False)] for side in (before, after))
        ratios = [f"{b / a:.2f}" if a else "-" for a, b in zip(old, new, strict=False)]
        rows.append(f"| {label} | {_joined(old)} | {_joined(new)} | {' / '.join(ratios)} |")
    return "\n".join(rows)


def _joined(values: Sequence[float]) -> str:
    return " / ".join(f"{value:g}" for value in values)


def main() -> None:
    """Measure both sides in turns and print the table."""
    arguments = read_arguments()
    with tempfile.TemporaryDirectory(prefix="kprism-against-") as name:
        folder = Path(name)
        given = arguments.options
        sides: list[tuple[Path, Path, Sequence[str], Figures]] = [
            (check_out(arguments.commit, folder), folder / "commit", given, {}),
            (ROOT, folder / "this", [*given, *arguments.own], {}),
        ]
        for number in range(arguments.rounds):
            for tree, work, options, figures in sides:
                print(f"round {number + 1} of {arguments.rounds}: {tree}", file=sys.stderr)
                collect(run(tree, arguments.benchmark, options, work, arguments.threads), figures)
        print(table(sides[0][3], sides[1][3]))


if __name__ == "__main__":
    main()
