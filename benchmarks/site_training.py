# SPDX-License-Identifier: Apache-2.0
"""What a site's labels teach: semantic, in-context and interactive Dice after so many cases and minutes.

    python -m benchmarks.site_training --data ../shared/data/acdc_mr ../shared/data/isic_dermoscopy --cases 10 30 \\
        --minutes 5 25 --seeds 2
    python -m benchmarks.site_training --data ../shared/data/acdc_mr --cases 3 --minutes 0.05 --validation 1 --seeds 1

Trains on the first cases of each training list, in one go, and measures on the first of its validation list. A row for
each variant of what is trained, data set, number of cases, minutes and seed.

Says first how long it will take. Writes site-training.json and .md to `--out` after each row; started again with the
same arguments it leaves out the rows that are there. `--stop-after MINUTES` begins no further row then.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.annotated_cases import annotated
from benchmarks.places import SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.partial import AnnotatedCase, StoreBuilder
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import FinetunePlan, Finetuner, largest_slices
from kprism_model.training.validation import SERVING_MODES, mean_dice, validate

VARIANTS: dict[str, tuple[str, ...]] = {"everything": (), "encoder frozen": ("image_encoder.",)}
"""What is not trained: prefixes of the names of parameters."""

Row = dict[str, Any]
"""Variant, data set, cases, minutes, seed, steps, and the mean Dice of each mode and of each structure by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.site_training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 30])
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 25.0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--validation", type=int, default=6, help="cases of each list that are measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="begin no further row then")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    began = time.monotonic()
    path = given.out / "site-training.json"
    version = load_checkpoint(given.weights).weights_version
    content = json.loads(path.read_text()) if path.exists() else {}
    rows: list[Row] = list(content["rows"]) if content.get("weights") == version else []
    left = [cell for cell in cells(given) if not any(all(row[key] == cell[key] for key in cell) for row in rows)]
    print(f"{len(left)} trainings: about {sum(cell['minutes'] + 1 for cell in left):.0f} minutes", flush=True)
    for cell in left:
        if given.stop_after is not None and time.monotonic() - began > 60 * given.stop_after:
            print("not finished; the same command goes on")
            break
        rows.append(row_of(cell, given))
        print(json.dumps(rows[-1]), flush=True)
        given.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"weights": version, "rows": rows}, indent=1) + "\n")
        path.with_suffix(".md").write_text(table_of(rows) + "\n")
    print(table_of(rows))
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def cells(given: argparse.Namespace) -> Iterator[Row]:
    """Every training that is asked for, the shortest first."""
    for minutes, seed, cases, data, variant in product(
        sorted(given.minutes), range(given.seeds), given.cases, given.data, given.variants
    ):
        yield {
            "variant": variant,
            "data": data.name,
            "cases": cases,
            "minutes": minutes,
            "seed": seed,
            "validation": given.validation,
        }


def row_of(cell: Row, given: argparse.Namespace) -> Row:
    """Train and measure."""
    data = next(folder for folder in given.data if folder.name == cell["data"])
    training = annotated(data, "training", cell["cases"])
    validation = annotated(data, "validation", cell["validation"])
    with tempfile.TemporaryDirectory(prefix="kprism-site-training-") as folder:
        tuner = tune(given, Path(folder), training, cell)
    means = mean_dice(validate(Predictor(tuner.averaged(), tuner.registry, device=given.device), validation, training))
    modes = {
        wanted: round(float(np.mean([value for (mode, _), value in means.items() if mode == wanted])), 4)
        for wanted in SERVING_MODES
    }
    named = {structure: round(value, 4) for (mode, structure), value in means.items() if mode == "semantic"}
    return {**cell, "steps": tuner.step, **modes, "structures": named}


def tune(given: argparse.Namespace, folder: Path, cases: Sequence[AnnotatedCase], cell: Row) -> Finetuner:
    """Fine-tune a copy of the shipped weights on the cases."""
    shipped = load_checkpoint(given.weights, device=given.device)
    builder = StoreBuilder(folder / "slices", shipped.model.config.native_size)
    for case in cases:
        builder.add(case)
    store = builder.store()
    predictor = Predictor(shipped.model, shipped.registry, device=given.device)
    new = [name for name in store.class_names if name not in shipped.registry]
    starts = {
        name: largest_slices(predictor, [case for case in cases if name in case.structures], name) for name in new
    }
    plan = FinetunePlan(minutes=cell["minutes"], seed=cell["seed"])
    tuner = Finetuner(shipped, store, plan, folder / "run", class_references=starts, device=given.device)
    for name, parameter in tuner.model.named_parameters():
        if name.startswith(VARIANTS[cell["variant"]]):
            parameter.requires_grad_(False)
    for _ in tuner.steps():
        pass
    return tuner


def table_of(rows: Sequence[Row]) -> str:
    """The rows as a table: means over seeds, with the values of each seed in brackets."""
    lines = [
        "| trained | data | cases | minutes | steps | semantic (seeds) | in-context | clicks 1 to 3 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["variant"], row["data"], row["cases"], row["minutes"]) for row in rows):
        own = [row for row in rows if (row["variant"], row["data"], row["cases"], row["minutes"]) == key]
        means = [f"{np.mean([row[mode] for row in own]):.3f}" for mode in SERVING_MODES]
        seeds = ", ".join(f"{row['semantic']:.3f}" for row in own)
        steps = ", ".join(str(row["steps"]) for row in own)
        cells = (*map(str, key), steps, f"{means[0]} ({seeds})", *means[1:])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
