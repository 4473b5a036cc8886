# SPDX-License-Identifier: Apache-2.0
"""Small sites with submitted labels, for tests of `export-dataset`, and what the command says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from lib.configs.app_config import MONAI_LABEL_SETTINGS
from lib.folder_store import FolderStore
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_service import SubmissionService
from lib.learning.submission_store import SubmissionStore
from tests.tiny_network import WEIGHTS
from tools.export_dataset import main

GRID = (20, 16, 6)
OBLIQUE = np.array(
    [[-0.8660254, -0.25, 1.2990381, 12.5], [0.5, -0.4330127, 2.25, -7.25], [0, 0.8660254, 1.5, 31], [0, 0, 0, 1]]
) @ np.diag([0.75, 0.75, 1.0, 1.0])
"""Axes at right angles, turned in two planes."""

SHEARED = np.array([[0.8, 0, 0, -20], [0, 0.8, 0.7, 10], [0, 0, 2.5, 3], [0, 0, 0, 1.0]])
"""A CT with a tilted gantry."""


class Exporter:
    """The command in this process: `run` gives its status, and `said` and `errors` what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.said = self.errors = ""

    def run(self, studies: Path | str, form: str, out: Path, *more: str | Path) -> int:
        """Run it with a tiny network, which spares seconds."""
        words = ["--studies", studies, "--format", form, "--out", out, *more, "--conf", "model_path", WEIGHTS]
        try:
            status = main([*map(str, words)])
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        self.said, self.errors = self._capsys.readouterr()
        return status


class FolderSite:
    """A folder of studies, with labels submitted by the server's own code, which notes who and when."""

    def __init__(self, studies: Path) -> None:
        self.studies = studies
        studies.mkdir(parents=True)
        (studies.parent / "sent").mkdir()
        self._store = FolderStore(str(studies), extensions=MONAI_LABEL_SETTINGS["MONAI_LABEL_DATASTORE_FILE_EXT"])
        intake = SubmissionStore(studies / ".kprism" / "intake")
        self._service = SubmissionService(intake, self._store, LabelRegistry())

    def submit(self, image_id: str, file: Path, names: Mapping[str, int], by: str = "anna") -> None:
        """Submit a label file whose values have names."""
        self._store.refresh()
        entry = self._service.submit(image_id, file, {"label_names": dict(names)} if names else {}, by=by)
        assert entry is not None

    def sent(self, image_id: str, labels: np.ndarray, affine: np.ndarray) -> Path:
        """A label (i, j, k) as a NIfTI file."""
        path = self.studies.parent / "sent" / f"{image_id}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), affine), path)
        return path

    def picture(
        self, image_id: str, pixels: np.ndarray, labels: np.ndarray, names: Mapping[str, int], ending: str
    ) -> None:
        """A picture (row, column[, 3]) with its label, which is a PNG file."""
        Image.fromarray(pixels).save(self.studies / f"{image_id}{ending}")
        path = self.studies.parent / "sent" / f"{image_id}.png"
        Image.fromarray(labels.astype(np.uint8)).save(path)
        self.submit(image_id, path, names)

    def volume(
        self, image_id: str, values: np.ndarray, labels: np.ndarray, names: Mapping[str, int], affine: Any = OBLIQUE
    ) -> None:
        """A NIfTI volume with its label; its header names a patient."""
        image = nibabel.Nifti1Image(values, affine)
        image.header["descrip"] = b"Mueller, Hans"
        nibabel.save(image, self.studies / f"{image_id}.nii.gz")
        self.submit(image_id, self.sent(image_id, labels, affine), names)


def ct(seed: int) -> np.ndarray:
    """CT numbers (i, j, k): air, water and noise."""
    noise = np.random.default_rng(seed).integers(-30, 30, GRID)
    inside = np.zeros(GRID, bool)
    inside[3:17, 3:13] = True
    return (np.where(inside, 40, -1000) + noise).astype(np.int16)


def blocks(*values: int, grid: tuple[int, ...] = GRID) -> np.ndarray:
    """A label with a block of each value, of different sizes, in order along the first axis."""
    labels = np.zeros(grid, np.uint8)
    for place, value in enumerate(values):
        labels[4 + 4 * place : 7 + 4 * place, 4 : 6 + value] = value
    return labels


def write_nrrd(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """A NRRD volume (i, j, k), in LPS as Slicer writes it."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(path), values, {**header, "kinds": ["domain"] * 3}, index_order="F")


def write_itk(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """A volume (i, j, k) as ITK writes it."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """All files of a folder: time of the last change, and a digest of the content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def all_text(folder: Path) -> bytes:
    """The names and contents of all files, decompressed where they are volumes."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.name.endswith(".nii.gz"):
            parts.append(nibabel.load(path).to_bytes())
        elif path.is_file():
            parts.append(path.read_bytes())
    return b"\n".join(parts)
