# SPDX-License-Identifier: Apache-2.0
"""The command `train`, from folders to a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.cli.main import main
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training import heads
from kprism_model.training.kinds import fit_kinds
from kprism_model.training.presence import fit_presence
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 64


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = KPrism(KPrismConfig.tiny(num_classes=2, native_size=SIZE))
    save_checkpoint(tmp_path / "initial", model, ClassRegistry(["box", "ring"]), metadata={})
    return tmp_path / "initial"


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted at the end looks at a few images."""
    monkeypatch.setattr(heads, "fit_presence", partial(fit_presence, batches=6))
    monkeypatch.setattr(heads, "fit_kinds", partial(fit_kinds, images=6))


def train(folder: Path, *options: object) -> int:
    """Two data sets of another modality each, a budget of one step."""
    data = [folder / name for name in ("box", "ring")]
    for path, modality in zip(data, ("MRI", "CT"), strict=True):
        if not path.exists():
            labels = [rectangle((SIZE, SIZE), slice(r, r + 30), slice(5, 40)) for r in (2, 10, 20, 30)]
            write_dataset(path, labels, classes=[path.name], modality=modality)
    settings = ["--minutes", "0.001", "--batch-size", "2", "--run-folder", folder / "run", "--out", folder / "new"]
    return main([str(part) for part in ("train", "--device", "cpu", "--data", *data, *settings, *options)])


def test_trained_weights_are_mixed_with_those_they_started_from(
    initial: Path, tmp_path: Path, short_fits: None
) -> None:
    assert train(tmp_path, "--initial", initial) == 0
    trained = load_checkpoint(tmp_path / "new").model.state_dict()
    old = load_checkpoint(initial).model.state_dict()
    for share in (0.0, 0.25):
        assert train(tmp_path, "--initial", initial, "--mix", share) == 0  # the finished run is taken up again
        found = load_checkpoint(tmp_path / "new")
        assert set(found.metadata["training"]["presence"]) == {"before", "after"}
        assert found.metadata["training"]["kinds"].keys() == {"known", "unknown"}
        for name, value in found.model.state_dict().items():
            if value.is_floating_point() and not name.startswith(("decoder.presence.", "kind_head.")):  # fitted anew
                torch.testing.assert_close(value, old[name].lerp(trained[name], share), atol=2e-3, rtol=2e-3, msg=name)


def test_what_cannot_be_mixed_is_refused_before_anything_is_trained(
    initial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--preset", "tiny", "--mix", 0.5) == 2
    assert "--mix averages with --initial" in capsys.readouterr().err
    assert train(tmp_path, "--initial", initial, "--mix", 1.5) == 2
    assert "--mix must lie in [0, 1], got 1.5" in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()


def test_tasks_of_regions_have_their_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], short_fits: None
) -> None:
    slices = tmp_path / "run" / "slices"
    assert train(tmp_path, "--preset", "tiny", "--synthetic", 0.9) == 2
    assert "must not sum to more than 1, got 0.9 and 0.3" in capsys.readouterr().err
    assert train(tmp_path, "--preset", "tiny", "--regions", 0) == 0
    assert (slices / "box").is_dir() and not list(slices.glob("*/regions"))
    assert train(tmp_path, "--preset", "tiny", "--regions", 0.5) == 0
    assert list(slices.glob("*/regions/*.zlib"))
