# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a network by one protocol: semantic, in-context, interactive and chained, on lists of real cases.

All figures are at the images' own resolution; volumes are measured slice by slice in the plane that
`kprism_model.orientation` defines, and as whole volumes where a figure is per case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kprism_model.annotation import CLICKS_SHOWN, Trace, annotate
from kprism_model.batched import Query, predict_batch
from kprism_model.checkpoint import load_checkpoint
from kprism_model.data import SPLITS, Case, Dataset, load_case, load_scribble, read_dataset, slice_counts
from kprism_model.predictor import Prediction, Predictor
from kprism_model.protocol import Slice, Tally, Target, measure_masks, measure_traces, targets_of
from kprism_model.reference_pool import ReferenceDraws, draw_references
from kprism_model.report import EvaluationReport

MODES = ("semantic", "in_context", "interactive", "chained")

_BLOCK = 32  # slices that are encoded and decoded together
_ENCODED_TOGETHER = 8  # more in one pass of the encoder cost memory and save no time on a CPU


def evaluate(
    predictor: Predictor,
    datasets: Sequence[Path],
    *,
    modes: Sequence[str] = MODES,
    split: str = "test",
    seed: int = 0,
    max_slices_per_dataset: int | None = None,
    reference_counts: Sequence[int] = (1, 5),
    draws: int = 5,
    click_limit: int = 20,
    progress: bool = True,
) -> EvaluationReport:
    """Measure `predictor` on the folders `datasets` (each with a dataset.json) in each of `modes`.

    `max_slices_per_dataset` takes whole cases in an order drawn by `seed` while they fit, at least one. In-context
    figures use `draws` sets of max(`reference_counts`) references, of which a smaller count takes the first. "chained"
    clicks after a semantic, and after an in-context, first mask. The report's protocol says what was measured, its
    notes what could not be. Raises ValueError for an unknown mode or split, bad counts, or data that cannot be read.
    """
    _check(modes, split, reference_counts, draws, click_limit, max_slices_per_dataset)
    start = time.perf_counter()
    report = EvaluationReport(
        {
            "split": split,
            "seed": seed,
            "modes": " ".join(modes),
            "references": " ".join(map(str, reference_counts)),
            "draws": draws,
            "click_limit": click_limit,
            "max_slices_per_dataset": max_slices_per_dataset,
            "datasets": {},
        }
    )
    read = [read_dataset(folder) for folder in datasets]
    repeated = {dataset.name for dataset in read if [d.name for d in read].count(dataset.name) > 1}
    if repeated:
        raise ValueError(f"data sets must have different names; listed twice: {', '.join(sorted(repeated))}")
    for dataset in read:
        cases = _choose_cases(dataset, split, seed, max_slices_per_dataset, report)
        references: ReferenceDraws = {}
        if cases and ("in_context" in modes or "chained" in modes):
            patients = {case.patient for case in cases}
            references = draw_references(predictor, dataset, reference_counts, draws, seed, patients, report.notes)
        run = _DatasetRun(predictor, dataset, modes, references, click_limit, report)
        for block in _blocks(predictor, dataset, tqdm(cases, dataset.name, disable=not progress)):
            run.measure(block)
        report.figures += run.tally.figures()
        report.worst += sorted(run.tally.worst, key=lambda case: (case.mode, case.score))
    report.protocol["seconds"] = round(time.perf_counter() - start, 1)
    return report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the `evaluate` command."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights (.safetensors with its .json beside)")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of data sets")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="what to measure (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for evaluation.json, .md and worst_cases.png")
    parser.add_argument("--max-slices", type=int, help="at most about so many slices of each data set, whole cases")
    parser.add_argument("--seed", type=int, default=0, help="draws the references and, with --max-slices, the cases")
    parser.add_argument("--split", choices=SPLITS, default="test")


def run(args: argparse.Namespace) -> int:
    """Evaluate as the arguments say, write the report and print its tables."""
    checkpoint = load_checkpoint(args.checkpoint)
    report = evaluate(
        Predictor(checkpoint.model, checkpoint.registry),
        args.data,
        modes=args.modes,
        split=args.split,
        seed=args.seed,
        max_slices_per_dataset=args.max_slices,
    )
    report.protocol["weights_version"] = checkpoint.weights_version
    report.save(args.out)
    print(report.to_markdown())
    return 0


class _DatasetRun:
    """Measures one data set, block by block."""

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        modes: Sequence[str],
        references: ReferenceDraws,
        limit: int,
        report: EvaluationReport,
    ) -> None:
        self.tally = Tally(dataset.name)
        self._predictor = predictor
        self._classes = dataset.classes
        self._modes = modes
        self._references = references
        self._limit = limit
        self._known = {index: name for index, name in dataset.classes.items() if name in predictor.registry}
        if unknown := sorted(set(dataset.classes.values()) - set(self._known.values())):
            report.notes.append(f"{dataset.name}: no semantic figures of {', '.join(unknown)}, not a trained class")

    def measure(self, parts: Sequence[Slice]) -> None:
        """Measure all modes on the slices of some whole cases."""
        if "semantic" in self._modes or "chained" in self._modes:
            self._semantic(targets_of(parts, self._known))
        for count, draws in self._references.items():
            for draw, by_class in enumerate(draws):
                self._in_context(targets_of(parts, {i: self._classes[i] for i in by_class}), count, draw)
        if "interactive" in self._modes:
            self._interactive([target for target in targets_of(parts, self._classes) if target.mask.any()])

    def _semantic(self, targets: Sequence[Target]) -> None:
        queries = [Query(target.part.embedding, class_name=target.class_name) for target in targets]
        predictions = predict_batch(self._predictor, queries)
        if "semantic" in self._modes:
            measure_masks(self.tally, "semantic", targets, predictions, distances=True)
        if "chained" in self._modes:
            self._refine("semantic+interactive", targets, queries, predictions)

    def _in_context(self, targets: Sequence[Target], count: int, draw: int) -> None:
        """One draw of references; clicks follow the first draw of the largest count."""
        chained = "chained" in self._modes and draw == 0 and count == max(self._references)
        if not chained and "in_context" not in self._modes:
            return
        by_class = self._references[count][draw]
        queries = [Query(target.part.embedding, references=by_class[target.index]) for target in targets]
        predictions = predict_batch(self._predictor, queries)
        if "in_context" in self._modes:
            measure_masks(self.tally, f"in_context_{count}", targets, predictions, draw=draw)
        if chained:
            self._refine(f"in_context_{count}+interactive", targets, queries, predictions)

    def _refine(
        self, mode: str, targets: Sequence[Target], queries: Sequence[Query], predictions: Sequence[Prediction]
    ) -> None:
        """Clicks after first masks, where the structure is present."""
        rows = [row for row, target in enumerate(targets) if target.mask.any()]
        traces = [Trace(queries[row], targets[row].mask, predictions[row]) for row in rows]
        annotate(self._predictor, traces, self._limit)
        measure_traces(self.tally, mode, [targets[row] for row in rows], traces, self._limit)

    def _interactive(self, targets: Sequence[Target]) -> None:
        traces = [Trace(Query(target.part.embedding), target.mask, None) for target in targets]
        annotate(self._predictor, traces, self._limit)
        measure_traces(self.tally, "interactive", targets, traces, self._limit)
        self._scribbled(targets)

    def _scribbled(self, targets: Sequence[Target]) -> None:
        """Clicks after the mask that a human's scribbles give, where the data set holds such scribbles."""
        scribbles = [_human_scribbles(target, self._classes) for target in targets]
        rows = [row for row, drawn in enumerate(scribbles) if drawn is not None]
        if not rows:
            return
        traces = []
        for row in rows:
            embedding = targets[row].part.embedding
            first = self._predictor.predict(scribbles=scribbles[row], embedding=embedding)
            traces.append(Trace(Query(embedding), targets[row].mask, first))
        annotate(self._predictor, traces, self._limit)
        measure_traces(self.tally, "scribble+interactive", [targets[row] for row in rows], traces, self._limit)


