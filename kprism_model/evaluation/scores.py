# SPDX-License-Identifier: Apache-2.0
"""Scores on slices, of masks and of click sessions, and their accumulation into figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.targets import MINIMUM_PIXELS
from kprism_model.evaluation.contact_sheet import WorstCase
from kprism_model.evaluation.monai_metrics import dice, hd95
from kprism_model.evaluation.report import Curve, Figure
from kprism_model.interaction.click_sessions import CLICKS_SHOWN, NOC_THRESHOLDS, ClickSession
from kprism_model.predictor import Prediction
from kprism_model.queries import ImageEmbedding

WORST_KEPT = 3
"""Number of worst slices that are kept for each data set and mode, each from another case."""

CLICKS_ONLY = "interactive"
"""The mode that chained modes are compared with."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of a case: `image` in [0, 1], `labels` and, if there is one, `scribble` with label indices."""

    case: str
    patient: str
    number: int
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float] | None
    scribble: NDArray[np.uint8] | None
    embedding: ImageEmbedding


@dataclass(frozen=True, eq=False)
class Target:
    """One class, or one instance of it, in one slice, with its true mask; the mask may be empty."""

    image_slice: Slice
    index: int
    class_name: str
    mask: NDArray[np.bool_]

    @property
    def present(self) -> bool:
        """Whether the structure is in the slice."""
        return bool(self.mask.any())


@dataclass
class ScoreAccumulator:
    """Collects the scores of one data set and computes its figures; `draw` is the number of a set of references.

    The worst slices are kept only for `worst_modes`. `instance_classes` are clicked one instance at a time.
    """

    dataset: str
    worst_modes: Sequence[str] = ()
    instance_classes: Collection[str] = ()
    worst: list[WorstCase] = field(default_factory=list)
    _scores: dict[tuple[str, str, str, str], dict[int, list[float]]] = field(default_factory=dict)
    _curves: dict[tuple[str, str], list[tuple[list[float], list[float]]]] = field(default_factory=dict)

    def add(self, class_name: str, mode: str, name: str, score: float, *, draw: int = 0, unit: str = "") -> None:
        """Add one score; nan stands for an undefined one."""
        self._scores.setdefault((class_name, mode, name, unit), {}).setdefault(draw, []).append(score)

    def add_curve(self, class_name: str, mode: str, dice_after: list[float], reached: list[float]) -> None:
        """Add the Dice of one object after 0, 1, ... clicks, and whether it is at the last NoC threshold by then."""
        self._curves.setdefault((class_name, mode), []).append((dice_after, reached))

    def add_worst(self, target: Target, mode: str, score: float, prediction: NDArray[np.bool_]) -> None:
        """Keep the slice if it is one of the worst of its mode."""
        if mode not in self.worst_modes:
            return
        image_slice = target.image_slice
        same = [case for case in self.worst if case.mode == mode]
        rival = next((case for case in same if case.case == image_slice.case), None)
        if rival is None and len(same) == WORST_KEPT:
            rival = max(same, key=lambda case: case.score)
        if rival is not None:
            if score >= rival.score:
                return
            self.worst.remove(rival)
        image = image_slice.image.copy()  # a view would keep the whole volume in memory
        self.worst.append(
            WorstCase(
                self.dataset,
                target.class_name,
                mode,
                image_slice.case,
                image_slice.number,
                score,
                image,
                target.mask,
                prediction,
            )
        )

    def figures(self) -> list[Figure]:
        """Means over slices or cases; with several draws, mean and standard deviation of the draws' means."""
        figures = []
        for (class_name, mode, name, unit), draws in self._scores.items():
            defined = [[score for score in scores if not np.isnan(score)] for scores in draws.values()]
            means = [float(np.mean(scores)) for scores in defined if scores]
            value = float(np.mean(means)) if means else None
            std = float(np.std(means, ddof=1)) if len(means) > 1 else None
            figures.append(Figure(self.dataset, class_name, mode, name, value, len(defined[0]), std, unit))
        return figures + self._clicks_saved()

    def curves(self) -> list[Curve]:
        """Means over the objects of each class and mode."""
        return [
            Curve(
                self.dataset,
                class_name,
                mode,
                *(np.mean(column, axis=0).tolist() for column in zip(*rows, strict=True)),
            )
            for (class_name, mode), rows in self._curves.items()
        ]

    def worst_by_mode(self) -> list[WorstCase]:
        """The worst slices in the order of `worst_modes`, the lowest score of each first."""
        return sorted(self.worst, key=lambda case: (self.worst_modes.index(case.mode), case.score))

    def _clicks_saved(self) -> list[Figure]:
        """Share of the clicks to the last NoC threshold that an initial mask saves, on the same objects of each class.

        Initial masks hold all instances of a class. If clicks alone go to one instance, the two cannot be compared.
        """
        name = f"noc{100 * NOC_THRESHOLDS[-1]:.0f}"
        figures = []
        for (class_name, mode, figure, _), draws in self._scores.items():
            without = self._scores.get((class_name, CLICKS_ONLY, name, ""))
            chained = mode.endswith("+interactive") and not mode.startswith("scribble")  # a scribble is itself work
            comparable = chained and class_name not in self.instance_classes
            if figure == name and comparable and without and len(without[0]) == len(draws[0]):
                share = 1 - float(np.mean(draws[0])) / float(np.mean(without[0]))
                figures.append(Figure(self.dataset, class_name, mode, "clicks_saved", share, len(draws[0])))
        return figures


