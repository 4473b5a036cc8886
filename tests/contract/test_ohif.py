# SPDX-License-Identifier: Apache-2.0
"""OHIF's requests as captured from the bundled viewer, answered in its series' own grid with its own label numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests

from benchmarks.live_server import LiveServer
from tests.contract.viewers import post_as_ohif

Ask = Callable[..., np.ndarray]
IMAGE = "brain_RAS"


def number_of(server: LiveServer, model: str, name: str) -> int:
    return int(server.info()["models"][model]["labels"][name])


def slices_of(mask: np.ndarray) -> set[int]:
    return {int(k) for k in np.flatnonzero(mask.any(axis=(0, 1)))}


def test_info_is_what_the_panel_needs(server: LiveServer) -> None:
    info = server.info()
    kinds = {name: model["type"] for name, model in info["models"].items()}
    assert kinds == {
        "semantic": "segmentation",
        "in_context": "segmentation",
        "interactive": "deepedit",
        "scribbles": "scribbles",
    }
    assert isinstance(info["labels"], list)
    assert info["labels"][-1] == "background"
    for model in info["models"].values():
        assert "background" not in model["labels"]
        assert sorted(model["labels"].values()) == list(range(1, len(model["labels"]) + 1))
        for value in model["config"].values():
            assert isinstance(value, bool | int | float | str) or all(isinstance(item, str) for item in value)
    assert {"random", "first"} <= set(info["strategies"])


def test_auto_segmentation(server: LiveServer, ohif: Ask) -> None:
    mask = ohif("semantic", IMAGE)
    assert set(np.unique(mask)) <= {0, *server.info()["models"]["semantic"]["labels"].values()}


def test_class_prompt_asks_for_one_class(server: LiveServer, ohif: Ask) -> None:
    number = number_of(server, "semantic", "polyp")
    assert set(np.unique(ohif("semantic", IMAGE, label_prompt=[number], presence=0))) == {0, number}


def test_changed_options_come_as_text_or_numbers(ohif: Ask) -> None:
    everything = ohif("semantic", IMAGE, structures="polyp, Tumour", presence="0")
    np.testing.assert_array_equal(everything, ohif("semantic", IMAGE, structures="tumour,polyp", presence=0.0))
    assert not ohif("semantic", IMAGE, structures="polyp", presence=1).any()


def test_in_context_gives_the_labels_number(server: LiveServer, ohif: Ask) -> None:
    mask = ohif("in_context", IMAGE, references="brain_LPS", presence=0)
    assert set(np.unique(mask)) == {0, number_of(server, "in_context", "tumour")}


def test_deepedit_clicks(server: LiveServer, ohif: Ask) -> None:
    number = number_of(server, "interactive", "lungs")
    mask = ohif("interactive", IMAGE, background=[[16, 53, 9]], lungs=[[51, 38, 9], [49, 41, 9]], start_from="nothing")
    assert mask[51, 38, 9] == mask[49, 41, 9] == number
    assert mask[16, 53, 9] == 0
    assert slices_of(mask) == {9}
    assert set(np.unique(mask)) == {0, number}


def test_deepedit_clicks_on_two_labels_and_two_slices(server: LiveServer, ohif: Ask) -> None:
    tumour, lungs = (number_of(server, "interactive", name) for name in ("tumour", "lungs"))
    clicks = {"background": [], "tumour": [[20, 30, 3]], "lungs": [[60, 70, 3], [60, 70, 5]]}
    mask = ohif("interactive", IMAGE, **clicks, start_from="nothing")
    assert (mask[20, 30, 3], mask[60, 70, 3], mask[60, 70, 5]) == (tumour, lungs, lungs)
    assert slices_of(mask) == {3, 5}
    assert not (mask[:, :, 5] == tumour).any()


@pytest.mark.parametrize(
    ("params", "voxels", "name"),
    [
        (
            {"points": [[51, 38, 9], [49, 41, 9], [16, 53, 9]], "point_labels": [1, 1, 0], "label_prompt": [2]},
            [[51, 38, 9], [49, 41, 9]],
            "lungs",
        ),
        ({"foreground": [[51, 38, 9]], "background": [[16, 53, 9]], "label": "lungs"}, [[51, 38, 9]], "lungs"),
    ],
)
def test_vista3d_and_deepgrow_clicks(
    server: LiveServer, ohif: Ask, params: dict[str, Any], voxels: list[list[int]], name: str
) -> None:
    mask = ohif("interactive", IMAGE, **params, start_from="nothing")
    assert all(mask[tuple(voxel)] == number_of(server, "interactive", name) for voxel in voxels)
    assert mask[16, 53, 9] == 0


def test_the_same_request_has_the_same_answer(ohif: Ask) -> None:
    one, two = {"polyp": [[51, 38, 2]]}, {"polyp": [[51, 38, 2], [70, 20, 2]]}
    first = ohif("interactive", IMAGE, **one)
    second = ohif("interactive", IMAGE, **two)
    np.testing.assert_array_equal(ohif("interactive", IMAGE, **two), second)
    np.testing.assert_array_equal(ohif("interactive", IMAGE, **one), first)  # the second click was taken back


def test_clicks_refine_the_mask_that_is_there(server: LiveServer, ohif: Ask) -> None:
    """OHIF erases a label where the answer lacks it, so slices without clicks must come back as they were."""
    automatic = ohif("semantic", IMAGE, presence=0)
    ohif("semantic", IMAGE, presence=0, save_label=True, label_tag="original")
    number = number_of(server, "interactive", "tumour")
    drafted = {"start_from": "original label", "background": []}
    refined = ohif("interactive", IMAGE, tumour=[[20, 30, 3]], **drafted)
    others = [k for k in range(automatic.shape[2]) if k != 3]
    np.testing.assert_array_equal(refined[:, :, others] == number, automatic[:, :, others] == number)
    assert refined[20, 30, 3] == number

    alone = ohif("interactive", IMAGE, tumour=[[40, 50, 7]], background=[])
    assert slices_of(alone) == {7}  # nothing is left of the clicks before
    removed = requests.delete(f"{server.url}/datastore/label", params={"id": IMAGE, "tag": "original"}, timeout=30)
    assert removed.status_code == 200


def test_a_background_click_corrects_the_label_under_it(server: LiveServer, ohif: Ask) -> None:
    ohif("semantic", IMAGE, structures="polyp", presence=0, save_label=True, label_tag="original")
    automatic = ohif("semantic", IMAGE, structures="polyp", presence=0)
    voxel = [int(index) for index in np.argwhere(automatic)[0]]
    mask = ohif("interactive", IMAGE, background=[voxel], start_from="original label")
    assert set(np.unique(mask)) == {0, number_of(server, "interactive", "polyp")}
    assert mask[tuple(voxel)] == 0
    requests.delete(f"{server.url}/datastore/label", params={"id": IMAGE, "tag": "original"}, timeout=30)


def test_options_are_what_both_viewers_can_show(server: LiveServer) -> None:
    """A bool is a check box, a list of texts a choice, a text or a number a field; Slicer fails at anything else."""
    models = server.info()["models"]
    for model in models.values():
        for value in model["config"].values():
            assert isinstance(value, bool | int | float | str) or all(isinstance(item, str) for item in value)
    assert models["interactive"]["config"]["scope"] == ["this slice", "slices around", "whole volume"]
    assert models["scribbles"]["config"]["scope"] == ["this slice", "slices around", "whole volume"]
    planes = ["as acquired", "axial", "coronal", "sagittal"]
    assert all(model["config"]["plane"] == planes for model in models.values())
    assert models["semantic"]["config"].keys() == {"structures", "presence", "slices", "plane", "clean_up"}


def test_a_choice_may_come_as_a_list(ohif: Ask) -> None:
    one = ohif("interactive", IMAGE, tumour=[[20, 30, 3]], background=[], scope=["this slice"])
    assert slices_of(one) == {3}
    around = ohif("interactive", IMAGE, tumour=[[20, 30, 3]], background=[], scope="slices around", slices_around=1)
    assert slices_of(around) <= {2, 3, 4}
    np.testing.assert_array_equal(around[:, :, 3], one[:, :, 3])


def test_raw_answers_are_compressed_on_the_way(server: LiveServer) -> None:
    """OHIF's NRRD must be raw, its browser reads gzip; who does not say so gets the plain bytes."""
    sizes = {}
    for encoding in ("gzip, deflate", "identity"):
        answer = requests.post(
            f"{server.url}/infer/interactive",
            params={"image": IMAGE, "output": "image"},
            data={
                "params": json.dumps({"tumour": [[20, 30, 3]], "result_extension": ".nrrd", "result_compress": False})
            },
            headers={"Accept-Encoding": encoding},
            timeout=60,
            stream=True,
        )
        assert answer.headers.get("content-encoding") == ("gzip" if "gzip" in encoding else None)
        sizes[encoding] = int(answer.headers["content-length"])
        assert b"encoding: raw" in answer.content
    assert sizes["gzip, deflate"] < 0.1 * sizes["identity"]


def test_no_selected_row(server: LiveServer) -> None:
    answer = post_as_ohif(server, "interactive", IMAGE, {"background": [], "null": [[1, 2, 3]]})
    assert answer.status_code == 400
    assert "no structure was selected" in answer.json()["detail"]


def test_save_through_options(server: LiveServer, ohif: Ask) -> None:
    ohif("semantic", "other", structures="lungs", presence=0, save_label=True, label_tag="original")
    labels = requests.get(f"{server.url}/datastore/?output=all", timeout=30).json()["objects"]["other"]["labels"]
    assert labels["original"]["info"]["params"]["label_names"] == {"lungs": number_of(server, "semantic", "lungs")}
