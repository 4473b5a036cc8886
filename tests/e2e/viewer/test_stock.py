# SPDX-License-Identifier: Apache-2.0
"""The OHIF that MONAI Label bundles, as this server serves it: its repaired export, and its own MONAI Label panel."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, Response, expect

from tests.e2e.viewer.conftest import PICTURES
from tests.e2e.viewer.site import Site, wait

PATIENT = "pyradiomics_breast1"  # small: this viewer shows three planes, drawn without a graphics card here

SEGMENTED = """() => {
    const [segmentation] = cornerstoneTools.segmentation.state.getSegmentations();
    return segmentation.representationData.Labelmap.imageIds.map(id => {
        const image = cornerstone.cache.getImage(id);
        return [image.referencedImageId, Array.from(image.voxelManager.getScalarData())];
    });
}"""


VOLUME = """() => {
    const [{ representationData }] = cornerstoneTools.segmentation.state.getSegmentations();
    const volume = cornerstone.cache.getVolume(representationData.Labelmap.volumeId);
    return Array.from(volume.voxelManager.getCompleteScalarDataArray());
}"""


@pytest.fixture
def stock(page: Page, site: Site) -> Page:
    """A page that reaches this server only; the bundled viewer does without the fonts that it asks the network for."""
    page.route(lambda address: not address.startswith(site.url), lambda route: route.abort())
    PICTURES.mkdir(parents=True, exist_ok=True)
    return page


def open_study(page: Page, site: Site, mode: str) -> None:
    """Open the study in one of the viewer's modes."""
    study, _ = site.series(PATIENT)
    page.goto(f"{site.url}/ohif/{mode}?StudyInstanceUIDs={study}")
    page.get_by_text("Confirm and Hide").click()
    page.locator("[data-cy=viewport-pane] canvas").first.wait_for()


def shown(page: Page, site: Site) -> NDArray[np.uint8]:
    """The labels (slice, row, column) in the viewer, in the server's order of slices."""
    _, series = site.series(PATIENT)
    planes = {image.split("/instances/")[1].split("/")[0]: plane for image, plane in page.evaluate(SEGMENTED)}
    columns, rows, _ = site.get(f"/kprism/api/case/{series}")["grid"]
    return np.array([planes[frame] for frame in site.frames(series)], np.uint8).reshape(-1, rows, columns)


def drawn_volume(page: Page) -> NDArray[np.uint8]:
    """The labels in the MONAI Label panel, which holds them as a volume."""
    return np.array(page.evaluate(VOLUME), np.uint8)


def test_a_drawn_segmentation_is_exported_to_the_store(stock: Page, site: Site) -> None:
    open_study(stock, site, "segmentation")
    stock.get_by_text("Add Segmentation").first.click()
    stock.locator("[data-cy=data-row]").first.wait_for()
    stock.locator("[data-cy=Brush]").click()
    box = stock.locator("[data-cy=viewport-pane] canvas").first.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    stock.mouse.move(x, y)
    stock.mouse.down()
    stock.mouse.move(x + 10, y, steps=3)
    stock.mouse.up()
    wait(lambda: stock.evaluate(f"() => ({SEGMENTED})().some(([, plane]) => plane.some(Boolean))"), "brush stroke")
    drawn = shown(stock, site)
    before = site.segmentations(PATIENT)
    stock.get_by_text("Segmentation 1").first.locator("xpath=preceding::button[1]").click()
    stock.get_by_role("menuitem", name="Export & Download").press("ArrowRight")
    stock.get_by_role("menuitem", name="Export DICOM SEG").click()
    stock.get_by_role("dialog").or_(stock.get_by_text("Create Report")).first.wait_for()
    stock.locator("input[type=text], input:not([type])").last.fill("by hand")
    stock.get_by_role("button", name="Save").click()
    [exported] = wait(lambda: [name for name in site.segmentations(PATIENT) if name not in before], "export")
    stock.screenshot(path=PICTURES / "stock-export.png")
    [mask] = site.stored_masks(PATIENT, exported).values()
    np.testing.assert_array_equal(mask, drawn > 0)
    _, series = site.series(PATIENT)
    case = f"/kprism/api/case/{series}"
    wait(lambda: (site.get(case)["label"] or {}).get("version") == exported, "label that counts as submitted")


@pytest.fixture
def panel(stock: Page, site: Site) -> Page:
    """The MONAI Label panel of a study, connected: the address needs no typing (repair 2)."""
    open_study(stock, site, "monai-label")
    stock.locator(".settingsTable button.actionButton").click()
    tab(stock, "Auto-Segmentation").wait_for()
    return stock


