# SPDX-License-Identifier: Apache-2.0
"""What fine-tuning on a site's cases brings there and costs elsewhere, with each means against forgetting left out.

    python -m benchmarks.forgetting --site ../shared/data/isic_dermoscopy --core ../shared/data/kvasir_polyp \\
        ../shared/data/busi_us ../shared/data/hippocampus_mr --cases 20 --minutes 5
    python -m benchmarks.forgetting --site ... --core ... --cases 3 --minutes 0.05 --validation 2 --only everything

Site: mean Dice of each mode on the validation list. Core: semantic Dice on the test lists. A row for each share of the
new weights, because validation chooses among them (`mix`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.data.partial import AnnotatedCase, StoreBuilder
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import FinetunePlan, Finetuner, mixed
from kprism_model.training.validation import SERVING_MODES, mean_dice, validate

VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "no distillation": {"distillation": 0.0},
    "no pull": {"pull": 0.0},
    "neither": {"distillation": 0.0, "pull": 0.0},
    "mean class as start": {"summary_start": False},
}
SHARES = (1.0, 0.7, 0.4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.forgetting", description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--core", type=Path, nargs="+", required=True)
    parser.add_argument("--weights", type=Path, default=Path("apps/kprism/model/kprism_small"))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--validation", type=int, default=10, help="cases of each list that are measured")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    given = parser.parse_args(arguments)
    site = annotated(given.site, "training", given.cases), annotated(given.site, "validation", given.validation)
    core = [case for folder in given.core for case in annotated(folder, "test", given.validation)]
    published = load_checkpoint(given.weights, device=given.device)
    predictor = Predictor(published.model, published.registry, device=given.device)
    print("| variant | share | steps | " + " | ".join(SERVING_MODES) + " | core |")
    print("|---|---|---|" + "---|" * (len(SERVING_MODES) + 1))
    print(row("published", "", 0, predictor, *site, core))
    for name in given.only:
        with tempfile.TemporaryDirectory(prefix="kprism-forgetting-") as folder:
            tuner = tune(given, Path(folder), site[0], VARIANTS[name])
            tuned = tuner.averaged()
        for share in SHARES:
            candidate = Predictor(mixed(published.model, tuned, share), tuner.registry, device=given.device)
            print(row(name, f"{share:.1f}", tuner.step, candidate, *site, core), flush=True)
    return 0


def annotated(folder: Path, split: str, count: int) -> list[AnnotatedCase]:
    """The first cases of a list, each annotated for the structures that it shows."""
    dataset = read_dataset(folder)
    found = []
    for case in dataset.cases(split)[:count]:
        loaded = load_case(dataset, case)
        assert loaded.labels is not None  # these lists are labelled throughout
        shown = {name: value for value, name in dataset.classes.items() if (loaded.labels == value).any()}
        if shown:
            found.append(AnnotatedCase(case.name, case.patient, loaded.images, loaded.labels, shown))
    return found


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
    tuner = Finetuner(published, store, plan, folder / "run", starts=starts, device=given.device)
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
    name: str,
    share: str,
    steps: int,
    predictor: Predictor,
    training: list[AnnotatedCase],
    validation: list[AnnotatedCase],
    core: list[AnnotatedCase],
) -> str:
    """A line of the table."""
    means = mean_dice(validate(predictor, validation, training))
    by_mode = [np.mean([value for (mode, _), value in means.items() if mode == wanted]) for wanted in SERVING_MODES]
    kept = np.mean(list(mean_dice(validate(predictor, core, modes=["semantic"])).values()))
    return f"| {name} | {share} | {steps} | " + " | ".join(f"{value:.4f}" for value in (*by_mode, kept)) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
