# SPDX-License-Identifier: Apache-2.0
"""One sitting in 3D Slicer, by the client inside its plugin and with requests built as the plugin builds them.

The plugin says what its panels expect (plugins/slicer/MONAILabel/MONAILabel.py of MONAI Label 0.8.5): which model
types each panel lists, how options become widgets, and how answers become segments.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from benchmarks.live_server import LiveServer

PANELS = {
    "Auto Segmentation": {"segmentation", "detection"},
    "SmartEdit / Deepgrow": {"deepgrow", "deepedit"},
    "Scribbles": {"scribbles"},
}
IMAGE = "brain_RAS"
ALWAYS = {"result_extension": ".nrrd", "result_dtype": "uint8"}


def selected(config: dict[str, Any]) -> dict[str, Any]:
    """What the options table sends without being touched: of a list its first item, of a dict its first value."""
    first = {key: next(iter(value)) if isinstance(value, list | dict) else value for key, value in config.items()}
    return {key: config[key][value] if isinstance(config[key], dict) else value for key, value in first.items()}


class Segments:
    """The plugin's segmentation node: named segments over one volume."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.masks: dict[str, np.ndarray] = {}
        self.shape = shape

    def update(self, path: str, answer: dict[str, Any]) -> list[str]:
        """Take an answer in as `updateSegmentationMask` does: value n is the n-th name; other segments stay."""
        values, _ = nrrd.read(path)
        names = answer["label_names"]
        labels = sorted(names, key=names.get) if isinstance(names, dict) else list(names)
        labels = [label for label in labels if label != "background"]
        for value, label in enumerate(labels, 1):
            self.masks[label] = values == value
        return labels

    def labelmap(self, names: list[str]) -> np.ndarray:
        """Exported as one labelmap: values 1, 2, ... in the order of the segments."""
        exported = np.zeros(self.shape, np.uint8)
        for value, name in enumerate(names, 1):
            exported[self.masks[name]] = value
        return exported


@pytest.fixture
def segments(server: LiveServer) -> Segments:
    return Segments(nibabel.load(server.studies / f"{IMAGE}.nii.gz").shape)


def save(path: Path, labelmap: np.ndarray, like: Path) -> Path:
    lps = np.diag([-1, -1, 1, 1]) @ nibabel.load(like).affine
    place = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(path), labelmap, place)
    return path


def test_every_panel_finds_a_model(slicer: MONAILabelClient) -> None:
    models = slicer.info()["models"]
    for panel, types in PANELS.items():
        assert [name for name, model in models.items() if model["type"] in types], panel
    for model in models.values():
        assert model["dimension"] in (2, 3)
        numbers = list(model["labels"].values())
        assert numbers == sorted(numbers)
        assert "background" not in model["labels"]


def test_every_option_becomes_a_widget(slicer: MONAILabelClient) -> None:
    """Items of a combo box must be strings; what is no list, dict, bool, int or float is a text."""
    info = slicer.info()
    for section in ("models", "trainers", "strategies", "scoring"):
        for name, entry in info[section].items():
            for key, value in (entry.get("config") or {}).items():
                assert isinstance(value, list | dict | bool | int | float | str), (name, key)
                if isinstance(value, list | dict):
                    assert value
                    assert all(isinstance(item, str) for item in value), (name, key)


def test_labels_are_a_list_that_ends_with_background(slicer: MONAILabelClient) -> None:
    labels = slicer.info()["labels"]
    assert isinstance(labels, list)
    assert labels[-1] == "background"
    assert len(set(labels)) == len(labels)


