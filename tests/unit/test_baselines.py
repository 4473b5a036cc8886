# SPDX-License-Identifier: Apache-2.0
"""The baselines' networks, batches and answers, and a whole run of seconds on two small data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.baseline import fitting
from benchmarks.baseline.comparison import compare
from benchmarks.baseline.games import (
    CHANNELS,
    SpecialistBatches,
    answer_classes,
    answer_clicks,
    answer_in_context,
    click_loss,
    in_context_loss,
    lay_out,
    lay_out_examples,
    unet,
)
from benchmarks.baseline.universeg import CrossConv, UniverSeg
from benchmarks.baselines import main
from kprism_model.data.building import build_store
from kprism_model.data.sampling import Mixture, Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.evaluation.report import DatasetResult, EvaluationReport, Figure
from kprism_model.evaluation.report_files import load_report
from kprism_model.queries import Click, Query
from kprism_model.training.plan import TrainingPlan
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two data sets of bright boxes, of one and of two classes; the last two of eight pictures are the test list."""
    root = tmp_path_factory.mktemp("data")
    found = []
    for name, values in (("one", (1, 1)), ("two", (1, 2))):
        labels = [
            rectangle((SIZE, SIZE), slice(r, r + 20), slice(4, 28), values[0])
            + rectangle((SIZE, SIZE), slice(r, r + 20), slice(34, 58), values[1])
            for r in range(2, 42, 5)
        ]
        folder = write_dataset(root / name, labels, classes=["box", "other box"][: max(values)])
        content = json.loads((folder / "dataset.json").read_text())
        content["test"], content["training"] = content["training"][6:], content["training"][:6]
        (folder / "dataset.json").write_text(json.dumps(content))
        found.append(folder)
    return found


