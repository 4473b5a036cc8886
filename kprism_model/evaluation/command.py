# SPDX-License-Identifier: Apache-2.0
"""The command `evaluate`: measure a checkpoint on test lists, and write the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import SPLITS
from kprism_model.evaluation.evaluate import evaluate
from kprism_model.evaluation.protocol import MODES, PROTOCOLS, Protocol
from kprism_model.evaluation.report_files import save_report
from kprism_model.evaluation.report_tables import to_markdown
from kprism_model.predictor import Predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the `evaluate` command."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights (.safetensors with its .json beside)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of data sets")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=PROTOCOLS[0],
        help="instances: structures of many instances, such as nuclei, are clicked one at a time (default); first: all "
        "of a class is clicked together",
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="what to measure (default: all)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the report (JSON, Markdown, pictures); data sets that the same command finished there are not "
        "measured again",
    )
    parser.add_argument(
        "--max-slices", type=int, help="about the largest number of slices of each data set; whole cases"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the references and, with --max-slices, the cases")
    parser.add_argument("--split", choices=SPLITS, default="test", help="the list to measure on (default: test)")
    parser.add_argument("--draws", type=int, default=5, help="number of reference sets to draw (default: 5)")
    parser.add_argument("--no-window", action="store_true", help="predict all clicks on the whole image")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def run(args: argparse.Namespace) -> int:
    """Evaluate with the given arguments, write the report and print its tables."""
    checkpoint = load_checkpoint(args.checkpoint, device=args.device)
    report = evaluate(
        Predictor(checkpoint.model, checkpoint.registry, device=args.device),
        args.data,
        Protocol(
            modes=tuple(args.modes),
            split=args.split,
            seed=args.seed,
            draws=args.draws,
            max_slices=args.max_slices,
            name=args.protocol,
            window=not args.no_window,
        ),
        weights_version=checkpoint.weights_version,
        keep=args.out / "finished",
    )
    save_report(report, args.out)
    print(to_markdown(report))
    return 0
