# SPDX-License-Identifier: Apache-2.0
"""The plan of a training: counted on real files, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kprism_model.data.building import build_store, select
from kprism_model.data.case_slices import Selection
from kprism_model.data.structures import StructureMap
from kprism_model.published.training.plan import PARAMETER_BYTES, Plan, make_plan
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 32
GB = 10**9


def folders_of(folder: Path) -> list[Path]:
    """Six volumes of 20 slices, of which 5 show "a" and 8 "b" (one of them both), and 10 colour pictures."""
    label = np.zeros((40, 40, 20), np.uint8)
    label[5:15, 5:15, 2:7], label[20:30, 20:30, 6:14] = 1, 2
    images = [np.arange(label.size, dtype=np.float32).reshape(label.shape)] * 6
    volumes = write_dataset(
        folder / "volumes", [label] * 6, images=images, classes=["a", "b"], affine=np.diag([1, 1, 3, 1])
    )
    pictures = write_dataset(folder / "pictures", [rectangle((40, 30), slice(5, 20), slice(3, 13))] * 10)
    return [volumes, pictures]


def chosen(folder: Path, **options: Any) -> list[Selection]:
    return select(folders_of(folder), **{"size": SIZE, "only_shown": True, **options})


def plan(selections: list[Selection], store: Path, **options: Any) -> Plan:
    weights = {"volumes": 0.05, "pictures": 0.3}
    return make_plan(selections, store, **{"batch": 8, "epochs": 3, "weights": weights, **options})


def test_before_slices_are_stored_their_number_is_estimated(tmp_path: Path) -> None:
    made = plan(chosen(tmp_path), tmp_path / "run" / "slices")
    assert [(one.name, one.cases, one.slices, one.estimated, one.stored) for one in made.sets] == [
        ("volumes", 6, 6 * 12, True, False),
        ("pictures", 10, 10, True, False),
    ]
    assert [one.share for one in made.sets] == pytest.approx([0.05 * 72 / 6.6, 0.3 * 10 / 6.6])
    assert made.sets[0].store_bytes == 72 * (SIZE * SIZE * 2 + 8 * (4 + 2))
    assert made.sets[1].store_bytes == 10 * (SIZE * SIZE * 4 + 8 * (4 + 1))
    assert made.missing_bytes == made.store_bytes and made.steps == 3 * math.ceil(82 / 8)
    assert made.hours(1) is None and made.problems() == []
    assert abs(made.free_bytes - shutil.disk_usage(tmp_path).free) < 1e9
    assert "volumes" in str(made) and "~72" in str(made) and "estimated from the label maps" in str(made)
    assert not (tmp_path / "run").exists()


def test_without_choice_every_slice_counts(tmp_path: Path) -> None:
    made = plan(chosen(tmp_path, only_shown=False), tmp_path / "slices")
    assert [(one.slices, one.estimated) for one in made.sets] == [(120, False), (10, False)]
    assert "~" not in str(made)


def test_structures_decide_what_is_shown(tmp_path: Path) -> None:
    structures = {"volumes": StructureMap.of({1: "a", 2: "b"}, {"a": ["a"]})}
    made = plan(chosen(tmp_path, structures=structures), tmp_path / "slices")
    assert made.sets[0].slices == 6 * 5
    assert made.sets[0].store_bytes == 30 * (SIZE * SIZE * 2 + 8 * (4 + 1))


def test_estimates_become_exact_when_slices_are_stored(tmp_path: Path) -> None:
    """The second of six volumes shows nothing, but the four that are read are others."""
    selections, store = chosen(tmp_path), tmp_path / "slices"
    folder = tmp_path / "volumes"
    empty = write_dataset(tmp_path / "empty", [np.zeros((40, 40, 20), np.uint8)], classes=["a", "b"])
    shutil.copy(empty / "labels" / "case_0.nii.gz", folder / "labels" / "case_1.nii.gz")
    assert plan(selections, store).sets[0].slices == 72
    build_store([folder], store, size=SIZE, only_shown=True, progress=False)
    made = plan(selections, store)
    assert [(one.slices, one.stored, one.estimated) for one in made.sets] == [(60, True, False), (10, False, True)]
    assert made.missing_bytes == made.sets[1].store_bytes
    stored = sum(file.stat().st_size for file in (store / "volumes").glob("*.npy"))
    assert made.sets[0].store_bytes == pytest.approx(stored, abs=3 * 128)


def steps_of(network: torch.nn.Module, images: torch.Tensor) -> Any:
    """Real steps of a small network, as `measure`."""

    def measure(steps: int) -> tuple[float, int]:
        start = time.perf_counter()
        for _ in range(steps):
            network(images).square().mean().backward()
        return (time.perf_counter() - start) / steps, 3 * GB

    return measure


def test_hours_and_memory_are_those_of_measured_steps(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(1, 4, 3)
    parameters = sum(one.numel() for one in network.parameters())
    made = plan(
        chosen(tmp_path),
        tmp_path / "slices",
        processes=2,
        parameters=parameters,
        device_bytes=4 * GB,
        measure=steps_of(network, torch.zeros(1, 1, 16, 16)),
    )
    assert made.seconds is not None and 0 < made.seconds < 60 and made.peak_bytes == 3 * GB
    assert made.hours(2) == pytest.approx(33 * made.seconds / 3600)
    assert made.hours(1) == pytest.approx(2 * 33 * made.seconds / 3600)
    assert made.hours(8) == pytest.approx(33 * made.seconds / 4 / 3600)
    made.refuse()
    text = str(made)
    assert "steps   33: 3 epochs of 11 steps of 8 images of 32 x 32 pixels" in text
    assert "memory  3.00 GB of the 4.00 GB of a device: 0.00 GB for weights" in text and "3.00 GB for the rest" in text
    assert "hours with 1 process," in text and "hours with 2 processes" in text and "hours with 8 processes" in text
    content = json.loads(json.dumps(made.to_dict()))
    assert content["steps"] == 33 and set(content["hours"]) == {"1", "2", "8"} and content["problems"] == []
    assert content["sets"][1]["name"] == "pictures" and content["parameters"] == 40


class TestRefusals:
    def test_too_little_disk(self, tmp_path: Path) -> None:
        selections = chosen(tmp_path)
        needed = plan(selections, tmp_path / "slices", other_bytes=2 * GB).missing_bytes
        plan(selections, tmp_path / "slices", other_bytes=2 * GB, free_bytes=needed).refuse()
        made = plan(selections, tmp_path / "slices", other_bytes=2 * GB, free_bytes=needed - GB)
        with pytest.raises(
            ValueError, match=r"slices lacks 1.00 GB: 2.00 GB are still to be written, 1.00 GB are free"
        ) as got:
            made.refuse()
        assert "--run-folder" in str(got.value) and "--size" in str(got.value)

    def test_too_little_memory(self, tmp_path: Path) -> None:
        made = plan(chosen(tmp_path), tmp_path / "slices", device_bytes=10 * GB, measure=lambda _: (1.0, 25 * GB // 2))
        with pytest.raises(ValueError, match=r"takes 12.50 GB of memory, 2.50 GB more than the 10.00 GB") as got:
            made.refuse()
        assert "--checkpoint-activations" in str(got.value) and "--images-at-once" in str(got.value)

    def test_a_step_that_runs_out_of_memory(self, tmp_path: Path) -> None:
        """Really: no machine has room for this array."""

        def measure(steps: int) -> tuple[float, int]:
            return 1.0, np.zeros(1 << 60, np.uint8).nbytes * steps

        made = plan(chosen(tmp_path), tmp_path / "slices", device_bytes=80 * GB, measure=measure, parameters=GB)
        assert made.seconds is None and made.peak_bytes is None
        with pytest.raises(ValueError, match=r"a step does not fit into the memory of 80.00 GB of the device"):
            made.refuse()
        assert "memory  more than there is of the 80.00 GB" in str(made) and "not measured" in str(made)

    def test_both_are_said_at_once(self, tmp_path: Path) -> None:
        made = plan(
            chosen(tmp_path),
            tmp_path / "slices",
            free_bytes=0,
            device_bytes=1,
            measure=lambda _: (1.0, 2),
            parameters=1,
        )
        assert len(made.problems()) == 2
        with pytest.raises(ValueError, match=r"cannot run here: the disk .*; a step takes"):
            made.refuse()

    def test_no_weight(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no slice can be drawn: weights .*'pictures': 0"):
            plan(chosen(tmp_path), tmp_path / "slices", weights={"volumes": 0, "pictures": 0})


def test_memory_of_the_network_alone_is_known_before_a_step(tmp_path: Path) -> None:
    made = plan(chosen(tmp_path), tmp_path / "slices", parameters=43_300_000)
    assert PARAMETER_BYTES == 16 and "memory  0.69 GB for weights, gradients and optimizer; the rest is not" in str(
        made
    )
