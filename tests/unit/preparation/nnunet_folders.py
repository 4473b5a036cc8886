# SPDX-License-Identifier: Apache-2.0
"""Tiny raw folders of nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from tests.unit.preparation.downloads import blocks, noise, volume

TURNED = np.array([[0, -0.8, 0, 40], [0.7, 0, 0, -25], [0, 0, 3, 9], [0, 0, 0, 1]], np.float64)
"""An affine (RAS) with i to anterior and j to the patient's left."""


def write(path: Path, values: NDArray[Any], affine: NDArray[np.float64] = TURNED) -> None:
    """Write a volume by the suffix of its file, with the program that usually writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    if path.suffix == ".nrrd":
        header = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
        nrrd.write(str(path), values, header)
    elif path.suffix == ".mha":
        image = sitk.GetImageFromArray(values.transpose())
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).reshape(-1).tolist())
        sitk.WriteImage(image, str(path), True)
    else:
        volume(path, values, affine)


def describe(
    folder: Path, version: int, labels: Mapping[str, Any], channels: Sequence[str] = ("CT",), **more: Any
) -> None:
    """The dataset.json of a version."""
    content: dict[str, Any] = {"numTraining": len(list((folder / "labelsTr").glob("*")))}
    names = {str(number): name for number, name in enumerate(channels)}
    if version == 1:
        content |= {"modality": names, "labels": {str(value): name for name, value in labels.items()}}
        content |= {"tensorImageSize": "4D", "training": [], "test": [], "licence": "CC BY 4.0", "relase": "2"}
    else:
        content |= {"channel_names": names, "labels": dict(labels), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**content, **more}))


def add_cases(
    folder: Path, names: Sequence[str], values: Sequence[int] = (1, 2), *, channels: int = 1, part: str = "Tr"
) -> None:
    """Cases whose images and labels are those of `noise` and `blocks` for the place in `names` (10 x for channels)."""
    for number, name in enumerate(names, start=1):
        for channel in range(channels):
            write(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", noise(10 * number + channel))
        write(folder / f"labels{part}" / f"{name}.nii.gz", blocks(number, values))


LABELS = {"background": 0, "liver": 1, "spleen": 2}
NAMES = ["la_003_0001", "case-1", "b", "c", "d"]
"""Names may themselves end with what looks like a channel."""
