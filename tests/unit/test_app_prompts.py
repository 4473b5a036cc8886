# SPDX-License-Identifier: Apache-2.0
"""Requests of the viewers, as captured, become clicks; bad ones are refused with the value in the message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.label_registry import LabelRegistry
from lib.imaging.medical_image import MedicalImage, planes_of
from lib.infers.clicks import read_clicks
from lib.infers.existing_masks import Labelmap, uploaded_values
from lib.infers.interactive import clicks_for
from lib.infers.request import Clicks
from lib.infers.resolve import read_structures
from lib.infers.result import wants_registry_numbers
from lib.infers.scribble_map import ScribbleValues, read_scribble_values

OHIF = {
    "result_extension": ".nrrd",
    "result_dtype": "uint8",
    "result_compress": False,
    "restore_label_idx": False,
}


@pytest.fixture
def label_registry() -> LabelRegistry:
    return LabelRegistry(["blob", "cube"])


@pytest.fixture
def volume() -> MedicalImage:
    return MedicalImage("image 'case'", np.zeros((80, 96, 40), np.int16), np.eye(4), 3, ".nii.gz", "digest")


def clicks_of(params: dict[str, Any], label_registry: LabelRegistry, volume: MedicalImage) -> Clicks:
    return read_clicks(params, label_registry, ["use_class", "start_from"], volume)


def voxels_of(clicks: Clicks) -> dict[str, list[tuple[int, int, int]]]:
    return {name: [click.voxel for click in own] for name, own in clicks.labels.items()}


def test_ohif_deepedit(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {"background": [[16, 53, 19]], "blob": [[51, 38, 19], [49, 41, 19]], **OHIF}
    clicks = clicks_of(params, label_registry, volume)
    assert voxels_of(clicks) == {"blob": [(51, 38, 19), (49, 41, 19)]}
    assert [click.voxel for click in clicks.background] == [(16, 53, 19)]
    assert clicks.edited == ("blob",)
    assert wants_registry_numbers(params)


def test_slicer_deepedit_edits_the_current_label_only(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {
        "blob": [[51, 38, 19]],
        "cube": [[10, 11, 12]],
        "background": [],
        "label": "cube",
        "use_class": False,
        "start_from": "last mask",
        "reset_state": True,
        "client_id": "user-xyz",
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
    }
    clicks = clicks_of(params, label_registry, volume)
    assert clicks.edited == ("cube",)
    assert voxels_of(clicks) == {"blob": [(51, 38, 19)], "cube": [(10, 11, 12)]}
    assert [click.voxel for click in clicks_for("cube", clicks)] == [(10, 11, 12)]
    assert not wants_registry_numbers(params)


def test_slicer_background_as_current_label_edits_all_clicked(
    label_registry: LabelRegistry, volume: MedicalImage
) -> None:
    clicks = clicks_of(
        {"blob": [[1, 2, 3]], "cube": [], "background": [[4, 5, 3]], "label": "background"}, label_registry, volume
    )
    assert clicks.edited == ("blob",)
    assert voxels_of(clicks) == {"blob": [(1, 2, 3)]}
    assert [click.voxel for click in clicks.background] == [(4, 5, 3)]


def test_deepgrow_takes_the_name_from_label(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {"foreground": [[51, 38, 19]], "background": [[16, 53, 19]], "label": "Cyst"}
    clicks = clicks_of(params, label_registry, volume)
    assert voxels_of(clicks) == {"Cyst": [(51, 38, 19)]}
    assert [click.voxel for click in clicks.background] == [(16, 53, 19)]


def test_vista3d_takes_the_name_from_label_prompt(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {
        "points": [[51, 38, 19], [49, 41, 19], [16, 53, 19]],
        "point_labels": [1, 1, 0],
        "label_prompt": [2],
        **OHIF,
    }
    clicks = clicks_of(params, label_registry, volume)
    assert voxels_of(clicks) == {"cube": [(51, 38, 19), (49, 41, 19)]}
    assert [click.voxel for click in clicks.background] == [(16, 53, 19)]


def test_stale_prompts_of_another_tab_are_ignored(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {"blob": [[1, 2, 3]], "background": [], "points": [[9, 9, 9]], "point_labels": [1], "label_prompt": [2]}
    assert voxels_of(clicks_of(params, label_registry, volume)) == {"blob": [(1, 2, 3)]}


def test_unknown_names_are_labels_too_and_case_does_not_matter(
    label_registry: LabelRegistry, volume: MedicalImage
) -> None:
    clicks = clicks_of({"BLOB": [[1, 2, 3]], "new  thing": [[4, 5, 6]]}, label_registry, volume)
    assert list(clicks.labels) == ["blob", "new thing"]


def test_spellings_of_one_name_are_one_label(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    clicks = clicks_of({"Blob": [[1, 2, 3]], "blob": [[4, 5, 6]], "Background": [[7, 8, 9]]}, label_registry, volume)
    assert voxels_of(clicks) == {"blob": [(1, 2, 3), (4, 5, 6)]}
    assert [click.voxel for click in clicks.background] == [(7, 8, 9)]


def test_a_structure_may_be_called_foreground(volume: MedicalImage) -> None:
    label_registry = LabelRegistry(["foreground", "blob"])
    params = {"foreground": [[1, 2, 3]], "blob": [[4, 5, 6]], "background": [], "label": "blob"}
    clicks = clicks_of(params, label_registry, volume)
    assert voxels_of(clicks) == {"foreground": [(1, 2, 3)], "blob": [(4, 5, 6)]}
    assert clicks.edited == ("blob",)
    clicks = clicks_of({"foreground": [[1, 2, 3]], "background": [], "label": "foreground"}, label_registry, volume)
    assert voxels_of(clicks) == {"foreground": [(1, 2, 3)]}


def test_repeated_clicks_count_once(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    assert voxels_of(clicks_of({"blob": [[1, 2, 3], [1.0, 2, 3]]}, label_registry, volume)) == {"blob": [(1, 2, 3)]}


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"blob": [[80, 0, 0]]}, r"\[80, 0, 0\].*80 x 96 x 40"),
        ({"blob": [[0, 0, -1]]}, r"\[0, 0, -1\]"),
        ({"blob": [[1.5, 2, 3]]}, r"\[1\.5, 2, 3\]"),
        ({"blob": [["1", 2, 3]]}, r"'1'"),
        ({"blob": [[True, 2, 3]]}, "True"),
        ({"blob": [[float("nan"), 2, 3]]}, "nan"),
        ({"blob": [[10**30, 2, 3]]}, "0000"),
        ({"blob": [[1, 2]]}, r"\[1, 2\]"),
        ({"blob": [7]}, "is 7"),
        ({"blob": [{"i": 1}]}, "'i'"),
        ({"blob": [[1, 2, 3]] * 5000}, "5000 clicks"),
        ({"blob": [[i, j, 0] for i in range(30) for j in range(30)], "cube": [[i, 0, 1] for i in range(70)] * 2}, None),
        ({"blob": [[1, 2, 3]], "background": [[1, 2, 3]]}, "both as 'blob' and as 'background'"),
        ({"null": [[1, 2, 3]], "background": []}, "no structure was selected"),
        ({"points": [[1, 2, 3]], "point_labels": [1, 0], "label_prompt": [1]}, "point_labels"),
        ({"points": [[1, 2, 3]], "point_labels": [3], "label_prompt": [1]}, "holds 3"),
        ({"points": [[1, 2, 3]], "point_labels": [1], "label_prompt": [9]}, "9"),
        ({"points": [[1, 2, 3]], "point_labels": [1]}, "label_prompt is None"),
    ],
)
def test_bad_clicks(
    params: dict[str, Any], named: str | None, label_registry: LabelRegistry, volume: MedicalImage
) -> None:
    if named is None:  # 900 + 70 different clicks are allowed
        assert len(clicks_of(params, label_registry, volume).labels["blob"]) == 900
        return
    with pytest.raises(RequestError, match=named):
        clicks_of(params, label_registry, volume)


def test_clicks_are_located_in_their_slices(label_registry: LabelRegistry) -> None:
    image = MedicalImage("v", np.zeros((8, 9, 5), np.int16), np.diag([1, 1, -3, 1.0]), 3, ".nii.gz", "digest")
    clicks = clicks_of({"blob": [[1, 2, 3]], "background": [[4, 5, 0]]}, label_registry, image)
    located = [(click.positive, click.slice, click.row, click.column) for click in clicks]
    assert located == [(False, *image.locate((4, 5, 0))), (True, *image.locate((1, 2, 3)))]
    assert {click.slice for click in clicks} == {1, 4}  # slices are counted from below, against k


def test_two_indices_do_for_a_picture(label_registry: LabelRegistry) -> None:
    picture = MedicalImage("image 'p'", np.zeros((60, 100, 1), np.uint8), np.eye(4), 2, ".png", "digest")
    assert voxels_of(clicks_of({"blob": [[59, 99]]}, label_registry, picture)) == {"blob": [(59, 99, 0)]}


def test_clicks_by_turns(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {"blob": [[1, 1, 3], [2, 2, 3], [3, 3, 3]], "background": [[9, 9, 8]], "cube": [[5, 5, 3], [6, 6, 9]]}
    turn = clicks_for("blob", clicks_of(params, label_registry, volume))
    assert [(click.voxel, click.positive) for click in turn] == [
        ((1, 1, 3), True),
        ((9, 9, 8), False),
        ((2, 2, 3), True),
        ((5, 5, 3), False),  # another label's click counts where this one is clicked too
        ((3, 3, 3), True),
    ]


def test_clicks_in_the_order_that_the_client_tells(label_registry: LabelRegistry, volume: MedicalImage) -> None:
    params = {"blob": [[1, 1, 3], [2, 2, 3]], "background": [[9, 9, 3], [8, 8, 3]]}
    order = [[9, 9, 3], [8, 8, 3], [2, 2, 3], [1, 1, 3]]
    turn = clicks_for("blob", clicks_of({**params, "click_order": order}, label_registry, volume))
    assert [(list(click.voxel), click.positive) for click in turn] == [
        (voxel, positive) for voxel, positive in zip(order, (False, False, True, True), strict=True)
    ]


@pytest.mark.parametrize(
    ("order", "named"),
    [
        ([[1, 1, 3]], r"\[9, 9, 3\] is not in click_order"),
        ([[1, 1, 3], [9, 9, 3], [4, 4, 3]], r"\[4, 4, 3\] is in click_order, but under no label"),
        ([[1, 1, 3], [9, 9, 300]], "click_order"),
        ("first to last", "click_order"),
    ],
)
def test_an_order_of_other_clicks_is_refused(
    label_registry: LabelRegistry, volume: MedicalImage, order: Any, named: str
) -> None:
    params = {"blob": [[1, 1, 3]], "background": [[9, 9, 3]], "click_order": order}
    with pytest.raises(RequestError, match=named):
        clicks_of(params, label_registry, volume)


def test_structures_by_name_or_by_number(label_registry: LabelRegistry) -> None:
    assert read_structures({}, ["CUBE", "blob"], label_registry) == ["cube", "blob"]
    assert read_structures({"label_prompt": [2]}, [], label_registry) == ["cube"]
    assert read_structures({"label_prompt": None}, [], label_registry) == []
    assert read_structures({}, ["Cube", "cube", "CUBE"], label_registry) == ["cube"]
    with pytest.raises(RequestError, match="3"):
        read_structures({"label_prompt": [3]}, [], label_registry)


def scribble_values(params: dict[str, Any], label_registry: LabelRegistry) -> ScribbleValues:
    drawn = np.array([[0, 1, 2, 3, 4]], np.uint8)
    planes = SliceMap(planes_of((5, 1, 1)), drawn.dtype, {0: drawn})
    values = uploaded_values(params, Labelmap(planes), label_registry)
    return read_scribble_values(params, values, label_registry)


def test_slicer_scribbles(label_registry: LabelRegistry) -> None:
    info = [
        {"name": "blob", "id": 1},
        {"name": "background_scribbles", "id": 2},
        {"name": "foreground_scribbles", "id": 3},
        {"name": "cube", "id": 4},
    ]
    values = scribble_values({"label_info": info, "selected_label_name": "Cube", "roi": []}, label_registry)
    assert (values.label, values.label_values, values.foreground, values.background) == ("cube", (4,), (3,), (2,))


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"selected_label_name": "a"}, "label_info names no segment"),
        ({"label_info": [], "selected_label_name": "a"}, "label_info names no segment"),
        ({"label_info": [{"id": 1}], "selected_label_name": "a"}, r"label_info is \[\{'id': 1\}\]"),
        ({"label_info": [{"name": "a", "id": 1}], "selected_label_name": "a"}, "foreground_scribbles"),
        ({"label_info": [{"name": "foreground_scribbles", "id": 300}], "selected_label_name": "a"}, "300"),
        ({"label_info": [{"name": "foreground_scribbles", "id": 1}]}, "selected_label_name is missing"),
    ],
)
def test_bad_scribbles(params: dict[str, Any], named: str, label_registry: LabelRegistry) -> None:
    with pytest.raises(RequestError, match=named):
        scribble_values(params, label_registry)
