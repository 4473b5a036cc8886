# SPDX-License-Identifier: Apache-2.0
"""The simulated annotator of the effort benchmark: where she clicks, and what the results say."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.annotator import Effort, read_truth, worst_voxel
from benchmarks.effort import results_table, write_results


def test_she_clicks_in_the_worst_slice_at_the_deepest_place() -> None:
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
        arm: [Effort(f"case{n}", clicks={"lesion": clicks}, first_dice={"lesion": 0.5}) for n in range(12)]
        for arm, clicks in (("clicks", 8), ("training", 2))
    }
    table = results_table(arms)
    assert "| with references and training | 12 | 2.0 | 25 % | 2.0 | 25 % | 0.500 |" in table
    write_results(tmp_path, "site", arms, {"cases": 12, "out": tmp_path})
    content = json.loads((tmp_path / "effort-site.json").read_text())
    assert content["arms"]["training"][0]["clicks"] == {"lesion": 2}
    assert (tmp_path / "effort-site.png").read_bytes().startswith(b"\x89PNG")
