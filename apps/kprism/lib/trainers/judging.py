# SPDX-License-Identifier: Apache-2.0
"""Measuring who answers best: the shipped weights, the site version that serves, or the new one, for each structure.

Site versions are measured by cross-validation. The new one's figures are those of its folds, each on the patients that
it never saw; those of a version that serves were kept when it was new, and it is measured on cases that came later.

The new weights are a mixture of trained and shipped ones (WiSE-FT, arXiv 2109.01903): with few labels the mixture is
better than either. Cross-validation chooses the share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kprism_model.checkpoint import Checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.validation import Score, mean_dice, validate
from kprism_model.training.weights import average_weights
from lib.learning.versions import Served
from lib.routes import IN_CONTEXT, INTERACTIVE, MODES, SEMANTIC
from lib.trainers.finetune_dataset import FinetuneDataset
from lib.trainers.gate import Decision, Evidence, judge
from lib.trainers.judged_scores import SETTINGS, JudgedScores, Kind

TUNED_SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of the trained weights that are tried in this order, until the Dice falls; the rest are shipped weights."""

FEW_PATIENTS = 4
"""With fewer patients the best share is chosen by chance: at most half of the weights are trained ones then."""

Trained = tuple[KPrism, ClassRegistry]
"""A network and its classes."""


def seen_patients(part: Checkpoint) -> Sequence[str] | None:
    """The patients here that a site version was trained on; None if it is not known. An imported one has seen none."""
    note = part.metadata["note"]
    return [] if "origin" in note else note.get("patients")


@dataclass(frozen=True)
class Judge:
    """Judges the new weights on a data set. `served` is what answers now; scores are kept in the file `path`.

    `in_context`: whether that mode is judged too. `report` is called with what is being done.
    """

    dataset: FinetuneDataset
    served: Served
    path: Path
    device: str
    in_context: bool
    report: Callable[[str], object]

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that are judged."""
        return MODES if self.in_context else (SEMANTIC, INTERACTIVE)

    def scores_of_folds(self, folds: Mapping[int, Trained]) -> tuple[float, list[Score]]:
        """The share of trained weights that is best by name and by clicks, and the scores of the new weights with it.

        Each fold is measured on the patients that it never saw.
        """
        most = 0.5 if len(self.dataset.patients) < FEW_PATIENTS else 1.0
        best, chosen = -1.0, most
        found: list[Score] = []
        for share in (share for share in TUNED_SHARES if folds and share <= most):
            scores = self._scores_of_folds(folds, share, (SEMANTIC, INTERACTIVE))
            dice = float(np.mean(list(mean_dice(scores).values()))) if scores else 0.0
            if dice < best:
                break
            best, chosen, found = dice, share, scores
        in_context = self._scores_of_folds(folds, chosen, (IN_CONTEXT,)) if self.in_context else []
        return chosen, [*found, *in_context]

    def _scores_of_folds(self, folds: Mapping[int, Trained], share: float, modes: Sequence[str]) -> list[Score]:
        scores: list[Score] = []
        for number, (fold, (model, registry)) in enumerate(folds.items(), 1):
            self.report(f"measuring the new weights, part {number} of {len(folds)}, {share:.0%} trained")
            cases = self.dataset.judged_in(fold)
            references = self.dataset.without(self.dataset.patients_in(fold))
            shipped = (self.served.shipped.model, self.served.shipped.registry)
            predictor = Predictor(
                *average_weights([(model, registry), shipped], [share, 1 - share]), device=self.device
            )
            scores += validate(predictor, cases, references, modes=modes, settings=SETTINGS)
        return scores

    def decide(self, new: Sequence[Score], version: str) -> list[Decision]:
        """Who answers each structure in each mode; `version` names the new weights in the file of scores."""
        known = JudgedScores(self.path)
        known.forget(version)
        known.add(version, new, self.dataset.keys, self.modes, self._references)
        shipped = self.served.shipped
        self._measure(known, shipped, self._base_modes, seen=())
        for number in self._serving_numbers():
            part = self.served.parts[number]
            self._measure(known, part, self.modes, seen=seen_patients(part))
        parts = (part.weights_version for part in self.served.parts.values())
        known.save([version, shipped.weights_version, *parts])
        return [judge(evidence) for evidence in self._evidence(known, version)]

    @property
    def _references(self) -> int:
        """The number of references that a case can have, up to that of the settings."""
        return min(SETTINGS.references, len(self.dataset.judged) - 1)

    @property
    def _base_modes(self) -> tuple[str, ...]:
        """The modes in which the shipped weights are measured: by reference too if they do not know a structure."""
        known = self.served.shipped.registry
        return self.modes if all(name in known for name in self.dataset.structures) else MODES

    def rename(self, version: str, name: str) -> None:
        """Give weights another name in the file of scores: new ones, when they become a version."""
        known = JudgedScores(self.path)
        known.rename(version, name)

    def _serving_numbers(self) -> list[int]:
        routed = (self.served.routes.version_for(*kind) for kind in self._kinds())
        return sorted({number for number in routed if number is not None})

    def _kinds(self) -> list[Kind]:
        return [(mode, structure) for structure in self.dataset.structures for mode in self.modes]

    def _measure(
        self, known: JudgedScores, weights: Checkpoint, modes: Sequence[str], *, seen: Sequence[str] | None
    ) -> None:
        """Measure cases that have no scores yet, but none of a patient that the weights have `seen` (None: unknown)."""
        keys, references = self.dataset.keys, self._references
        missing = set(known.missing(weights.weights_version, keys.values(), modes, references))
        cases = [case for case in self.dataset.judged if keys[case.name] in missing]
        cases = [case for case in cases if seen is not None and case.patient not in seen]
        predictor = Predictor(weights.model, weights.registry, device=self.device)
        for number, case in enumerate(cases, 1):
            self.report(f"measuring what serves, case {number} of {len(cases)}")
            scores = validate(predictor, [case], self.dataset.judged, modes=modes, settings=SETTINGS)
            known.add(weights.weights_version, scores, {case.name: keys[case.name]}, modes, references)

    def _evidence(self, known: JudgedScores, new_version: str) -> Iterator[Evidence]:
        """What is known about each structure and mode that the new weights were measured in."""
        shipped, routes = self.served.shipped, self.served.routes
        patients = {self.dataset.keys[case.name]: case.patient for case in self.dataset.judged}
        for mode, structure in self._kinds():
            new = known.by_patient(new_version, (mode, structure), patients)
            if not new:
                continue
            by_reference = mode == SEMANTIC and structure not in shipped.registry
            base = known.by_patient(
                shipped.weights_version, (IN_CONTEXT if by_reference else mode, structure), patients
            )
            number = routes.version_for(mode, structure)
            yield Evidence(
                mode,
                structure,
                "references" if by_reference else "shipped weights",
                {**dict.fromkeys(new, 0.0), **base} if by_reference else base,
                new,
                None if number is None else known.by_patient(self._version(number), (mode, structure), patients),
                number,
                structure in self.served.provisional.get(mode, ()),
            )

    def _version(self, number: int) -> str:
        return self.served.parts[number].weights_version
