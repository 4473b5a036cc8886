# SPDX-License-Identifier: Apache-2.0
"""Training, validation and test lists by patient: the official ones where there are some, else drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from kprism_model.preparation.findings import FoundCase, Split

SPLITS: tuple[Split, ...] = ("training", "validation", "test")
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2


def split_by_patient(cases: Sequence[FoundCase], seed: int) -> tuple[dict[str, Split], list[str]]:
    """The list of each case by its name, and sentences about what was done.

    Official test lists stay as they are. If a patient is on several official lists, the cases on the less held-out ones
    are left out (they have no entry). Without a test list 20 %, and without a validation list 10 %, of the patients of
    the training list are drawn, at least one of three or more.
    """
    lists: dict[str, Split] = {case.name: case.split or "training" for case in cases}
    notes: list[str] = []
    held: dict[str, int] = {}
    for case in cases:
        held[case.patient] = max(held.get(case.patient, 0), SPLITS.index(lists[case.name]))
    doubled = [case.name for case in cases if SPLITS.index(lists[case.name]) < held[case.patient]]
    for name in doubled:
        del lists[name]
    if doubled:
        names = ", ".join(doubled[:10]) + (" ..." if len(doubled) > 10 else "")
        notes.append(f"left out, because their patients are on a more held-out official list: {names}")
    for wanted, share in (("test", TEST_SHARE), ("validation", VALIDATION_SHARE)):
        if wanted in lists.values():
            continue
        patients = sorted({case.patient for case in cases if lists.get(case.name) == "training"})
        count = round(share * len(patients)) if len(patients) >= 10 else int(len(patients) >= 3)
        order = np.random.default_rng(seed).permutation(len(patients))
        drawn = {patients[number] for number in order[:count]}
        for case in cases:
            if lists.get(case.name) == "training" and case.patient in drawn:
                lists[case.name] = "test" if wanted == "test" else "validation"
        notes.append(f"{wanted}: {count} of {len(patients)} patients drawn (seed {seed})")
    return lists, notes


def split_as_published(cases: Sequence[FoundCase]) -> dict[str, Split]:
    """Four fifths for training, one for test, as the published code: sorted names, shuffled with seed 42.

    By image, not by patient: two images of one patient may be on both lists. It is only for comparing with the paper.
    """
    names = sorted(case.name for case in cases)
    random.Random(42).shuffle(names)  # the published order is that of this generator
    count = int(0.8 * len(names))
    return {name: "training" if place < count else "test" for place, name in enumerate(names)}
