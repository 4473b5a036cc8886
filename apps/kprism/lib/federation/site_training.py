# SPDX-License-Identifier: Apache-2.0
"""A site's part of a federation: it trains a copy of the network on its own labels, round by round.

The trainer is that of a local training, with its schedule over all rounds. Before a round the weights are replaced by
those of the federation; the optimizer goes on with its moments, which stay at the site.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import safetensors.numpy

from kprism_model.files import write_bytes
from kprism_model.predictor import Predictor
from kprism_model.training.finetune import FinetunePlan, Finetuner
from lib.federation.exchange import Arrays, check, sent, take_in
from lib.federation.plan import FederationError, FederationPlan
from lib.federation.site import Site, check_site, known_here, trained_on
from lib.learning.training_schedule import MIN_LABELS
from lib.trainers.finetune_dataset import build_dataset
from lib.trainers.judged_scores import SETTINGS

SENT_NAME = "sent.safetensors"
"""File in the site's folder with exactly what left it in the last round."""

_ROUNDING = 1e-9


class SiteTraining:
    """The training of a site by a plan; FederationError if the site does not fit the plan."""

    def __init__(self, site: Site, plan: FederationPlan) -> None:
        check_site(site, plan)
        shipped = site.versions.load(device=site.device).shipped
        self._site, self._plan = site, plan
        dataset = build_dataset(
            site.agreed(plan.structures),
            site.cases.get,
            site.folder / "slices",
            size=shipped.model.config.native_size,
            settings=SETTINGS,
            known=plan.structures,
        )
        usable = trained_on(dataset.used, plan.fold)
        self.cases = len(usable)
        if self.cases < MIN_LABELS:
            reasons = "; ".join(dataset.skipped.values())
            raise FederationError(f"{self.cases} labelled cases can be trained on, expected {MIN_LABELS}: {reasons}")
        self.structures = known_here(plan.structures, usable)
        unseen = [] if plan.fold is None else dataset.patients_in(plan.fold)
        shutil.rmtree(site.folder / "run", ignore_errors=True)
        self.tuner = Finetuner(
            shipped,
            dataset.store,
            self._finetune_plan(),
            site.folder / "run",
            without=unseen,
            weights=dataset.weights,
            clicks=dataset.clicks,
            class_references=dataset.class_references(
                Predictor(shipped.model, shipped.registry, device=site.device), shipped.registry, unseen
            ),
            device=site.device,
        )
        self._steps: Iterator[object] = self.tuner.steps()

    def train(self, weights: Arrays, number: int) -> dict[str, object]:
        """Train the round `number` (from 0) from the weights of the federation; returns the tensors that are sent.

        The file `SENT_NAME` in the site's folder holds the same.
        """
        tuner, structures = self.tuner, self._plan.structures
        check(weights, tuner.model, structures, f"what the server sent for round {number + 1}")
        take_in(tuner.model, tuner.registry, structures, weights)
        end = (number + 1) / self._plan.rounds - _ROUNDING
        while tuner.share < end and next(self._steps, None) is not None:
            pass
        if number + 1 >= self._plan.rounds:
            self.finish()
        arrays = sent(tuner.model, tuner.registry, self.structures)
        write_bytes(self._site.folder / SENT_NAME, safetensors.numpy.save(arrays, {"round": str(number + 1)}))
        return dict(arrays)

    def finish(self) -> None:
        """Train what is left of the budget, and delete what only the training needed."""
        for _ in self._steps:
            pass
        for part in ("run", "slices"):
            shutil.rmtree(self._site.folder / part, ignore_errors=True)

    def _finetune_plan(self) -> FinetunePlan:
        plan = self._plan
        return FinetunePlan(
            minutes=plan.minutes * plan.rounds,
            steps=None if plan.steps is None else plan.steps * plan.rounds,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            seed=plan.seed,
            save_minutes=60.0,
        )
