# SPDX-License-Identifier: Apache-2.0
"""Short trainings of different recipes: the same data, the same minutes, and what each makes of the validation lists.

    python -m benchmarks.recipes --data FOLDER... --work FOLDER [--minutes 10] [--recipes NAME...] [--slices 60]

Each recipe differs from "small" in one thing. Finished recipes are kept in the work folder, so a stopped command goes
on. Prints a Markdown table (docs/training.md holds one) and writes recipes.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kprism_model.data.building import build_store
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.evaluation.evaluate import evaluate
from kprism_model.evaluation.protocol import Protocol
from kprism_model.network.config import KPrismConfig
from kprism_model.predictor import Predictor
from kprism_model.training.loop import fit
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.schedule import StepSettings
from kprism_model.training.trainer import Trainer

FIGURES = (
    ("semantic", "dice_present"),
    ("in_context_1", "dice_present"),
    ("interactive", "dice_1"),
    ("interactive", "dice_5"),
)


@dataclass(frozen=True)
class Recipe:
    """One way to train: the network's size, the schedule, the training step and the mixture of a batch."""

    what: str
    config: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    step: StepSettings = field(default_factory=StepSettings)
    mixture: Mixture = field(default_factory=Mixture)


RECIPES = {
    "small": Recipe("the preset as it is"),
    "shipped": Recipe(
        "stems end at half size, dense prompt map 96 wide, as in the shipped weights",
        {"stem_stride": 2, "dense_channels": 96},
    ),
    "six-layers": Recipe("six decoder layers instead of three", {"layers": 6}),
    "narrow": Recipe("width 64 instead of 96", {"width": 64, "ffn_width": 64}),
    "slow": Recipe("learning rate 3e-4 instead of 1e-3", plan={"learning_rate": 3e-4}),
    "fine": Recipe("192 px from the start", plan={"sizes": ((0.0, 192),)}),
    "coarse": Recipe("128 px to the end", plan={"sizes": ((0.0, 128),)}),
    "no-synthetic": Recipe("no synthetic tasks", mixture=Mixture(synthetic=0.0)),
    "more-synthetic": Recipe("40 % synthetic tasks", mixture=Mixture(synthetic=0.4)),
    "never-carried": Recipe("no masks of the slice before", step=StepSettings(propagation_probability=0.0)),
    "always-corrected": Recipe("every first mask is corrected", step=StepSettings(correction_probability=1.0)),
}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each recipe")
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--slices", type=int, default=60, help="validation slices of each data set, whole cases")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store = build_store(arguments.data, arguments.work / "slices", split="training", size=256)
    rows: dict[str, dict[str, Any]] = {}
    for name in arguments.recipes:
        result = arguments.work / f"{name}.json"
        if not result.exists():
            outcome = _try(RECIPES[name], store, arguments, arguments.work / name)
            result.write_text(json.dumps(outcome, indent=2))
        rows[name] = json.loads(result.read_text())
        print(_table({name: rows[name]}), flush=True)
    (arguments.work / "recipes.json").write_text(json.dumps(rows, indent=2))
    print(f"\n{arguments.minutes:g} minutes each\n\n{_table(rows)}")


def _try(recipe: Recipe, store: SliceStore, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one recipe and measure it on the validation lists."""
    sampler = Sampler(store, seed=0, mixture=recipe.mixture)
    config = KPrismConfig.small(num_classes=len(sampler.registry), **recipe.config)
    plan = replace(TrainingPlan(minutes=arguments.minutes, warmup_steps=50, step=recipe.step), **recipe.plan)
    trainer = Trainer(config, sampler, plan, folder)
    model = fit(trainer)
    protocol = Protocol(
        modes=("semantic", "in_context", "interactive"),
        split="validation",
        max_slices=arguments.slices,
        references=(1,),
        draws=1,
        click_limit=5,
    )
    report = evaluate(Predictor(model, sampler.registry), arguments.data, protocol)
    means: dict[str, Any] = {}
    for mode, figure in FIGURES:
        values: dict[str, list[float]] = {}
        for entry in report.figures:
            if (entry.mode, entry.name) == (mode, figure) and entry.value is not None:
                values.setdefault(entry.dataset, []).append(entry.value)
        by_dataset = [sum(group) / len(group) for group in values.values()]
        means[f"{mode} {figure}"] = sum(by_dataset) / len(by_dataset)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    images = trainer.step * plan.batch_size
    return {"what": recipe.what, "parameters": parameters, "steps": trainer.step, "images": images, "dice": means}


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| recipe | parameters | images | semantic | in-context, 1 reference | 1 click | 5 clicks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        dice = " | ".join(f"{value:.3f}" for value in row["dice"].values())
        lines.append(f"| {name}: {row['what']} | {row['parameters'] / 1e6:.1f} M | {row['images']:,} | {dice} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
