# SPDX-License-Identifier: Apache-2.0
"""Cases of a data set as a site has them: annotated, one after the other."""

from __future__ import annotations

from pathlib import Path

from kprism_model.data.datasets import load_case, read_dataset
from kprism_model.data.partial import AnnotatedCase


def annotated(folder: Path, split: str, count: int) -> list[AnnotatedCase]:
    """The first cases of a list, each annotated for the structures that it shows."""
    dataset = read_dataset(folder)
    found = []
    for case in dataset.cases(split)[:count]:
        loaded = load_case(dataset, case)
        assert loaded.labels is not None  # these lists are labelled throughout
        shown = {name: value for value, name in dataset.classes.items() if (loaded.labels == value).any()}
        if shown:
            found.append(AnnotatedCase(case.name, case.patient, loaded.images, loaded.labels, shown))
    return found
