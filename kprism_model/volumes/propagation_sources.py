# SPDX-License-Identifier: Apache-2.0
"""The slices from which a structure is propagated, as references: encoded in windows, and adapted to their volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.network.references import References
from kprism_model.volumes.adaptation import AdaptationRules, Offsets, with_offsets
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompts import digest, digest_of
from kprism_model.volumes.propagation_rules import PropagationRules
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery
from kprism_model.window import Box, Window, window_around, window_of_side
from kprism_model.windowed import RULES

T = TypeVar("T")


class Cached(Protocol):
    """The result of a kind under a key; computed if it is not kept."""

    def __call__(self, kind: str, key: str, compute: Callable[[], T]) -> T:
        """The kept or computed result."""


@dataclass(frozen=True, eq=False)
class PropagationSource:
    """A prompted slice with its mask, from which a structure is propagated."""

    number: int
    mask: Patch
    box: Box

    @classmethod
    def of(cls, number: int, mask: Patch) -> PropagationSource | None:
        """The slice as a source; None if its mask is empty."""
        return cls(number, mask, box_of(mask.mask())) if mask.any else None

    def key(self, *more: str) -> str:
        """A key of the slice's mask and of `more`."""
        return digest(self._own_key, *more)

    @cached_property
    def _own_key(self) -> str:
        return digest(str(self.number), digest_of(self.mask.values), repr(self.mask.corner))


class SourceReferences:
    """Sources as references, in windows of one volume. `on_step` is called while a reference is adapted."""

    def __init__(
        self, features: SliceFeatures, rules: PropagationRules, cached: Cached, on_step: Callable[[], object]
    ) -> None:
        self._features = features
        self._rules = rules
        self._cached = cached
        self._on_step = on_step

    def window(self, box: Box, wider_than: int = 0) -> Window:
        """The window around a mask's box; the whole slice if no window shows more."""
        return window_around(self._features.size, self._features.native_size, [box], RULES, wider_than=wider_than)

    def encode(self, source: PropagationSource, side: int) -> References:
        """A source in a window of `side` pixels around its mask, as a reference."""
        window = self._own_window(source, side)

        def encode() -> References:
            return self._features.reference(source.number, source.mask.mask(), window)

        return self._cached("reference", source.key(repr(window)), encode)

    def adapted(self, source: PropagationSource, side: int) -> References:
        """The same, adapted to the source's own slice (`adaptation`) if the rules say so."""
        reference, rules = self.encode(source, side), self._rules.adaptation
        return reference if rules is None else with_offsets(reference, self._offsets(source, rules))

    def is_adapted(self, source: PropagationSource) -> bool:
        """Whether the source's adaptation is known already, or is not wanted."""
        rules = self._rules.adaptation
        return rules is None or self._features.kept("offsets", source.key(repr(rules)))

    def is_supported(self, number: int, patch: Patch, source: PropagationSource, window: Window) -> bool:
        """Whether `source` alone supports the mask of a slice, see `PropagationRules.support`."""
        if not self._rules.support:
            return True
        own = self._own_window(source, window.longest)

        def expected() -> float:
            return self._support(source.number, source.mask, source, own)

        minimum = self._rules.support * self._cached("support", source.key(repr(own), repr(self._rules)), expected)
        return self._support(number, patch, source, window) >= minimum

    def _support(self, number: int, patch: Patch, source: PropagationSource, window: Window) -> float:
        """Mean probability inside the mask of a slice, predicted in a window from the reference `source` alone."""
        query = SliceQuery(number, references=self.adapted(source, window.longest), window=window)
        [prediction] = self._features.predict([query])
        return float(prediction.probability[patch.mask()].mean(dtype=np.float64))

    def _offsets(self, source: PropagationSource, rules: AdaptationRules) -> Offsets:
        """The adaptation of a source, fitted once for windows of all sizes."""

        def fit() -> Offsets:
            side = self.window(source.box).longest
            reference, window = self.encode(source, side), self._own_window(source, side)
            return self._features.adapt(reference, source.number, source.mask.mask(), window, rules, self._on_step)

        return self._cached("offsets", source.key(repr(rules)), fit)

    def _own_window(self, source: PropagationSource, side: int) -> Window:
        """The window of `side` pixels around a source's own mask."""
        return window_of_side(source.box, side, self._features.size)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The box of a mask that is not empty."""
    box = Box.around(mask)
    if box is None:
        raise ValueError("a mask is empty; expected at least one pixel")
    return box
