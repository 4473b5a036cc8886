# SPDX-License-Identifier: Apache-2.0
"""The dataset.json of a prepared data set: classes, lists, licence, source, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kprism_model import __version__
from kprism_model.files import write_bytes
from kprism_model.preparation.catalogue import CatalogueEntry
from kprism_model.preparation.findings import Findings, FoundCase, Split
from kprism_model.preparation.records import CaseRecord
from kprism_model.preparation.splits import SPLITS
from kprism_model.preparation.target import DATASET_NAME


def write_dataset_json(
    out: Path,
    entry: CatalogueEntry,
    findings: Findings,
    classes: Mapping[int, str],
    cases: Sequence[FoundCase],
    records: Mapping[str, CaseRecord],
    lists: Mapping[str, Split],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Write `out`/dataset.json, in the format that `kprism_model.data.datasets.read_dataset` reads; returns it."""
    volumes = any(record.spacing for record in records.values())
    content: dict[str, Any] = {
        "name": entry.name,
        "description": entry.title,
        "modality": {"0": entry.modality},
        "anatomy": entry.anatomy,
        "tensorImageSize": "3D" if volumes else "2D",
        "labels": {"0": "background", **{str(index): name for index, name in classes.items()}},
        "licence": entry.licence,
        "licence_stated_at": entry.licence_stated_at,
        "source": entry.url,
        "reference": entry.citation,
        **findings.about,
        "splits": "; ".join(notes),
        "prepared": {
            "by": f"kprism prepare {entry.name}, version {__version__}",
            "on": datetime.now(UTC).date().isoformat(),
            "remarks": {kind: list(sentences) for kind, sentences in findings.remarks.items()},
        },
    }
    for split in SPLITS:
        chosen = [case for case in cases if case.name in records and lists.get(case.name) == split]
        content[split] = [
            {
                "image": f"./{records[case.name].image}",
                "label": f"./{records[case.name].label}",
                "patient": case.patient,
            }
            for case in chosen
        ]
        content[f"num{split.capitalize()}"] = len(chosen)
    write_bytes(out / DATASET_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return content
