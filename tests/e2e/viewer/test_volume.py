# SPDX-License-Identifier: Apache-2.0
"""Volumes in the K-Prism mode: a new structure clicked in a CT, followed through it, and what the store holds then."""

from __future__ import annotations

import numpy as np

from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import Site

NEW = "nodule by hand"
ON, BESIDE = (179, 181), (128, 181)
"""Column and row of a place on the tumour of `pyradiomics_lung2`, and of one beside it."""

SLICE = 17


def test_a_new_structure_is_clicked_followed_and_submitted(mode: Mode, site: Site) -> None:
    mode.open("pyradiomics_lung2")
    mode.shot("mode")
    mode.name_structure(NEW)
    chosen = mode.page.locator(".kp-structure[aria-checked='true']")
    assert chosen.inner_text() == NEW
    on, beside, k = (*ON, SLICE), (*BESIDE, SLICE), SLICE
    mode.show(k)
    mode.press("c")
    mode.answer(lambda: mode.click(on))
    assert mode.asked()[NEW] == [list(on)]
    mode.press("x")
    answer, labels = mode.answer(lambda: mode.click(beside))
    assert (mode.asked()[NEW], mode.asked()["background"]) == ([list(on)], [list(beside)])
    assert mode.mask(NEW)[on] and not mode.mask(NEW)[beside]
    np.testing.assert_array_equal(mode.mask(NEW), labels == answer["label_names"][NEW])
    assert set(np.flatnonzero(mode.mask(NEW).any(axis=(0, 1)))) == {k}
    mode.shot("volume-clicks")

    before = mode.labels()
    answer, labels = mode.answer(lambda: mode.press("p"))
    followed = set(answer["slices"][NEW]["followed"])
    assert followed
    found = mode.mask(NEW)
    np.testing.assert_array_equal(found, labels == answer["label_names"][NEW])
    np.testing.assert_array_equal(found[:, :, k], before[:, :, k] > 0)  # the slice that was clicked stays as it was
    assert len(np.flatnonzero(found.any(axis=(0, 1)))) > 1
    mode.shot("propagate")
    mode.press("Control+z")
    np.testing.assert_array_equal(mode.labels(), before)
    mode.press("Control+y")
    np.testing.assert_array_equal(mode.mask(NEW), found)

    mode.press("Enter")
    [segmentation] = site.segmentations("pyradiomics_lung2")
    stored = site.stored_masks("pyradiomics_lung2", segmentation)
    assert set(stored) == {NEW}
    np.testing.assert_array_equal(stored[NEW].transpose(2, 1, 0), found)
    assert NEW in [structure["name"] for structure in site.status()["structures"]]
    _segment_like(mode, site, "pyradiomics_lung2")


def _segment_like(mode: Mode, site: Site, patient: str) -> None:
    """The case that was just submitted is a reference for the next one."""
    _, series = site.series(patient)
    mode.open("pyradiomics_lung1")
    mode.take(NEW)
    card = mode.page.locator(".kp-card", has_text=patient)
    card.scroll_into_view_if_needed()
    card.click()
    answer, labels = mode.answer(lambda: mode.press("r"))
    assert {used["image"] for used in answer["references"][NEW]} == {series}
    others = (mode.labels() > 0) & ~mode.mask(NEW)  # structures of the case's own label are kept
    np.testing.assert_array_equal(mode.mask(NEW), (labels == answer["label_names"].get(NEW)) & ~others)
    mode.shot("volume-references")


def test_structures_deleted_in_the_list_of_ohif_are_not_submitted(mode: Mode, site: Site) -> None:
    mode.open("pyradiomics_brain1")
    earlier, before = site.segmentations("pyradiomics_brain1"), mode.masks()
    columns, rows, k = mode.grid[0] // 4, mode.grid[1] // 4, mode.grid[2] // 2
    mode.show(k)
    for number, name in enumerate(("first", "second", "third"), 1):
        mode.name_structure(name)
        mode.press("c")
        mode.answer(lambda number=number: mode.click((number * columns, number * rows, k)))  # type: ignore[misc]
    kept = {**before, "third": mode.mask("third")}
    assert {*mode.masks()} == {*kept, "first", "second"}
    mode.delete_structure("first")
    mode.delete_structure("second")
    np.testing.assert_array_equal(mode.labels() > 0, np.any([*kept.values()], axis=0))
    mode.press("Enter")
    [segmentation] = set(site.segmentations("pyradiomics_brain1")) - set(earlier)
    assert set(site.stored_masks("pyradiomics_brain1", segmentation)) == {*kept}


def test_a_structure_that_others_cover_is_said_to_be_covered(mode: Mode) -> None:
    mode.open("pyradiomics_brain1")
    k = mode.grid[2] // 3
    place = (mode.grid[0] // 2, mode.grid[1] // 2, k)
    mode.show(k)
    for name, keep in (("above", False), ("below", True)):  # labels of other tests may lie there
        mode.keep_others(keep)
        mode.name_structure(name)
        mode.press("c")
        mode.answer(lambda: mode.click(place))
    above = mode.mask("above")
    assert above[place] and not mode.mask("below").any()
    mode.page.get_by_text("below would lie wholly in “above” here.").wait_for()
    mode.shot("covered")
    mode.keep_others(False)
    mode.answer(lambda: mode.click(place))
    assert mode.mask("below")[place] and not mode.mask("above")[place]


def test_a_propagation_reaches_no_farther_than_asked(mode: Mode) -> None:
    mode.open("pyradiomics_brain2")
    mode.keep_others(False)  # labels of other tests may lie there
    mode.name_structure("tumour")
    k = mode.grid[2] // 2
    mode.show(k)
    mode.press("c")
    mode.answer(lambda: mode.click((mode.grid[0] // 2, mode.grid[1] // 2, k)))
    mode.page.get_by_label("How far to follow").select_option("2 each way")
    answer, _ = mode.answer(lambda: mode.button("Follow"))
    assert answer["slices"]["tumour"]["prompted"] == [k]
    reached = np.flatnonzero(mode.mask("tumour").any(axis=(0, 1)))
    assert reached.min() >= k - 2 and reached.max() <= k + 2
