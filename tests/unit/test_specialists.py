# SPDX-License-Identifier: Apache-2.0
"""The specialist on a pretrained encoder: its shapes, weights and loss; and a run of seconds of both arms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.baseline import fitting
from benchmarks.baseline.games import SpecialistBatches
from benchmarks.baseline.pretrained_unet import PretrainedUNet, deep_supervision_loss
from benchmarks.specialists import main, semantic_dice, slices_of
from kprism_model.data.partial import AnnotatedCase
from kprism_model.network.config import KPrismConfig
from kprism_model.network.efficientnet import EfficientNetLiteEncoder
from kprism_model.training.plan import TrainingPlan
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLiteEncoder:
    torch.manual_seed(0)
    return EfficientNetLiteEncoder(KPrismConfig.small())


def cases() -> list[AnnotatedCase]:
    """Eight pictures of bright boxes, two of which do not show the second structure."""
    found = []
    for number in range(8):
        labels = np.zeros((1, SIZE, SIZE), np.uint8)
        labels[0, 4 + 4 * number : 26 + 4 * number, 4:28] = 1
        if number < 6:
            labels[0, 4 + 4 * number : 26 + 4 * number, 34:58] = 2
        shown = {name: value for name, value in (("box", 1), ("other", 2)) if (labels == value).any()}
        found.append(AnnotatedCase(f"c{number}", f"p{number}", labels / np.float32(3), labels, shown))
    return found


def test_logits_at_three_scales_and_the_weights_of_the_encoder(encoder: EfficientNetLiteEncoder) -> None:
    network = PretrainedUNet(encoder, 4).eval()
    images = torch.rand(2, 3, 64, 96)
    assert [tuple(logits.shape) for logits in network.scales(images)] == [
        (2, 4, 64, 96),
        (2, 4, 32, 48),
        (2, 4, 16, 24),
    ]
    assert torch.equal(network(images), network.scales(images)[0])
    own, given = network.state_dict(), encoder.state_dict()
    trunk = [name for name in own if name.startswith(("stem.", "stages."))]
    assert len(trunk) > 200 and all(torch.equal(own[name], given[name]) for name in trunk)
    assert 3e6 < sum(parameter.numel() for parameter in network.parameters()) < 8e6
    network.stem[0].weight.data.zero_()
    assert encoder.state_dict()["stem.0.weight"].any()  # the network has a copy


def test_the_loss_reaches_all_weights_and_falls(encoder: EfficientNetLiteEncoder, tmp_path: Path) -> None:
    part = slices_of(cases(), {"box": 1, "other": 2}, tmp_path, SIZE)
    assert len(part) == 8 and part.classes == {1: "box", 2: "other"}
    network = PretrainedUNet(encoder, 3).train()
    batch = SpecialistBatches(part, 4, SIZE, seed=0)(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = deep_supervision_loss(network, batch, np.random.default_rng(0))
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_pretrained_parameters_learn_more_slowly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[list[float]] = []
    step = torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW) -> None:
        seen.append([group["lr"] for group in optimizer.param_groups])
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    network = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    fitting.fit(
        "lines",
        network,
        lambda step: torch.ones(1, 1),
        lambda network, batch, rng: network(batch).sum() ** 2,
        plan=TrainingPlan(minutes=0.0005),
        folder=tmp_path,
        key={},
        pretrained=list(network[0].parameters()),
        progress=False,
    )
    assert seen and all(trunk == pytest.approx(0.3 * rest) for rest, trunk in seen)


def test_dice_counts_the_structures_that_a_case_is_annotated_for() -> None:
    class Boxes(nn.Module):
        """Class 1 ("other") where the picture has its value, class 2 ("box") nowhere."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(images), 3, *images.shape[2:])
            logits[:, 1] = 20 * (images[:, 0] > 0.5).float() - 10
            logits[:, 2] = -20
            return logits

    found = semantic_dice(Boxes(), cases(), ["other", "box"], SIZE)
    assert found["other"] > 0.95 and found["box"] < 0.01
    assert set(semantic_dice(Boxes(), cases()[6:], ["other", "box"], SIZE)) == {"box"}


def test_a_run_trains_both_arms_and_reads_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [rectangle((SIZE, SIZE), slice(r, r + 20), slice(4, 28)) for r in range(2, 42, 5)]
    data = write_dataset(tmp_path / "boxes", labels, classes=["box"])
    content = json.loads((data / "dataset.json").read_text())
    content["validation"], content["training"] = content["training"][6:], content["training"][:6]
    (data / "dataset.json").write_text(json.dumps(content))
    command = ["--data", str(data), "--cases", "4", "--minutes", "0.01", "--size", str(SIZE), "--work", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "0 minutes of training on 4 slices" in printed and "| semantic Dice | box | mean |" in printed
    assert "| unet | " in printed and "| pretrained_unet | " in printed
    kept = tmp_path / "boxes-4-seed0" / "0.01-minutes" / "pretrained_unet.safetensors"
    written = kept.stat().st_mtime_ns
    assert main([*command, "--arms", "pretrained_unet"]) == 0
    assert kept.stat().st_mtime_ns == written and "| unet |" not in capsys.readouterr().out
    assert json.loads((tmp_path / "boxes-4-0.01-seed0.json").read_text())["semantic"].keys() == {"pretrained_unet"}
