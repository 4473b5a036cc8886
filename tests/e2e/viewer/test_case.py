# SPDX-License-Identifier: Apache-2.0
"""A case in the K-Prism mode, from the study list to the label in the store, and the next case with its help."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import expect
from scipy import ndimage

from tests.e2e.viewer.conftest import lungs
from tests.e2e.viewer.driver import Mode, Voxel
from tests.e2e.viewer.site import Site, wait

LUNGS = "lungs"


def deepest(mask: NDArray[np.bool_]) -> Voxel:
    """The pixel (column, row, 0) of a mask that is farthest from its edge."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    column, row = np.unravel_index(int(depth.argmax()), mask.shape)
    assert mask[column, row]
    return int(column), int(row), 0


def test_a_case_from_the_study_list_to_the_label_in_the_store(mode: Mode, site: Site) -> None:
    truth = lungs(1)
    mode.open_from_list("xray1")
    expect(mode.page.locator(".kp-status")).to_contain_text("Connected to K-Prism, weights ")  # its image has arrived

    answer, labels = mode.answer(lambda: mode.button("Segment what the network knows"))
    expected = {name: labels == value for name, value in answer["label_names"].items() if name not in answer["absent"]}
    assert LUNGS in expected
    assert_same(mode.masks(), expected)
    toast = mode.page.locator("[data-sonner-toast]").first.bounding_box()
    panel = mode.page.locator(".kprism-panel").bounding_box()
    assert toast and panel and 0 <= toast["x"] < toast["x"] + toast["width"] <= panel["x"]

    mode.take(LUNGS)
    mode.button("Click on it")
    clicked = _click(mode, deepest(truth & ~mode.mask(LUNGS)[..., 0]), inside=True)
    outside = deepest(mode.mask(LUNGS)[..., 0] & ~truth)
    corrected = _click(mode, outside, inside=False)
    assert not np.array_equal(clicked, corrected)
    mode.shot("clicks")
    mode.page.locator("[data-cy='undo-btn']").click()
    np.testing.assert_array_equal(mode.labels(), clicked)
    mode.page.locator("[data-cy='redo-btn']").click()
    np.testing.assert_array_equal(mode.labels(), corrected)

    stroked = _stroke(mode, deepest(truth & (mode.labels()[..., 0] == 0)))
    mode.press("Control+z")
    np.testing.assert_array_equal(mode.labels(), corrected)
    mode.press("Control+y")
    np.testing.assert_array_equal(mode.labels(), stroked)
    _brush_and_erase(mode, deepest(~truth & (mode.labels()[..., 0] == 0)))

    shown = mode.masks()
    mode.press("Enter")
    assert mode.page.get_by_text("Submitted: ").first.is_visible()
    assert "not submitted" not in mode.page.locator(".kp-foot").inner_text()
    [segmentation] = site.segmentations("xray1")
    stored = site.stored_masks("xray1", segmentation)
    assert_same({name: mask.transpose(2, 1, 0) for name, mask in stored.items()}, shown)

    mode.paint([deepest(mode.mask(LUNGS)[..., 0])])  # the eraser is still in hand
    assert "not submitted" in mode.page.locator(".kp-foot").inner_text()

    mode.open("xray1")  # the label is there again, voxel by voxel
    assert_same(mode.masks(), shown)
    assert "not submitted" not in mode.page.locator(".kp-foot").inner_text()


def assert_same(found: dict[str, NDArray[np.bool_]], expected: dict[str, NDArray[np.bool_]]) -> None:
    """The same structures with the same voxels."""
    assert set(found) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)


def _click(mode: Mode, voxel: Voxel, *, inside: bool) -> NDArray[np.uint8]:
    """Click on the lungs, or with Shift beside them; the labels that are shown then, which are the server's answer."""
    others = {name: mask for name, mask in mode.masks().items() if name != LUNGS}
    answer, labels = mode.answer(lambda: mode.click(voxel, shift=not inside))
    asked = mode.asked()
    assert list(voxel) in asked[LUNGS if inside else "background"]
    taken = np.any([*others.values(), np.zeros(mode.grid, bool)], axis=0)  # what other structures keep
    np.testing.assert_array_equal(mode.mask(LUNGS), (labels == answer["label_names"][LUNGS]) & ~taken)
    assert_same({name: mask for name, mask in mode.masks().items() if name != LUNGS}, others)
    assert (labels[voxel] == answer["label_names"][LUNGS]) == inside
    return mode.labels()


