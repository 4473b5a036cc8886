# SPDX-License-Identifier: Apache-2.0
"""The reference cache: labelled cases, encoded once for each network (a `version` is the hash of its weights).

A case has up to `SLICES_PER_STRUCTURE` slices for each structure. The encoded slice (object summaries, features of
image and mask) is kept on disk and, within a budget, in memory. A prototype of the object, the mean of the image
features under its mask, always stays in memory: the references of a query are the entries whose prototype is most
similar to something in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
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
from kprism_model.store import ByteStore
from lib.errors import RETRY_SECONDS, RequestError, is_passing
from lib.learning.reference_encoding import chosen_slices, encode_slices
from lib.learning.submission_store import Submission

logger = logging.getLogger(__name__)

MAX_REFERENCES = 5
"""The most references that one prediction can use."""

_NEAREST_PIXELS = 5  # of the query, at stride 16


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
    """References by structure. `load` reads a submission's case, `run` calls the network, `budget` is in bytes."""

    def __init__(
        self,
        folder: Path,
        load: Callable[[Submission], AnnotatedCase],
        *,
        run: Callable[[Callable[[], Any]], Any] = lambda compute: compute(),
        budget: int = 256 << 20,
    ) -> None:
        self._folder, self._load, self._run = folder, load, run
        self._memory = ByteStore(budget)
        self._entries: dict[str, dict[str, list[Entry]]] = {}
        self._submissions: dict[str, dict[str, Submission]] = {}
        self._postponed: dict[tuple[str, str], float] = {}  # version and key -> when to try again
        self._in_use: set[str] = set()
        self._lock = RLock()
        self._updating = Lock()
        self.faults: dict[str, str] = {}

    def update(
        self,
        predictor: Predictor,
        version: str,
        submissions: Iterable[Submission],
        *,
        limit: int | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> int:
        """Encode new `submissions` with this version and remove all others of it; returns how many were encoded.

        With `limit` at most this many are encoded, the newest. A case that cannot be read is left out until its label
        changes, for a while only if the error may pass; `faults` says why, by image id. Before each case, `go_on` says
        whether to encode it.
        """
        submissions, now = list(submissions), time.monotonic()
        with self._lock:
            known = self._version(version)
            self._submissions[version] = {submission.key: submission for submission in submissions}
            for gone in set(known) - set(self._submissions[version]):
                del known[gone]
            missing = [
                submission
                for submission in submissions
                if submission.key not in known and self._postponed.get((version, submission.key), now) <= now
            ]
        if limit is not None:
            missing = sorted(missing, key=lambda submission: -submission.at)[:limit]
        encoding = takewhile(lambda submission: go_on(), missing)
        return sum(self._add(predictor, version, submission) for submission in encoding)

    def keep(self, versions: Collection[str]) -> None:
        """Remove the references of all versions but these and those of the call before, on disk as well.

        Requests that began before the last call still use the versions of that time.
        """
        with self._lock:
            if self._in_use == set(versions):
                return
            kept = self._in_use.union(versions)
            self._in_use = set(versions)
            for version in set(self._entries) - kept:
                del self._entries[version]
                self._submissions.pop(version, None)
            self._postponed = {place: due for place, due in self._postponed.items() if place[0] in kept}
            for file in self._folder.glob("*.safetensors"):
                if file.name.split("-")[0] not in kept:
                    file.unlink(missing_ok=True)

    def _add(self, predictor: Predictor, version: str, submission: Submission) -> bool:
        """Encode a case, unless another thread has done so; one at a time. False if it has to be tried again later."""
        with self._updating:
            with self._lock:
                if submission.key in self._version(version):
                    return False
            entries = self._try_to_encode(predictor, version, submission)
            with self._lock:
                self._postponed.pop((version, submission.key), None)
                if entries is None:
                    self._postponed[version, submission.key] = time.monotonic() + RETRY_SECONDS
                    return False
                self._version(version)[submission.key] = entries
        return True

    def _try_to_encode(self, predictor: Predictor, version: str, submission: Submission) -> list[Entry] | None:
        """The entries of a case; none if it cannot be read, None if it may be readable later."""
        try:
            entries = self._encode(predictor, version, submission)
        except (ValueError, OSError) as error:
            self.faults[submission.image_id] = str(error)
            passing = is_passing(error)
            logger.warning(
                "Image %r cannot be a reference%s: %s", submission.image_id, " now" if passing else "", error
            )
            return None if passing else []
        self.faults.pop(submission.image_id, None)
        return entries

    def structures(self, version: str, *, image_id: str = "", patient: str | None = None) -> list[str]:
        """Names of the structures that have references for an image, in the order of their first submission."""
        entries = self._candidates(version, None, image_id, patient)
        return list(dict.fromkeys(entry.structure for entry in entries))

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
        """The best references for a structure in a slice or slices, of different cases if possible.

        At most `count` and at most `MAX_REFERENCES`. With several slices the most similar one counts. Never from the
        image itself, its patient (if known) or the images `exclude`. Empty if there is none.
        """
        if count < 1:
            raise ValueError(f"at least one reference must be asked for, got {count}")
        candidates = [
            entry for entry in self._candidates(version, structure, image_id, patient) if entry.image_id not in exclude
        ]
        if not candidates:
            return []
        queries = [query] if isinstance(query, ImageEmbedding) else query
        similarity = np.max([object_similarity(one.features.stride16[0], candidates) for one in queries], axis=0)
        order = [candidates[row] for row in np.argsort(-similarity, kind="stable")]
        first_of_case = list({entry.image_id: entry for entry in reversed(order)}.values())[::-1]
        others = [entry for entry in order if entry not in first_of_case]
        return [*first_of_case, *others][: min(count, MAX_REFERENCES)]

    def references(self, predictor: Predictor, version: str, entries: Sequence[Entry]) -> References:
        """The encoded `entries` as one row of R references; float32, on the CPU."""
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
        """Entries of a version by key."""
        return self._entries.setdefault(version, {})

    def _encode(self, predictor: Predictor, version: str, submission: Submission) -> list[Entry]:
        """The entries of a case, from its file or by encoding it."""
        path = self._path(version, submission.key)
        stored = _read_file(path)
        if stored is None:
            case = self._load(submission)
            rows = [(name, number) for name in case.structures for number in chosen_slices(case.mask(name))]
            if not rows:
                return []
            tensors = encode_slices(predictor, case, rows, self._run)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, save(tensors, metadata={"rows": json.dumps(rows)}))
            stored = tensors, rows
        tensors, rows = stored
        self._keep_in_memory(version, submission.key, tensors)
        return [
            Entry(
                submission.key, submission.image_id, submission.patient, name, number, row,
                tensors["prototype"][row], tensors["mean"][row],
            )
            for row, (name, number) in enumerate(rows)
        ]  # fmt: skip

    def _read(self, predictor: Predictor, version: str, key: str) -> dict[str, Tensor]:
        """The tensors of a case, from memory or its file; encoded again if that is damaged."""
        tensors = self._memory.get((version, key))
        if tensors is None:
            stored = _read_file(self._path(version, key))
            if stored is None:
                self._encode(predictor, version, self._submissions[version][key])
                stored = _read_file(self._path(version, key))
            if stored is None:
                raise RequestError(f"the encoded reference {self._submissions[version][key].image_id!r} cannot be read")
            tensors = stored[0]
            self._keep_in_memory(version, key, tensors)
        return tensors

    def _keep_in_memory(self, version: str, key: str, tensors: dict[str, Tensor]) -> None:
        self._memory.put((version, key), tensors, sum(tensor.nbytes for tensor in tensors.values()))

    def _path(self, version: str, key: str) -> Path:
        return self._folder / f"{version}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def object_similarity(features: Tensor, candidates: Sequence[Entry]) -> NDArray[np.float64]:
    """Similarity of each candidate's object to something in the query, (n,): the mean cosine of the nearest pixels.

    `features` (C, h, w) are the query's at stride 16. Features of all images share a large constant part, so the mean
    of the candidates' images is subtracted first.
    """
    centre = torch.stack([entry.mean for entry in candidates]).mean(0)
    prototypes = F.normalize(torch.stack([entry.prototype for entry in candidates]) - centre, dim=1)
    pixels = F.normalize(features.float().cpu().flatten(1) - centre[:, None], dim=0)
    nearest = (prototypes @ pixels).topk(min(_NEAREST_PIXELS, pixels.shape[1]), dim=1).values
    return nearest.mean(1).double().numpy()


def _read_file(path: Path) -> tuple[dict[str, Tensor], list[tuple[str, int]]] | None:
    """Tensors and rows of a case's file; None if there is no file or it is damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            rows = [(str(name), int(number)) for name, number in json.loads(file.metadata()["rows"])]
            return {name: file.get_tensor(name) for name in file.keys()}, rows  # noqa: SIM118 - no mapping
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError):
        return None
