# SPDX-License-Identifier: Apache-2.0
"""Answers about long volumes in the K-Prism mode: slices are seen as they are found, and one can cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import expect

from benchmarks.places import ROOT
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import PATIENCE, Site, wait
from tools.import_folder import import_all

LONG = "long"
"""A patient with a CT of so many slices that answers about all of them come in many parts."""

SLICES = 90
NEW = "tumour by hand"
ON, SLICE = (179, 181), 17
"""Column and row of a place on the tumour of `pyradiomics_lung2`, and its slice."""

_drawn: set[tuple[int, int]] = set()
"""Places that were clicked on: the server remembers answers, and sends what it remembers at once."""

CANCELLED = "Cancelled; nothing was changed."

WATCH = """() => {
    window.seen = [];
    const slices = () => kprism.labelmap?.exists ? kprism.labelmap.filled().size : 0;
    const before = slices();
    kprism.addEventListener('change', () => setTimeout(() => {  // after the panel
        const bar = document.querySelector('.kp-bar');
        if (kprism.progress) {
            window.seen.push({
                ...kprism.progress, more: slices() - before, dirty: kprism.dirty,
                text: document.querySelector('.kp-text').innerText,
                now: Number(bar.getAttribute('aria-valuenow')), max: Number(bar.getAttribute('aria-valuemax')),
                undo: cornerstone.utilities.HistoryMemo.DefaultHistoryMemo.undoAvailable,
            });
        }
    }));
}"""
"""Notes what panel and label map show at each part of an answer."""

HOLD = """() => {
    const send = window.fetch;
    window.fetch = async (address, options) => {
        const answer = await send(address, options);
        if (!String(address).includes('stream=1')) {
            return answer;
        }
        const reader = answer.body.getReader();
        return new Response(new ReadableStream({
            start(stream) {
                window.cut = () => stream.error(new TypeError('network error'));
                options.signal.addEventListener('abort', () => stream.error(options.signal.reason));
            },
            async pull(stream) {
                const { done, value } = await reader.read();
                while (window.seen.some(part => part.more > 0) && !options.signal.aborted) {
                    await new Promise(resolve => setTimeout(resolve, 20));
                }
                done ? stream.close() : stream.enqueue(value);
            },
        }, { highWaterMark: 0 }));
    };
}"""
"""A network that brings no more of an answer when some of it is seen; the connection can be cut."""


@pytest.fixture(scope="module", autouse=True)
def long_case(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The CT of `LONG`: a sample, up and down again and again."""
    sample = nibabel.Nifti1Image.from_filename(ROOT / "sample-datastore" / "pyradiomics_lung2.nii.gz")
    voxels = np.asanyarray(sample.dataobj)
    there_and_back = np.concatenate([voxels, voxels[..., -2:0:-1]], axis=-1)
    repeats = -(-SLICES // there_and_back.shape[-1])
    long = np.tile(there_and_back, (1, 1, repeats))[..., :SLICES]
    folder = tmp_path_factory.mktemp("long") / "images"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(long, sample.affine), folder / f"{LONG}.nii.gz")
    assert list(import_all([folder], "CT", site.store)) == []
    wait(lambda: any(entry.patient == LONG for entry in site.store.search()), "case in the store")


def begin(mode: Mode, open_case: Callable[[str], None] | None = None) -> NDArray[np.uint8]:
    """Open the case and click on a structure in one slice; the labels that are shown then."""
    (open_case or mode.open)(LONG)
    mode.name_structure(NEW)
    mode.show(SLICE)
    mode.press("c")
    place = (ON[0] - len(_drawn), ON[1])
    _drawn.add(place)
    mode.answer(lambda: mode.click((*place, SLICE)))
    clicked = mode.labels()
    assert clicked.any()
    return clicked


def steps(mode: Mode) -> int:
    """How many steps the history of the viewer holds."""
    return int(mode.page.evaluate("() => cornerstone.utilities.HistoryMemo.DefaultHistoryMemo.undoAvailable"))


def seen(mode: Mode, key: str) -> None:
    """Press a key and wait until some slices of the answer are seen; the rest is held back."""
    mode.page.evaluate(HOLD)
    mode.page.evaluate(WATCH)
    mode.page.keyboard.press(key)
    mode.page.wait_for_function("() => window.seen.some(part => part.more > 0)")


def test_slices_are_seen_before_the_answer_and_undone_in_one_step(mode: Mode) -> None:
    clicked = begin(mode)
    history = steps(mode)
    mode.page.evaluate(WATCH)
    answer, labels = mode.answer(lambda: mode.press("p"))
    parts = mode.page.evaluate("() => window.seen")
    found = mode.mask(NEW)
    np.testing.assert_array_equal(found, labels == answer["label_names"][NEW])
    assert any(part["more"] > 0 for part in parts)
    assert [part["done"] for part in parts] == sorted(part["done"] for part in parts)
    for part in parts:
        assert part["total"] == part["max"] == SLICES and part["now"] == part["done"] <= SLICES
        assert part["text"] == f"Following: {part['done']} of {SLICES} slices"
        assert part["undo"] == history
    assert steps(mode) == history + 1
    mode.press("Control+z")
    np.testing.assert_array_equal(mode.labels(), clicked)
    mode.press("Control+y")
    np.testing.assert_array_equal(mode.mask(NEW), found)
    expect(mode.page.locator(".kp-bar")).to_be_hidden()
    expect(mode.page.get_by_role("button", name="Cancel")).to_be_hidden()


