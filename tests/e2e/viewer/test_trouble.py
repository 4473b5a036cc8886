# SPDX-License-Identifier: Apache-2.0
"""What goes wrong while somebody draws: another user, a store that is down. A sentence says so, nothing is lost."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import requests
from playwright.sync_api import expect
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from kprism_model.volumes.slice_map import SliceMap
from lib.api.ohif.planes import pack
from lib.imaging.medical_image import planes_of
from tests.e2e.store import foreign
from tests.e2e.store.planes import places
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import PATIENCE, Site, wait
from tests.unit import dicom_files

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


def with_odd_image(kind: str) -> list[Dataset]:
    """Five images of a CT, one or two of which are not in its volume."""
    images = dicom_files.volume("CT", (64, 48, 5), f"odd {kind}")
    if kind == "no position":
        del images[3].ImagePositionPatient
    if kind == "empty positions":
        images[0].ImagePositionPatient = images[4].ImagePositionPatient = None
    if kind == "position of two numbers":
        images[1].ImagePositionPatient = [1, 2]
    if kind == "another size":
        images[3].Rows, images[3].Columns = 24, 32
        images[3].PixelData = np.zeros((24, 32), np.int16).tobytes()
    if kind == "another plane":
        images[3].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    if kind == "sent twice":
        images.append(copy.deepcopy(images[3]))
        images[5].SOPInstanceUID = images[5].file_meta.MediaStorageSOPInstanceUID = generate_uid()
        images[5].InstanceNumber = 99
    return images


@pytest.mark.parametrize(
    "kind",
    ["no position", "empty positions", "position of two numbers", "another size", "another plane", "sent twice"],
)
def test_a_series_with_an_odd_image_opens_and_its_other_images_are_segmented(mode: Mode, site: Site, kind: str) -> None:
    images = with_odd_image(kind)
    site.store.store(images)
    mode.open(f"odd {kind}")
    _, series = site.series(f"odd {kind}")
    kept = site.frames(series)
    odd = {str(image.SOPInstanceUID) for image in images} - set(kept)
    assert len(odd) == (2 if kind == "empty positions" else 1)
    expect(mode.page.get_by_text("set aside, not segmented").first).to_be_visible()

    mode.name_structure("thing")
    mode.press("c")
    mode.page.evaluate("instance => kprism.scene.show([instance, 1])", min(odd))
    mode.page.wait_for_function(
        "instance => kprism.scene.viewport().getCurrentImageId().includes(`/instances/${instance}/`)", arg=min(odd)
    )
    mode.click((20, 12, 0))
    expect(mode.page.get_by_text("Nothing is segmented on this image").first).to_be_visible()
    assert mode.labels().sum() == 0

    mode.show(1)
    _, labels = mode.answer(lambda: mode.click((30, 20, 1)))
    assert labels[:, :, 1].any()
    np.testing.assert_array_equal(mode.labels() > 0, labels > 0)


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
