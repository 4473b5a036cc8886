# SPDX-License-Identifier: Apache-2.0
"""Training from a pack, on a machine that has little more than PyTorch, and what is kept of it."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.cli.main import main
from kprism_model.data.pack import read_pack
from kprism_model.data.sampling import Sampler
from kprism_model.data.slices import SliceStore
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Predictor
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.slice_validation import COLUMNS, column_means, split_validation, to_markdown, validate_slices
from kprism_model.training.trainer import Trainer
from tests.unit.dataset_files import rectangle, write_dataset

ROOT = Path(__file__).parents[2]
SIZE = 64

BLOCKED = [
    "nibabel",
    "monai",
    "monailabel",
    "ignite",
    "tqdm",
    "tensorboard",
    "torch.utils.tensorboard",
    "psutil",
    "matplotlib",
    "pandas",
    "nrrd",
    "SimpleITK",
    "skimage",
    "pydicom",
    "fastapi",
]

ALLOWED = {"kprism_model", "torch", "numpy", "scipy", "safetensors", "PIL"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients of one modality, four of another."""
    folder = tmp_path_factory.mktemp("pack")
    data = []
    for name, modality, count in (("box", "MRI", 10), ("ring", "CT", 4)):
        labels = [rectangle((SIZE, SIZE), slice(r, r + 30), slice(5, 40)) for r in range(2, 2 + count)]
        data.append(write_dataset(folder / name, labels, classes=[name], modality=modality))
    words = ["pack", "--data", *map(str, data), "--out", str(folder / "a.pack"), "--size", str(SIZE)]
    assert main([*words, "--weight", "ring=0.5"]) == 0
    return folder / "a.pack"


def test_it_runs_where_only_the_training_packages_are(packed: Path, tmp_path: Path) -> None:
    """The very script for a GPU machine, without MONAI, ignite and others, from other weights of other classes."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))")
    settings = {
        "DEVICE": "cpu",
        "PRESET": "tiny",
        "BATCH_SIZE": "2",
        "SIZE": str(SIZE),
        "SEQUENCES": "1",
        "LOADERS": "1",
    }
    environment = {**os.environ, **settings, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path / "blocked")}
    check = subprocess.run(
        [sys.executable, "-c", "import nibabel"], env=environment, capture_output=True, text=True, check=False
    )
    assert "import of nibabel halted" in check.stderr
    torch.manual_seed(1)
    start = KPrism(KPrismConfig.tiny(num_classes=2, native_size=SIZE))
    save_checkpoint(tmp_path / "start", start, ClassRegistry(["ring", "other"]), metadata={"name": "start"})
    kept = tmp_path / "kept"
    environment["RUN_FOLDER"] = str(tmp_path / "run")
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu_training.sh", "0.02", kept, packed, tmp_path / "start"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weights = next(kept.glob("ema-*.safetensors"))
    names = sorted(path.name for path in kept.iterdir())
    assert names == [f"{weights.stem}.json", weights.name, "log.jsonl", "validation.md"]
    checkpoint = load_checkpoint(weights)
    training = checkpoint.metadata["training"]
    assert {part["name"]: (part["cases"], part["weight"]) for part in training["datasets"]} == {
        "box": (9, 1.0),  # the tenth is held out
        "ring": (4, 0.5),
    }
    assert training["initial"]["name"] == "start"
    assert set(checkpoint.metadata["held out"]) == set(COLUMNS)
    log = [json.loads(line) for line in (kept / "log.jsonl").read_text().splitlines()]
    assert len(log) == training["steps"] > 0
    assert log[0]["rate"] == pytest.approx(1e-3 / 40)  # warmed up anew, from the first of 40 steps
    assert "propagated" in set().union(*log)
    assert "| box | box | 1 |" in (kept / "validation.md").read_text()


def module_imports(path: Path) -> set[str]:
    """The packages that a module imports outside of its functions and of `if TYPE_CHECKING`."""
    packages = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(str(node.module).partition(".")[0])
    return packages


@pytest.mark.parametrize("package", ["training", "interaction", "network", "published"])
def test_modules_of_the_training_import_only_what_a_bare_machine_has(package: str) -> None:
    for path in (ROOT / "kprism_model" / package).glob("*.py"):
        assert module_imports(path) <= ALLOWED | sys.stdlib_module_names, path.name


def make_trainer(store: SliceStore, folder: Path) -> Trainer:
    torch.manual_seed(0)
    plan = TrainingPlan(minutes=0.02, batch_size=2, sizes=((0.0, SIZE),))
    config = KPrismConfig.tiny(num_classes=2, native_size=SIZE)
    return Trainer(config, Sampler(store, seed=0), plan, folder)


KILLED = """
import sys
from functools import partial
from pathlib import Path
from kill_at_rename import kill_before_rename, status_of_copy
from kprism_model.data.pack import read_pack
from kprism_model.data.sampling import Sampler
from kprism_model.network.config import KPrismConfig
from kprism_model.training.slice_validation import split_validation
from kprism_model.training.snapshots import SnapshotWriter
from kprism_model.training.plan import TrainingPlan
from kprism_model.training.trainer import Trainer

