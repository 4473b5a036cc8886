# SPDX-License-Identifier: Apache-2.0
"""The command `evaluate --protocol published`: measure a checkpoint as the paper does, beside its figures."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import SPLITS
from kprism_model.evaluation.protocol import MODES
from kprism_model.files import write_bytes
from kprism_model.predictor import Predictor
from kprism_model.published.evaluation.chart import plot_comparison
from kprism_model.published.evaluation.clicks import CLICK_RULES
from kprism_model.published.evaluation.comparison_rows import Comparison
from kprism_model.published.evaluation.evaluate import evaluate_published
from kprism_model.published.evaluation.printed_figures import FIGURES, read_printed
from kprism_model.published.evaluation.protocol import PAPER_SIZE, READINGS, REFERENCE_LISTS, PublishedProtocol
from kprism_model.published.evaluation.table import to_markdown

FORMAT_VERSION = 1
"""Of published.json."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights (.safetensors with its .json beside)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of data sets")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the report (published.json, published.md, published.png); data sets that the same command "
        "finished there are not measured again",
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="what to measure (default: all)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="the list to measure on (default: test)")
    parser.add_argument(
        "--seed", type=int, default=0, help="draws references, clicks and, with --max-slices, the cases (default: 0)"
    )
    parser.add_argument("--references", type=int, default=1, help="number of references (default: 1, as in the paper)")
    parser.add_argument("--draws", type=int, default=1, help="draws of the references, for a spread (default: 1)")
    parser.add_argument(
        "--reference-list",
        choices=REFERENCE_LISTS,
        default=REFERENCE_LISTS[0],
        help="draw references from the training list (default), or take them out of the list that is measured; a set "
        "without a training list always does the latter",
    )
    parser.add_argument(
        "--clicks", choices=tuple(CLICK_RULES), default="published", help="rule of the clicks (default: published)"
    )
    parser.add_argument(
        "--max-slices", type=int, help="about the largest number of slices of each data set, for a quick look"
    )
    parser.add_argument("--batch", type=int, default=16, help="slices or structures in one pass (default: 16)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="published figures (default: those that come with the library)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write the report and print it."""
    if args.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {args.batch}")
    protocol = PublishedProtocol(
        modes=tuple(args.modes),
        split=args.split,
        seed=args.seed,
        references=args.references,
        draws=args.draws,
        reference_list=args.reference_list,
        clicks=args.clicks,
        max_slices=args.max_slices,
    )
    printed = read_printed(args.figures)
    checkpoint = load_checkpoint(args.checkpoint, device=args.device)
    predictor = Predictor(checkpoint.model, checkpoint.registry, device=args.device)
    results = evaluate_published(
        predictor,
        args.data,
        protocol,
        weights_version=checkpoint.weights_version,
        keep=args.out / "finished",
        batch=args.batch,
    )
    comparison = Comparison(results, printed, protocol, checkpoint.weights_version, checkpoint.model.config.native_size)
    save(comparison, args.out)
    print(to_markdown(comparison))
    return 0


def save(comparison: Comparison, folder: Path) -> None:
    """Write published.json, published.png and published.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(comparison), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(folder / "published.json", (text + "\n").encode())
    write_bytes(folder / "published.png", plot_comparison(comparison))
    write_bytes(folder / "published.md", to_markdown(comparison, picture="published.png").encode())


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The report, JSON-ready: Dice in percent, clicks as numbers."""
    return {
        "format_version": FORMAT_VERSION,
        "weights_version": comparison.weights_version,
        "native_size": comparison.native_size,
        "paper_size": PAPER_SIZE,
        "protocol": comparison.protocol.to_dict(),
        "readings": [{"choice": choice, "taken": taken, "other": other} for choice, taken, other in READINGS],
        **comparison.to_dict(),
        "published": {
            "figures": [asdict(figure) for figure in comparison.printed.figures],
            "sources": comparison.printed.sources,
            "conditions": comparison.printed.conditions,
        },
    }
