# SPDX-License-Identifier: Apache-2.0
"""3D Slicer's requests, sent by the client inside its plugin: label names by position, scribbles, sessions."""

from __future__ import annotations

import json
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

IMAGE = "brain_LPS"
ALWAYS = {"result_extension": ".nrrd", "result_dtype": "uint8"}


def options_of(client: MONAILabelClient, model: str) -> dict[str, Any]:
    """Slicer sends every option, lists as their first item."""
    config = client.info()["models"][model]["config"]
    return {key: value[0] if isinstance(value, list) else value for key, value in config.items()}


def ask(
    client: MONAILabelClient, model: str, image: str, labelmap: Path | None = None, **params: Any
) -> tuple[Any, Any]:
    """(mask (i, j, k), JSON) as the plugin gets them."""
    sent = {**params, **options_of(client, model), **ALWAYS}
    path, answer = client.infer(model, image, sent, str(labelmap) if labelmap else None)
    mask, _ = nrrd.read(path)
    return mask, answer


def clicks(client: MONAILabelClient, current: str, **points: list[list[int]]) -> dict[str, Any]:
    """A click's request: every label of the server, most of them empty."""
    return {**{name: [] for name in client.info()["labels"]}, **points, "label": current, "reset_state": True}


def save_labelmap(path: Path, labelmap: np.ndarray, like: Path) -> Path:
    lps = np.diag([-1, -1, 1, 1]) @ nibabel.load(like).affine
    place = {"space": "left-posterior-superior", "space directions": lps[:3, :3].T, "space origin": lps[:3, 3]}
    nrrd.write(str(path), labelmap, place)
    return path


def test_auto_segmentation(slicer: MONAILabelClient, server: LiveServer) -> None:
    mask, answer = ask(slicer, "semantic", IMAGE)
    assert mask.shape == nibabel.load(server.studies / f"{IMAGE}.nii.gz").shape
    assert list(answer["label_names"].values()) == list(range(1, len(answer["label_names"]) + 1))
    assert set(np.unique(mask)) == {0, *answer["label_names"].values()}
    assert not set(answer["label_names"]) & set(answer["absent"])


def test_answers_say_how_they_came_about(slicer: MONAILabelClient) -> None:
    _, answer = ask(slicer, "interactive", "lung", **clicks(slicer, "lungs", lungs=[[50, 60, 4]]))
    assert len(answer["weights_version"]) == 12
    assert answer["device"] == "cpu"
    assert answer["model"] == "interactive"
    assert answer["encoder_passes"] == 1
    assert answer["decoder_passes"] == 1
    assert answer["files_read"] == 1
    steps = {"read", "network", "compose", "number", "write", "total"}
    assert steps == set(answer["latencies"])
    assert sum(answer["latencies"][step] for step in steps - {"total"}) <= answer["latencies"]["total"] + 0.01

    _, again = ask(slicer, "interactive", "lung", **clicks(slicer, "lungs", lungs=[[50, 60, 4], [20, 30, 4]]))
    assert again["files_read"] == 0  # the image was kept
    assert again["encoder_passes"] == 0  # so was the slice
    assert again["decoder_passes"] == 1  # so was the first click's mask


def test_only_the_current_label_is_answered(slicer: MONAILabelClient) -> None:
    points = {"lungs": [[50, 60, 4]], "tumour": [[20, 30, 4]]}
    mask, answer = ask(slicer, "interactive", IMAGE, **clicks(slicer, "tumour", **points))
    assert answer["label_names"] == {"tumour": 1}
    assert mask[20, 30, 4] == 1
    assert mask[50, 60, 4] == 0  # another label's click is not this label
    assert not mask[:, :, np.arange(mask.shape[2]) != 4].any()


def test_background_segment_gives_negative_clicks(slicer: MONAILabelClient) -> None:
    points = {"lungs": [[50, 60, 4]], "background": [[52, 60, 4]]}
    mask, answer = ask(slicer, "interactive", IMAGE, **clicks(slicer, "background", **points))
    assert answer["label_names"] == {"lungs": 1}
    assert (mask[50, 60, 4], mask[52, 60, 4]) == (1, 0)