def _human_scribbles(target: Target, classes: Collection[int]) -> NDArray[np.int8] | None:
    """The case's scribbles as a prompt: of the class positive, of any other class or the background negative.

    None where nobody drew the class; values that are no label (ACDC's "unlabelled") say nothing.
    """
    drawn = target.part.scribble
    if drawn is None or not (drawn == target.index).any():
        return None
    prompt = np.where(np.isin(drawn, [0, *classes]), -1, 0).astype(np.int8)
    prompt[drawn == target.index] = 1
    return prompt


def _choose_cases(
    dataset: Dataset, split: str, seed: int, limit: int | None, report: EvaluationReport
) -> tuple[Case, ...]:
    """The labelled cases of the split, or a seeded sample of at most `limit` slices; the protocol says which."""
    labelled = [case for case in dataset.cases(split) if case.label is not None]
    slices = [slice_counts(case)[0] for case in labelled]
    chosen = list(range(len(labelled)))
    if limit is not None and sum(slices) > limit:
        order = np.random.default_rng(seed).permutation(len(labelled)).tolist()
        total = np.cumsum([slices[number] for number in order])
        chosen = sorted(order[: max(1, int((total <= limit).sum()))])
    if not labelled:
        report.notes.append(f"{dataset.name}: the {split} list holds no labelled case")
    report.protocol["datasets"][dataset.name] = (
        f"{len(chosen)} of {len(labelled)} cases, {sum(slices[number] for number in chosen)} of {sum(slices)} slices"
    )
    return tuple(labelled[number] for number in chosen)


def _blocks(predictor: Predictor, dataset: Dataset, cases: Iterable[Case]) -> Iterator[list[Slice]]:
    """The slices of whole cases, encoded, some `_BLOCK` at a time."""
    block: list[Slice] = []
    for case in cases:
        block += _slices(predictor, dataset, case)
        if len(block) >= _BLOCK:
            yield block
            block = []
    if block:
        yield block


def _slices(predictor: Predictor, dataset: Dataset, case: Case) -> list[Slice]:
    loaded = load_case(dataset, case)
    assert loaded.labels is not None
    scribbles = None if case.scribble is None else load_scribble(case)
    images = list(loaded.images)
    embeddings = [
        embedding
        for start in range(0, len(images), _ENCODED_TOGETHER)
        for embedding in predictor.embed(images[start : start + _ENCODED_TOGETHER])
    ]
    return [
        Slice(
            case.name,
            number,
            image,
            loaded.labels[number],
            loaded.spacing,
            None if scribbles is None else scribbles[number],
            embedding,
        )
        for number, (image, embedding) in enumerate(zip(images, embeddings, strict=True))
    ]


def _check(
    modes: Sequence[str], split: str, counts: Sequence[int], draws: int, click_limit: int, max_slices: int | None
) -> None:
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(f"unknown modes {unknown}; expected one or more of {', '.join(MODES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if not counts or min(counts) < 1 or draws < 1:
        raise ValueError(f"reference counts and draws must be at least 1, got {list(counts)} and {draws}")
    if click_limit < CLICKS_SHOWN[-1]:
        raise ValueError(f"click_limit must be at least {CLICKS_SHOWN[-1]}, got {click_limit}")
    if max_slices is not None and max_slices < 1:
        raise ValueError(f"max_slices_per_dataset must be at least 1, got {max_slices}")
