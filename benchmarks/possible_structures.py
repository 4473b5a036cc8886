# SPDX-License-Identifier: Apache-2.0
"""The effect of kinds of images on labelled lists: false positives on absent structures, and structures found.

    python -m benchmarks.possible_structures --data ../shared/data/hippocampus_mr ../shared/data/isic_dermoscopy

The classes of the weights are predicted in slices of the validation list (of the test list if there is none) by the
server's code: once all of them, once only those that can be in the image. Anatomy (`foreign_classes`, from all sets
given) says which structures cannot be there. A structure of the set itself is absent if its label has no pixel.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.places import SHIPPED_WEIGHTS
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.datasets import Dataset, load_case, read_dataset
from kprism_model.image_kind import ImageKind
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, merge_classes
from kprism_model.preprocess import evenly_spaced
from kprism_model.volumes.predictor import IMAGE_KIND_SLICES

MINIMUM_PIXELS = 10  # a present structure with fewer pixels is not counted


@dataclass(frozen=True, eq=False)
class Sample:
    """A slice (row, column) or (row, column, 3) with its label (row, column) and the kind of its case."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    kind: ImageKind


@dataclass
class Counts:
    """Counts over the slices of one set; pairs are for all classes and for the possible ones."""

    kinds: Counter[str] = field(default_factory=Counter)
    foreign: list[int] = field(default_factory=lambda: [0, 0])
    absent: list[int] = field(default_factory=lambda: [0, 0])
    found: list[int] = field(default_factory=lambda: [0, 0])
    foreign_total: int = 0
    absent_total: int = 0
    present: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.possible_structures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED_WEIGHTS)
    parser.add_argument("--max-slices", type=int, default=24, help="slices of each list (%(default)s)")
    given = parser.parse_args(arguments)
    checkpoint = load_checkpoint(given.checkpoint)
    if not checkpoint.model.config.kinds:
        raise SystemExit(f"{checkpoint.path} knows no kinds of images; see python -m kprism_model fit-kinds")
    predictor = Predictor(checkpoint.model, checkpoint.registry)
    sets = [read_dataset(folder) for folder in given.data]
    print(
        "| set | recognised as | false positives, cannot be there | false positives, absent | found |\n"
        "|---|---|---|---|---|"
    )
    for dataset in sets:
        counts, foreign = Counts(), {name.casefold() for name in foreign_classes(dataset, sets)}
        for sample in tqdm(drawn(dataset, given.max_slices, predictor), desc=dataset.name, leave=False, disable=None):
            count(counts, predictor, dataset, foreign, sample)
        print(row(dataset.name, counts), flush=True)
    return 0


def drawn(dataset: Dataset, maximum: int, predictor: Predictor) -> Iterator[Sample]:
    """About `maximum` slices at most, of as many cases as possible; a case has one kind for all its slices."""
    cases = dataset.cases("validation") or dataset.cases("test")
    chosen = evenly_spaced(range(len(cases)), maximum)
    for number in chosen:
        case = load_case(dataset, cases[number])
        assert case.labels is not None
        kind_slices = [
            np.ascontiguousarray(case.images[place])
            for place in evenly_spaced(range(len(case.images)), IMAGE_KIND_SLICES)
        ]
        kind = predictor.image_kind(predictor.embed(kind_slices), [float(image.std()) for image in kind_slices])
        assert kind is not None
        for place in evenly_spaced(range(len(case.images)), max(1, maximum // len(chosen))):
            yield Sample(np.ascontiguousarray(case.images[place]), case.labels[place], kind)


def count(counts: Counts, predictor: Predictor, dataset: Dataset, foreign: set[str], sample: Sample) -> None:
    """Add the structures of a slice, and those that are predicted in it."""
    names = predictor.registry.names
    [everything] = predictor.predict_classes(
        names, embeddings=predictor.embed([sample.image]), minimum_presence=THRESHOLD
    )
    possible = sample.kind.possible(names)
    with_prior = {
        name: replace(everything[name], presence=everything[name].presence * prior) for name, prior in possible.items()
    }
    counts.kinds[sample.kind.name] += 1
    own = {name.casefold(): int((sample.label == value).sum()) for value, name in dataset.classes.items()}
    known = {name.casefold() for name in names}
    counts.foreign_total += len(foreign & known)
    counts.absent_total += sum(pixels == 0 for name, pixels in own.items() if name in known)
    counts.present += sum(pixels >= MINIMUM_PIXELS for name, pixels in own.items() if name in known)
    for column, predictions in enumerate((everything, with_prior)):
        predicted = predicted_names(predictions)
        counts.foreign[column] += len(predicted & foreign)
        counts.absent[column] += sum(name in predicted for name, pixels in own.items() if pixels == 0)
        counts.found[column] += sum(name in predicted for name, pixels in own.items() if pixels >= MINIMUM_PIXELS)


def predicted_names(predictions: Mapping[str, Prediction]) -> set[str]:
    """Names, in lower case, of the structures that have a pixel in the index map that a user gets."""
    if not predictions:
        return set()
    names = list(predictions)
    return {names[value - 1].casefold() for value in np.unique(merge_classes(predictions, names)) if value}


def row(name: str, counts: Counts) -> str:
    """A row of the table: all classes, an arrow, only the possible ones."""

    def share(pair: list[int], of: int) -> str:
        return " -> ".join(f"{100 * number / of:.1f} %" for number in pair) + f" of {of}" if of else "-"

    kinds = ", ".join(f"{kind} {number}" for kind, number in counts.kinds.most_common(3))
    cells = [share(counts.foreign, counts.foreign_total), share(counts.absent, counts.absent_total)]
    return f"| {name} | {kinds} | {' | '.join(cells)} | {share(counts.found, counts.present)} |"


if __name__ == "__main__":
    sys.exit(main())
