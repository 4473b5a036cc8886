# SPDX-License-Identifier: Apache-2.0
"""Clicks and scribbles are kept with the label that is submitted later, numbered as the label's slices are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient

from benchmarks.live_server import LiveServer
from kprism_model.orientation import SliceOrientation
from tests.contract.test_slicer import ask, clicks, save_labelmap
from tests.contract.viewers import post_as_ohif


@pytest.fixture(autouse=True)
def _labels_are_removed(server: LiveServer) -> Iterator[None]:
    """Other tests of this server neither see these labels nor train on them."""
    yield
    for image in ("other", "brain_ASR", "oblique"):
        requests.delete(f"{server.url}/datastore/label", params={"id": image, "tag": "final"}, timeout=30)


def located(server: LiveServer, image: str, voxel: list[int], positive: bool) -> tuple[str, list[Any]]:
    """The slice of a voxel, as JSON names it, and the click in it."""
    stored = nibabel.load(server.studies / f"{image}.nii.gz")
    number, row, column = SliceOrientation.of(stored.affine, stored.shape).locate(voxel)
    return str(number), [row, column, positive]


def kept(server: LiveServer, image: str) -> dict[str, Any]:
    """The case's JSON file."""
    return dict(json.loads((Path(server.studies) / ".kprism" / "intake" / "cases" / f"{image}.json").read_text()))


def labelmap(server: LiveServer, image: str, *values: int) -> np.ndarray:
    """A block of each value."""
    labels = np.zeros(nibabel.load(server.studies / f"{image}.nii.gz").shape, np.uint8)
    for place, value in enumerate(values):
        labels[10 + 20 * place : 25 + 20 * place, 20:40, 2:4] = value
    return labels


def submit(slicer: MONAILabelClient, server: LiveServer, image: str, folder: Path, *names: str) -> None:
    """Submit a block of each structure, as Slicer does."""
    labels = labelmap(server, image, *range(1, len(names) + 1))
    path = save_labelmap(folder / "label.nrrd", labels, server.studies / f"{image}.nii.gz")
    slicer.save_label(image, str(path), "final", {"label_info": [{"name": name} for name in names]})


def test_clicks_of_several_structures_are_kept_when_slicer_submits(
    slicer: MONAILabelClient, server: LiveServer, tmp_path: Path
) -> None:
    image = "other"
    first, second, outside = [30, 40, 3], [35, 45, 5], [80, 90, 3]
    _, first_answer = ask(slicer, "semantic", image)
    ask(slicer, "interactive", image, **clicks(slicer, "node", node=[first]))
    ask(slicer, "interactive", image, **clicks(slicer, "node", node=[first, second], background=[outside]))
    ask(slicer, "interactive", image, **clicks(slicer, "vessel", vessel=[[50, 60, 3]]))
    ask(slicer, "interactive", image, **clicks(slicer, "unsaved", unsaved=[[70, 60, 3]]))
    submit(slicer, server, image, tmp_path, "node", "vessel")
    case = kept(server, image)
    (slice_3, one), (slice_5, two) = (located(server, image, voxel, True) for voxel in (first, second))
    _, beside = located(server, image, outside, False)
    _, other = located(server, image, [50, 60, 3], True)
    assert case["prompts"] == {"node": {slice_3: [one, beside], slice_5: [two]}, "vessel": {slice_3: [other]}}
    assert case["first_mask_origin"] == {
        "model": "semantic",
        "structures": list(first_answer["label_names"]),
        "answered_by": first_answer["answered_by"],
    }
    assert case["first_mask"] == first_answer["weights_version"]

    submit(slicer, server, image, tmp_path, "node")  # corrected by hand: the clicks of before still count
    assert kept(server, image)["prompts"] == {"node": case["prompts"]["node"]}


def test_clicks_of_one_slice_after_another_are_kept_when_ohif_submits(server: LiveServer, tmp_path: Path) -> None:
    """OHIF's K-Prism mode sends the clicks of one slice; those in another plane belong to slices as acquired."""
    image, always = "brain_ASR", {"nodule": [[50, 6, 60]], "background": []}
    assert post_as_ohif(server, "interactive", image, always).ok
    again = {"nodule": [[55, 4, 60]], "background": [[20, 4, 30]], "click_order": [[20, 4, 30], [55, 4, 60]]}
    assert post_as_ohif(server, "interactive", image, again).ok
    turned = {"nodule": [[52, 8, 61]], "background": [], "plane": "sagittal"}
    assert post_as_ohif(server, "interactive", image, turned).ok
    labels = np.zeros(nibabel.load(server.studies / f"{image}.nii.gz").shape, np.uint8)
    labels[40:60, 4:8, 40:60] = 1
    nibabel.save(
        nibabel.Nifti1Image(labels, nibabel.load(server.studies / f"{image}.nii.gz").affine), tmp_path / "l.nii"
    )
    answer = requests.put(
        f"{server.url}/datastore/label",
        params={"image": image, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": "nodule"}]})},
        files={"label": ("l.nii", (tmp_path / "l.nii").read_bytes())},
        timeout=60,
    )
    answer.raise_for_status()
    expected: dict[str, list[Any]] = {}
    for voxel, positive in (([50, 6, 60], True), ([20, 4, 30], False), ([55, 4, 60], True), ([52, 8, 61], True)):
        number, click = located(server, image, voxel, positive)
        expected.setdefault(number, []).append(click)
    assert kept(server, image)["prompts"] == {"nodule": expected}


def test_slices_with_scribbles_are_kept_without_clicks(
    slicer: MONAILabelClient, server: LiveServer, tmp_path: Path
) -> None:
    image = "oblique"
    drawn = labelmap(server, image)
    drawn[40:50, 45, [2, 7]] = 1
    info = [{"name": "foreground_scribbles", "id": 1}, {"name": "rib", "id": 4}]
    path = save_labelmap(tmp_path / "scribbles.nrrd", drawn, server.studies / f"{image}.nii.gz")
    ask(slicer, "scribbles", image, path, roi=[], label_info=info, selected_label_name="rib")
    submit(slicer, server, image, tmp_path, "rib")
    numbers = {located(server, image, [40, 45, k], True)[0] for k in (2, 7)}
    assert kept(server, image)["prompts"] == {"rib": {number: [] for number in numbers}}
