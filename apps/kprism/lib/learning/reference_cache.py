# SPDX-License-Identifier: Apache-2.0
"""The bank of references: every labelled case, encoded once for each version of the weights.

A case gives up to `SLICES` slices for each structure. What the network keeps of a slice (object summaries, features of
image and mask) goes to disk and, within a budget, memory; a prototype of the object, the mean of the image features
under its mask, stays in memory to choose by: references are those whose object is most like something in the query.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from kprism_model.data.partial import AnnotatedCase
from kprism_model.files import write_bytes
from kprism_model.network.references import References
from kprism_model.predictor import ImageEmbedding, Predictor
from kprism_model.preprocess import Geometry, evenly_spaced
from kprism_model.store import ByteStore
from lib.errors import RequestError
from lib.learning.submission_store import Submission

logger = logging.getLogger(__name__)

SLICES = 4
"""Slices of a case that are kept for each structure."""

MOST = 5
"""References that one answer can use."""

SMALL = 0.2
"""Slices with less than this part of the largest area of a structure show too little of it."""

BATCH = 8
"""Slices that are encoded in one pass."""

_NEAREST = 5  # the query's pixels (stride 16) that are most like the object
_KEPT_VERSIONS = 2  # the serving one, and the one before for requests that are on their way


@dataclass(frozen=True, eq=False)
class Entry:
    """A slice that can be a reference: `row` in the file of the submission with this `key`."""

    key: str
    image_id: str
    patient: str
    structure: str
    slice: int
    row: int
    prototype: Tensor
    mean: Tensor


class ReferenceCache:
    """References by structure. `load` reads a submission's case; `run` is how the network may be called."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[Submission], AnnotatedCase],
        *,
        run: Callable[[Callable[[], Any]], Any] = lambda compute: compute(),
        budget: int = 256 << 20,
    ) -> None:
        self._folder, self._load, self._run = folder, load, run
        self._cache = ByteStore(budget)
        self._entries: dict[str, dict[str, list[Entry]]] = {}
        self._submissions: dict[str, Submission] = {}
        self._lock = RLock()
        self._updating = Lock()
        self.faults: dict[str, str] = {}

    def update(
        self, predictor: Predictor, version: str, submissions: Iterable[Submission], *, limit: int | None = None
    ) -> int:
        """Encode what is new among `submissions` and forget what is not among them; returns how many were encoded.

        With `limit` only so many are encoded, the newest. A case that cannot be read is left out until its label
        changes; `faults` says why, by image id.
        """
        submissions = list(submissions)
        with self._lock:
            known = self._version(version)
            self._submissions = {submission.key: submission for submission in submissions}
            for gone in set(known) - set(self._submissions):
                del known[gone]
            missing = [submission for submission in submissions if submission.key not in known]
        if limit is not None:
            missing = sorted(missing, key=lambda submission: -submission.at)[:limit]
        return sum(self._add(predictor, version, submission) for submission in missing)

    def _add(self, predictor: Predictor, version: str, submission: Submission) -> bool:
        """Encode a case, unless another thread has done so; one at a time."""
        with self._updating:
            with self._lock:
                if submission.key in self._version(version):
                    return False
            entries = self._try_to_encode(predictor, version, submission)
            with self._lock:
                self._version(version)[submission.key] = entries
        return True

    def _try_to_encode(self, predictor: Predictor, version: str, submission: Submission) -> list[Entry]:
        try:
            entries = self._encode(predictor, version, submission)
        except (ValueError, OSError) as error:
            self.faults[submission.image_id] = str(error)
            logger.warning("Image %r is no reference: %s", submission.image_id, error)
            return []
        self.faults.pop(submission.image_id, None)
        return entries

    def structures(self, version: str, *, image_id: str = "", patient: str | None = None) -> list[str]:
        """Names of the structures that have references for an image, in the order of their first submission."""
        fit = self._candidates(version, None, image_id, patient)
        return list(dict.fromkeys(entry.structure for entry in fit))

    def find(
        self,
        version: str,
        structure: str,
        query: ImageEmbedding | Sequence[ImageEmbedding],
        *,
        count: int = 3,
        image_id: str = "",
        patient: str | None = None,
        exclude: Collection[str] = (),
    ) -> list[Entry]:
        """The best references for a structure in a slice, at most `count` and `MOST`; of different cases if possible.

        Of several slices the one that an object is most like counts. Never of the image itself, of its patient, where
        that is known, nor of the images `exclude`. Empty if there is none.
        """
        if count < 1:
            raise ValueError(f"at least one reference must be asked for, got {count}")
        candidates = [
            entry for entry in self._candidates(version, structure, image_id, patient) if entry.image_id not in exclude
        ]
        if not candidates:
            return []
        queries = [query] if isinstance(query, ImageEmbedding) else query
        likeness = np.max([object_likeness(one.features.stride16[0], candidates) for one in queries], axis=0)
        order = [candidates[row] for row in np.argsort(-likeness, kind="stable")]
        first_of_case = list({entry.image_id: entry for entry in reversed(order)}.values())[::-1]
        others = [entry for entry in order if entry not in first_of_case]
        return [*first_of_case, *others][: min(count, MOST)]

    def references(self, predictor: Predictor, version: str, entries: Sequence[Entry]) -> References:
        """What the network keeps of `entries`, for one row of R references; float32, on the CPU."""
        parts = [(self._read(predictor, version, entry.key), entry.row) for entry in entries]

        def stacked(name: str) -> Tensor:
            return torch.stack([part[name][row] for part, row in parts])[None].float()

        summaries = (stacked("summary0"), stacked("summary1"), stacked("summary2"))
        return References(summaries, stacked("keys"), stacked("values"))

    def _candidates(self, version: str, structure: str | None, image_id: str, patient: str | None) -> list[Entry]:
        with self._lock:
            entries = [entry for case in self._version(version).values() for entry in case]
        return [
            entry
            for entry in entries
            if structure in (None, entry.structure) and entry.image_id != image_id and entry.patient != patient
        ]

    def _version(self, version: str) -> dict[str, list[Entry]]:
        """Entries by key of one version; all but the latest few versions are forgotten, on disk as well."""
        if version not in self._entries:
            self._entries[version] = {}
            for old in list(self._entries)[:-_KEPT_VERSIONS]:
                del self._entries[old]
            if self._folder.is_dir():
                for file in self._folder.glob("*.safetensors"):
                    if file.name.split("-")[0] not in self._entries:
                        file.unlink(missing_ok=True)
        return self._entries[version]

    def _encode(self, predictor: Predictor, version: str, submission: Submission) -> list[Entry]:
        """The entries of a case, from its file or by encoding it."""
        path = self._path(version, submission.key)
        found = _read_file(path)
        if found is None:
            case = self._load(submission)
            rows = [(name, number) for name in case.structures for number in chosen_slices(case.mask(name))]
            if not rows:
                return []
            tensors = encode_slices(predictor, case, rows, self._run)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, save(tensors, metadata={"rows": json.dumps(rows)}))
            found = tensors, rows
        tensors, rows = found
        self._remember(version, submission.key, tensors)
        return [
            Entry(
                submission.key, submission.image_id, submission.patient, name, number, row,
                tensors["prototype"][row], tensors["mean"][row],
            )
            for row, (name, number) in enumerate(rows)
        ]  # fmt: skip

    def _read(self, predictor: Predictor, version: str, key: str) -> dict[str, Tensor]:
        """The tensors of a case, from memory, its file, or encoded again where that is damaged."""
        kept = self._cache.get((version, key))
        if kept is None:
            found = _read_file(self._path(version, key))
            if found is None:
                self._encode(predictor, version, self._submissions[key])
                found = _read_file(self._path(version, key))
            if found is None:
                raise RequestError(f"what is kept of reference {self._submissions[key].image_id!r} cannot be read")
            kept = found[0]
            self._remember(version, key, kept)
        return kept

    def _remember(self, version: str, key: str, tensors: dict[str, Tensor]) -> None:
        self._cache.put((version, key), tensors, sum(tensor.nbytes for tensor in tensors.values()))

    def _path(self, version: str, key: str) -> Path:
        return self._folder / f"{version}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def chosen_slices(mask: NDArray[np.bool_], count: int = SLICES) -> list[int]:
    """At most `count` slices of a mask (slice, row, column), spread evenly over those that show enough of it."""
    areas = mask.sum(axis=(1, 2))
    return evenly_spaced(np.flatnonzero(areas >= max(1, SMALL * areas.max())), count)


