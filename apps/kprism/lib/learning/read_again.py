# SPDX-License-Identifier: Apache-2.0
"""A label that counts, read again because its names, its image or settings have changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kprism_model.files import write_bytes
from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.reading import read_mask, suffix_of
from lib.imaging.writing import ResultFormat, write_mask
from lib.learning.annotation_notes import renamed
from lib.learning.submission_store import Submission
from lib.learning.submitted_label import SubmittedLabel


def read_again(folder: Path, before: Submission, label: SubmittedLabel, patient: str, inputs: str) -> Submission:
    """The submission `before` in the store at `folder` with what its label says now; its file is written.

    Who submitted it, when, and the file as it was sent stay. Prompts go with their structure, but not to another image.
    """
    content, image = label.digest(), label.image.digest
    is_image_new = bool(before.image) and before.image != image
    after = replace(before, inputs=inputs, image=image, patient=patient, warnings=label.warnings)
    if content != before.content or is_image_new:
        raw = Path(before.raw)
        path = f"labels/{raw.name.removesuffix(suffix_of(raw))}-{content[:8]}{image[:8]}.nii.gz"
        keeps = bool(before.prompts) and not is_image_new
        prompts = renamed(before.prompts, _new_names(folder, before, label)) if keeps else {}
        write_label(folder / path, label)
        after = replace(after, content=content, label=path, structures=label.structures, prompts=prompts)
    return after


def write_label(path: Path, label: SubmittedLabel) -> None:
    """Write a label as it is used, on the grid of its image."""
    labels = SliceMap.of(label.labels, label.image.orientation)
    written = write_mask(labels, label.image, ResultFormat(".nii.gz"))
    try:
        write_bytes(path, written.read_bytes())
    finally:
        written.unlink()


def _new_names(folder: Path, before: Submission, label: SubmittedLabel) -> dict[str, str]:
    """Old name -> new name of the structures whose voxels all have one name now."""
    try:
        voxels = read_mask(folder / before.label, "the kept label").array
    except RequestError:
        return {}
    if voxels.shape != label.labels.shape:
        return {}
    name_of = {number: name for name, number in label.structures.items()}
    found = {name: np.unique(label.labels[voxels == value]).tolist() for name, value in before.structures.items()}
    return {name: name_of[numbers[0]] for name, numbers in found.items() if len(numbers) == 1 and numbers[0]}