def targets_of(slices: Sequence[Slice], classes: Mapping[int, str]) -> list[Target]:
    """Every class in every slice, whether it is present or not."""
    return [
        Target(image_slice, index, name, image_slice.labels == index)
        for index, name in classes.items()
        for image_slice in slices
    ]


def measure_masks(
    accumulator: ScoreAccumulator,
    mode: str,
    targets: Sequence[Target],
    predictions: Sequence[Prediction],
    *,
    draw: int = 0,
    distances: bool = False,
) -> None:
    """Score masks without clicks, per slice if the structure is present, and per case over all its slices.

    `targets` must hold all slices of each of its cases. With `distances`, HD95 is computed too.
    """
    for target, prediction in zip(targets, predictions, strict=True):
        if target.present:
            score = dice(prediction.mask, target.mask)
            accumulator.add(target.class_name, mode, "dice_present", score, draw=draw)
            if draw == 0:
                accumulator.add_worst(target, mode, score, prediction.mask)
    for pairs in _grouped(targets, predictions, lambda target: (target.image_slice.case, target.index)):
        first = pairs[0][0]
        predicted = np.stack([prediction.mask_if_present for _, prediction in pairs])
        true = np.stack([target.mask for target, _ in pairs])
        accumulator.add(first.class_name, mode, "dice_case", dice(predicted, true), draw=draw)
        if distances:
            spacing = first.image_slice.spacing
            distance = hd95(predicted, true, spacing) if spacing else hd95(predicted[0], true[0], (1.0, 1.0))
            accumulator.add(first.class_name, mode, "hd95", distance, draw=draw, unit="mm" if spacing else "px")


def measure_presence(
    accumulator: ScoreAccumulator, mode: str, targets: Sequence[Target], predictions: Sequence[Prediction]
) -> None:
    """Score detections and false positives.

    A structure of at least `MINIMUM_PIXELS` pixels is detected if `Prediction.mask_if_present` overlaps it. If the
    structure is absent, any pixel is a false positive. Structures with fewer pixels count as neither.
    """
    for target, prediction in zip(targets, predictions, strict=True):
        if not target.present:
            accumulator.add(target.class_name, mode, "false_positive_rate", float(prediction.mask_if_present.any()))
        elif np.count_nonzero(target.mask) >= MINIMUM_PIXELS:
            accumulator.add(
                target.class_name, mode, "detection_rate", float((prediction.mask_if_present & target.mask).any())
            )


def measure_click_sessions(
    accumulator: ScoreAccumulator, mode: str, targets: Sequence[Target], sessions: Sequence[ClickSession], limit: int
) -> None:
    """Score click sessions: Dice after the first clicks, number of clicks to a Dice (NoC), share of failures.

    A score belongs to a class in a slice: the mean over its instances if several were clicked.
    """
    for pairs in _grouped(targets, sessions, lambda target: (target.image_slice, target.index)):
        name = pairs[0][0].class_name
        scores = [_scores(session, limit) for _, session in pairs]
        for figure in scores[0]:
            accumulator.add(name, mode, figure, float(np.mean([score[figure] for score in scores])))
        curves = [_curve(session, limit) for _, session in pairs]
        accumulator.add_curve(name, mode, *(np.mean(column, axis=0).tolist() for column in zip(*curves, strict=True)))
        for target, session in pairs:
            accumulator.add_worst(target, mode, session.after(CLICKS_SHOWN[-1]), session.shown)


def _scores(session: ClickSession, limit: int) -> dict[str, float]:
    """The figures of one object."""
    scores = {} if session.initial_dice is None else {"dice_first": session.initial_dice}
    scores |= {f"dice_{clicks}": session.after(clicks) for clicks in CLICKS_SHOWN}
    for threshold in NOC_THRESHOLDS:
        figure = f"noc{100 * threshold:.0f}"
        scores[figure] = session.clicks_to(threshold, limit)
        scores[f"{figure}_failed"] = float(not session.reached(threshold))
    return scores


def _curve(session: ClickSession, limit: int) -> tuple[list[float], list[float]]:
    """Dice after 0, 1, ... clicks, and whether the session has reached the last NoC threshold by then."""
    needed = session.clicks_to(NOC_THRESHOLDS[-1], limit) if session.reached(NOC_THRESHOLDS[-1]) else limit + 1
    reached = [float(clicks >= needed) for clicks in range(limit + 1)]
    return [session.after(clicks) for clicks in range(CLICKS_SHOWN[-1] + 1)], reached


def _grouped(
    targets: Sequence[Target], results: Sequence[T], key: Callable[[Target], Hashable]
) -> list[list[tuple[Target, T]]]:
    """Pairs of target and result, grouped by the key of the target, in their order."""
    groups: dict[Hashable, list[tuple[Target, T]]] = {}
    for target, result in zip(targets, results, strict=True):
        groups.setdefault(key(target), []).append((target, result))
    return list(groups.values())
