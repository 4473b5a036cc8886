# SPDX-License-Identifier: Apache-2.0
"""What knowing the kind of an image changes on labelled lists: structures claimed that cannot be there, and found ones.

    python -m benchmarks.possible_structures --data ../shared/data/hippocampus_mr ../shared/data/isic_dermoscopy

All that the weights know is asked for in slices of the validation list, or of the test list where there is none, by the
code that the server answers with; once everything, once only what can be in the image. Anatomy (`foreign_classes`, by
all sets given) tells what cannot be there; a structure of the set itself is absent where its label has no pixel.
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

from kprism_model.checkpoint import load_checkpoint
from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.datasets import Dataset, load_case, read_dataset
from kprism_model.image_kind import ImageKind
from kprism_model.predictor import THRESHOLD, Prediction, Predictor, merge_classes
from kprism_model.preprocess import evenly_spaced
from kprism_model.volumes.predictor import IMAGE_KIND_SLICES

WEIGHTS = Path("apps/kprism/model/kprism_small")
MINIMUM_PIXELS = 10  # a present structure of fewer pixels is not counted


@dataclass(frozen=True, eq=False)
class Sample:
    """A slice (row, column) or (row, column, 3) with its label (row, column) and the kind of its case."""

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    kind: ImageKind


@dataclass
class Tally:
    """Counts over the slices of one set; pairs are for asking everything and for asking what is possible."""

    kinds: Counter[str] = field(default_factory=Counter)
    foreign: list[int] = field(default_factory=lambda: [0, 0])
    absent: list[int] = field(default_factory=lambda: [0, 0])
    found: list[int] = field(default_factory=lambda: [0, 0])
    foreign_asked: int = 0
    absent_asked: int = 0
    present: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.possible_structures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS)
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
        tally, foreign = Tally(), {name.casefold() for name in foreign_classes(dataset, sets)}
        for sample in tqdm(drawn(dataset, given.max_slices, predictor), desc=dataset.name, leave=False, disable=None):
            count(tally, predictor, dataset, foreign, sample)
        print(row(dataset.name, tally), flush=True)
    return 0


def drawn(dataset: Dataset, most: int, predictor: Predictor) -> Iterator[Sample]:
    """At most about `most` slices of as many cases as possible; the kind of a case is told once for all of it."""
    cases = dataset.cases("validation") or dataset.cases("test")
    chosen = evenly_spaced(range(len(cases)), most)
    for number in chosen:
        case = load_case(dataset, cases[number])
        assert case.labels is not None
        looked_at = [
            np.ascontiguousarray(case.images[place])
            for place in evenly_spaced(range(len(case.images)), IMAGE_KIND_SLICES)
        ]
        kind = predictor.image_kind(predictor.embed(looked_at), [float(image.std()) for image in looked_at])
        assert kind is not None
        for place in evenly_spaced(range(len(case.images)), max(1, most // len(chosen))):
            yield Sample(np.ascontiguousarray(case.images[place]), case.labels[place], kind)


def count(tally: Tally, predictor: Predictor, dataset: Dataset, foreign: set[str], sample: Sample) -> None:
    """Add what a slice shows and what is claimed of it."""
    names = predictor.registry.names
    [everything] = predictor.predict_classes(
        names, embeddings=predictor.embed([sample.image]), minimum_presence=THRESHOLD
    )
    possible = sample.kind.possible(names)
    weighed = {
        name: replace(everything[name], presence=everything[name].presence * prior) for name, prior in possible.items()
    }
    tally.kinds[sample.kind.name] += 1
    own = {name.casefold(): int((sample.label == value).sum()) for value, name in dataset.classes.items()}
    known = {name.casefold() for name in names}
    tally.foreign_asked += len(foreign & known)
    tally.absent_asked += sum(pixels == 0 for name, pixels in own.items() if name in known)
    tally.present += sum(pixels >= MINIMUM_PIXELS for name, pixels in own.items() if name in known)
    for way, predictions in enumerate((everything, weighed)):
        claimed = claims(predictions)
        tally.foreign[way] += len(claimed & foreign)
        tally.absent[way] += sum(name in claimed for name, pixels in own.items() if pixels == 0)
        tally.found[way] += sum(name in claimed for name, pixels in own.items() if pixels >= MINIMUM_PIXELS)


def claims(predictions: Mapping[str, Prediction]) -> set[str]:
    """Names, in lower case, of the structures that have a pixel in the index map that a user gets."""
    if not predictions:
        return set()
    names = list(predictions)
    return {names[value - 1].casefold() for value in np.unique(merge_classes(predictions, names)) if value}


def row(name: str, tally: Tally) -> str:
    """A row of the table: everything asked for, an arrow, only what is possible."""

    def share(pair: list[int], of: int) -> str:
        return " -> ".join(f"{100 * number / of:.1f} %" for number in pair) + f" of {of}" if of else "-"

    kinds = ", ".join(f"{kind} {number}" for kind, number in tally.kinds.most_common(3))
    cells = [share(tally.foreign, tally.foreign_asked), share(tally.absent, tally.absent_asked)]
    return f"| {name} | {kinds} | {' | '.join(cells)} | {share(tally.found, tally.present)} |"


if __name__ == "__main__":
    sys.exit(main())