def tab(panel: Page, name: str) -> Locator:
    """One of the panel's tabs; it opens at a click on its switch, which lies hidden behind its title."""
    return panel.locator(".tab", has=panel.locator(".tab-label", has_text=name))


def asked_of(answer: Response) -> dict[str, Any]:
    """The params of the form that was answered."""
    form = answer.request.post_data or ""
    return dict(json.loads(form[form.index("{") : form.rindex("}") + 1]))


def open_tab(panel: Page, name: str) -> Locator:
    """The tab, opened."""
    found = tab(panel, name)
    found.locator(".tab-switch").evaluate("switch_ => switch_.click()")
    return found


def test_the_panel_of_monai_label_finds_the_server_and_segments(panel: Page) -> None:
    with panel.expect_response(lambda answer: "/infer/semantic" in answer.url) as automatic:
        tab(panel, "Auto-Segmentation").get_by_role("button", name="Run").dispatch_event("click")
    assert automatic.value.ok
    panel.screenshot(path=PICTURES / "stock-auto.png")


POINTS = """() => cornerstoneTools.annotation.state.getAllAnnotations()
    .filter(one => one.metadata.toolName === 'ProbeMONAILabel').length"""


CHOSEN = "rgb(0, 0, 139)"
"""Colour of the row of the structure that points are for, unless the mouse is over it: that row is light blue."""


def test_points_are_sent_and_what_comes_back_is_drawn(panel: Page, site: Site) -> None:
    points = open_tab(panel, "Point Prompts")
    row = points.locator("tr.clickable-row", has_text="lungs")
    row.click()
    panel.mouse.move(0, 0)
    expect(row).to_have_css("background-color", CHOSEN)
    box = panel.locator("[data-cy=viewport-pane] canvas").first.bounding_box()
    assert box is not None
    panel.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    wait(lambda: panel.evaluate(POINTS) == 1, "point")
    expect(row).to_have_css("background-color", CHOSEN)
    with panel.expect_response(lambda answer: "/infer/interactive" in answer.url) as answered:
        points.get_by_role("button", name="Run").click()
    asked = asked_of(answered.value)
    assert "lungs" in asked, asked
    [point] = asked["lungs"]
    columns, rows, slices = site.get(f"/kprism/api/case/{site.series(PATIENT)[1]}")["grid"]
    values = np.frombuffer(answered.value.body()[-columns * rows * slices :], np.uint8)
    answer = values.reshape(slices, rows, columns)
    assert answer[point[2], point[1], point[0]]
    panel.get_by_text("Running Inference for Point Prompts - Successful").wait_for()
    panel.screenshot(path=PICTURES / "stock-points.png")
    np.testing.assert_array_equal(drawn_volume(panel).reshape(answer.shape) > 0, answer > 0)


def test_classes_are_asked_for_by_number(panel: Page, site: Site) -> None:
    classes = open_tab(panel, "Class Prompts")
    classes.locator("tr", has_text="lungs").locator("input[type=checkbox]").check()
    with panel.expect_response(lambda answer: "/infer/semantic" in answer.url) as answered:
        classes.get_by_role("button", name="Run").click()
    assert answered.value.ok
    assert asked_of(answered.value)["label_prompt"] == [site.get("/info/")["models"]["semantic"]["labels"]["lungs"]]
    panel.get_by_text("Run Class Based Inference - Successful").wait_for()
    panel.screenshot(path=PICTURES / "stock-classes.png")


def test_the_next_sample_is_offered(panel: Page, site: Site) -> None:
    with panel.expect_response(lambda answer: "/activelearning/random" in answer.url) as chosen:
        open_tab(panel, "Active Learning").get_by_text("Next Sample").click()
    assert chosen.value.json()["id"] in [case["id"] for case in site.status()["cases"]["waiting"]]
    panel.get_by_text("Active Learning - Next Sample").wait_for()
    panel.get_by_text(chosen.value.json()["StudyInstanceUID"]).first.wait_for()
    panel.screenshot(path=PICTURES / "stock-next-sample.png")


def test_a_training_is_started_and_stopped(panel: Page, site: Site) -> None:
    learning = open_tab(panel, "Active Learning")
    learning.get_by_text("Update Model").click()
    stop = learning.get_by_text("Stop Training")
    stop.wait_for()
    assert site.status()["training"]["running"]
    stop.click()
    learning.get_by_text("Update Model").wait_for()
    wait(lambda: not site.status()["training"]["running"], "end of the training")
