# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while somebody draws: another user, a store that is down. A sentence says so, nothing is lost."""

from __future__ import annotations

import numpy as np
import requests
from playwright.sync_api import expect
from pydicom.uid import generate_uid

from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.planes import pack
from lib.imaging.medical_image import planes_of
from tests.e2e.store import foreign
from tests.e2e.store.planes import places
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import PATIENCE, Site, wait

DRAWN = "lesion"


def draw(mode: Mode) -> np.ndarray:
    """Draw with the brush in the middle of the slice that is shown."""
    columns, rows, _ = mode.grid
    mode.name_structure(DRAWN)
    mode.brush()
    place = (columns // 2, rows // 2, 0)
    mode.paint([place, (place[0] + 3, place[1], 0)])
    drawn = mode.labels()
    assert drawn.any()
    return drawn


def test_a_label_that_somebody_else_submitted_is_not_replaced_unasked(mode: Mode, site: Site) -> None:
    patient = "xray4"  # no other test submits a label for it
    mode.open(patient)
    drawn = draw(mode)
    _, series = site.series(patient)
    other = np.zeros(mode.grid, np.uint8)
    other[5:20, 5:20, 0] = 1
    header = {"names": {"cyst": 1}, "based_on": None, "client_id": "somebody else"}
    address = f"{site.url}/kprism/api/case/{series}/label"
    requests.put(
        address, data=pack(header, SliceMap.of(other, planes_of(other.shape)), [0]), timeout=PATIENCE
    ).raise_for_status()

    mode.button("Submit as final label")
    assert "Somebody else has submitted a label for this case since you opened it" in mode.sentence()
    mode.shot("conflict")
    assert len(site.segmentations(patient)) == 1
    np.testing.assert_array_equal(mode.labels(), drawn)

    mode.button("Replace the other label")
    assert "Connected" in mode.sentence()
    first, second = site.segmentations(patient)
    masks = [site.stored_masks(patient, segmentation) for segmentation in (first, second)]
    assert {name for found in masks for name in found} == {"cyst", DRAWN}  # the other one is still in the store
    [mine] = [found[DRAWN] for found in masks if DRAWN in found]
    np.testing.assert_array_equal(mine.transpose(2, 1, 0), drawn > 0)


def test_a_label_that_cannot_be_used_is_told_on_the_panel_and_the_page(mode: Mode, site: Site) -> None:
    patient = "pyradiomics_brain2"
    study, series = site.series(patient)
    images = list(site.store.fetch(study, series))
    [(image, frame, _), *_] = places(images)
    whole = np.ones((images[0].Rows, images[0].Columns), bool)
    stranger = foreign.by_ohif(images, {"stranger": {(image, frame): whole}})
    stranger.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    site.store.store([stranger])
    mode.open(patient)
    sentence = "refers to no image series of this server"
    expect(mode.page.locator(".kp-foot .problem")).to_contain_text(sentence, timeout=PATIENCE * 1000)
    mode.shot("unusable-label")
    mode.page.goto(f"{site.url}/kprism/")
    mode.page.get_by_text("Labels that cannot be used: 1").click()
    expect(mode.page.locator("#refused li")).to_contain_text(sentence)


def test_a_store_that_is_down_costs_no_drawing(mode: Mode, site: Site) -> None:
    mode.open("xray3")
    drawn = draw(mode)
    site.orthanc.stop()
    try:
        mode.button("Submit as final label")
        assert "does not answer" in mode.sentence()
        mode.shot("store-down")
        assert "changes not submitted" in mode.page.locator(".kp-foot").inner_text()
        np.testing.assert_array_equal(mode.labels(), drawn)
        mode.press("Control+z")
        assert not mode.labels().any()
        mode.press("Control+y")
        np.testing.assert_array_equal(mode.labels(), drawn)
    finally:
        site.orthanc.start()
    mode.button("Submit as final label")
    [segmentation] = wait(lambda: site.segmentations("xray3"), "segmentation")
    [stored] = site.stored_masks("xray3", segmentation).values()
    np.testing.assert_array_equal(stored.transpose(2, 1, 0), drawn > 0)
