# SPDX-License-Identifier: Apache-2.0
"""The simulated annotator of the effort benchmark: where it clicks, and what the results say."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.effort import check_settings, chosen_cases, configuration, results_table, write_results
from benchmarks.simulated_annotator import Effort, read_truth, worst_voxel


def test_it_clicks_in_the_worst_slice_at_the_deepest_place() -> None:
    truth = np.zeros((20, 16, 3), bool)
    truth[2:7, 3:8, 0] = True
    truth[5:16, 4:13, 2] = True
    assert worst_voxel(np.zeros_like(truth), truth) == ([10, 8, 2], True)
    mask = truth.copy()
    mask[12:19, 1:6, 1] = True
    assert worst_voxel(mask, truth) == ([15, 3, 1], False)
    with pytest.raises(ValueError, match="right everywhere"):
        worst_voxel(truth, truth)


def test_truth_is_read_by_name_on_the_stored_grid(tmp_path: Path) -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1, 2, 3] = 2
    (tmp_path / "labels").mkdir()
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "labels" / "a.nii.gz")
    content = {
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [{"image": "./images/a.nii.gz", "label": "./labels/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    truth = read_truth(tmp_path)
    assert list(truth) == ["a"] and list(truth["a"]) == ["spleen"]
    assert np.argwhere(truth["a"]["spleen"]).tolist() == [[1, 2, 3]]


def test_results_compare_with_clicks_only(tmp_path: Path) -> None:
    arms = {
        arm: [Effort(f"case{n}", clicks={"lesion": clicks}, first_dice={"lesion": 0.5}, seconds=3.0) for n in range(12)]
        for arm, clicks in (("clicks", 8), ("training", 2))
    }
    table = results_table(arms)
    assert "| with references and training | 12 | 2.0 | 25 % | 2.0 | 25 % | 0.500 | 3.0 |" in table
    arms["training"].pop()  # interrupted: the arms are compared over the cases that all have done
    write_results(tmp_path, "site", arms, {"cases": 12, "data": "folder/site"})
    assert (tmp_path / "effort-site.md").read_text().count("| 11 | ") == 2
    content = json.loads((tmp_path / "effort-site.json").read_text())
    assert content["arms"]["training"][0]["clicks"] == {"lesion": 2} and len(content["arms"]["clicks"]) == 12
    assert (tmp_path / "effort-site.png").read_bytes().startswith(b"\x89PNG")


def test_every_arm_gets_the_same_cases_of_whole_patients_in_the_same_order(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    entries = []
    for patient in range(6):
        for frame in (1, 2):
            name = f"p{patient}_frame{frame}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 1), np.uint8), np.eye(4)), tmp_path / "labels" / name)
            entries.append({"image": f"images/{name}", "label": f"labels/{name}", "patient": f"p{patient}"})
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"1": "liver"}, "training": entries}))
    chosen = chosen_cases(tmp_path, 6, 0)
    assert list(chosen) == list(chosen_cases(tmp_path, 6, 0)) != list(chosen_cases(tmp_path, 6, 1))
    assert len(chosen) == 6 and len({image.split("_")[0] for image in chosen}) == 3
    given = argparse.Namespace(after=5, minutes=1.0, data=tmp_path, model_path=None)
    conf = configuration("training", given, chosen)
    assert (conf["train_after"], conf["labels"], conf["patients"]) == ("5", "liver", "^(p0|p1|p2|p3|p4|p5)_")
    assert configuration("references", given, chosen)["train_after"] == "0"


def test_an_interrupted_run_goes_on_only_with_its_own_settings(tmp_path: Path) -> None:
    check_settings(tmp_path, {"cases": 60})
    check_settings(tmp_path, {"cases": 60})
    with pytest.raises(ValueError, match="holds a run with cases 60 instead of 30"):
        check_settings(tmp_path, {"cases": 30})
