# SPDX-License-Identifier: Apache-2.0
"""Prediction in volumes: masks of whole structures, in the voxels of the stored array.

    volume = VolumePredictor(predictor)
    volume.set_volume(array, affine)                       # (i, j, k) as nibabel gives it
    prediction = volume.segment({"liver": StructurePrompts(clicks=[VoxelClick((120, 88, 40), True)])})
    prediction.masks["liver"].mask                         # bool (i, j, k)

Requests are stateless: a result depends on the volume, the prompts and the options alone. Earlier results are kept in a
`Store`, under keys that name everything they depend on, so a request computes only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kprism_model.image_kind import ImageKind
from kprism_model.network.references import References
from kprism_model.predictor import THRESHOLD, ImageEmbedding, Predictor
from kprism_model.preprocess import evenly_spaced
from kprism_model.store import ByteStore, Store
from kprism_model.volumes.cleanup import fill_holes, keep_largest_component
from kprism_model.volumes.data import Volume
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prediction import StructureMask, VolumePrediction, resolve_overlaps
from kprism_model.volumes.prompt_history import PromptHistory
from kprism_model.volumes.prompts import PromptsBySlice, StructurePrompts, VoxelClick, check_contradictions
from kprism_model.volumes.propagation import Propagator
from kprism_model.volumes.propagation_rules import PropagationRules
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery, search_step, segment_slices
from kprism_model.volumes.slice_map import SliceMap

__all__ = [
    "Extent",
    "PropagationRules",
    "StructureMask",
    "StructurePrompts",
    "Volume",
    "VolumePrediction",
    "VolumePredictor",
    "VoxelClick",
]

DEFAULT_STORE_BYTES = 512 << 20
"""Size in bytes of the store that a predictor makes for itself."""

IMAGE_KIND_SLICES = 9
"""The kind of image of a volume is predicted from this many slices."""

Extent = Literal["slice", "volume"] | tuple[int, int]
"""How far masks are propagated: prompted slices only, the whole volume, or slices first to last (both included)."""

Progress = Callable[[int], object]

OnSlice = Callable[[str, int, NDArray[np.bool_]], object]
"""Called with a structure, a slice and its mask (row, column), before overlaps are resolved and masks cleaned up."""

OnLabels = Callable[[int, NDArray[np.uint8]], object]
"""Called with a slice and its index map (row, column), before it is cleaned up."""


class VolumePredictor:
    """Predicts masks in one volume. One object serves one thread; several objects may share a store and a lock.

    `store` keeps features and masks between requests; by default each object has a `ByteStore` of its own. A shared
    store needs the `version` of the weights, which becomes part of every key. `lock` is held during each pass through
    the network, and not between passes. `encoded_slices` and `decoded_rows` count passes since the volume was set.
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
            raise ValueError(
                "a shared store needs the version of the weights, so that results of other weights are not used"
            )
        self.rules = rules or PropagationRules()
        self._predictor = predictor
        self._store = ByteStore(DEFAULT_STORE_BYTES) if store is None else store
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
        slice_axis: int | None = None,
        modality: str | None = None,
        units: str | None = None,
        window: tuple[float, float] | None = None,
    ) -> Volume:
        """Use this volume from now on; for the arguments see `Volume.of`. Nothing is encoded yet."""
        prepared = Volume.of(
            volume, affine, plane=plane, slice_axis=slice_axis, modality=modality, units=units, window=window
        )
        self.use_volume(prepared)
        return prepared

    def use_volume(self, volume: Volume) -> None:
        """Use a volume that is already cut into slices and scaled."""
        scope = ("volume", self._version, volume.digest)
        self._volume = volume
        self._features = SliceFeatures(self._predictor, volume.images, self._store, scope, self._lock)

    @property
    def volume(self) -> Volume:
        """The volume; ValueError if none is set."""
        if self._volume is None:
            raise ValueError("no volume is set: call set_volume or use_volume first")
        return self._volume

    @property
    def encoded_slices(self) -> int:
        """Slices and windows of slices encoded since the volume was set; results from the store do not count."""
        return 0 if self._features is None else self._features.encoded

    @property
    def decoded_rows(self) -> int:
        """Rows (a structure on a slice) decoded since the volume was set."""
        return 0 if self._features is None else self._features.decoded

    def embed(self, numbers: Sequence[int]) -> list[ImageEmbedding]:
        """Encoded slices, in the order of `numbers`; slices that are not in the store are encoded."""
        return self._encoded().embed(numbers)

    def image_kind(self) -> ImageKind | None:
        """The kind of image of the whole volume, predicted from slices at equal distances.

        Slices are weighted by their contrast, so that nearly empty ones at the ends count little.
        """
        features = self._encoded()
        numbers = evenly_spaced(range(len(features)), IMAGE_KIND_SLICES)
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
        on_slice: OnSlice | None = None,
    ) -> VolumePrediction:
        """Segment each structure on its prompted slices, and propagate its masks as far as `extent` says.

        The rules are in the docstrings of `refinement` (prompted slices), `prompt_history` (the mask that a correction
        starts from), `propagation` (the slices between) and `prediction.resolve_overlaps`. A structure changes on its
        prompted slices and where it is propagated; elsewhere its `previous_mask` stays. Structures named in `largest`
        keep only their largest component, and holes of those in `fill` are filled, both in three dimensions. `progress`
        is called with the number of slices that were propagated, and `on_slice` with each mask that is found; an
        exception in them ends the request. ValueError if there is no structure, no prompt, a contradiction between
        clicks, or a prompt outside the volume.
        """
        features = self._encoded()
        if not structures:
            raise ValueError("no structure is given; expected one or more")
        check_contradictions(structures)
        _check_named([*largest, *fill], structures)
        limits = self._limits(extent)
        encoded, decoded = features.encoded, features.decoded
        propagator = Propagator(features, self.volume.orientation.spacing, self.rules, progress)
        masks: dict[str, StructureMask] = {}
        for name, prompts in structures.items():
            by_slice = PromptsBySlice.of(name, prompts, self.volume.orientation)
            if not by_slice.prompted:
                raise ValueError(f"{name!r} has no prompts: give clicks, scribbles or a mask")
            history = PromptHistory(by_slice, limits, repr(self.rules))
            propagator.on_mask = None if on_slice is None else partial(on_slice, name)
            mask = self._segment(by_slice, history, propagator)
            if name in largest or name in fill:
                mask = mask.cleaned(largest=name in largest, fill=name in fill)
            masks[name] = mask
        return VolumePrediction(resolve_overlaps(masks), features.encoded - encoded, features.decoded - decoded)

    def predict_classes(self, class_names: Sequence[str], **settings: Any) -> NDArray[np.uint8]:
        """Index map (i, j, k) of classes that the network knows: value n is the n-th name, 0 is background.

        `settings` as in `classes_by_slice`.
        """
        return self.classes_by_slice(class_names, **settings).volume()

    def classes_by_slice(
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
        on_slice: OnLabels | None = None,
    ) -> SliceMap[np.uint8]:
        """Index map of classes that the network knows: value n is the n-th name, 0 is background.

        Names in `references` are structures that are given by labelled cases instead. Each slice is encoded once for
        all structures. A structure whose presence in a slice is less probable than `minimum_presence` stops at the
        coarsest scale there. `priors` of classes (see `ImageKind.possible`; default 1) multiply their presence.
        `slices` (first, last) limits the search. The rest is as in `segment`; overlaps are as in `merge_classes`.
        """
        references, priors = references or {}, priors or {}
        queries = {
            name: SliceQuery(0, references=references[name])
            if name in references
            else SliceQuery(0, class_name=name, prior=priors.get(name, 1.0))
            for name in class_names
        }
        return self._predict_slices(queries, minimum_presence, slices, largest, fill, progress, on_slice)

    def predict_references(self, references: Mapping[str, References], **settings: Any) -> NDArray[np.uint8]:
        """Index map (i, j, k) of structures that are given by labelled cases; the rest is as in `predict_classes`."""
        return self.classes_by_slice(list(references), references=references, **settings).volume()

    def _predict_slices(
        self,
        queries: Mapping[str, SliceQuery],
        minimum_presence: float,
        slices: tuple[int, int] | None,
        largest: Sequence[str],
        fill: Sequence[str],
        progress: Progress | None,
        on_slice: OnLabels | None,
    ) -> SliceMap[np.uint8]:
        if not queries or len(queries) > 255:
            raise ValueError(f"{len(queries)} structures are given; expected 1 to 255")
        _check_named([*largest, *fill], queries)
        first, last = (0, len(self.volume) - 1) if slices is None else self._checked(slices)
        found: dict[int, NDArray[np.uint8]] = {}
        step = search_step(self.volume.orientation.spacing[0])
        for number, merged in segment_slices(self._encoded(), queries, range(first, last + 1), minimum_presence, step):
            if merged.any():
                found[number] = merged
                if on_slice is not None:
                    on_slice(number, merged)
            if progress is not None:
                progress(1)
        labels = SliceMap(self.volume.orientation, np.dtype(np.uint8), found)
        return _cleaned(labels, list(queries), largest, fill) if largest or fill else labels

    def _segment(self, by_slice: PromptsBySlice, history: PromptHistory, propagator: Propagator) -> StructureMask:
        masks = {one.number: propagator.mask(one) for one in history.in_order()}
        slices = dict(sorted(masks.items()))
        confidence = dict.fromkeys(slices, 1.0)
        prompted = tuple(slices)
        for slice_range in history.slice_ranges():
            propagated = propagator.propagate(slice_range)
            for number in history.within_limits(slice_range):
                slices[number] = propagated.patches.get(number, Patch.empty(self.volume.size))
            confidence |= {number: value for number, value in propagated.confidence.items() if number in slices}
        positive = tuple((number, click) for number, click in by_slice.clicks if click.positive)
        return StructureMask(self.volume.orientation, slices, prompted, confidence, by_slice.previous_mask, positive)

    def _encoded(self) -> SliceFeatures:
        if self._features is None:
            raise ValueError("no volume is set: call set_volume or use_volume first")
        return self._features

    def _limits(self, extent: Extent) -> tuple[int, int] | None:
        """The first and last slice to propagate to; None for no propagation."""
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
            raise ValueError(
                f"{name!r} is in `largest` or `fill` but is not segmented; segmented are: {', '.join(sorted(known))}"
            )


def _cleaned(
    labels: SliceMap[np.uint8], names: Sequence[str], largest: Sequence[str], fill: Sequence[str]
) -> SliceMap[np.uint8]:
    """The index map with only the largest component of some structures, and the holes of some filled, in 3-D."""
    volume = labels.volume()
    for value, name in enumerate(names, start=1):
        if name in largest:
            whole = volume == value
            volume[whole & ~keep_largest_component(whole)] = 0
        if name in fill:
            volume[fill_holes(volume == value) & (volume == 0)] = value
    return SliceMap.of(volume, labels.orientation)
