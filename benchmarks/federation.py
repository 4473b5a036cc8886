# SPDX-License-Identifier: Apache-2.0
"""What three hospitals gain from training together without sharing images: Dice alone, together, and on pooled data.

    PYTHONPATH=apps/kprism python -m benchmarks.federation --data ../shared/data/acdc_mr --steps 600 --rounds 6
    PYTHONPATH=apps/kprism python -m benchmarks.federation --data ../shared/data/acdc_mr --minutes 20 --parts together

The patients of the training list are shared out to hospitals A, B and C, 60, 30 and 10 %, by `--seed`. Each part starts
from the shipped weights, under names that these do not know. Every hospital trains `--steps` (or `--minutes`) in all:
alone; together in `--rounds` by NVIDIA FLARE's FedAvg; pooled: one hospital with all images, trained as long as one of
the three (pooled) and as all three together (pooled, three times as long); and together with a fold of patients held
back for the gates (held back), whose verdicts are listed. All are measured by name on the validation and test lists.

Says first what is left to do. A part that is finished is not run again; different parts may run at the same time, with
`--parts`. Writes federation.json, .md and .png to `--out`; sites and FLARE's files stay in `--work`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.annotated_cases import annotated
from benchmarks.effort import check_settings, patients_of
from benchmarks.places import SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.datasets import Dataset, read_dataset
from kprism_model.data.partial import AnnotatedCase
from kprism_model.files import write_bytes
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.validation import ValidationSettings, mean_dice, validate
from lib.federation.adoption import adopt
from lib.federation.exchange import assembled
from lib.federation.plan import FederationPlan
from lib.federation.simulation import Place, simulate
from lib.federation.site import Site, open_site
from lib.federation.site_training import SiteTraining

SHARES = {"A": 0.6, "B": 0.3, "C": 0.1}
"""Hospital -> its share of the patients."""

HELD_BACK = 0
"""The fold of patients that the gates judge by in the part `held-back`."""

LISTS = ("validation", "test")

NEW_NAME = "{} of the hospitals"
"""The name under which a structure is labelled, which the shipped weights do not know."""

Trained = tuple[KPrism, ClassRegistry]


class Part(NamedTuple):
    """A part of the benchmark: its name in the table, the hospitals in it, and how often the budget of one is spent."""

    title: str
    hospitals: tuple[str, ...]
    budgets: int


PARTS = {
    **{f"alone-{name}": Part(f"hospital {name} alone", (name,), 1) for name in SHARES},
    "together": Part("together (FedAvg)", tuple(SHARES), 3),
    "pooled": Part("pooled data, as long as one hospital", ("pooled",), 1),
    "pooled-long": Part("pooled data, as long as all three", ("pooled",), 3),
    "held-back": Part("together, a fold held back for the gates", tuple(SHARES), 3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.federation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a data set with a dataset.json and patients")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="of each hospital in all; does not depend on the machine")
    budget.add_argument("--minutes", type=float, help="of each hospital in all")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", type=int, default=1000, help="cases of each list that are measured at most")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--work", type=Path, help="default: var/federation/NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    if given.steps is not None and given.steps % given.rounds:
        parser.error(f"--steps {given.steps}: expected a multiple of the {given.rounds} rounds")
    work = (given.work or Path("var/federation") / given.data.name).resolve()
    settings = {
        "data": str(given.data),
        **{key: getattr(given, key) for key in ("steps", "minutes", "rounds", "seed", "measured")},
        "weights": load_checkpoint(SHIPPED_WEIGHTS).weights_version,
    }
    try:
        check_settings(work, settings)
    except ValueError as error:
        parser.error(str(error))
    left = [name for name in given.parts if not _result(work, name).exists()]
    each = f"{given.steps} steps" if given.steps else f"{given.minutes} minutes"
    print(f"{sum(PARTS[name].budgets for name in left)} times {each} left: {', '.join(left) or 'nothing'}", flush=True)
    for name in left:
        began = time.monotonic()
        result = run_part(name, given, work)
        result["minutes"] = round((time.monotonic() - began) / 60, 1)
        write_bytes(_result(work, name), json.dumps(result, indent=1).encode())
        print(f"{PARTS[name].title}: {json.dumps(result['dice'])}", flush=True)
    write_results(given.out, work, {**settings, "data": given.data.name})
    return 0


def _result(work: Path, name: str) -> Path:
    return work / f"{name}.json"


def shared_out(patients: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Hospital -> its patients, drawn by `seed`; the last hospital has the rest, and `pooled` has all."""
    drawn = sorted(patients)
    random.Random(seed).shuffle(drawn)
    found: dict[str, list[str]] = {}
    begin, total = 0, 0.0
    for name, share in SHARES.items():
        total += share
        end = round(total * len(drawn))
        found[name], begin = drawn[begin:end], end
    return {**found, "pooled": drawn}


