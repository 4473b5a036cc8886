# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a network by one protocol: semantic, in-context, interactive and chained, on lists of real cases.

All figures are at the images' own resolution. Volumes are measured slice by slice in the plane that
`kprism_model.orientation` defines, and as whole volumes if a figure is per case.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.datasets import Case, Dataset, read_dataset, slice_counts
from kprism_model.evaluation.dataset import DatasetEvaluation, EvaluationReferences, encoded_blocks, known_classes
from kprism_model.evaluation.finished_results import FinishedResults
from kprism_model.evaluation.instances import InstanceSampling
from kprism_model.evaluation.protocol import Protocol
from kprism_model.evaluation.reference_pool import ReferencePool
from kprism_model.evaluation.report import DatasetResult, EvaluationReport
from kprism_model.predictor import Predictor


def evaluate(
    predictor: Predictor,
    datasets: Sequence[Path],
    protocol: Protocol | None = None,
    *,
    weights_version: str = "",
    keep: Path | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Measure `predictor` on the folders `datasets`, each with a dataset.json.

    If a folder `keep` is given, the result of each finished data set is saved there. It is not measured again under the
    same protocol, `weights_version`, dataset.json and classes of the other data sets. ValueError for data that cannot
    be read, or two data sets with one name.
    """
    protocol = protocol or Protocol()
    report = EvaluationReport({**protocol.to_dict(), "weights_version": weights_version})
    described = [read_dataset(folder) for folder in datasets]
    repeated = {dataset.name for dataset in described if [d.name for d in described].count(dataset.name) > 1}
    if repeated:
        raise ValueError(f"data sets must have different names; listed twice: {', '.join(sorted(repeated))}")
    start = time.perf_counter()
    for dataset in described:
        foreign = foreign_classes(dataset, described)
        finished = None if keep is None else FinishedResults(keep, {**report.protocol, "foreign": foreign})
        result = None if finished is None else finished.load(dataset)
        if result is None:
            result = evaluate_dataset(predictor, dataset, protocol, foreign, progress=progress)
            if finished is not None:
                finished.save(dataset, result)
        report.results.append(result)
    report.protocol["seconds"] = round(time.perf_counter() - start, 1)
    return report


def evaluate_dataset(
    predictor: Predictor,
    dataset: Dataset,
    protocol: Protocol,
    foreign: Sequence[str] = (),
    *,
    progress: bool = True,
) -> DatasetResult:
    """Measure one data set in all modes of `protocol`; `foreign` classes cannot be in its images."""
    known = known_classes(predictor, dataset)
    trained = "all" if len(known) == len(dataset.classes) else "some" if known else "none"
    cases, sample = choose_cases(dataset, protocol)
    result = DatasetResult(dataset.name, sample, trained)
    if not cases:
        result.notes.append(f"{dataset.name}: the {protocol.split} list has no labelled case")
        return result
    if unknown := [name for index, name in dataset.classes.items() if index not in known]:
        result.notes.append(f"{dataset.name}: no semantic figures of {', '.join(unknown)}: not a trained class")
    references = _references(predictor, dataset, protocol, cases, result.notes)
    instances = protocol.instance_sampling(dataset)
    if note := _instances_note(dataset, protocol, instances):
        result.notes.append(note)
    run = DatasetEvaluation(
        predictor,
        dataset,
        protocol.modes,
        references,
        protocol.click_limit,
        [name for name in foreign if name in predictor.registry],
        instances,
        window=protocol.window,
    )
    with tqdm(total=len(cases), desc=dataset.name, disable=not progress) as bar:
        for block in encoded_blocks(predictor, dataset, cases):
            run.measure(block)
            bar.update(len({image_slice.case for image_slice in block}))
    result.figures = run.accumulator.figures()
    result.curves = run.accumulator.curves()
    result.worst = run.accumulator.worst_by_mode()
    return result


def _references(
    predictor: Predictor, dataset: Dataset, protocol: Protocol, cases: Sequence[Case], notes: list[str]
) -> EvaluationReferences:
    """References from patients that are not among `cases`, as far as the protocol's modes need them."""
    if not protocol.uses_references:
        return EvaluationReferences()
    pool = ReferencePool(dataset, {case.patient for case in cases})
    drawn = pool.draw(predictor, protocol.references, protocol.draws, protocol.seed, notes)
    retrieved = pool.candidates(predictor, protocol.seed) if "in_context" in protocol.modes else None
    return EvaluationReferences(drawn, retrieved)


def _instances_note(dataset: Dataset, protocol: Protocol, instances: InstanceSampling | None) -> str | None:
    if instances is None or not instances.indices or "interactive" not in protocol.modes:
        return None
    names = ", ".join(dataset.classes[index] for index in instances.indices)
    return f"{dataset.name}: clicked one instance at a time, at most {instances.maximum_per_image} an image: {names}"


def choose_cases(dataset: Dataset, protocol: Protocol) -> tuple[tuple[Case, ...], str]:
    """The labelled cases of the split, or a seeded sample of at most `max_slices`; and a sentence that describes it."""
    labelled = [case for case in dataset.cases(protocol.split) if case.label is not None]
    return sample_cases(labelled, protocol.max_slices, protocol.seed)


def sample_cases(cases: Sequence[Case], max_slices: int | None, seed: int) -> tuple[tuple[Case, ...], str]:
    """The cases, or whole ones in an order drawn by `seed` as long as at most `max_slices` slices fit, at least one.

    The second result is a sentence that describes the sample.
    """
    slices = [slice_counts(case)[0] for case in cases]
    chosen = list(range(len(cases)))
    if max_slices is not None and sum(slices) > max_slices:
        order = np.random.default_rng(seed).permutation(len(cases)).tolist()
        total = np.cumsum([slices[number] for number in order])
        chosen = sorted(order[: max(1, int((total <= max_slices).sum()))])
    taken = sum(slices[number] for number in chosen)
    sample = f"{len(chosen)} of {len(cases)} cases, {taken} of {sum(slices)} slices"
    return tuple(cases[number] for number in chosen), sample
