# SPDX-License-Identifier: Apache-2.0
"""The references of a set: the same ones for all of its images, drawn by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kprism_model.data.datasets import Case, Dataset
from kprism_model.data.structures import StructureMap
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.published.evaluation.pairs import load_structures
from kprism_model.published.evaluation.protocol import PublishedProtocol

Picture = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""A slice and the mask of a structure in it, (row, column)."""


@dataclass(frozen=True)
class FixedReferences:
    """Draw -> label index of a structure -> its encoded references; the patients that must not be scored; notes."""

    draws: Sequence[Mapping[int, References]]
    patients: frozenset[str]
    notes: Sequence[str]


def draw_references(
    predictor: Predictor, dataset: Dataset, structures: StructureMap, protocol: PublishedProtocol
) -> FixedReferences:
    """The references of each draw, from other patients of the training list, or from the list that is measured.

    Cases are drawn in one order for all structures, as in the public code, where one case serves all structures of a
    set. A structure takes the first cases that show it. From a volume it takes the middle one of the slices that show
    it. Structures with too few cases have no references, and a note says so.
    """
    candidates, notes = _candidates(dataset, protocol)
    draws: list[dict[int, References]] = []
    patients: set[str] = set()
    for draw in range(protocol.draws):
        order = np.random.default_rng([protocol.seed, draw]).permutation(len(candidates))
        found, used = _choose(dataset, structures, [candidates[number] for number in order], protocol.references)
        complete = {index: pictures for index, pictures in found.items() if len(pictures) == protocol.references}
        draws.append(
            {
                index: predictor.embed_references(*map(list, zip(*pictures, strict=True)))
                for index, pictures in complete.items()
            }
        )
        patients |= {case.patient for case in used}
        if draw == 0:
            names = ", ".join(case.name for case in used)
            notes += [f"{dataset.name}: references from {names}"] if names else []
            notes += [
                f"{dataset.name}: no in-context figures of {name}: only {len(found[index])} of "
                f"{protocol.references} references, as no other case of the {_list(dataset, protocol)} list shows it"
                for index, name in structures.classes.items()
                if index not in complete
            ]
    return FixedReferences(draws, frozenset(patients), notes)


def _list(dataset: Dataset, protocol: PublishedProtocol) -> str:
    """The split that references are drawn from."""
    return "training" if protocol.reference_list == "training" and _training(dataset, protocol) else protocol.split


def _training(dataset: Dataset, protocol: PublishedProtocol) -> list[Case]:
    """Labelled cases of the training list whose patients are not among those that are measured."""
    scored = {case.patient for case in dataset.cases(protocol.split)}
    return [case for case in dataset.cases("training") if case.label is not None and case.patient not in scored]


def _candidates(dataset: Dataset, protocol: PublishedProtocol) -> tuple[list[Case], list[str]]:
    """The cases that references can be, and a note if they are taken out of the list that is measured."""
    if _list(dataset, protocol) == "training":
        return _training(dataset, protocol), []
    cases = [case for case in dataset.cases(protocol.split) if case.label is not None]
    needed = protocol.references * protocol.draws
    if len({case.patient for case in cases}) <= needed:
        return [], [
            f"{dataset.name}: {len(cases)} labelled {protocol.split} cases are too few to take out {needed} as "
            "references and score the others"
        ]
    return cases, [f"{dataset.name}: the references are {protocol.split} cases and are not scored"]


def _choose(
    dataset: Dataset, structures: StructureMap, cases: Sequence[Case], count: int
) -> tuple[dict[int, list[Picture]], list[Case]]:
    """`count` pictures of each structure from the first cases that show it, and the cases that they are from."""
    found: dict[int, list[Picture]] = {index: [] for index in structures.classes}
    used = []
    for case in cases:
        wanted = [index for index, pictures in found.items() if len(pictures) < count]
        if not wanted:
            break
        images, labels = load_structures(dataset, structures, case)
        for index in wanted:
            shown = np.flatnonzero((labels == index).any(axis=(1, 2)))
            if len(shown):
                middle = int(shown[len(shown) // 2])
                found[index].append((images[middle].copy(), labels[middle] == index))
                if case not in used:
                    used.append(case)
    return found, used
