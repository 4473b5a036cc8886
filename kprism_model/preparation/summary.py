# SPDX-License-Identifier: Apache-2.0
"""What was prepared, for a person to read: lists, patients, slices, classes, spacing, and what was missing or odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kprism_model.preparation.findings import Findings, FoundCase, Remark, Split
from kprism_model.preparation.records import CaseRecord
from kprism_model.preparation.splits import SPLITS

_SHOWN = 20
_TITLES: dict[Remark, str] = {
    "faulty": "Faulty, left out",
    "missing": "Missing",
    "doubled": "Doubled",
    "unlabelled": "Without a label, left out",
    "ignored": "Other files",
    "note": "Notes",
}


def describe(
    cases: Sequence[FoundCase],
    records: Mapping[str, CaseRecord],
    lists: Mapping[str, Split],
    classes: Mapping[int, str],
    findings: Findings,
    notes: Sequence[str],
) -> str:
    """The summary, several lines."""
    lines = [f"{'':12} {'cases':>7} {'patients':>9} {'slices':>9}"]
    for split in SPLITS:
        chosen = [case for case in cases if case.name in records and lists.get(case.name) == split]
        slices = sum(records[case.name].slices for case in chosen)
        lines.append(f"{split:12} {len(chosen):7,} {len({case.patient for case in chosen}):9,} {slices:9,}")
    lines += ["", *_classes(records, classes), "", *_spacings(records)]
    for kind, title in _TITLES.items():
        if sentences := findings.remarks.get(kind, []):
            lines += ["", f"{title} ({len(sentences)}):", *(f"  {sentence}" for sentence in sentences[:_SHOWN])]
            if len(sentences) > _SHOWN:
                lines.append(f"  ... and {len(sentences) - _SHOWN} more; dataset.json lists all")
    if notes:
        lines += ["", "Lists:", *(f"  {note}" for note in notes)]
    return "\n".join(lines)


def _classes(records: Mapping[str, CaseRecord], classes: Mapping[int, str]) -> list[str]:
    width = max(map(len, classes.values()))
    lines = [f"{'class':{width + 4}} {'in cases':>9} {'median voxels':>14}"]
    for index, name in classes.items():
        counts = [record.voxels[name] for record in records.values() if record.voxels[name]]
        median = f"{np.median(counts):14,.0f}" if counts else f"{'-':>14}"
        lines.append(f"{index:3} {name:{width}} {len(counts):9,} {median}")
    empty = [record.name for record in records.values() if not any(record.voxels.values())]
    if empty:
        lines.append(f"{len(empty)} labels are empty: {', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}")
    return lines


def _spacings(records: Mapping[str, CaseRecord]) -> list[str]:
    volumes = [record for record in records.values() if record.spacing]
    if not volumes:
        sizes = np.array([record.shape for record in records.values()])
        low, middle, high = sizes.min(0), np.median(sizes, axis=0).astype(int), sizes.max(0)
        return [f"rows x columns: {low[0]} x {low[1]} to {high[0]} x {high[1]}, median {middle[0]} x {middle[1]}"]
    lines = []
    for title, values, digits in (
        ("shape (i, j, k)", np.array([record.shape for record in volumes]), 0),
        ("spacing (i, j, k) in mm", np.array([record.spacing for record in volumes]), 2),
    ):
        rows = [values.min(0), np.median(values, axis=0), values.max(0)]
        low, middle, high = (" x ".join(f"{value:.{digits}f}" for value in row) for row in rows)
        lines.append(f"{title}: {low} to {high}, median {middle}")
    return lines
