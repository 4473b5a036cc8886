# SPDX-License-Identifier: Apache-2.0
"""LAScarQS: cavities of 420, scars of 1, and scans that are in both tasks under other numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.preparation.downloads import Prepared, noise, prepare, volume

SHAPE = (9, 8, 4)


def cavity(seed: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(SHAPE) < 0.3


def scar(seed: int) -> NDArray[np.bool_]:
    """Some of it lies in the cavity."""
    return np.random.default_rng(seed + 1000).random(SHAPE) < 0.2


def scan(folder: Path, seed: int, *, scarred: bool = False, value: int = 420, kind: type = np.int16) -> None:
    volume(folder / "enhanced.nii.gz", noise(seed, SHAPE).astype(kind))
    volume(folder / "atriumSegImgMO.nii.gz", (cavity(seed) * value).astype(np.int16))
    if scarred:
        volume(folder / "scarSegImgM.nii.gz", scar(seed).astype(np.uint8))


def task1(parent: Path) -> Path:
    for number in range(1, 6):
        scan(parent / "train_data" / f"train_{number}", number, scarred=True)
    return parent


def task2(parent: Path, kind: type = np.int16) -> Path:
    """Scans 1 to 3 of task 1 are 13 to 11 here."""
    for number in (*range(11, 14), *range(21, 25)):
        scan(parent / "train_data" / f"train_{number}", 14 - number if number < 14 else number, kind=kind)
    return parent


def names(made: Prepared) -> set[str]:
    return made.names("training") | made.names("validation") | made.names("test")


@pytest.mark.parametrize("place", ["task1", "LA scar quantification（MRI）", "unpacked"])
def test_task_1_has_cavity_and_scar(tmp_path: Path, place: str) -> None:
    task1(tmp_path / "d" / place)
    made = prepare("lascarqs_mr", tmp_path / "d", tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "left atrium", 2: "left atrial scar"}
    assert names(made) == {f"task1_train_{n}" for n in range(1, 6)}
    assert (made.label("task1_train_2") == np.where(scar(2), 2, cavity(2))).all()
    assert (made.image("task1_train_2") == noise(2, SHAPE)).all()


@pytest.mark.parametrize("below", ["task1", "task1/train_data"])
def test_the_name_of_the_task_may_be_above_the_folder(tmp_path: Path, below: str) -> None:
    task1(tmp_path / "task1")
    (tmp_path / "task1" / "train_data" / "train_1" / "scarSegImgM.nii.gz").unlink()
    made = prepare("lascarqs_mr", tmp_path / below, tmp_path / "out")
    assert names(made) == {f"task1_train_{n}" for n in range(2, 6)}
    assert made.remarks("missing")[0].startswith("scarSegImgM beside")


@pytest.mark.parametrize("place", ["task2", "LA cavity segmentation（MRI）", "unpacked"])
def test_task_2_has_the_cavity(tmp_path: Path, place: str) -> None:
    task2(tmp_path / "d" / place)
    scan(tmp_path / "d" / place / "train_data" / "train_30", 30, value=1)
    made = prepare("lascarqs_mr", tmp_path / "d", tmp_path / "out")
    assert made.dataset.classes == {1: "left atrium"}
    assert names(made) == {f"task2_train_{n}" for n in (11, 12, 13, 21, 22, 23, 24, 30)}
    assert (made.label("task2_train_11") == cavity(3)).all()
    assert (made.label("task2_train_30") == cavity(30)).all()
    assert not made.remarks("note")


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.int32])
def test_scans_of_both_tasks_are_taken_once(tmp_path: Path, kind: type) -> None:
    download = tmp_path / "LAScarQS2022"
    task1(download / "task1")
    task2(download / "task2", kind)
    volume(download / "task1_val" / "train_1" / "enhanced.nii.gz", noise(70, SHAPE))
    volume(download / "task2_val" / "val_1" / "enhanced.nii.gz", noise(71, SHAPE))
    made = prepare("lascarqs_mr", tmp_path, tmp_path / "out")
    assert made.status == 0
    assert made.dataset.classes == {1: "left atrium"}
    assert names(made) == {f"task2_train_{n}" for n in (11, 12, 13, 21, 22, 23, 24)} | {
        "task1_train_4",
        "task1_train_5",
    }
    assert made.remarks("doubled") == [
        f"task1_train_{n} is the scan task2_train_{14 - n}, which is taken" for n in (1, 2, 3)
    ]
    assert made.remarks("note") == ["the scar is labelled in task 1 only: give its folder to prepare it"]
    assert len(made.remarks("unlabelled")) == 2
    assert (made.label("task1_train_4") == cavity(4)).all()


def test_one_scan_twice_in_task_2_is_one_patient(tmp_path: Path) -> None:
    task1(tmp_path / "task1")
    task2(tmp_path / "task2")
    scan(tmp_path / "task2" / "train_data" / "train_40", 21)
    made = prepare("lascarqs_mr", tmp_path, tmp_path / "out")
    assert made.case("task2_train_40").patient == made.case("task2_train_21").patient


def test_missing_masks_and_odd_values_are_named(tmp_path: Path) -> None:
    root = task1(tmp_path / "task1") / "train_data"
    (root / "train_1" / "scarSegImgM.nii.gz").unlink()
    (root / "train_2" / "atriumSegImgMO.nii.gz").unlink()
    (root / "train_3" / "enhanced.nii.gz").unlink()
    two = cavity(4) * 420
    two[0, 0, 0] = 7
    volume(root / "train_4" / "atriumSegImgMO.nii.gz", two.astype(np.int16))
    made = prepare("lascarqs_mr", tmp_path, tmp_path / "out")
    assert sorted(made.remarks("missing")) == sorted(
        [
            f"scarSegImgM beside {root / 'train_1' / 'enhanced.nii.gz'}",
            f"the cavity of {root / 'train_2' / 'enhanced.nii.gz'}",
            f"the image of {root / 'train_3' / 'atriumSegImgMO.nii.gz'}",
        ]
    )
    assert "holds the values [7, 420], expected 0 and one positive value" in made.remarks("faulty")[0]
    assert names(made) == {"task1_train_5"}


def test_another_download_is_refused(tmp_path: Path) -> None:
    volume(tmp_path / "d" / "a.nii.gz", noise(1))
    with pytest.raises(ValueError, match="is not LAScarQS 2022: expected folders such as task1/train_data/train_1"):
        prepare("lascarqs_mr", tmp_path / "d", tmp_path / "out")
