# SPDX-License-Identifier: Apache-2.0
"""A simulated annotator who uses a server's HTTP interface as a person uses a viewer.

The annotator requests the next case, and an initial mask if the server can predict one. A mask that is more wrong than
right is thrown away. Then the annotator clicks on the largest error until each structure is good enough, and submits
the masks. Masks are arrays (i, j, k) of the stored file.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image

from benchmarks.live_server import LiveServer
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice

USELESS_DICE = 0.5
"""An initial mask with a lower Dice is thrown away, which costs as much as a click."""

Masks = dict[str, NDArray[np.bool_]]
"""Name -> mask (i, j, k)."""


@dataclass
class Effort:
    """The work for one case: clicks, Dice of the first and the last mask of each structure, and the initial model."""

    image: str
    started_by: str = "nothing"
    clicks: dict[str, int] = field(default_factory=dict)
    first_dice: dict[str, float] = field(default_factory=dict)
    last_dice: dict[str, float] = field(default_factory=dict)
    weights: str = ""
    labelled_before: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Clicks of all structures."""
        return sum(self.clicks.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class SimulatedAnnotator:
    """Works on `server`; `truth` knows the masks of every image id.

    `target` is the Dice at which a structure is good enough, `limit` the largest number of clicks on it; `efforts` are
    those of an earlier run.
    """

    def __init__(
        self,
        server: LiveServer,
        truth: Mapping[str, Masks],
        *,
        target: float = 0.9,
        limit: int = 20,
        efforts: Iterable[Effort] = (),
    ) -> None:
        self._server, self._truth, self._target, self._limit = server, truth, target, limit
        self.efforts = list(efforts)

    def next_case(self, strategy: str) -> str | None:
        """The id of the next case, or None when all are labelled."""
        url = f"{self._server.url}/activelearning/{strategy}"
        answer = requests.post(url, json={"client_id": "annotator"}, timeout=60)
        answer.raise_for_status()
        chosen = answer.json().get("id")
        return str(chosen) if chosen else None

    def label(self, image: str, start: str | None) -> Effort:
        """Segment one case, starting from the masks of model `start` (None: from empty masks), and submit it."""
        begun = time.perf_counter()
        truth = self._truth[image]
        effort = Effort(image, labelled_before=len(self.efforts))
        masks = {name: np.zeros_like(mask) for name, mask in truth.items()}
        if start is not None:
            initial, effort.weights = self._initial_masks(start, image, list(truth))
            masks |= initial
            effort.started_by = start
        for name, target in truth.items():
            effort.first_dice[name] = dice(masks[name], target)
            masks[name], effort.clicks[name] = self._correct(image, name, masks[name], target)
            effort.last_dice[name] = dice(masks[name], target)
        self.submit(image, masks)
        effort.seconds = round(time.perf_counter() - begun, 2)
        self.efforts.append(effort)
        return effort

    def _initial_masks(self, model: str, image: str, names: list[str]) -> tuple[Masks, str]:
        params = {"structures": ", ".join(names), "result_extension": ".nii.gz", "client_id": "annotator"}
        metadata, content = self._server.infer_all(model, image, params)
        return masks_in(content, metadata["label_names"], names), str(metadata["weights_version"])

    def _correct(
        self, image: str, name: str, first: NDArray[np.bool_], truth: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], int]:
        """Click until the mask is good enough; returns it and the number of clicks."""
        mask, clicks = first, 0
        if first.any() and dice(first, truth) < USELESS_DICE:
            mask, clicks = np.zeros_like(first), 1
        positive: list[list[int]] = []
        negative: list[list[int]] = []
        made: list[list[int]] = []
        upload = {"label": ("first.nii.gz", _as_nifti(mask.astype(np.uint8)))} if mask.any() else None
        while dice(mask, truth) < self._target and clicks < self._limit:
            voxel, inside = worst_voxel(mask, truth)
            (positive if inside else negative).append(voxel)
            made.append(voxel)
            clicks += 1
            params = {name: positive, "background": negative, "click_order": made, "label": name}
            metadata, content = self._server.infer_all(
                "interactive", image, {**params, "result_extension": ".nii.gz", "client_id": "annotator"}, files=upload
            )
            mask = masks_in(content, metadata["label_names"], [name]).get(name, np.zeros_like(truth))
        return mask, clicks

    def submit(self, image: str, masks: Masks) -> None:
        """Submit all masks that are not empty; later names are on top."""
        labels = np.zeros(next(iter(masks.values())).shape, np.uint8)
        names = [name for name, mask in masks.items() if mask.any()]
        for value, name in enumerate(names, 1):
            labels[masks[name]] = value
        if not names:
            return
        params = {"label_names": {name: value for value, name in enumerate(names, 1)}, "client_id": "annotator"}
        answer = requests.put(
            f"{self._server.url}/datastore/label",
            params={"image": image},
            data={"params": json.dumps(params)},
            files={"label": (f"{image}.nii.gz", _as_nifti(labels))},
            timeout=120,
        )
        answer.raise_for_status()


def worst_voxel(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[list[int], bool]:
    """The voxel to click on, in the slice (along k) with the most wrong voxels; and whether the structure is there.

    ValueError if the masks are equal.
    """
    wrong = (mask ^ truth).sum(axis=(0, 1))
    k = int(wrong.argmax())
    click = next_click(mask[:, :, k], truth[:, :, k])
    if click is None:
        raise ValueError("the mask is right everywhere; expected an error to click on")
    i, j, inside = click
    return [round(i), round(j), k], inside


def masks_in(content: bytes, names: Mapping[str, int], wanted: list[str]) -> Masks:
    """The wanted masks in the file of a response; `names` maps them to their values."""
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        file.write(content)
        file.flush()
        values = np.asarray(nibabel.Nifti1Image.from_filename(file.name).dataobj).astype(np.uint8)
    values = values.reshape(*values.shape[:2], -1)
    return {name: values == names[name] for name in wanted if name in names}


def _as_nifti(labels: NDArray[np.uint8]) -> bytes:
    """A NIfTI file without an affine: it has the grid of its image, voxel by voxel."""
    return gzip.compress(nibabel.Nifti1Image(labels, None).to_bytes(), 1)


def read_truth(folder: Path, images: Collection[str] | None = None, *, split: str = "training") -> dict[str, Masks]:
    """Image id -> masks, of a list of a data set in the Decathlon's layout; absent structures are left out.

    With `images`, only of these images.
    """
    content = json.loads((folder / "dataset.json").read_text())
    names = {int(value): name for value, name in content["labels"].items() if int(value) > 0}
    truth: dict[str, Masks] = {}
    for entry in content[split]:
        image = Path(entry["image"]).name.removesuffix(".nii.gz").removesuffix(".png")
        if images is not None and image not in images:
            continue
        values = _read_values(folder / entry["label"])
        truth[image] = {name: values == value for value, name in names.items() if (values == value).any()}
    return truth


def _read_values(path: Path) -> NDArray[np.uint8]:
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture).astype(np.uint8).T[..., None]
    values = np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj).astype(np.uint8)
    return values.reshape(*values.shape[:2], -1)
