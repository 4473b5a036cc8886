# SPDX-License-Identifier: Apache-2.0
"""The class of a structure in propagation: it has a say where it agrees with the prompted slices, and nowhere else."""

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
from kprism_model.volumes.class_prior import ClassPrior
from kprism_model.volumes.predictor import PropagationRules, StructurePrompts, VolumePrediction, VolumePredictor
from kprism_model.volumes.slice_features import SliceFeatures, SliceQuery

IMAGES = np.random.default_rng(0).uniform(0, 1, (5, 24, 20)).astype(np.float32)
MIDDLE = 2


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A network with random weights that takes every class for present."""
    torch.manual_seed(0)
    model = KPrism(KPrismConfig.tiny(native_size=32))
    torch.nn.init.constant_(model.decoder.presence[-1].bias, 10.0)
    return Predictor(model, ClassRegistry(("a", "b", "c", "d")))


@pytest.fixture
def features(predictor: Predictor) -> SliceFeatures:
    return SliceFeatures(predictor, IMAGES, ByteStore(1 << 24), ("test",), nullcontext())


def known(features: SliceFeatures, number: int) -> np.ndarray:
    """What the network takes for the class "a" on a slice: neither nothing nor everything."""
    [prediction] = features.predict([SliceQuery(number, class_name="a")])
    mask = prediction.mask_if_present
    assert mask.any() and not mask.all()
    return mask


def test_a_class_that_agrees_has_all_of_its_share(features: SliceFeatures) -> None:
    prior = ClassPrior.of(features, "a", [(MIDDLE, known(features, MIDDLE))], 0.6)
    assert prior.share == pytest.approx(0.6)
    [one, other] = (features.predict([SliceQuery(3, class_name=name)])[0] for name in ("b", "a"))
    joined = prior.joined(3, one)
    np.testing.assert_allclose(joined.probability, 0.4 * one.probability + 0.6 * other.probability, atol=1e-6)
    np.testing.assert_array_equal(joined.mask, joined.probability >= 0.5)
    assert joined.presence == pytest.approx(0.4 * one.presence + 0.6 * other.presence)


def test_a_class_that_disagrees_has_no_say(features: SliceFeatures) -> None:
    prior = ClassPrior.of(features, "a", [(MIDDLE, ~known(features, MIDDLE))], 0.6)
    assert prior.share == 0
    [prediction] = features.predict([SliceQuery(3, class_name="b")])
    assert prior.joined(3, prediction) is prediction


def test_agreement_is_the_mean_over_prompted_slices(features: SliceFeatures) -> None:
    right, wrong = (MIDDLE, known(features, MIDDLE)), (4, ~known(features, 4))
    assert ClassPrior.of(features, "a", [right, wrong], 0.6).share == pytest.approx(0)  # mean Dice 0.5
    two_thirds = ClassPrior.of(features, "a", [right, (1, known(features, 1)), wrong], 0.6).share
    assert two_thirds == pytest.approx(0.6 * (2 / 3 - 0.5) / 0.3)


def test_a_class_that_the_network_does_not_know_is_refused(features: SliceFeatures) -> None:
    with pytest.raises(ValueError, match="spleen"):
        ClassPrior.of(features, "spleen", [(MIDDLE, np.ones((24, 20), bool))], 0.6)


def propagated(predictor: Predictor, mask: np.ndarray, known_class: str | None, store: ByteStore) -> VolumePrediction:
    """A mask on the middle slice, propagated."""
    volume = VolumePredictor(predictor, store=store, version="1", rules=PropagationRules(presence=0, support=0))
    volume.set_volume(IMAGES.T, np.diag([-1, -1, 3, 1]))
    drawn = np.zeros(volume.volume.orientation.shape, bool)
    volume.volume.orientation.to_slices(drawn)[MIDDLE] = mask
    return volume.segment({"s": StructurePrompts(initial_mask=drawn, known_class=known_class)})


def test_a_request_is_answered_with_the_class_and_without_it_from_one_store(predictor: Predictor) -> None:
    store = ByteStore(1 << 26)
    reader = VolumePredictor(predictor)
    reader.set_volume(IMAGES.T, np.diag([-1, -1, 3, 1]))
    agreeing = reader.volume.orientation.to_slices(reader.predict_classes(["a"]) == 1)[MIDDLE]
    answers = {
        (name, kind): propagated(predictor, mask, kind, store).masks["s"].mask
        for name, mask in {"agreeing": agreeing, "disagreeing": ~agreeing}.items()
        for kind in (None, "a")
    }
    assert not np.array_equal(answers["agreeing", None], answers["agreeing", "a"])
    np.testing.assert_array_equal(answers["disagreeing", None], answers["disagreeing", "a"])
    for (name, kind), mask in answers.items():
        alone = propagated(predictor, agreeing if name == "agreeing" else ~agreeing, kind, ByteStore(1 << 26))
        np.testing.assert_array_equal(alone.masks["s"].mask, mask)