def _stroke(mode: Mode, start: Voxel) -> NDArray[np.uint8]:
    """Draw a stroke on the lungs: the pixels under it are lungs, unless another structure has them."""
    mode.press("d")
    column, row, _ = start
    ends = [(column, min(row + step, mode.grid[1] - 1), 0) for step in (0, 6, 12)]
    before = mode.labels()
    answer, labels = mode.answer(lambda: mode.drag(ends))
    value = answer["label_names"][LUNGS]
    free = [end for end in ends if before[end] == 0]
    assert free and all(labels[end] == value and mode.mask(LUNGS)[end] for end in free)
    mode.shot("stroke")
    return mode.labels()


def _brush_and_erase(mode: Mode, place: Voxel) -> None:
    """OHIF's own brush and eraser work on the structure in hand, and are steps of the same history."""
    before = mode.labels()
    mode.brush()
    mode.page.get_by_label("Radius").fill("4")
    mode.paint([place, (place[0] + 3, place[1], 0)])
    assert mode.mask(LUNGS)[place]
    columns, rows, _ = np.nonzero(mode.labels() != before)
    assert 8 <= np.ptp(columns) <= 14 and 6 <= np.ptp(rows) <= 10  # millimetres: the picture states no spacing
    painted = mode.labels()
    mode.shot("brush")
    mode.press("Control+z")
    np.testing.assert_array_equal(mode.labels(), before)
    mode.press("Control+y")
    np.testing.assert_array_equal(mode.labels(), painted)
    mode.brush("e")
    mode.paint([place, (place[0] + 1, place[1], 0)])
    assert not mode.mask(LUNGS)[place] and mode.mask(LUNGS).any()


def test_a_submitted_case_is_shown_as_a_reference_and_followed(mode: Mode, site: Site) -> None:
    _, series = site.series("xray1")
    if not site.segmentations("xray1"):
        mode.open("xray1")
        mode.button("Segment what the network knows")
        mode.press("Enter")
    mode.open("xray2")
    card = mode.page.locator(".kp-card", has_text="xray1")
    card.locator("img").scroll_into_view_if_needed()
    loaded = card.locator("img").element_handle()
    wait(lambda: loaded and loaded.evaluate("image => image.complete && image.naturalWidth"), "picture of xray1")
    card.click()
    assert card.get_attribute("aria-pressed") == "true"
    answer, labels = mode.answer(lambda: mode.button("Segment like the references"))
    assert mode.asked()["references"] == series
    assert {used["image"] for used in answer["references"][LUNGS]} == {series}
    expected = {name: labels == value for name, value in answer["label_names"].items() if name not in answer["absent"]}
    assert_same(mode.masks(), expected)
    truth = lungs(2)
    found = mode.mask(LUNGS)[..., 0]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5
    mode.shot("references")
    card.click()
    assert card.get_attribute("aria-pressed") == "false"


def test_a_box_gives_a_mask_in_it_and_is_a_step_of_the_history(mode: Mode, site: Site) -> None:
    mode.open("xray4")
    mode.name_structure("box")
    left, top, right, bottom = 90, 100, 170, 260  # about the lung on the left
    mode.press("o")
    answer, labels = mode.answer(lambda: mode.drag([(left, top, 0), (right, bottom, 0)]))
    assert mode.asked()["structure"] == "box"
    found = labels[..., 0] == answer["label_names"]["box"]
    columns, rows = np.nonzero(found)
    assert left <= columns.min() and columns.max() <= right and top <= rows.min() and rows.max() <= bottom
    assert found[(left + right) // 2, (top + bottom) // 2]
    np.testing.assert_array_equal(mode.mask("box")[..., 0], found)
    mode.shot("box")
    mode.press("Control+z")
    assert not mode.labels().any()
    mode.press("Control+y")
    np.testing.assert_array_equal(mode.mask("box")[..., 0], found)


def test_the_next_case_is_another_one_without_a_label(mode: Mode, site: Site) -> None:
    mode.open("xray2")
    _, first = site.series("xray2")
    mode.page.get_by_label("How the next case is chosen").select_option("first")
    waiting = [case["id"] for case in site.status()["cases"]["waiting"]]
    mode.page.locator(".kp-foot").get_by_role("button", name="Next case").click()
    mode.page.wait_for_function("first => window.kprism?.case && kprism.case.id !== first", arg=first)
    assert mode.page.evaluate("() => kprism.case.id") in waiting