def run_part(name: str, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train and measure one part."""
    part, folder = PARTS[name], work / name
    shutil.rmtree(folder, ignore_errors=True)
    dataset = read_dataset(given.data)
    of = patients_of(given.data)
    patients = shared_out(list(dict.fromkeys(of.values())), given.seed)
    places = {hospital: Place(folder / hospital, site_conf(of)) for hospital in part.hospitals}
    sites = {}
    for hospital, place in places.items():
        images = [image for image, patient in of.items() if patient in patients[hospital]]
        sites[hospital] = made_site(hospital, place, dataset, images)
    verdicts: dict[str, str] = {}
    if len(part.hospitals) == 1:
        [site] = sites.values()
        network = trained_alone(site, plan_of(given, dataset, part.budgets))
    else:
        plan = plan_of(given, dataset, 1, fold=HELD_BACK if name == "held-back" else None)
        shipped = load_checkpoint(SHIPPED_WEIGHTS)
        aggregate = simulate(plan, places, sites, shipped, folder / "flare")
        network = assembled(shipped, plan.structures, aggregate.arrays)
        if plan.fold is not None:
            verdicts = {hospital: adopt(site, {plan.fold: aggregate}).message for hospital, site in sites.items()}
    save_checkpoint(folder / "weights", *network, metadata={"part": name})
    counts = {hospital: [len(patients[hospital]), len(site.labelled())] for hospital, site in sites.items()}
    dice = {split: measured(network, renamed(annotated(given.data, split, given.measured))) for split in LISTS}
    return {"patients_and_volumes": counts, "dice": dice, "verdicts": verdicts}


def site_conf(patients: Mapping[str, str]) -> dict[str, str]:
    """The setting by which a site finds the patient in an image's name."""
    return {"patients": f"^({'|'.join(sorted(set(patients.values())))})(?=_|$)"}


def made_site(name: str, place: Place, dataset: Dataset, images: Sequence[str]) -> Site:
    """A hospital whose labels of these images were submitted."""
    place.studies.mkdir(parents=True)
    cases = {case.name: case for case in dataset.cases("training")}
    for image in images:
        shutil.copyfile(cases[image].image, place.studies / cases[image].image.name)
    site = open_site(name, place.studies, place.conf)
    for image in images:
        label = cases[image].label
        assert label is not None  # the training list is labelled throughout
        names = {NEW_NAME.format(structure): value for value, structure in dataset.classes.items()}
        site.submissions.submit(image, label, {"label_names": names}, by="benchmark")
    return site


def plan_of(given: argparse.Namespace, dataset: Dataset, budgets: int, *, fold: int | None = None) -> FederationPlan:
    """The plan in which every site spends its budget, so many times."""
    return FederationPlan(
        structures=tuple(NEW_NAME.format(structure) for structure in dataset.classes.values()),
        rounds=given.rounds,
        base=load_checkpoint(SHIPPED_WEIGHTS).weights_version,
        steps=None if given.steps is None else budgets * given.steps // given.rounds,
        minutes=budgets * (given.minutes or 1.0) / given.rounds,
        fold=fold,
        seed=given.seed,
    )


def trained_alone(site: Site, plan: FederationPlan) -> Trained:
    """What a training at one site makes of its labels: the weights after the last step, as sites send them too.

    A local training publishes their moving average instead, which lags behind after few steps.
    """
    training = SiteTraining(site, plan)
    training.finish()
    return training.tuner.model.eval(), training.tuner.registry


def renamed(cases: Sequence[AnnotatedCase]) -> list[AnnotatedCase]:
    """The cases with the hospitals' names of structures."""
    return [
        AnnotatedCase(
            case.name,
            case.patient,
            case.images,
            case.labels,
            {NEW_NAME.format(name): value for name, value in case.structures.items()},
        )
        for case in cases
    ]


def measured(network: Trained, cases: Sequence[AnnotatedCase]) -> dict[str, float]:
    """Mean Dice of each structure by name over whole volumes, and their mean."""
    whole = max(len(case.labels) for case in cases)
    settings = ValidationSettings(shown=whole, absent=whole)
    scores = validate(Predictor(*network), cases, modes=("semantic",), settings=settings)
    suffix = NEW_NAME.format("")
    dice = {structure.removesuffix(suffix): round(value, 4) for (_, structure), value in mean_dice(scores).items()}
    return {"mean": round(float(np.mean(list(dice.values()))), 4), **dice}


def write_results(out: Path, work: Path, settings: Mapping[str, Any]) -> None:
    """Write what is finished: figures, table, bars."""
    found = {name: json.loads(path.read_text()) for name in PARTS if (path := _result(work, name)).exists()}
    if not found:
        return
    out.mkdir(parents=True, exist_ok=True)
    content = {"settings": dict(settings), "finished": time.strftime("%Y-%m-%d"), "parts": found}
    write_bytes(out / "federation.json", (json.dumps(content, indent=1) + "\n").encode())
    table = results_table(found)
    write_bytes(out / "federation.md", (table + "\n").encode())
    print(table)
    plot(out / "federation.png", found)


def results_table(found: Mapping[str, Any]) -> str:
    """Dice of each part on both lists, then what the gates have said."""
    columns = list(next(iter(found.values()))["dice"]["test"])
    head = [f"{split} {column}" for split in LISTS for column in columns]
    lines = [f"| trained | patients | {' | '.join(head)} |", "|---|---|" + "---:|" * len(head)]
    for name, result in found.items():
        patients = " + ".join(str(count) for count, _ in result["patients_and_volumes"].values())
        cells = [f"{result['dice'][split][column]:.3f}" for split in LISTS for column in columns]
        lines.append(f"| {PARTS[name].title} | {patients} | {' | '.join(cells)} |")
    verdicts = [f"- {hospital}: {text}" for one in found.values() for hospital, text in one["verdicts"].items()]
    return "\n".join([*lines, *(["", "What the gates said:", "", *verdicts] if verdicts else [])])


def plot(path: Path, found: Mapping[str, Any]) -> None:
    """Bars: Dice on the test list, for the mean and each structure."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    columns = list(next(iter(found.values()))["dice"]["test"])
    width = 0.8 / len(found)
    for number, (name, result) in enumerate(found.items()):
        places = np.arange(len(columns)) + (number - (len(found) - 1) / 2) * width
        axes.bar(places, [result["dice"]["test"][column] for column in columns], width, label=PARTS[name].title)
    axes.set(xticks=range(len(columns)), xticklabels=columns, ylabel="Dice by name, test list", ylim=(0, 1))
    figure.legend(fontsize=8, ncols=3, loc="outside upper center")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    raise SystemExit(main())
