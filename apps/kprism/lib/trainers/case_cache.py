# SPDX-License-Identifier: Apache-2.0
"""Labelled cases reduced to what a training needs, kept between trainings: no short training reads whole CTs anew.

Of each case some slices are kept, at most `MAX_SIDE` pixels wide, in half precision. A training always uses the kept
form, so its figures do not depend on whether it was there already.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from kprism_model.data.partial import MAXIMUM_SLICES, AnnotatedCase, training_slices, trimmed
from kprism_model.files import write_bytes
from kprism_model.preprocess import resize
from kprism_model.training.validation import ValidationSettings, chosen_slices
from lib.learning.submission_store import Submission

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_SIDE = 768
"""Longest side of a kept slice in pixels; larger pictures are made smaller."""

_FORMAT = 1


@dataclass(frozen=True)
class KeptSlices:
    """Which slices of a case are kept: their `numbers` in the whole case, and their `shape` there (rows, columns)."""

    numbers: tuple[int, ...]
    shape: tuple[int, int]

    def renumbered(self, slices: Mapping[int, T]) -> dict[int, T]:
        """What belongs to slices by their number in the whole case, by their number among the kept ones."""
        place = {number: index for index, number in enumerate(self.numbers)}
        return {place[number]: value for number, value in slices.items() if number in place}


class ReducedCase(NamedTuple):
    """A case of the kept slices alone."""

    case: AnnotatedCase
    slices: KeptSlices


class CaseCache:
    """Reduced cases in `folder`. `load` reads a case, `files` gives files that change whenever it does.

    The slices that are kept are those to train on, to judge by as `settings` say, and with prompts. A case is read
    again if its label or one of these files has changed. Both functions raise ValueError or OSError.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Submission], AnnotatedCase],
        files: Callable[[Submission], Sequence[Path]],
        settings: ValidationSettings,
    ) -> None:
        self._folder, self._load, self._files, self._settings = folder, load, files, settings

    def get(self, submission: Submission) -> ReducedCase:
        """The reduced case."""
        path = self._path(submission)
        kept = _read(path, submission)
        if kept is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _reduced(self._load(submission), submission, self._settings))
            kept = _read(path, submission)
        if kept is None:
            raise OSError(f"{path} cannot be read back")
        return kept

    def keep(self, submissions: Collection[Submission]) -> None:
        """Delete all but the cases of these submissions."""
        names = set()
        for submission in submissions:
            with suppress(OSError):  # its label was replaced a moment ago
                names.add(self._path(submission).name)
        for file in self._folder.glob("*.safetensors"):
            if file.name not in names:
                file.unlink(missing_ok=True)

    def _path(self, submission: Submission) -> Path:
        states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in self._files(submission)]
        prompted = {name: sorted(slices) for name, slices in submission.prompts.items()}
        parts = [_FORMAT, submission.key, submission.patient, states, prompted, repr(self._settings)]
        identity = json.dumps(parts, sort_keys=True)
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.safetensors"


def _reduced(case: AnnotatedCase, submission: Submission, settings: ValidationSettings) -> bytes:
    """The content of a file of the cache."""
    chosen = set(training_slices(case, MAXIMUM_SLICES))
    for name in case.structures:
        chosen.update(chosen_slices(case, name, settings))
    prompted = {number for slices in submission.prompts.values() for number in slices}
    numbers = sorted(chosen | (prompted & set(range(len(case.labels)))))
    part = trimmed(case, numbers)
    images, labels = _smaller(np.asarray(part.images), part.labels)
    tensors = {
        "images": torch.from_numpy(images).half(),
        "labels": torch.from_numpy(labels),
        "numbers": torch.tensor(numbers),
        "shape": torch.tensor(case.labels.shape[1:]),
    }
    return bytes(save(tensors))


def _smaller(images: NDArray[np.float32], labels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Images and labels at most `MAX_SIDE` pixels wide."""
    rows, columns = labels.shape[1:]
    scale = MAX_SIDE / max(rows, columns)
    if scale >= 1:
        return images, labels
    size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
    small = resize(pixels, size).permute(0, 2, 3, 1).clamp(0, 1).numpy()
    nearest = torch.nn.functional.interpolate(torch.from_numpy(labels)[:, None].float(), size, mode="nearest-exact")
    kept = np.ascontiguousarray(small if images.ndim == 4 else small[..., 0])
    return kept, np.ascontiguousarray(nearest[:, 0].byte().numpy())


def _read(path: Path, submission: Submission) -> ReducedCase | None:
    """The case in a file; None if there is no file or it is damaged."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("images", "labels", "numbers", "shape")}
    except (OSError, safetensors.SafetensorError) as error:
        logger.warning("%s is damaged and is made again: %s", path, error)
        return None
    case = AnnotatedCase(
        submission.image_id,
        submission.patient,
        tensors["images"].float().numpy(),
        tensors["labels"].numpy(),
        dict(submission.structures),
    )
    rows, columns = tensors["shape"].tolist()
    return ReducedCase(case, KeptSlices(tuple(tensors["numbers"].tolist()), (rows, columns)))
