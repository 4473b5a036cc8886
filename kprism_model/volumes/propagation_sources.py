# SPDX-License-Identifier: Apache-2.0
"""The slices from which a structure is propagated, as references: encoded in windows, and adapted to their volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kprism_model.network.references import References
from kprism_model.volumes.adaptation import Offsets, with_offsets
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
    """A slice with its mask, from which a structure is propagated: a prompted one, or one of the last.

    `adapted` says whether it is adapted before it is a reference (`adaptation`).
    """

    number: int
    mask: Patch
    box: Box
    adapted: bool = False

    @classmethod
    def of(cls, number: int, mask: Patch) -> PropagationSource | None:
        """The slice as a source; None if its mask is empty."""
        return cls(number, mask, box_of(mask.mask())) if mask.any else None

    def key(self, *more: str) -> str:
        """A key of the slice's mask and of `more`."""
        return digest(str(self.number), digest_of(self.mask.values), repr(self.mask.corner), *more)


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
        if not self._rules.window:
            return Window.whole(self._features.size)
        return window_around(self._features.size, self._features.native_size, [box], RULES, wider_than=wider_than)

    def encode(self, source: PropagationSource, side: int) -> References:
        """A source in a window of `side` pixels around its mask, as a reference."""
        window = window_of_side(source.box, side, self._features.size)
        reference = self._cached("reference", source.key(repr(window)), lambda: self._encode(source, window))
        if not source.adapted or self._rules.adaptation is None:
            return reference
        return with_offsets(reference, self._offsets(source))

    def is_supported(self, number: int, patch: Patch, source: PropagationSource, window: Window) -> bool:
        """Whether `source` alone supports the mask of a slice, see `PropagationRules.support`."""
        if not self._rules.support:
            return True
        own = window_of_side(source.box, window.longest, self._features.size)

        def expected() -> float:
            return self._support(source.number, source.mask, source, own)

        minimum = self._rules.support * self._cached("support", source.key(repr(own), repr(self._rules)), expected)
        return self._support(number, patch, source, window) >= minimum

    def _support(self, number: int, patch: Patch, source: PropagationSource, window: Window) -> float:
        """Mean probability inside the mask of a slice, predicted in a window from the reference `source` alone."""
        query = SliceQuery(number, references=self.encode(source, window.longest), window=window)
        [prediction] = self._features.predict([query])
        return float(prediction.probability[patch.mask()].mean(dtype=np.float64))

    def _encode(self, source: PropagationSource, window: Window) -> References:
        return self._features.reference(source.number, source.mask.mask(), window)

    def _offsets(self, source: PropagationSource) -> Offsets:
        """The adaptation of a source, fitted once for windows of all sizes."""
        rules = self._rules.adaptation
        if rules is None:
            raise ValueError("the rules of propagation have no adaptation")
        window = window_of_side(source.box, self.window(source.box).longest, self._features.size)
        reference = self._cached("reference", source.key(repr(window)), lambda: self._encode(source, window))

        def fit() -> Offsets:
            return self._features.adapt(reference, source.number, source.mask.mask(), window, rules, self._on_step)

        return self._cached("offsets", source.key(repr(rules)), fit)


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The box of a mask that is not empty."""
    box = Box.around(mask)
    if box is None:
        raise ValueError("a mask is empty; expected at least one pixel")
    return box
