# SPDX-License-Identifier: Apache-2.0
"""The published protocol on several data sets; finished sets are kept, so that a killed run goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from kprism_model.data.datasets import Dataset, read_dataset
from kprism_model.data.structures import StructureMap
from kprism_model.evaluation.evaluate import sample_cases
from kprism_model.evaluation.finished_results import measurement_key
from kprism_model.files import write_bytes
from kprism_model.predictor import Predictor
from kprism_model.published.evaluation.fixed_references import FixedReferences, draw_references
from kprism_model.published.evaluation.pair_counts import Figure, ModeCounts, PairCounts
from kprism_model.published.evaluation.pairs import pair_blocks
from kprism_model.published.evaluation.protocol import PublishedProtocol
from kprism_model.published.evaluation.set_measurement import SetMeasurement
from kprism_model.published.sets import published_sets

_FORMAT_VERSION = 1
_COLUMNS = ("case", "number", "structure", "true")


@dataclass(frozen=True)
class SetResult:
    """One data set: how much of it was measured, which structures the network does not know, notes, counts."""

    name: str
    sample: str
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    counts: PairCounts
    figures: Sequence[Figure] = field(init=False)

    def __post_init__(self) -> None:
        """Compute the figures once."""
        object.__setattr__(self, "figures", self.counts.figures())

    @property
    def role(self) -> str:
        """Its role in the published experiment, "other" for a set that is not in it."""
        known = published_sets().get(self.name)
        return "other" if known is None else known.role

    def figure(self, mode: str, metric: str) -> Figure | None:
        """A figure; None if it was not measured."""
        return next((one for one in self.figures if (one.mode, one.metric) == (mode, metric)), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "role": self.role,
            "sample": self.sample,
            "structures": list(self.counts.structures),
            "unknown_structures": list(self.unknown),
            "pairs": len(self.counts.true),
            "notes": list(self.notes),
            "figures": [figure.to_dict() for figure in self.figures],
        }


def evaluate_published(
    predictor: Predictor,
    folders: Sequence[Path],
    protocol: PublishedProtocol,
    *,
    weights_version: str,
    keep: Path,
    batch: int = 16,
    progress: bool = True,
) -> list[SetResult]:
    """Measure `predictor` on the folders, each with a dataset.json, and keep each finished set in the folder `keep`.

    A kept set is not measured again under the same protocol, weights, dataset.json and structures. ValueError for data
    that cannot be read, two sets with one name, or a set of the experiment that lacks one of its classes.
    """
    described = [(dataset, _structures(dataset)) for dataset in map(read_dataset, folders)]
    names = [dataset.name for dataset, _ in described]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"data sets must have different names; listed twice: {', '.join(repeated)}")
    keep.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is told before the measurement
    results = []
    for dataset, structures in described:
        path = keep / f"{dataset.name}.npz"
        settings = [_FORMAT_VERSION, protocol.to_dict(), weights_version, list(structures.classes.values())]
        key = measurement_key(dataset, [*settings, structures.table.tolist()])
        result = _load(path, key)
        if result is None:
            result = measure_set(predictor, dataset, structures, protocol, batch=batch, progress=progress)
            _save(path, key, result)
        results.append(result)
    return results


def measure_set(
    predictor: Predictor,
    dataset: Dataset,
    structures: StructureMap,
    protocol: PublishedProtocol,
    *,
    batch: int = 16,
    progress: bool = True,
) -> SetResult:
    """Measure one data set."""
    references = FixedReferences((), frozenset(), ())
    if protocol.uses_references:
        references = draw_references(predictor, dataset, structures, protocol)
    labelled = [
        case
        for case in dataset.cases(protocol.split)
        if case.label is not None and case.patient not in references.patients
    ]
    cases, sample = sample_cases(labelled, protocol.max_slices, protocol.seed)
    unknown = tuple(name for name in structures.classes.values() if name not in predictor.registry)
    notes = list(references.notes)
    if not cases:
        notes.append(f"{dataset.name}: the {protocol.split} list has no labelled case to measure")
    if unknown and "semantic" in protocol.modes:
        notes.append(f"{dataset.name}: no semantic figures of {', '.join(unknown)}: not a class of the checkpoint")
    measurement = SetMeasurement(predictor, structures, protocol, references.draws, batch)
    lost = 0
    with tqdm(total=len(cases), desc=dataset.name, disable=not progress) as bar:
        for done, pairs in pair_blocks(predictor, dataset, structures, cases, batch):
            measurement.measure(pairs)
            lost += sum(not pair.target.any() for pair in pairs)
            bar.update(done - bar.n)
    if lost and "interactive" in protocol.modes:
        notes.append(
            f"{dataset.name}: {lost} structures in slices are too small for the canvas and get no first click: "
            "Dice 0, NoC 20"
        )
    counts = measurement.counts([case.name for case in cases], volumes=any(case.is_volume for case in cases))
    return SetResult(dataset.name, sample, unknown, tuple(notes), counts)


def _structures(dataset: Dataset) -> StructureMap:
    """The structures of the experiment, or all classes of a set that is not in it."""
    known = published_sets().get(dataset.name)
    return StructureMap.unchanged(dataset.classes) if known is None else known.structure_map(dataset.classes)


def _save(path: Path, key: str, result: SetResult) -> None:
    """Write a result as one file."""
    counts = result.counts
    described = {
        "key": key,
        "name": result.name,
        "sample": result.sample,
        "unknown": result.unknown,
        "notes": result.notes,
        "cases": counts.cases,
        "structures": counts.structures,
        "volumes": counts.volumes,
        "clicks": {mode: one.clicks for mode, one in counts.modes.items()},
    }
    arrays = {name: getattr(counts, name) for name in _COLUMNS}
    for mode, one in counts.modes.items():
        arrays |= {f"{mode}/{name}": getattr(one, name) for name in ("pair", "overlap", "predicted")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, described=np.array(json.dumps(described)), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _load(path: Path, key: str) -> SetResult | None:
    """The kept result; None if there is none with this key or it cannot be read."""
    try:
        with np.load(path) as arrays:
            described = json.loads(str(arrays["described"]))
            if described["key"] != key:
                return None
            modes = {
                mode: ModeCounts(clicks, *(arrays[f"{mode}/{name}"] for name in ("pair", "overlap", "predicted")))
                for mode, clicks in described["clicks"].items()
            }
            cases, structures = tuple(described["cases"]), tuple(described["structures"])
            columns = {name: arrays[name] for name in _COLUMNS}
            counts = PairCounts(cases, structures, described["volumes"], **columns, modes=modes)
            named = described["name"], described["sample"], tuple(described["unknown"]), tuple(described["notes"])
            return SetResult(*named, counts)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):
        return None
