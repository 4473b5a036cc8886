# SPDX-License-Identifier: Apache-2.0
"""Volumes: a stored array becomes slices, prompts become masks of whole structures, in the voxels of the stored array.

    volume = VolumePredictor(predictor)
    volume.set_volume(array, affine)                       # (i, j, k) as nibabel gives it
    answer = volume.segment({"liver": StructurePrompts(clicks=[VoxelClick((120, 88, 40), True)])})
    answer.masks["liver"].mask                             # bool (i, j, k)

Requests are stateless: an answer depends on the volume, the prompts and the options alone. What was computed before is
kept in a `Store` under keys that name all that it depends on, so that a request computes only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kprism_model.image_kind import ImageKind
from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, ImageEmbedding, Predictor
from kprism_model.preprocess import evenly_spaced
from kprism_model.store import ByteStore, Store
from kprism_model.volumes.answer import StructureMask, VolumeAnswer, separate
from kprism_model.volumes.cleanup import fill_holes, largest_part
from kprism_model.volumes.data import Volume
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompt_history import PromptHistory
from kprism_model.volumes.prompts import SliceTask, StructurePrompts, VoxelClick, check_contradictions
from kprism_model.volumes.propagation import PropagationRules, Propagator
from kprism_model.volumes.slice_features import Question, SliceFeatures, search

__all__ = [
    "Extent",
    "PropagationRules",
    "StructureMask",
    "StructurePrompts",
    "Volume",
    "VolumeAnswer",
    "VolumePredictor",
    "VoxelClick",
]

OWN_STORE = 512 << 20
"""Bytes of the store that a predictor makes for itself."""

KIND_SLICES = 9
"""Slices that tell what kind of image a volume is."""

Extent = Literal["slice", "volume"] | tuple[int, int]
"""How far a structure is followed: prompted slices only, everywhere, or slices first to last (both included)."""

Progress = Callable[[int], object]


class VolumePredictor:
    """Answers about one volume; not for several threads at once, but any number of them may share a store and a lock.

    `store` keeps features and masks between requests; by default a `ByteStore` of this object's own. A store that is
    shared needs the `version` of the weights, which becomes part of every key. `lock` is held during each pass through
    the network, and not between them. `encoded_slices` and `decoded_rows` count passes since the volume was set.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        store: Store | None = None,
        version: str | None = None,
        lock: AbstractContextManager[Any] | None = None,
        rules: PropagationRules | None = None,
    ) -> None:
        if store is not None and version is None:
            raise ValueError("a store that is given needs the version of the weights, to tell their results apart")
        self.rules = rules or PropagationRules()
        self._predictor = predictor
        self._store = ByteStore(OWN_STORE) if store is None else store
        self._version = version or ""
        self._lock = nullcontext() if lock is None else lock
        self._volume: Volume | None = None
        self._features: SliceFeatures | None = None

    def set_volume(
        self,
        volume: NDArray[Any],
        affine: ArrayLike,
        *,
        plane: str | None = None,
        modality: str | None = None,
        units: str | None = None,
        window: tuple[float, float] | None = None,
    ) -> Volume:
        """Answer about this volume from now on; see `Volume.of`. Nothing is encoded yet."""
        found = Volume.of(volume, affine, plane=plane, modality=modality, units=units, window=window)
        self.use_volume(found)
        return found

    def use_volume(self, volume: Volume) -> None:
        """Answer about a volume that was cut and scaled before."""
        scope = ("volume", self._version, volume.digest)
        self._volume = volume
        self._features = SliceFeatures(self._predictor, volume.images, self._store, scope, self._lock)

    @property
    def volume(self) -> Volume:
        """The volume; ValueError before one is set."""
        if self._volume is None:
            raise ValueError("no volume is set: call set_volume or use_volume first")
        return self._volume

    @property
    def encoded_slices(self) -> int:
        """Slices, and windows of slices, encoded since the volume was set; those found in the store do not count."""
        return 0 if self._features is None else self._features.encoded

    @property
    def decoded_rows(self) -> int:
        """Rows (a structure on a slice) decoded since the volume was set."""
        return 0 if self._features is None else self._features.decoded

    def embed(self, numbers: Sequence[int]) -> list[ImageEmbedding]:
        """Encoded slices, in the order of `numbers`; those that are not in the store are encoded."""
        return self._encoded().embed(numbers)

    def image_kind(self) -> ImageKind | None:
        """What kind of image the volume is, told once for all of it from slices at equal distances.

        Slices weigh by their contrast, so that nearly empty ones at the ends say little.
        """
        features = self._encoded()
        numbers = evenly_spaced(range(len(features)), KIND_SLICES)
        contrast = [float(features.images[number].std()) for number in numbers]
        return self._predictor.image_kind(features.embed(numbers), contrast)

    def segment(
        self,
        structures: Mapping[str, StructurePrompts],
        *,
        extent: Extent = "volume",
        largest: Sequence[str] = (),
        fill: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> VolumeAnswer:
        """Segment each structure where it is prompted, and follow it from there as far as `extent` says.

        The rules are at the heads of `refinement` (prompted slices), `timeline` (what a correction starts from) and
        `propagation` (the slices between); where structures overlap, of `volume_answer.separate`. A structure changes
        on prompted slices and where it is followed; elsewhere it stays as its `before`. Of the structures named in
        `largest` only the largest part is kept, of those in `fill` holes are filled, in three dimensions. `progress` is
        called with the number of slices that were followed; what it raises ends the request. ValueError for no
        structure, no prompts, contradictory clicks, or anything outside of the volume.
        """
        features = self._encoded()
        if not structures:
            raise ValueError("no structure is asked for")
        check_contradictions(structures)
        _check_named([*largest, *fill], structures)
        limits = self._limits(extent)
        encoded, decoded = features.encoded, features.decoded
        follower = Propagator(features, self.volume.orientation.spacing, self.rules, progress)
        masks: dict[str, StructureMask] = {}
        for name, prompts in structures.items():
            task = SliceTask.of(name, prompts, self.volume.orientation)
            if not task.prompted:
                raise ValueError(f"{name!r} has no prompts: give clicks, scribbles or a mask")
            mask = self._segment(task, PromptHistory(task, limits, repr(self.rules)), follower)
            if name in largest or name in fill:
                mask = mask.cleaned(largest=name in largest, fill=name in fill)
            masks[name] = mask
        return VolumeAnswer(separate(masks), features.encoded - encoded, features.decoded - decoded)

    def predict_classes(
        self,
        class_names: Sequence[str],
        *,
        references: Mapping[str, References] | None = None,
        minimum_presence: float = THRESHOLD,
        slices: tuple[int, int] | None = None,
        largest: Sequence[str] = (),
        fill: Sequence[str] = (),
        priors: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Index map (i, j, k) of classes that the weights know: value n is the n-th name, 0 is none.

        The names in `references` are those of structures that labelled cases show instead. Each slice is encoded once
        for all of them. A structure that is less probable than `minimum_presence` to be in a slice stops there at the
        coarsest scale. `priors` of classes (see `ImageKind.possible`) multiply their presence; they are 1 by default.
        `slices` (first, last) restricts where to look; the rest as in `segment`; overlaps as in `merge_classes`.
        """
        shown, priors = references or {}, priors or {}
        asked = {
            name: Question(0, references=shown[name])
            if name in shown
            else Question(0, class_name=name, prior=priors.get(name, 1.0))
            for name in class_names
        }
        return self._everywhere(asked, minimum_presence, slices, largest, fill, progress)

    def predict_references(
        self,
        references: Mapping[str, References],
        *,
        minimum_presence: float = THRESHOLD,
        slices: tuple[int, int] | None = None,
        largest: Sequence[str] = (),
        fill: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> NDArray[np.uint8]:
        """Index map (i, j, k) of structures that labelled cases show; the rest as in `predict_classes`."""
        asked = {name: Question(0, references=shown) for name, shown in references.items()}
        return self._everywhere(asked, minimum_presence, slices, largest, fill, progress)

    def _everywhere(
        self,
        asked: Mapping[str, Question],
        minimum_presence: float,
        slices: tuple[int, int] | None,
        largest: Sequence[str],
        fill: Sequence[str],
        progress: Progress | None,
    ) -> NDArray[np.uint8]:
        if not asked or len(asked) > 255:
            raise ValueError(f"{len(asked)} structures are asked for; expected 1 to 255")
        _check_named([*largest, *fill], asked)
        first, last = (0, len(self.volume) - 1) if slices is None else self._checked(slices)
        labels, view = self.volume.empty_labels()
        for number, merged in search(self._encoded(), asked, range(first, last + 1), minimum_presence):
            view[number] = merged
            if progress is not None:
                progress(1)
        for value, name in enumerate(asked, start=1):
            if name in largest:
                whole = labels == value
                labels[whole & ~largest_part(whole)] = 0
            if name in fill:
                labels[fill_holes(labels == value) & (labels == 0)] = value
        return labels

    def _segment(self, task: SliceTask, timeline: PromptHistory, follower: Propagator) -> StructureMask:
        slices = {anchor.number: follower.mask(anchor) for anchor in timeline.anchors()}
        confidence = dict.fromkeys(slices, 1.0)
        prompted = tuple(slices)
        for stretch in timeline.stretches():
            found = follower.follow(stretch)
            for number in timeline.inside(stretch):
                slices[number] = found.patches.get(number, Patch.empty(self.volume.size))
            confidence |= {number: sure for number, sure in found.confidence.items() if number in slices}
        clicked = tuple((number, click) for number, click in task.clicks if click.positive)
        return StructureMask(self.volume.orientation, slices, prompted, confidence, task.before, clicked)

    def _encoded(self) -> SliceFeatures:
        if self._features is None:
            raise ValueError("no volume is set: call set_volume or use_volume first")
        return self._features

    def _limits(self, extent: Extent) -> tuple[int, int] | None:
        """The first and last slice to follow to; None for no following."""
        if extent == "slice":
            return None
        if extent == "volume":
            return 0, len(self.volume) - 1
        return self._checked(extent)

    def _checked(self, limits: object) -> tuple[int, int]:
        last = len(self.volume) - 1
        if isinstance(limits, Sequence) and not isinstance(limits, str) and len(limits) == 2:
            start, stop = limits
            if isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop <= last:
                return start, stop
        raise ValueError(f"slices are {limits!r}; expected 'slice', 'volume', or (first, last) within 0 to {last}")


def _check_named(chosen: Sequence[str], names: Iterable[str]) -> None:
    known = set(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"{name!r} is to be cleaned up but not asked for; asked for: {', '.join(sorted(known))}")
