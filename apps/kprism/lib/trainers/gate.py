# SPDX-License-Identifier: Apache-2.0
"""The gate: who answers each structure in each mode, judged by a paired test over patients.

A structure and mode is answered by the shipped weights (or, if they do not know the structure by name, by reference to
labelled cases), by the site version that answers it now, or by the new one. The figures of site versions come from
cross-validation: every patient is measured with weights that never saw that patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MIN_PATIENTS = 6
"""Patients from which on the test can tell: five differences of one sign are no evidence at 5 % in both directions."""

SIGNIFICANCE = 0.05
"""Largest chance that the paired test takes an equal answer for a better one."""

PROVISIONAL_SIGNIFICANCE = 0.2
"""The same for a structure that nothing else answers by name: there the site's network may answer provisionally."""

PatientDice = Mapping[str, float]
"""Mean Dice of each patient."""

UNDECIDED: Final = "not enough cases to tell"

Outcome = Literal["new", "kept", "not better", "worse", "not enough cases to tell"]


@dataclass(frozen=True)
class Evidence:
    """The Dice by patient of all that can answer a structure in a mode.

    `base` is that of the shipped weights, or of references if `base_name` says so. `serving` is that of the site
    version `serving_number`, which answers now; None if no site version does. `provisional`: too few patients have
    confirmed it yet.
    """

    mode: str
    structure: str
    base_name: Literal["shipped weights", "references"]
    base: PatientDice
    new: PatientDice
    serving: PatientDice | None = None
    serving_number: int | None = None
    provisional: bool = False


@dataclass(frozen=True)
class Decision:
    """Who answers a structure in a mode: `site` version, by number, or the base if `answered_by_site` is False.

    `number` is None for the new version. `dice` are means over the patients that all of them were measured on; the test
    against the base compared `patients` of them.
    """

    evidence: Evidence
    outcome: Outcome
    answered_by_site: bool
    number: int | None
    provisional: bool
    patients: int
    dice: Mapping[str, float]

    @property
    def kind(self) -> tuple[str, str]:
        """Mode and structure."""
        return self.evidence.mode, self.evidence.structure

    @property
    def uses_new(self) -> bool:
        """Whether the new version answers."""
        return self.answered_by_site and self.number is None

    @property
    def before(self) -> float:
        """Mean Dice of what answered before."""
        return self.dice["serving" if "serving" in self.dice else "base"]

    @property
    def best(self) -> float:
        """Mean Dice of what answers."""
        return self.dice["new" if self.uses_new else "serving" if self.answered_by_site else "base"]


def judge(evidence: Evidence) -> Decision:
    """Decide for one structure and mode.

    Between two site versions the higher mean decides, because the newer one has learned from more labels. Against the
    base a site version has to be significantly better. A structure that nothing else answers by name it can answer
    provisionally: with fewer than `MIN_PATIENTS` patients if it beats the references for each of them, with more if it
    is better at `PROVISIONAL_SIGNIFICANCE`. A provisional version is withdrawn as soon as it is not better on average,
    a confirmed one only if it is significantly worse than the base.
    """
    answers, serving = {"base": evidence.base, "new": evidence.new}, evidence.serving or {}
    if set(evidence.base) & set(evidence.new) & set(serving):  # else it has seen all of them
        answers["serving"] = serving
    common = sorted(set.intersection(*(set(dice) for dice in answers.values())))
    means = {name: float(np.mean([dice[p] for p in common])) if common else 0.0 for name, dice in answers.items()}
    name = "serving" if means.get("serving", -1.0) > means["new"] else "new"
    # On all patients that the better one was measured on: the other version may have been measured on a few of them.
    tested = sorted(set(answers[name]) & set(evidence.base))
    verdict, provisional = _against_base(evidence, np.array([answers[name][p] - evidence.base[p] for p in tested]))
    answered = verdict in ("new", "kept")
    outcome: Outcome = verdict
    if answered:
        outcome = "new" if name == "new" else "kept"
    number = evidence.serving_number if answered and name == "serving" else None
    return Decision(evidence, outcome, answered, number, provisional, len(tested), means)


def _against_base(evidence: Evidence, gain: NDArray[np.float64]) -> tuple[Outcome, bool]:
    """Whether the site answers ("new": by this comparison, "kept": as before) or the base; and if provisionally."""
    confirmed = evidence.serving is not None and not evidence.provisional
    nothing_else = evidence.mode == "semantic" and evidence.base_name == "references"
    if len(gain) < MIN_PATIENTS:
        if confirmed:
            return "kept", False
        if evidence.serving is not None and len(gain) and gain.mean() > 0:
            return "kept", True
        beats_all = len(gain) > 1 and bool((gain > 0).all())
        return ("new", True) if nothing_else and beats_all else (UNDECIDED, False)
    chance = chance_of_equal(gain)
    if chance < SIGNIFICANCE:
        return "new", False
    if (confirmed or gain.mean() <= 0) and chance_of_equal(-gain) < SIGNIFICANCE:
        return "worse", False
    if confirmed:
        return "kept", False
    if gain.mean() <= 0:
        return "not better", False
    if evidence.serving is not None:
        return "kept", True
    return ("new", True) if nothing_else and chance < PROVISIONAL_SIGNIFICANCE else (UNDECIDED, False)


def chance_of_equal(gain: NDArray[np.float64]) -> float:
    """The chance that paired differences with a mean this high come from equal answers: a permutation test of signs.

    It tests the mean, which is what a user notices: Wilcoxon's ranks count a lost structure hardly more than a small
    flaw.
    """
    if not gain.any():
        return 1.0
    test = stats.permutation_test(
        (gain,), np.mean, permutation_type="samples", alternative="greater", n_resamples=9999, rng=0
    )
    return float(test.pvalue)


def summary(decisions: Sequence[Decision]) -> str:
    """What was decided, in a sentence for the status: first what the new version answers, then what it does not."""
    parts = []
    for decision in decisions:
        if decision.uses_new:
            before = "serving" if "serving" in decision.dice else "base"
            who = decision.evidence.base_name if before == "base" else f"version {decision.evidence.serving_number}"
            word = ", provisionally" if decision.provisional else ""
            parts.append(f"{_named(decision)} {decision.dice['new']:.3f} ({who}: {decision.dice[before]:.3f}{word})")
    for outcome in ("kept", "not better", "worse"):
        names = [_named(decision) for decision in decisions if decision.outcome == outcome]
        if names:
            parts.append(f"{_WORDS[outcome]}: {', '.join(names)}")
    undecided = [decision for decision in decisions if decision.outcome == UNDECIDED]
    for patients in sorted({decision.patients for decision in undecided}):
        names = [_named(decision) for decision in undecided if decision.patients == patients]
        parts.append(f"{UNDECIDED} ({patients} patient{'' if patients == 1 else 's'}): {', '.join(names)}")
    return "; ".join(parts)


_WORDS = {
    "kept": "an earlier version is better",
    "not better": "not better",
    "worse": "worse",
}


def _named(decision: Decision) -> str:
    mode, structure = decision.kind
    return f"{structure} ({mode})"