def test_scribbles(slicer: MONAILabelClient, server: LiveServer, tmp_path: Path) -> None:
    image = server.studies / f"{IMAGE}.nii.gz"
    labelmap = np.zeros(nibabel.load(image).shape, np.uint8)
    labelmap[30:60, 30:60, 3:6] = 1  # the mask so far
    labelmap[70:80, 20:30, 3:6] = 4  # another label
    labelmap[35:55, 45, 4] = 3  # foreground scribble over the mask
    labelmap[10:20, 80, 4] = 2  # background scribble
    info = [
        {"name": "tumour", "id": 1},
        {"name": "background_scribbles", "id": 2},
        {"name": "foreground_scribbles", "id": 3},
        {"name": "lungs", "id": 4},
    ]
    path = save_labelmap(tmp_path / "scribbles.nrrd", labelmap, image)
    mask, answer = ask(slicer, "scribbles", IMAGE, path, roi=[], label_info=info, selected_label_name="tumour")
    assert answer["label_names"] == {"tumour": 1}
    assert mask[35:55, 45, 4].all()
    assert not mask[10:20, 80, 4].any()
    others = [k for k in range(mask.shape[2]) if k != 4]
    np.testing.assert_array_equal(mask[:, :, others], labelmap[:, :, others] == 1)
    assert 1 <= answer["decoder_passes"] <= 4  # once, and again where the answer did not fit into its window


def test_a_labelmap_of_another_shape_is_refused(slicer: MONAILabelClient, server: LiveServer, tmp_path: Path) -> None:
    path = save_labelmap(tmp_path / "small.nrrd", np.ones((5, 6, 7), np.uint8), server.studies / f"{IMAGE}.nii.gz")
    info = [{"name": "tumour", "id": 2}, {"name": "foreground_scribbles", "id": 1}]
    with pytest.raises(MONAILabelClientException) as caught:
        ask(slicer, "scribbles", IMAGE, path, label_info=info, selected_label_name="tumour")
    assert "Status: 400" in caught.value.msg
    assert "5 x 6 x 7" in caught.value.msg
    assert "120 x 100 x 12" in caught.value.msg


def test_a_submitted_label_is_the_next_reference(slicer: MONAILabelClient, server: LiveServer, tmp_path: Path) -> None:
    """Slicer's `idx` counts segments that it does not save; the names' order counts."""
    image = server.studies / "brain_RAS.nii.gz"
    label = np.zeros(nibabel.load(image).shape, np.uint8)
    label[20:50, 20:50, 2:8] = 1
    label[60:90, 50:80, 2:8] = 2
    info = [{"name": "left thing", "idx": 3}, {"name": "right thing", "idx": 5}]
    slicer.save_label(
        "brain_RAS", str(save_labelmap(tmp_path / "label.nrrd", label, image)), "final", {"label_info": info}
    )

    assert {"left thing", "right thing"} <= set(slicer.info()["labels"])
    sent = {"structures": "right thing", "presence": 0, **ALWAYS}
    _, answer = slicer.infer("in_context", "other", sent)
    assert list(answer["label_names"]) == ["right thing"]
    assert {use["image"] for use in answer["references"]["right thing"]} == {"brain_RAS"}
    assert all(2 <= number < 8 for number in answer["references"]["right thing"][0]["slices"])


def test_next_sample(slicer: MONAILabelClient, server: LiveServer) -> None:
    for strategy in ("random", "first"):
        for _ in range(3):  # more than once a second
            sample = slicer.next_sample(strategy, {})
            assert Path(sample["path"]).is_file()
            assert sample["id"] != IMAGE  # it is labelled
    assert requests.post(f"{server.url}/activelearning/best", json={}, timeout=30).status_code == 400


def test_session(slicer: MONAILabelClient, server: LiveServer) -> None:
    """A volume that is not in the datastore is uploaded once."""
    path = server.studies / f"{IMAGE}.nii.gz"
    session = slicer.create_session(str(path))["session_id"]
    sent = {"thing": [[60, 50, 6]], "label": "thing", "start_from": "nothing", **ALWAYS}
    result, answer = slicer.infer("interactive", "whatever it is called", sent, session_id=session)
    expected, _ = slicer.infer("interactive", IMAGE, sent)
    np.testing.assert_array_equal(nrrd.read(result)[0], nrrd.read(expected)[0])
    assert answer["encoder_passes"] in (0, 1)
    slicer.remove_session(session)
    with pytest.raises(MONAILabelClientException) as caught:
        slicer.infer("interactive", IMAGE, sent, session_id=session)
    assert "Status: 404" in caught.value.msg
    assert session in caught.value.msg


def test_an_uploaded_image(server: LiveServer) -> None:
    with (server.studies / "grey.png").open("rb") as stream:
        response = requests.post(
            f"{server.url}/infer/interactive",
            params={"output": "json"},
            data={"params": json.dumps({"thing": [[150, 100]]})},
            files={"file": ("anything.png", stream)},
            timeout=60,
        )
    assert response.status_code == 200, response.text
    assert response.json()["label_names"] == {"thing": 1}