@pytest.fixture(scope="module")
def store(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return build_store(folders, tmp_path_factory.mktemp("store"), size=SIZE, progress=False)


def test_a_cross_convolution_is_one_of_the_concatenated_pair() -> None:
    torch.manual_seed(0)
    cross = CrossConv(3, 4, 5)
    query, support = torch.randn(2, 3, 8, 8), torch.randn(2, 6, 4, 8, 8)
    whole = nn.Conv2d(7, 5, 3, padding=1)
    whole.weight.data = torch.cat([cross.query.weight.data, cross.support.weight.data], dim=1)
    whole.bias = cross.query.bias
    pairs = torch.cat([query[:, None].expand(-1, 6, -1, -1, -1), support], dim=2)
    expected = whole(pairs.flatten(0, 1)).unflatten(0, (2, 6))
    assert torch.allclose(cross(query, support), expected, atol=1e-5)


def test_universeg_ignores_the_order_of_examples_and_heeds_their_masks() -> None:
    torch.manual_seed(0)
    network = UniverSeg(width=8, levels=3).eval()
    images, support = torch.rand(1, 3, 32, 32), torch.rand(1, 4, 3, 32, 32)
    masks = (torch.rand(1, 4, 1, 32, 32) > 0.5).float()
    logits = network(images, support, masks)
    assert logits.shape == (1, 1, 32, 32)
    assert torch.allclose(network(images, support.flip(1), masks.flip(1)), logits, atol=1e-5)
    assert not torch.allclose(network(images, support, 1 - masks), logits, atol=1e-5)


def test_specialist_batches_are_one_hot_and_repeatable(store: SliceStore) -> None:
    batches = SpecialistBatches(store.sets[1], 4, 32, seed=3)
    batch = batches(5)
    assert batch.images.shape == (4, 3, 32, 32) and batch.labels.shape == (4, 3, 32, 32)
    assert torch.equal(batch.labels.sum(1), torch.ones(4, 32, 32))
    assert batch.labels[:, 1:].flatten(2).any(2).any(0).all()
    assert torch.equal(batches(5).images, batch.images) and not torch.equal(batches(6).images, batch.images)


def test_specialist_answers_are_where_a_class_is_most_probable() -> None:
    class Thirds(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 3, *images.shape[2:])
            for number in range(3):
                width = images.shape[3] // 4
                logits[:, number, :, number * width : (number + 1) * width] = 9
            return logits

    embedding = lay_out(np.zeros((128, 128), np.float32), 64)
    answers = answer_classes(Thirds(), [embedding], 2)[0]
    for number, answer in enumerate(answers, start=1):
        assert answer.mask.shape == (128, 128)
        assert answer.mask[:, 32 * number + 4 : 32 * number + 28].all()
        assert not answer.mask[:, : 32 * number - 4].any()


def test_click_networks_see_clicks_and_the_previous_mask() -> None:
    class Echo(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            assert maps.shape[1] == 6
            return 20 * (maps[:, 3:4] - maps[:, 4:5] + maps[:, 5:6]) - 10

    embedding = lay_out(np.zeros((64, 64), np.float32), 64)
    previous = np.zeros((64, 64), np.float32)
    previous[40:50, 40:50] = 1
    clicks = (Click(10, 20, True), Click(45, 45, False))
    queries = [Query(embedding, clicks=clicks, previous_mask=previous), Query(embedding, clicks=clicks[:1])]
    corrected, first = answer_clicks(Echo(), queries)
    assert first.mask[10, 20] and first.mask[10, 25] and not first.mask[10, 27] and first.mask.sum() < 100
    assert corrected.mask[10, 20] and corrected.mask[40, 40] and not corrected.mask[45, 45]


def test_in_context_answers_have_the_size_of_their_images() -> None:
    mask = np.zeros((50, 90), bool)
    mask[20, 30] = True  # vanishes on a canvas a third as fine unless something stands for it
    examples = lay_out_examples([(np.ones((50, 90), np.float32), mask)] * 2, 32)
    assert examples[0].shape == (2, 3, 32, 32) and examples[1].shape == (2, 1, 32, 32)
    assert examples[1].sum() >= 2
    torch.manual_seed(0)
    network = UniverSeg(width=4, levels=3).eval()
    images = [np.zeros((30, 70), np.float32), np.zeros((64, 64, 3), np.float32)]
    assert [answer.mask.shape for answer in answer_in_context(network, images, examples)] == [(30, 70), (64, 64)]


@pytest.mark.parametrize("loss_of", [click_loss, in_context_loss])
def test_losses_reach_all_weights_and_survive_batches_with_nothing_to_ask(store: SliceStore, loss_of: object) -> None:
    assert callable(loss_of)
    torch.manual_seed(0)
    network = unet(6, 1) if loss_of is click_loss else UniverSeg(width=4, levels=3)
    batch = Sampler(store, seed=0, mixture=Mixture(absent=0.0, synthetic=0.0, regions=0.0)).batch(4, step=0, size=32)
    loss_of(network, batch, np.random.default_rng(0)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.zero_grad()
    empty = replace(batch, masks=batch.masks * 0, references=batch.references * 0 - 1, objects=batch.objects * 0)
    loss = loss_of(network, empty, np.random.default_rng(0))
    loss.backward()
    assert float(loss.detach()) == 0


def test_a_finished_network_is_read_and_another_plan_trains_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(key: int) -> fitting.Fit:
        torch.manual_seed(0)
        plan = TrainingPlan(minutes=0.001)
        return fitting.fit(
            "line",
            nn.Linear(1, 1),
            lambda step: torch.ones(1, 1),
            lambda network, batch, rng: network(batch).sum() ** 2,
            plan=plan,
            folder=tmp_path,
            key={"number": key},
            progress=False,
        )

    first = train(1)
    calls: list[str] = []
    real = fitting._train
    monkeypatch.setattr(fitting, "_train", lambda name, *rest: (calls.append(name), real(name, *rest))[1])
    again = train(1)
    assert not calls and again.steps == first.steps > 0
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))
    train(2)
    assert calls == ["line"]


def test_a_run_measures_every_game_and_goes_on(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.baseline.games.CHANNELS", (4, 8, 8, 8, 8))
    out = tmp_path / "out"
    command = ["--data", str(folders[0]), "--unseen", str(folders[1]), "--minutes", "0.01", "--size", "32"]
    command += [
        "--in-context-size",
        "32",
        "--in-context-width",
        "4",
        "--draws",
        "2",
        "--batch-size",
        "2",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    assert "3 networks of 0.01 minutes each: 0.0 hours of training" in capsys.readouterr().out
    report = load_report(out / "evaluation.json")
    modes = {result.name: {figure.mode for figure in result.figures} for result in report.results}
    assert modes == {
        "one": {"semantic", "in_context_1", "in_context_5", "interactive"},
        "two": {"in_context_1", "in_context_5", "interactive"},
    }
    written = (out / "networks" / "interactive.safetensors").stat().st_mtime_ns
    assert main([*command, "--report", str(out / "evaluation.json")]) == 0
    assert (out / "networks" / "interactive.safetensors").stat().st_mtime_ns == written
    assert (out / "comparison.md").read_text().count("| 1.00 |") > 3


def test_a_comparison_gives_ratios_and_says_what_differs() -> None:
    def report(value: float, sample: str, seed: int) -> EvaluationReport:
        protocol = {"split": "test", "seed": seed, "references": "1 5", "draws": 5, "click_limit": 20}
        results = [
            DatasetResult(name, sample, "all", [Figure(name, "a", "semantic", "dice_present", value, 3)])
            for name in ("one", "two")
        ]
        return EvaluationReport(protocol, results)

    table = compare(report(0.5, "3 of 3", 0), report(0.6, "3 of 3", 0))
    assert "| semantic | one | 0.500 | 0.600 | 1.20 |" in table
    assert "| **semantic** | **mean of 2** | 0.500 | 0.600 | 1.20 |" in table
    assert "Not measured alike" not in table
    other = compare(report(0.5, "3 of 3", 0), report(0.6, "2 of 3", 1))
    assert "- one: baseline on 3 of 3, K-Prism on 2 of 3" in other and "- seed: baseline 0, K-Prism 1" in other


def test_bad_input_ends_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--minutes", "1", "--out", str(tmp_path / "out")]) == 2
    assert "dataset.json does not exist" in capsys.readouterr().err


def test_unets_are_about_as_large_as_the_small_network() -> None:
    assert len(CHANNELS) == 5
    assert 4e6 < sum(parameter.numel() for parameter in unet(3, 2).parameters()) < 8e6