@pytest.mark.parametrize("way", ["button", "Escape", "Control+z"])
def test_a_cancelled_answer_leaves_everything_as_it_was(mode: Mode, way: str) -> None:
    clicked = begin(mode)
    history = steps(mode)
    seen(mode, "p")
    mode.shot("following")
    if way == "button":
        mode.button("Cancel")
    else:
        mode.press(way)
    mode.shot("cancelled")
    assert mode.sentence() == CANCELLED
    np.testing.assert_array_equal(mode.labels(), clicked)
    assert steps(mode) == history
    mode.press("Control+z")
    assert not mode.labels().any()
    mode.press("Control+y")
    np.testing.assert_array_equal(mode.labels(), clicked)


def test_a_cancelled_first_answer_leaves_no_structures(mode: Mode) -> None:
    mode.open(LONG)
    before = mode.page.evaluate("() => kprism.structures")
    seen(mode, "a")
    assert not mode.page.evaluate("() => window.seen.at(-1).dirty")
    mode.shot("segmenting")
    mode.press("Escape")
    assert mode.sentence() == CANCELLED
    assert mode.page.evaluate("() => kprism.structures") == before
    assert mode.page.evaluate("() => [kprism.labelmap.exists, kprism.unsaved]") == [False, False]
    assert steps(mode) == 0
    mode.open(LONG)
    answer, labels = mode.answer(lambda: mode.press("a"))  # it can be asked for again
    found = {name: labels == value for name, value in answer["label_names"].items() if name not in answer["absent"]}
    assert found
    for name, mask in found.items():
        np.testing.assert_array_equal(mode.mask(name), mask, err_msg=name)
    assert steps(mode) == 1
    mode.press("Control+z")
    assert not mode.labels().any()


def test_what_waits_for_a_cancelled_answer_is_given_up_but_clicks_are_not(mode: Mode, site: Site) -> None:
    clicked = begin(mode)
    other = (ON[0] - 40, ON[1], SLICE)
    seen(mode, "p")
    mode.page.mouse.click(*mode.spot(other))
    mode.page.keyboard.press("Enter")
    _, labels = mode.answer(lambda: mode.page.keyboard.press("Escape"))
    assert mode.asked()[NEW][-1] == list(other)
    np.testing.assert_array_equal(mode.labels() > 0, labels > 0)
    assert set(np.flatnonzero((mode.labels() != clicked).any(axis=(0, 1)))) <= {SLICE}
    assert site.segmentations(LONG) == []
    assert mode.page.evaluate("() => kprism.dirty")


def test_an_answer_that_breaks_off_leaves_everything_as_it_was(mode: Mode) -> None:
    clicked = begin(mode)
    history = steps(mode)
    seen(mode, "p")
    mode.page.evaluate("() => window.cut()")
    mode.idle()
    assert "stopped in the middle of its answer" in mode.sentence()
    np.testing.assert_array_equal(mode.labels(), clicked)
    assert steps(mode) == history
    mode.shot("broken-off")


def test_the_study_list_ends_an_answer_and_what_was_drawn_is_kept(mode: Mode) -> None:
    clicked = begin(mode, mode.open_from_list)
    seen(mode, "p")
    mode.page.locator("[data-cy='return-to-work-list']").click()
    mode.page.wait_for_function("() => kprism.away && !kprism.busy")
    mode.choose_from_list(LONG)
    np.testing.assert_array_equal(mode.labels() > 0, clicked > 0)


def test_nothing_is_drawn_by_hand_while_an_answer_comes(mode: Mode) -> None:
    clicked = begin(mode)
    mode.brush()
    place = mode.spot((60, 60, SLICE))
    seen(mode, "p")
    mode.page.mouse.click(*place)
    mode.page.get_by_text("Following is not done yet.").first.wait_for()
    mode.press("Escape")
    np.testing.assert_array_equal(mode.labels(), clicked)
    mode.paint([(60, 60, SLICE)])
    assert mode.mask(NEW)[60, 60, SLICE]


def test_images_that_are_still_fetched_are_counted(mode: Mode) -> None:
    answers = [(0, SLICES), (SLICES // 2, SLICES), (SLICES, SLICES)]
    asked: list[int] = []

    def answer(route: Any) -> None:
        arrived, total = answers[min(len(asked), len(answers) - 1)]
        asked.append(arrived)
        route.fulfill(json={"arrived": arrived, "total": total})

    mode.page.route("**/arrival", answer)
    mode.open(LONG)
    line = mode.page.locator(".kp-status")
    expect(line).to_contain_text(f"Fetching images: {SLICES // 2} of {SLICES}", timeout=PATIENCE * 1000)
    mode.shot("fetching")
    expect(line).to_contain_text("Connected", timeout=PATIENCE * 1000)
    assert asked == [0, SLICES // 2, SLICES]


def test_a_server_that_does_not_count_images_is_asked_once(mode: Mode) -> None:
    asked: list[str] = []

    def missing(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(status=404, json={"detail": "Not Found"})

    mode.page.route("**/arrival", missing)
    mode.open(LONG)
    mode.press("v")
    assert "Connected" in mode.sentence()
    assert len(asked) == 1
