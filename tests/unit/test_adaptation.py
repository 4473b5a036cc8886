# SPDX-License-Identifier: Apache-2.0
"""Adaptation of a reference to its own slice, on a small network with random weights."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.network.references import References
from kprism_model.predictor import Predictor
from kprism_model.volumes.adaptation import AdaptationRules, Offsets, _Adam, fit_offsets, with_offsets

SIZE = (40, 30)


class CancelledError(Exception):
    pass


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(native_size=64)), ClassRegistry(("a", "b", "c", "d")))


def disc() -> np.ndarray:
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    return (rows - 22) ** 2 + (columns - 14) ** 2 <= 49


def picture() -> np.ndarray:
    noise = np.random.default_rng(0).uniform(0, 0.1, SIZE)
    return (0.6 * disc() + 0.2 + noise).astype(np.float32)


def adapted(predictor: Predictor, image: np.ndarray, mask: np.ndarray, **rules: object) -> tuple[References, Offsets]:
    reference = predictor.embed_references([image], [mask])
    fitted = fit_offsets(predictor, reference, image, mask, AdaptationRules(**rules), nullcontext(), lambda: None)
    return reference, fitted


def contrast(predictor: Predictor, references: References) -> float:
    """Mean probability on the structure, less that beside it."""
    predictor.set_image(picture())
    before = disc().astype(np.float32)  # probabilities, as propagation gives them
    found = predictor.predict(references=references, previous_mask=before).probability
    return float(found[disc()].mean() - found[~disc()].mean())


def test_an_adapted_reference_finds_its_structure_better(predictor: Predictor) -> None:
    reference, offsets = adapted(predictor, picture(), disc(), steps=30)
    gained = contrast(predictor, with_offsets(reference, offsets)) - contrast(predictor, reference)
    assert gained > 0.03  # features of random weights can do no more


def test_the_same_reference_gives_the_same_offsets_and_another_seed_others(predictor: Predictor) -> None:
    (_, one), (_, again), (_, other) = (adapted(predictor, picture(), disc(), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_network_stays_as_it_is(predictor: Predictor) -> None:
    before = {name: value.clone() for name, value in predictor.model.state_dict().items()}
    adapted(predictor, picture(), disc())
    after = predictor.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in predictor.model.parameters())


def test_it_works_inside_of_inference(predictor: Predictor) -> None:
    _, expected = adapted(predictor, picture(), disc())
    with torch.inference_mode():
        _, offsets = adapted(predictor, picture(), disc())
    assert all(torch.equal(*pair) for pair in zip(expected, offsets, strict=True))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (np.repeat(picture()[..., None], 3, axis=2), disc()),
        (picture(), np.eye(*SIZE, dtype=bool) & (np.arange(SIZE[0]) == 9)[:, None]),
        (picture(), np.ones(SIZE, bool)),
        (np.zeros(SIZE, np.float32), disc()),
        (picture()[:, :1], disc()[:, 14:15]),
    ],
    ids=["colour", "one pixel", "all pixels", "black", "one column"],
)
def test_every_slice_with_a_structure_can_be_adapted(predictor: Predictor, image: np.ndarray, mask: np.ndarray) -> None:
    _, offsets = adapted(predictor, image, mask, steps=2)
    assert all(torch.isfinite(offset).all() for offset in offsets)


def test_it_can_be_cancelled_after_each_step(predictor: Predictor) -> None:
    steps: list[int] = []

    def stop() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise CancelledError

    reference = predictor.embed_references([picture()], [disc()])
    with pytest.raises(CancelledError):
        fit_offsets(predictor, reference, picture(), disc(), AdaptationRules(), nullcontext(), stop)
    assert len(steps) == 3


def test_offsets_move_as_with_the_optimizer_of_pytorch() -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.zeros(1, 1, 6, size, requires_grad=True) for size in (32, 16)] for _ in range(2))
    adam, optimizer = _Adam(ours, 0.05), torch.optim.Adam(theirs, lr=0.05)
    for _ in range(12):
        gradients = [torch.randn_like(weight) * 10 ** float(torch.randn(())) for weight in ours]
        adam.step(gradients)
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