@torch.inference_mode()
def encode_slices(
    predictor: Predictor,
    case: AnnotatedCase,
    rows: Sequence[tuple[str, int]],
    run: Callable[[Callable[[], Any]], Any],
) -> dict[str, Tensor]:
    """Summaries, keys and values (float16), prototypes and mean features (float32) of slices with a structure."""
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        images = [case.picture(number) for _, number in chosen]
        masks = [case.mask(name)[number] for name, number in chosen]
        encoded = run(partial(predictor.embed_references, images, masks))
        keys = encoded.keys[0].float().cpu()
        inside = object_shares(masks, predictor.model.config.native_size, (keys.shape[-2], keys.shape[-1]))
        weights = inside / inside.sum((1, 2), keepdim=True).clamp(min=1e-6)
        part = {f"summary{level}": summary[0] for level, summary in enumerate(encoded.summaries)}
        part |= {"keys": keys, "values": encoded.values[0]}
        part = {name: tensor.half().cpu() for name, tensor in part.items()}
        part["prototype"] = torch.einsum("nchw,nhw->nc", keys, weights)
        part["mean"] = keys.mean((2, 3))
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def object_shares(masks: Sequence[NDArray[np.bool_]], native: int, size: tuple[int, int]) -> Tensor:
    """How much of each pixel of the coarsest features an object covers, (n, h, w), on the references' square canvas."""
    canvas = torch.zeros(len(masks), 1, native, native)
    for number, mask in enumerate(masks):
        geometry = Geometry.fit((mask.shape[0], mask.shape[1]), native)
        rows, columns = geometry.padded
        canvas[number, :, :rows, :columns] = geometry.mask_to_model(mask)
    return F.interpolate(canvas, size, mode="area")[:, 0]


def object_likeness(features: Tensor, candidates: Sequence[Entry]) -> NDArray[np.float64]:
    """How like the candidates' objects something in the query is: the mean cosine of its nearest pixels, (n,).

    `features` (C, h, w) are the query's at stride 16. Features of all images share a large constant part, which is
    taken off first: the mean of the candidates' images.
    """
    centre = torch.stack([entry.mean for entry in candidates]).mean(0)
    prototypes = F.normalize(torch.stack([entry.prototype for entry in candidates]) - centre, dim=1)
    pixels = F.normalize(features.float().cpu().flatten(1) - centre[:, None], dim=0)
    nearest = (prototypes @ pixels).topk(min(_NEAREST, pixels.shape[1]), dim=1).values
    return nearest.mean(1).double().numpy()


def _read_file(path: Path) -> tuple[dict[str, Tensor], list[tuple[str, int]]] | None:
    """Tensors and rows of a case's file, None if there is none or it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            rows = [(str(name), int(number)) for name, number in json.loads(file.metadata()["rows"])]
            return {name: file.get_tensor(name) for name in file.keys()}, rows  # noqa: SIM118 - no mapping
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError):
        return None