def write_twice(folder: Path, rename: int) -> None:
    store, held_out = split_validation(read_pack(Path(sys.argv[1]), progress=False))
    config = KPrismConfig.tiny(num_classes=2, native_size=64)
    trainer = Trainer(config, Sampler(store, seed=0), TrainingPlan(batch_size=2, sizes=((0.0, 64),)), folder / "run")
    writer = SnapshotWriter(folder / "kept", held_out, lambda trainer: {"step": trainer.step})
    writer(trainer)
    next(trainer.steps())
    kill_before_rename(rename)
    writer(trainer)

print(*(status_of_copy(partial(write_twice, Path(sys.argv[2]) / str(rename), rename)) for rename in range(5)))
"""


@pytest.fixture(scope="module")
def killed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A folder for each rename of the second snapshot before which the process was killed, and how each ended."""
    folder = tmp_path_factory.mktemp("killed")
    places = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, packed, folder]
    done = subprocess.run(command, env=places, capture_output=True, text=True, check=True)
    return folder, [*map(int, done.stdout.splitlines()[-1].split())]


@pytest.mark.parametrize("rename", range(5))
def test_a_kill_leaves_whole_files(killed: tuple[Path, list[int]], rename: int) -> None:
    """Killed before any of the renames of the second time: table, weights, their description and log."""
    folder, statuses = killed
    assert statuses[rename] == (-signal.SIGKILL if rename < 4 else 0)
    kept = folder / str(rename) / "kept"
    described = sorted(kept.glob("ema-*.json"))
    for path in described:
        step = load_checkpoint(path).metadata["step"]
        assert path.stem == f"ema-{step}"
    assert described and [path.stem for path in described][-1] == ("ema-0" if rename < 3 else "ema-1")
    assert (kept / "validation.md").read_text().endswith("|\n")
    if rename == 4:
        assert sorted(path.name for path in kept.iterdir()) == [
            "ema-1.json",
            "ema-1.safetensors",
            "log.jsonl",
            "validation.md",
        ]


def test_the_time_of_snapshots_counts_as_training(packed: Path, tmp_path: Path) -> None:
    store = read_pack(packed, progress=False)
    trainer = make_trainer(store, tmp_path)
    calls: list[int] = []
    trainer._after_save = lambda given: calls.append(given.step)
    trainer.run()
    assert calls == [trainer.step] and trainer.share >= 1


def test_every_tenth_patient_is_held_out(packed: Path) -> None:
    store = read_pack(packed, progress=False)
    kept, held_out = split_validation(store)
    assert [len(part) for part in kept.sets] == [9, 4] and [part.name for part in held_out.sets] == ["box"]
    ((part,), whole) = held_out.sets, store.sets[0]
    assert part.case.tolist() == [9]
    np.testing.assert_array_equal(part.images[0], whole.images[9])
    np.testing.assert_array_equal(kept.sets[0].labels, whole.labels[:9])


def test_held_out_dice_is_that_of_the_masks(packed: Path, tmp_path: Path) -> None:
    """Every mode is measured where it can be asked for; the same weights give the same figures."""
    store = read_pack(packed, progress=False)
    torch.manual_seed(0)
    model = KPrism(KPrismConfig.tiny(num_classes=1, native_size=SIZE))
    predictor = Predictor(model, ClassRegistry(["box"]))
    rows = validate_slices(predictor, store, slices=2)
    assert [(row.dataset, row.structure, row.slices) for row in rows] == [("box", "box", 2), ("ring", "ring", 2)]
    assert rows[1].dice[0] is None and all(value is not None for value in rows[0].dice + rows[1].dice[1:])
    assert validate_slices(predictor, store, slices=2) == rows
    found = column_means(rows)
    assert found["semantic"] == rows[0].dice[0]
    assert found["1 click"] == pytest.approx((rows[0].dice[1] + rows[1].dice[1]) / 2)
    table = to_markdown(rows).splitlines()
    assert len(table) == 5 and table[-1].startswith("| ring | ring | 2 |  | 0.")


def test_a_network_that_is_too_large_is_refused_before_training(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kprism_model.training.snapshots.MAX_BYTES", 1000)
    words = ["train", "--pack", packed, "--run-folder", tmp_path / "run", "--out", tmp_path / "new", "--minutes", "9"]
    words += ["--preset", "tiny", "--native-size", SIZE, "--keep", tmp_path / "kept", "--device", "cpu"]
    assert main(list(map(str, words))) == 2
    assert "bytes in half precision, --keep allows 1,000" in capsys.readouterr().err
    words[words.index(SIZE)] = 128
    assert main(list(map(str, words))) == 2
    assert "a.pack holds slices of 64 pixels, the network works at 128" in capsys.readouterr().err
