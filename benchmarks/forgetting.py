# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning on a site's cases brings there and costs elsewhere, with each means against forgetting left out.

    python -m benchmarks.forgetting --site ../shared/data/isic_dermoscopy --core ../shared/data/kvasir_polyp \\
        ../shared/data/busi_us ../shared/data/hippocampus_mr --cases 20 --minutes 5
    python -m benchmarks.forgetting --site ... --core ... --cases 3 --minutes 0.05 --validation 2 --only everything

Site: mean Dice of each mode on the validation list. Core: semantic Dice on the test lists. A row for each share of the
new weights, because validation chooses among them (`mix`).

Says first how long it will take. Writes forgetting-NAME.json, .md and .png to `--out` after each variant; started
again with the same arguments it leaves out the variants that are there. `--stop-after MINUTES` ends it between two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.annotated_cases import annotated
from benchmarks.curves import save_curves
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.partial import AnnotatedCase, StoreBuilder
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import TRAINABLE, FinetunePlan, Finetuner
from kprism_model.training.validation import SERVING_MODES, mean_dice, validate
from kprism_model.training.weights import CLASS_TABLES, interpolate_weights

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no distillation": {"distillation": 0.0},
    "no pull": {"pull": 0.0},
    "neither": {"distillation": 0.0, "pull": 0.0},
    "mean class as start": {"start_from_references": False},
    "classes alone trained": {"trainable": CLASS_TABLES},
    "presence trained too": {"trainable": (*TRAINABLE, "decoder.presence")},
    "whole decoder trained": {"trainable": ("decoder.",)},
}
SHARES = (1.0, 0.7, 0.4)
PUBLISHED = "published"

Row = dict[str, Any]
"""A line of the table: variant, share of the new weights, steps, mean Dice of each mode at the site, and `core`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.forgetting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--core", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, default=Path("apps/kprism/model/kprism_small"))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--validation", type=int, default=10, help="cases of each list that are measured")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one training (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="begin no further variant then")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    began = time.monotonic()
    site = annotated(given.site, "training", given.cases), annotated(given.site, "validation", given.validation)
    core = [case for folder in given.core for case in annotated(folder, "test", given.validation)]
    published = load_checkpoint(given.weights, device=given.device)
    predictor = Predictor(published.model, published.registry, device=given.device)
    settings = settings_of(given, published.weights_version)
    path = given.out / f"forgetting-{given.site.name}.json"
    rows = finished(path, settings)
    measured = time.monotonic()
    first = row(PUBLISHED, None, 0, predictor, *site, core)
    seconds = time.monotonic() - measured
    left = [name for name in given.only if not any(found["variant"] == name for found in rows)]
    total = len(left) * (given.minutes + len(SHARES) * seconds / 60)
    print(f"{len(left)} variants to train: about {total:.0f} minutes", flush=True)
    rows = [first, *(found for found in rows if found["variant"] != PUBLISHED)]
    for name in left:
        if given.stop_after is not None and time.monotonic() - began > 60 * given.stop_after:
            print("not finished; the same command goes on")
            break
        with tempfile.TemporaryDirectory(prefix="kprism-forgetting-") as folder:
            tuner = tune(given, Path(folder), site[0], VARIANTS[name])
            tuned = tuner.averaged()
        for share in SHARES:
            candidate = Predictor(interpolate_weights(tuner.anchor, tuned, share), tuner.registry, device=given.device)
            rows.append(row(name, share, tuner.step, candidate, *site, core))
        write_results(path, settings, rows)
        print(f"{name}: done", flush=True)
    write_results(path, settings, rows)
    print(table_of(rows))
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


def settings_of(given: argparse.Namespace, weights_version: str) -> dict[str, Any]:
    """What the figures depend on."""
    names = [given.site.name, *(folder.name for folder in given.core)]
    counts = {"cases": given.cases, "validation": given.validation, "minutes": given.minutes}
    return {"data": names, **counts, "weights": weights_version, "device": given.device}


def finished(path: Path, settings: dict[str, Any]) -> list[Row]:
    """The rows of an earlier run with the same settings."""
    content = json.loads(path.read_text()) if path.exists() else {}
    return list(content["rows"]) if content.get("settings") == settings else []


def write_results(path: Path, settings: dict[str, Any], rows: Sequence[Row]) -> None:
    """Figures, table and picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "rows": list(rows)}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table_of(rows) + "\n")
    plot(path.with_suffix(".png"), settings["data"][0], rows)


def table_of(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    columns = [*SERVING_MODES, "core"]
    lines = ["| variant | share | steps | " + " | ".join(columns) + " |", "|---|---|---|" + "---|" * len(columns)]
    for one in rows:
        share = "" if one["share"] is None else f"{one['share']:.1f}"
        figures = " | ".join(f"{one[name]:.4f}" for name in columns)
        lines.append(f"| {one['variant']} | {share} | {one['steps']} | {figures} |")
    return "\n".join(lines)


def plot(path: Path, name: str, rows: Sequence[Row]) -> None:
    """What is won at the site against what is kept elsewhere: a line for each variant, a dot for each share."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for variant in dict.fromkeys(one["variant"] for one in rows):
        found = [one for one in rows if one["variant"] == variant]
        kept = [100 * one["core"] for one in found]
        won = [100 * float(np.mean([one[mode] for mode in SERVING_MODES])) for one in found]
        axes.plot(kept, won, "o-", ms=6, label=variant, color="black" if variant == PUBLISHED else None)
    axes.set(xlabel="core: semantic Dice [points]", ylabel=f"{name}: mean Dice of the modes [points]")
    save_curves(path, figure, axes)


def tune(given: argparse.Namespace, folder: Path, cases: list[AnnotatedCase], changes: dict[str, Any]) -> Finetuner:
    """Fine-tune the published weights on the cases."""
    published = load_checkpoint(given.weights, device=given.device)
    builder = StoreBuilder(folder / "slices", published.model.config.native_size)
    for case in cases:
        builder.add(case)
    predictor = Predictor(published.model, published.registry, device=given.device)
    store = builder.store()
    starts = {name: first_references(predictor, cases, name) for name in store.class_names}
    plan = FinetunePlan(minutes=given.minutes, **changes)
    tuner = Finetuner(published, store, plan, folder / "run", class_references=starts, device=given.device)
    for _ in tuner.steps():
        pass
    return tuner


def first_references(predictor: Predictor, cases: Sequence[AnnotatedCase], name: str) -> References:
    """The largest slice of the first cases that show a structure."""
    chosen = [case for case in cases if name in case.structures][:6]
    numbers = [int(case.mask(name).sum(axis=(1, 2)).argmax()) for case in chosen]
    pairs = list(zip(chosen, numbers, strict=True))
    return predictor.embed_references(
        [case.picture(number) for case, number in pairs], [case.mask(name)[number] for case, number in pairs]
    )


def row(
    variant: str,
    share: float | None,
    steps: int,
    predictor: Predictor,
    training: list[AnnotatedCase],
    validation: list[AnnotatedCase],
    core: list[AnnotatedCase],
) -> Row:
    """Measure a network."""
    means = mean_dice(validate(predictor, validation, training))
    by_mode = {
        wanted: float(np.mean([value for (mode, _), value in means.items() if mode == wanted]))
        for wanted in SERVING_MODES
    }
    kept = float(np.mean(list(mean_dice(validate(predictor, core, modes=["semantic"])).values())))
    return {"variant": variant, "share": share, "steps": steps, **by_mode, "core": kept}


if __name__ == "__main__":
    raise SystemExit(main())
