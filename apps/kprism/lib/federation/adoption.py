# SPDX-License-Identifier: Apache-2.0
"""What comes back to a site: its gate judges the networks of a federation as it judges those of a local training.

A network that has learned from all labels of a site cannot be judged there. So there is a federation for each fold of
the site's cross-validation: in it no site trains on its patients of that fold, and on these its network is judged. The
network that can serve is the mean of all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from kprism_model.training.distributed import Workers
from lib.federation.aggregate import Aggregate
from lib.federation.exchange import assembled
from lib.federation.plan import FederationError
from lib.federation.site import Site
from lib.files import locked
from lib.trainers.finetune_run import FinetuneRun
from lib.trainers.judged_scores import SETTINGS
from lib.trainers.judging import Judge
from lib.trainers.progress import Progress
from lib.trainers.publication import Published, Training, publish
from lib.trainers.report_page import write_report
from lib.trainers.working_weights import fold_name


def adopt(site: Site, aggregates: Mapping[int, Aggregate], *, in_context: bool = True) -> Published:
    """Judge at a site, and publish a version there if it answers anything; writes a report as a training does.

    `aggregates` are of one plan, by the fold that no site has trained on. FederationError if there is none of a fold
    with patients of the site.
    """
    site.folder.mkdir(parents=True, exist_ok=True)
    folder = site.state / "training"
    progress = Progress(site.folder)
    with locked(folder):  # no training of the site's own at the same time
        progress.begin("reading labels")
        options = {"max_minutes": 0.0, "federation": [one.plan.encoded() for one in aggregates.values()]}
        run = FinetuneRun(site.versions, folder, site.labelled(), options, device=site.device, workers=Workers())
        dataset = run.build_dataset(site.cases.get, SETTINGS)
        judging = [fold for fold in dataset.folds if fold in aggregates]
        if not judging:
            raise FederationError(
                f"site {site.name} has no patients that the federation did not train on "
                f"(folds {', '.join(map(str, aggregates)) or 'none'}); nothing can be judged there"
            )
        training = Training(dataset)
        for fold, one in aggregates.items():
            name = fold_name(fold)
            shipped, names = run.served.shipped, one.plan.structures
            training.models[name], training.registries[name] = assembled(shipped, names, one.arrays)
            training.steps = (one.plan.steps or 0) * one.plan.rounds
            run.seen[name] = set()
        judge = Judge(
            dataset,
            run.served,
            folder / "scores.json",
            run.device,
            in_context=in_context,
            report=progress.update,
        )
        published = publish(training, judge, run, site.versions, progress, extra={"federated": _note(aggregates)})
        write_report(folder / "reports", published.report, run.folder / "log.jsonl")
        progress.end(published.message, published=published.number)
        run.remove()
    return published


def _note(aggregates: Mapping[int, Aggregate]) -> dict[str, Any]:
    """What a version's description says of its federation."""
    first = next(iter(aggregates.values()))
    return {
        "sites": first.sites,
        "rounds": first.plan.rounds,
        "each_round": first.plan.budget,
        "structures": list(first.plan.structures),
        "folds": sorted(aggregates),
        "received": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
