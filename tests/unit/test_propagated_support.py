# SPDX-License-Identifier: Apache-2.0
"""Where a propagated structure ends because its prompted slice does not support it; the network has no part in it."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.store import ByteStore
from kprism_model.volumes.patches import Patch
from kprism_model.volumes.prompt_history import PromptedSlice, SliceRange
from kprism_model.volumes.prompts import SlicePrompts
from kprism_model.volumes.propagation import Propagator
from kprism_model.volumes.propagation_rules import PropagationRules
from kprism_model.volumes.propagation_sources import PropagationSource, SourceReferences
from kprism_model.volumes.slice_features import SliceFeatures
from kprism_model.window import Window

SLICES, SIZE, PROMPTED = 30, (16, 16), 15


def drawn() -> Patch:
    mask = np.zeros(SIZE, bool)
    mask[4:9, 5:11] = True
    return Patch.of(mask)


class Walk:
    """A walk through slices that all show the structure up to `shown`; `unsupported` are the slices without support."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, unsupported: set[int], shown: range = range(SLICES)) -> None:
        self.asked: list[int] = []
        self.steps: list[int] = []

        def following(
            propagator: Propagator, number: int, source: PropagationSource, last: Patch, prior: object
        ) -> tuple[Patch, Window]:
            return drawn() if number in shown else Patch.empty(SIZE), Window.whole(SIZE)

        def supported(
            sources: SourceReferences, number: int, patch: Patch, source: PropagationSource, window: Window
        ) -> bool:
            self.asked.append(number)
            return number not in unsupported

        monkeypatch.setattr(Propagator, "_next", following)
        monkeypatch.setattr(SourceReferences, "is_supported", supported)

    def found(self, first: int, last: int, spacing: float = 1.0) -> list[int]:
        """The slices `first` to `last` with a mask; one of the two is beside the prompted slice."""
        predictor = Predictor(KPrism(KPrismConfig.tiny(native_size=32)), ClassRegistry(("a", "b", "c", "d")))
        images = np.zeros((SLICES, *SIZE), np.float32)
        features = SliceFeatures(predictor, images, ByteStore(1 << 20), ("test",), nullcontext())
        prompted = PromptedSlice(SlicePrompts(PROMPTED, (), None), None, drawn(), None)
        before, after = (prompted, None) if first > PROMPTED else (None, prompted)
        propagator = Propagator(features, (spacing, 1.0, 1.0), PropagationRules(), self.steps.append)
        return sorted(propagator.propagate(SliceRange(before, after, first, last, "rules")).patches)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_support_is_asked_every_few_millimetres_and_on_the_last_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, set())
    assert walk.found(16, 29) == list(range(16, 30))
    assert walk.asked == [19, 23, 27, 29] and sum(walk.steps) == 14
    assert walk.found(0, 14) == list(range(15))
    assert walk.asked[4:] == [11, 7, 3, 0]


@pytest.mark.parametrize(
    ("unsupported", "last"), [({22, 23}, 21), (set(range(20, 30)), 19), ({29}, 28), ({16, 19}, 15)]
)
def test_the_structure_ends_before_the_first_slice_without_support(
    unsupported: set[int], last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Walk(monkeypatch, unsupported).found(16, 29) == list(range(16, last + 1))


def test_the_last_slice_of_a_structure_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, {21, 22}, shown=range(23))
    assert walk.found(16, 29) == [16, 17, 18, 19, 20] and walk.asked == [19, 22, 20, 21]


@pytest.mark.parametrize("unsupported", [{20}, {20, 21}, {22, 23}, set(range(21, 30)), {29}])
@pytest.mark.parametrize("limit", [16, 18, 19, 20, 21, 22, 28])
def test_a_limit_changes_no_mask(limit: int, unsupported: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, unsupported)
    whole = walk.found(16, 29)
    assert walk.found(16, limit) == [number for number in whole if number <= limit]
    mirrored = Walk(monkeypatch, {2 * PROMPTED - number for number in unsupported})
    whole = mirrored.found(0, 14)
    assert mirrored.found(2 * PROMPTED - limit, 14) == [number for number in whole if number >= 2 * PROMPTED - limit]


def test_thick_slices_are_all_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch, {21})
    assert walk.found(16, 29, spacing=5.0) == [16, 17, 18, 19, 20]
    assert walk.asked == [16, 17, 18, 19, 20, 21]