def test_a_sitting(slicer: MONAILabelClient, server: LiveServer, segments: Segments, tmp_path: Path) -> None:
    """Auto segmentation, clicks on a new structure, scribbles on it, saving; no segment is lost on the way."""
    info = slicer.info()
    image = server.studies / f"{IMAGE}.nii.gz"
    downloaded = requests.get(f"{server.url}/datastore/image", params={"image": IMAGE}, timeout=60)
    assert downloaded.content == image.read_bytes()

    path, answer = slicer.infer("semantic", IMAGE, {**selected(info["models"]["semantic"]["config"]), **ALWAYS})
    segments.update(path, answer)
    automatic = {name: mask.copy() for name, mask in segments.masks.items()}

    options = selected(info["models"]["interactive"]["config"])
    voxel = [s // 2 for s in segments.shape]
    clicks = {name: [] for name in info["labels"]} | {"cyst": [voxel]}
    path, answer = slicer.infer("interactive", IMAGE, {**clicks, "label": "cyst", **options, **ALWAYS})
    assert segments.update(path, answer) == ["cyst"]
    assert segments.masks["cyst"][tuple(voxel)]
    assert all(np.array_equal(segments.masks[name], mask) for name, mask in automatic.items())

    order = ["background_scribbles", "foreground_scribbles", "cyst"]
    segments.masks["foreground_scribbles"] = np.zeros(segments.shape, bool)
    segments.masks["background_scribbles"] = np.zeros(segments.shape, bool)
    i, j, k = voxel
    segments.masks["foreground_scribbles"][i - 5 : i + 6, j, k] = True
    segments.masks["background_scribbles"][2, 2:20, k] = True
    file = save(tmp_path / "scribbles.nrrd", segments.labelmap(["cyst", *order[:2]]), image)
    listed = [{"name": name, "id": number} for number, name in enumerate(["cyst", *order[:2]], 1)]
    params = {"roi": [], "label_info": listed, "selected_label_name": "cyst"}
    params |= selected(info["models"]["scribbles"]["config"])
    path, answer = slicer.infer("scribbles", IMAGE, {**params, **ALWAYS}, str(file))
    assert segments.update(path, answer) == ["cyst"]
    assert segments.masks["cyst"][i - 5 : i + 6, j, k].all()
    assert not segments.masks["cyst"][2, 2:20, k].any()

    # `idx` counts the two scribble segments, which are not saved, so it differs from the values by two
    file = save(tmp_path / "label.nrrd", segments.labelmap(["cyst"]), image)
    listed = [{"name": "cyst", "idx": 3}]
    saved = slicer.save_label(IMAGE, str(file), "final", {"label_info": listed, "model": "interactive"})
    assert saved["image"] == IMAGE
    assert "cyst" in slicer.info()["labels"]
    stored = requests.get(f"{server.url}/datastore/label", params={"label": saved["label"], "tag": "final"}, timeout=60)
    (tmp_path / "stored.nrrd").write_bytes(stored.content)
    np.testing.assert_array_equal(nrrd.read(str(tmp_path / "stored.nrrd"))[0] > 0, segments.masks["cyst"])


def test_next_sample_comes_with_its_draft(slicer: MONAILabelClient, server: LiveServer) -> None:
    """The plugin loads the volume, by its path or over HTTP, and the draft (tag original) under its stored names."""
    sample = slicer.next_sample("first", {})
    image = sample["id"]
    draft = {"cyst": [[1, 1, 0]], "label": "cyst", "save_label": True, "label_tag": "original"}
    path, answer = slicer.infer("interactive", image, {**draft, **ALWAYS})
    address = f"{server.url}/datastore"
    volume = requests.get(f"{address}/image", params={"image": image}, timeout=60)
    assert volume.content == Path(sample["path"]).read_bytes()
    asked = {"label": image, "tag": "original"}
    assert requests.head(f"{address}/label", params={**asked, "image": image}, timeout=60).status_code == 200
    names = requests.get(f"{address}/label/info", params=asked, timeout=60).json()["params"]["label_names"]
    assert names == answer["label_names"] == {"cyst": 1}
    np.testing.assert_array_equal(nrrd.read(slicer.download_label(image, "original"))[0], nrrd.read(path)[0])
    assert slicer.next_sample("first", {})["id"] == image  # a draft is no submission


def test_clicks_of_the_deepgrow_panel(slicer: MONAILabelClient, segments: Segments) -> None:
    """One structure: `foreground`, `background`, the current slice, and a region of interest, which is none of ours."""
    options = selected(slicer.info()["models"]["interactive"]["config"])
    i, j, k = (s // 2 for s in segments.shape)
    sent = {"label": "cyst", "foreground": [[i, j, k]], "background": [[2, 2, k]], "slice": k, "reset_state": True}
    roi = [i - 9, i + 9, j - 9, j + 9, k, k]
    path, answer = slicer.infer("interactive", IMAGE, {**sent, "roi": roi, **options, **ALWAYS})
    assert segments.update(path, answer) == ["cyst"]
    assert segments.masks["cyst"][i, j, k]
    assert not segments.masks["cyst"][2, 2, k]
    assert not np.delete(segments.masks["cyst"], k, axis=2).any()


def test_the_training_panel(slicer: MONAILabelClient) -> None:
    """The plugin asks every five seconds; without a training the client says so."""
    assert slicer.train_status(check_if_running=True) is False
    for stats in slicer.info()["train_stats"].values():
        assert stats == {} or {"epoch", "total_epochs", "best_metric"} <= set(stats)


def test_a_training_is_started_with_every_option_and_stopped(slicer: MONAILabelClient) -> None:
    [(trainer, entry)] = slicer.info()["trainers"].items()
    started = slicer.train_start(trainer, selected(entry["config"]))
    try:
        assert started["status"] in ("SUBMITTED", "RUNNING")
        wait_until(slicer, running=True)
        with pytest.raises(MONAILabelClientException) as caught:
            slicer.train_start(trainer, selected(entry["config"]))
        assert "429" in caught.value.msg
    finally:
        slicer.train_stop()
    wait_until(slicer, running=False)


def wait_until(slicer: MONAILabelClient, *, running: bool) -> None:
    """Ask until a training runs, or none does."""
    deadline = time.monotonic() + 120
    while slicer.train_status(check_if_running=True) is not running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
