# SPDX-License-Identifier: Apache-2.0
"""The learning loop as a whole: labels that could not be adopted at once."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from lib.configs.app_config import AppConfig
from lib.datastore import GuardedDatastore
from lib.errors import StorageError
from lib.imaging.medical_image import MedicalImage
from lib.learning_loop import LearningLoop

WEIGHTS = Path(__file__).parents[1] / "tiny_network.safetensors"


def save(path: Path, values: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def test_a_label_that_met_a_full_disk_is_learned_from_once_there_is_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.learning.submission_service.RETRY_SECONDS", 0.0)
    studies = tmp_path / "studies"
    studies.mkdir()
    save(studies / "a.nii.gz", np.arange(60, dtype=np.int16).reshape(5, 4, 3))
    label = save(tmp_path / "label.nii.gz", np.ones((5, 4, 3), np.uint8))
    datastore = GuardedDatastore(str(studies), extensions=["*.nii.gz"])
    conf = {"model_path": str(WEIGHTS), "device": "cpu"}
    loop = LearningLoop(AppConfig.parse(conf, tmp_path, str(studies)), datastore)
    datastore.save_label("a", str(label), "final", {"label_names": {"liver": 1}})

    def full(path: Path, name: str) -> MedicalImage:
        raise StorageError("the disk of the server is full")

    with monkeypatch.context() as patch:
        patch.setattr(loop.submissions._reader, "_read_image", full)
        loop.adopt("a")
        assert loop._submissions_now() == []
    assert [entry.image_id for entry in loop._submissions_now()] == ["a"]
    assert loop.submission_store.rejected() == {}
