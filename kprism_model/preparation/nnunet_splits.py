# SPDX-License-Identifier: Apache-2.0
"""splits_final.json of nnU-Net: for each fold, which cases to train on and which to validate with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kprism_model.preparation.findings import Findings, Split

SPLITS_NAME = "splits_final.json"


def validation_lists(findings: Findings, root: Path, cases: set[str]) -> dict[str, Split]:
    """The lists of fold 0 by case, of the file beside dataset.json or in nnUNet_preprocessed; empty without a file.

    ValueError that names the file if it is not such a list. Pickled lists of version 1 are never opened.
    """
    places = (root, root.parent.parent / "nnUNet_preprocessed" / root.name)
    path = next((place / SPLITS_NAME for place in places if (place / SPLITS_NAME).is_file()), None)
    for place in places:
        if (place / "splits_final.pkl").is_file():
            findings.remark("ignored", f"{place / 'splits_final.pkl'}: a pickle may run any program, so it is not read")
    if path is None:
        return {}
    fold = _first_fold(path)
    lists: dict[str, Split] = dict.fromkeys(fold["train"], "training")
    lists |= dict.fromkeys(fold["val"], "validation")
    for name in sorted(set(lists) - cases):
        findings.remark("missing", f"{name}, which is in {path}")
    for name in sorted(cases - set(lists)):
        findings.remark("note", f"{name} is not in fold 0 of {path.name}; it counts as training")
    findings.remark("note", f"validation: fold 0 of {path.name}")
    return lists


def _first_fold(path: Path) -> dict[str, list[str]]:
    try:
        folds: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    fold = folds[0] if isinstance(folds, list) and folds else None
    if not isinstance(fold, dict) or not all(
        isinstance(fold.get(key), list) and all(isinstance(name, str) for name in fold[key]) for key in ("train", "val")
    ):
        raise ValueError(f'{path} must be a list of {{"train": [names], "val": [names]}}, got {str(folds)[:80]}')
    return fold
