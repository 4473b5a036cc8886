# SPDX-License-Identifier: Apache-2.0
"""Whether a strategy of choosing the next case differs from chance: labels needed for a Dice, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_rel

CHANCE = "random"
"""The strategy that the others are compared with."""

SIGNIFICANCE = 0.05
"""Of all comparisons together: each p value is multiplied by their number (Bonferroni)."""

Curve = dict[str, float]
"""Labels (as text, for JSON) -> mean Dice of the held-out cases' first masks."""

Curves = Mapping[str, Mapping[str, Curve]]
"""Strategy -> seed (as text) -> curve."""


@dataclass(frozen=True)
class Sample:
    """Mean and standard error (NaN for one value) of a figure over seeds."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """The sample of one value or more."""
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), error)

    def text(self, digits: int) -> str:
        """Like "0.612 ± 0.010"."""
        return f"{self.mean:.{digits}f}" + ("" if math.isnan(self.error) else f" ± {self.error:.{digits}f}")


@dataclass(frozen=True)
class Comparison:
    """Labels that a strategy needs more than chance with the same seed, and the corrected p value; NaN if unknown."""

    difference: Sample
    p: float

    @property
    def verdict(self) -> str:
        """In words."""
        if math.isnan(self.p):
            return "cannot tell: fewer than two seeds"
        if self.p >= SIGNIFICANCE:
            return "not told apart from random"
        return f"{'fewer' if self.difference.mean < 0 else 'more'} labels than random"


def wanted_dice(curves: Curves) -> float:
    """The Dice that all have to reach: the mean of the last measurements of chance, or of all if chance was not run."""
    runs = curves[CHANCE] if CHANCE in curves else {name: one for runs in curves.values() for name, one in runs.items()}
    return float(np.mean([list(curve.values())[-1] for curve in runs.values()]))


def labels_to(curve: Curve, wanted: float) -> float | None:
    """Labels until a curve first reaches a Dice, linear between measurements; None if it never does."""
    before: tuple[int, float] | None = None
    for text, value in curve.items():
        count = int(text)
        if value >= wanted:
            if before is None:
                return float(count)
            return before[0] + (count - before[0]) * (wanted - before[1]) / (value - before[1])
        before = count, value
    return None


def labels_or_last(curve: Curve, wanted: float) -> float:
    """As `labels_to`; the last count for a curve that does not get there, which is too few."""
    found = labels_to(curve, wanted)
    return float(list(curve)[-1]) if found is None else found


def compare(strategy: Mapping[str, Curve], chance: Mapping[str, Curve], wanted: float, comparisons: int) -> Comparison:
    """A paired t test over the seeds that both have; ValueError if they have none in common.

    Wilcoxon's test cannot reach 5 % with five pairs. Equal differences other than 0 have p = 0.
    """
    seeds = [seed for seed in strategy if seed in chance]
    if not seeds:
        raise ValueError(f"no seed in common: {', '.join(strategy)} and {', '.join(chance)}")
    ours, theirs = ([labels_or_last(runs[seed], wanted) for seed in seeds] for runs in (strategy, chance))
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    if len(seeds) < 2:
        p = math.nan
    elif len(set(differences)) == 1:  # no variance: the test would divide by zero
        p = 1.0 if differences[0] == 0 else 0.0
    else:
        p = min(1.0, comparisons * float(ttest_rel(ours, theirs).pvalue))
    return Comparison(Sample.of(differences), p)


def table_of(curves: Curves) -> str:
    """A Markdown table: mean ± standard error over seeds of Dice at each count and of labels needed; the verdict."""
    counts = list(next(iter(next(iter(curves.values())).values())))
    wanted = wanted_dice(curves)
    lines = [
        f"| strategy | seeds | {' | '.join(f'{count} labels' for count in counts)} | labels to {wanted:.3f} "
        "| more than random | p | verdict |",
        "|---|" + "---|" * (len(counts) + 5),
    ]
    comparisons = sum(name != CHANCE for name in curves)
    for name, runs in curves.items():
        dice = [Sample.of([curve[count] for curve in runs.values()]).text(3) for count in counts]
        unreached = any(labels_to(curve, wanted) is None for curve in runs.values())
        labels = Sample.of([labels_or_last(curve, wanted) for curve in runs.values()]).text(1)
        cells = [name, str(len(runs)), *dice, f"at least {labels}" if unreached else labels]
        if name == CHANCE or CHANCE not in curves:
            cells += ["", "", ""]
        else:
            found = compare(runs, curves[CHANCE], wanted, comparisons)
            cells += [found.difference.text(1), "" if math.isnan(found.p) else f"{found.p:.3f}", found.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
