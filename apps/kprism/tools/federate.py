# SPDX-License-Identifier: Apache-2.0
"""`kprism federate`: sites that share no images train one network together; the gate of each judges the result.

This command simulates all sites on one machine. NVIDIA FLARE moves the weights and averages them. docs/federation.md
says what leaves a site, and how the same job runs between real sites.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kprism_model.locations import data_folder
from lib.federation.adoption import adopt
from lib.federation.aggregate import Aggregate, by_fold, read_aggregate
from lib.federation.plan import FederationError, FederationPlan
from lib.federation.simulation import Place, check_flare, check_places, export_job, simulate
from lib.federation.site import Site, check_sites, open_site
from lib.learning.submission_store import FOLDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        return run(given)
    except (ValueError, OSError) as error:
        print(f"kprism federate: {error}", file=sys.stderr)
        return 1


def run(given: argparse.Namespace) -> int:
    """All federations that are asked for, then the gate of each site; FederationError if one fails."""
    places = {name: Place(folder, dict(given.conf)) for name, folder in given.site}
    if len(places) < len(given.site):
        raise FederationError(f"a name of a site is given twice: {', '.join(name for name, _ in given.site)}")
    if given.received:
        return receive(places, given.received)
    check_flare()
    check_places(places)
    sites = _opened(places)
    first = next(iter(sites.values()))
    shipped = first.versions.load(device=first.device).shipped
    plan = FederationPlan(
        structures=tuple(given.structures),
        rounds=given.rounds,
        base=shipped.weights_version,
        steps=given.steps,
        minutes=given.minutes,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        seed=given.seed,
    )
    for fold in given.folds:
        check_sites(list(sites.values()), plan.without_fold(fold))
    if given.export:
        for fold in given.folds:
            folder = given.export / f"fold{fold}"
            export_job(plan.without_fold(fold), list(places), shipped, folder)
            print(f"{folder / 'job'}: the job for FLARE, whose server needs {folder}")
        return 0
    aggregates = {}
    for fold in given.folds:
        print(f"training without the patients of fold {fold}: {plan.rounds} rounds of {plan.budget}", flush=True)
        folder = given.workspace / f"fold{fold}"
        aggregates[fold] = simulate(plan.without_fold(fold), places, sites, shipped, folder)
    return judge(sites, aggregates)


def receive(places: Mapping[str, Place], files: Sequence[Path]) -> int:
    """Let the gate of each site judge the aggregates in files; FederationError if one cannot be used."""
    sites = _opened(places)
    first = next(iter(sites.values()))
    shipped = first.versions.load(device=first.device).shipped
    return judge(sites, by_fold(read_aggregate(file, shipped) for file in files))


def judge(sites: Mapping[str, Site], aggregates: Mapping[int, Aggregate]) -> int:
    """Let the gate of each site judge, and print what it says."""
    for name, site in sites.items():
        print(f"{name}: {adopt(site, aggregates).message}", flush=True)
    return 0


def _opened(places: Mapping[str, Place]) -> dict[str, Site]:
    return {name: open_site(name, place.studies, place.conf) for name, place in places.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kprism federate", description=__doc__)
    parser.add_argument(
        "--site",
        type=_site,
        action="append",
        required=True,
        metavar="NAME=STUDIES",
        help="a site and the folder that its server serves, with its labels in .kprism there; twice or more",
    )
    parser.add_argument("--structures", nargs="+", default=[], metavar="NAME", help="what the sites have agreed on")
    parser.add_argument("--rounds", type=int, default=5, help="how often weights are averaged (%(default)s)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="of each site in each round")
    budget.add_argument("--minutes", type=float, default=1.5, help="of each site in each round (%(default)s)")
    parser.add_argument(
        "--folds",
        type=int,
        nargs="+",
        choices=range(FOLDS),
        default=list(range(FOLDS)),
        help="folds of patients that judge the result: a federation for each, in which no site trains on them "
        "(default: all; one is a third of the work, and a third of the labels is not learned from)",
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--conf",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a setting of the sites' servers, as in `kprism serve`: device, model_path",
    )
    parser.add_argument(
        "--workspace",
        type=Path,
        default=data_folder() / "federation",
        help="where FLARE works; emptied first (default: %(default)s)",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the jobs for a running FLARE federation instead"
    )
    parser.add_argument(
        "--received",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="let the gates judge these aggregates, one of each fold, instead of training",
    )
    return parser


def _site(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=STUDIES, got {text!r}")
    return name, Path(folder)


if __name__ == "__main__":
    sys.exit(main())
