# SPDX-License-Identifier: Apache-2.0
"""Small data sets written to disk for the tests of reading, storing and sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from kprism_model.data.building import build_store
from kprism_model.data.slices import SliceStore


def write_dataset(
    folder: Path,
    labels: Sequence[np.ndarray],
    *,
    classes: Sequence[str] = ("disc",),
    images: Sequence[np.ndarray] | None = None,
    patients: Sequence[str] | None = None,
    modality: str = "photograph",
    affine: np.ndarray | None = None,
    split: str = "training",
) -> Path:
    """Write label maps (2-D: PNG, 3-D: NIfTI) and their images; a picture's red channel is 10 times its case number."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    entries = []
    for number, label in enumerate(labels):
        image = images[number] if images is not None else coloured(label, number)
        file = f"case_{number}.png" if label.ndim == 2 else f"case_{number}.nii.gz"
        for kind, array in (("images", image), ("labels", label.astype(np.uint8))):
            if label.ndim == 2:
                Image.fromarray(array).save(folder / kind / file)
            else:
                nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), folder / kind / file)
        entry = {"image": f"./images/{file}", "label": f"./labels/{file}"}
        entries.append(entry | ({"patient": patients[number]} if patients else {}))
    names = {"0": "background"} | {str(index): name for index, name in enumerate(classes, start=1)}
    write_json(folder, {"name": folder.name, "modality": {"0": modality}, "labels": names, split: entries})
    return folder


def write_json(folder: Path, content: object) -> None:
    """Write the description of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))


def coloured(label: np.ndarray, number: int) -> np.ndarray:
    """An RGB picture: red tells the case, green is bright where there is a label, blue is half."""
    return np.stack(
        [np.full_like(label, 10 * number), np.where(label > 0, 255, 0), np.full_like(label, 128)], 2
    ).astype(np.uint8)


def rectangle(size: tuple[int, int], rows: slice, columns: slice, value: int = 1) -> np.ndarray:
    """A label map with one rectangle."""
    label = np.zeros(size, np.uint8)
    label[rows, columns] = value
    return label


def store_of_boxes(folder: Path, size: int) -> SliceStore:
    """A store of bright rectangles of 24 x 24 pixels at four places."""
    places = [(5, 5), (5, 30), (30, 5), (30, 30)]
    labels = [rectangle((size, size), slice(r, r + 24), slice(c, c + 24)) for r, c in places]
    dataset = write_dataset(folder / "boxes", labels, classes=["box"])
    return build_store([dataset], folder / "store", size=size, progress=False)
