# SPDX-License-Identifier: Apache-2.0
"""What is drawn and not submitted yet: it survives haste, a look at another series, and a visit to the study list."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from pydicom.uid import generate_uid

from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import Site, wait

DRAWN = "lesion"
TWICE = "twice"
"""A patient with two series in one study."""


@pytest.fixture(scope="module")
def study(site: Site) -> str:
    """The study of `TWICE`: the images of another patient, as two series."""
    images = list(site.store.fetch(*site.series("pyradiomics_brain2")))
    study = generate_uid()
    for number in (1, 2):
        series = generate_uid()
        for image in images:
            image.PatientID = image.PatientName = TWICE
            image.StudyInstanceUID, image.SeriesInstanceUID = study, series
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.SeriesNumber, image.SeriesDescription = number, f"series {number}"
        site.store.store(images)
    wait(lambda: sum(entry.study == study for entry in site.store.search()) == 2, "two series in the store")
    return str(study)


def draw(mode: Mode, shift: int = 0) -> np.ndarray:
    """Draw with the brush near the middle of the middle slice; the labels that are shown then."""
    columns, rows, slices = mode.grid
    mode.show(slices // 2)
    mode.name_structure(DRAWN)
    mode.brush()
    place = (columns // 2 + shift, rows // 2, slices // 2)
    mode.paint([place, (place[0] + 8, place[1], place[2])])
    drawn = mode.labels()
    assert drawn.any()
    return drawn


def test_clicks_and_keys_in_haste_come_in_turn(mode: Mode, site: Site) -> None:
    patient = "pyradiomics_brain2"
    mode.open(patient)
    earlier = site.segmentations(patient)
    columns, rows, slices = mode.grid
    mode.name_structure("in haste")
    mode.show(slices // 2)
    mode.press("c")
    voxels = [(columns // 2 + step, rows // 2, slices // 2) for step in (-20, 0, 20)]
    for x, y in [mode.spot(voxel) for voxel in voxels]:
        mode.page.mouse.click(x, y)
    mode.page.keyboard.press("Enter")
    mode.page.wait_for_function("() => !kprism.busy && !kprism.dirty")
    assert mode.asked()["in haste"] == [list(voxel) for voxel in voxels]
    shown = mode.mask("in haste")
    assert all(shown[voxel] for voxel in voxels)
    [segmentation] = set(site.segmentations(patient)) - set(earlier)
    stored = site.stored_masks(patient, segmentation)
    np.testing.assert_array_equal(stored["in haste"].transpose(2, 1, 0), shown)


def test_another_series_is_looked_at_and_the_first_is_as_it_was(mode: Mode, site: Site, study: str) -> None:
    mode.page.goto(f"{site.url}/viewer/kprism?StudyInstanceUIDs={study}")
    mode.ready()
    first = mode.case_id
    drawn = draw(mode)
    mode.show_series(2)
    assert mode.case_id != first and not mode.labels().any()
    other = draw(mode, shift=10)
    mode.show_series(1)
    assert mode.case_id == first
    np.testing.assert_array_equal(mode.labels(), drawn)
    assert "not submitted" in mode.page.locator(".kp-foot").inner_text()
    mode.show_series(2)
    np.testing.assert_array_equal(mode.labels(), other)


def test_the_mode_is_left_for_the_study_list_and_entered_again(mode: Mode, site: Site, study: str) -> None:
    mode.open_from_list(TWICE)
    drawn = draw(mode)
    shown = mode.masks()
    mode.page.locator("[data-cy='return-to-work-list']").click()
    mode.choose_from_list(TWICE)
    np.testing.assert_array_equal(mode.labels() > 0, drawn > 0)
    assert {*mode.masks()} == {*shown}
    assert "not submitted" in mode.page.locator(".kp-foot").inner_text()


def test_the_next_case_waits_for_what_is_not_submitted(mode: Mode, site: Site, study: str) -> None:
    mode.page.goto(f"{site.url}/viewer/kprism?StudyInstanceUIDs={study}")
    mode.ready()
    case, drawn = mode.case_id, draw(mode)
    mode.press("n")
    assert "is not submitted" in mode.sentence()
    assert mode.case_id == case
    np.testing.assert_array_equal(mode.labels(), drawn)
    mode.page.locator(".kp-foot").get_by_role("button", name="Leave it unsubmitted").click()
    mode.page.wait_for_function("before => window.kprism?.case && kprism.case.id !== before", arg=case)
    [asked_for] = parse_qs(urlsplit(mode.page.url).query)["initialSeriesInstanceUID"]
    assert mode.case_id == asked_for


def test_the_second_series_of_a_study_is_opened_by_its_address(mode: Mode, site: Site, study: str) -> None:
    mode.page.goto(f"{site.url}/viewer/kprism?StudyInstanceUIDs={study}")
    mode.ready()
    mode.show_series(2)
    second = mode.case_id
    mode.page.goto(f"{site.url}/viewer/kprism?StudyInstanceUIDs={study}&initialSeriesInstanceUID={second}")
    mode.ready()
    assert mode.case_id == second
