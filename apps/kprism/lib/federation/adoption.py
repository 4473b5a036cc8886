# SPDX-License-Identifier: Apache-2.0
"""What comes back to a site: its gate judges the networks of a federation as it judges those of a local training.

A network that has learned from all labels of a site cannot be judged there. So there is a federation for each fold of
the site's cross-validation: in it no site trains on its patients of that fold, and on these its network is judged. The
network that can serve is the mean of all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from kprism_model.training.distributed import Workers
from lib.federation.exchange import Arrays, assembled
from lib.federation.plan import FederationError, FederationPlan
from lib.federation.site import Site
from lib.files import locked
from lib.trainers.finetune_run import FinetuneRun
from lib.trainers.judged_scores import SETTINGS
from lib.trainers.judging import Judge
from lib.trainers.progress import Progress
from lib.trainers.publication import Published, Training, publish
from lib.trainers.report_page import write_report
from lib.trainers.working_weights import fold_name


@dataclass(frozen=True)
class Federated:
    """The aggregates of a plan by the fold that no site has trained on, and the number of sites."""

    plan: FederationPlan
    sites: int
    aggregates: Mapping[int, Arrays]


def adopt(site: Site, federated: Federated, *, in_context: bool = True) -> Published:
    """Judge at a site, and publish a version there if it answers anything; writes a report as a training does.

    FederationError if no patient of the site is in a fold that was held back.
    """
    plan, folder = federated.plan, site.state / "training"
    site.folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(site.folder)
    with locked(folder):  # no training of the site's own at the same time
        progress.begin("reading labels")
        options = {"max_minutes": plan.minutes * plan.rounds, "federation": plan.encoded()}
        run = FinetuneRun(site.versions, folder, site.labelled(), options, device=site.device, workers=Workers())
        dataset = run.build_dataset(site.cases.get, SETTINGS)
        judging = [fold for fold in dataset.folds if fold in federated.aggregates]
        if not judging:
            raise FederationError(
                f"site {site.name} has no patients that the federation did not train on "
                f"(folds {', '.join(map(str, federated.aggregates)) or 'none'}); nothing can be judged there"
            )
        training = Training(dataset, minutes=0.0, steps=(plan.steps or 0) * plan.rounds)
        for fold, arrays in federated.aggregates.items():
            name = fold_name(fold)
            training.models[name], training.registries[name] = assembled(run.served.shipped, plan.structures, arrays)
            run.seen[name] = set()
        judge = Judge(
            dataset,
            run.served,
            folder / "scores.json",
            run.device,
            in_context=in_context,
            report=progress.update,
        )
        note = {
            "sites": federated.sites,
            "rounds": plan.rounds,
            "each_round": plan.budget,
            "structures": list(plan.structures),
            "folds": sorted(federated.aggregates),
            "received": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        published = publish(training, judge, run, site.versions, progress, extra={"federated": note})
        write_report(folder / "reports", published.report, run.folder / "log.jsonl")
        progress.end(published.message, published=published.number)
        run.remove()
    return published
