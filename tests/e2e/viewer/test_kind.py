# SPDX-License-Identifier: Apache-2.0
"""What the panel says of the kind of image, and how a structure is asked for that the network does not expect in it.

A second server on the same store serves the shipped weights with a head that takes every image for the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Locator, Page, expect

from benchmarks.places import ROOT
from kprism_model.checkpoint import load_checkpoint, save_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.kprism import KPrism
from tests.e2e.viewer.conftest import PICTURES
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import Site, serving

SHIPPED = ROOT / "apps" / "kprism" / "model" / "kprism_small.safetensors"
KIND, LUNGS = "X-ray, chest", "lungs"
MARKUP = "polyp <b title='&amp;'>&lt;"
"""A structure's name that is not to be read as HTML."""

ALL = "Segment what the network knows"


def weights_that_see(*, known: bool) -> tuple[KPrism, ClassRegistry]:
    """The shipped network; it takes every image for `KIND`, in which only lungs can be, or if not `known` for none."""
    shipped = load_checkpoint(SHIPPED)
    registry = ClassRegistry(MARKUP if name == "polyp" else name for name in shipped.registry.names)
    network = KPrism(replace(shipped.model.config, kinds=(KIND,), kind_centres=()))
    given = {name: value for name, value in shipped.model.state_dict().items() if not name.startswith("kind_head.")}
    network.load_state_dict({**network.state_dict(), **given})
    head = network.kind_head
    assert head is not None
    with torch.no_grad():
        head.projection.weight.zero_()  # all images are in the same place, on the centre of the kind or far from it
        head.projection.bias.zero_()
        head.centres.fill_(0.0 if known else 100.0)
        head.possible.fill_(False)
        head.possible[registry.index(LUNGS), 0] = True
    return network.eval(), registry


@pytest.fixture(scope="module")
def kinds(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server with these weights."""
    folder = tmp_path_factory.mktemp("kinds")
    save_checkpoint(folder / "weights", *weights_that_see(known=True), metadata={})
    with serving(site.orthanc, folder, model_path=str(folder / "weights.safetensors")) as found:
        yield found


@pytest.fixture
def mode(page: Page, kinds: Site) -> Mode:
    """The K-Prism mode of that server."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    return Mode(page, kinds, PICTURES)


def note(mode: Mode) -> Locator:
    """The place in the panel for what is said of the kind of image."""
    return mode.page.locator(".kprism-panel .kp-note")


def test_what_was_not_looked_for_is_said_and_can_be_asked_for(mode: Mode) -> None:
    mode.open_from_list("xray3")
    expect(note(mode)).to_be_hidden()
    answer, labels = mode.answer(lambda: mode.button(ALL))
    np.testing.assert_array_equal(mode.mask(LUNGS), labels == answer["label_names"][LUNGS])
    left = answer["not_asked"]
    assert MARKUP in left and LUNGS not in left and len(left) > 1
    sentence = f"taken for “{KIND}”: {len(left)} structures that cannot be in such an image were not looked for"
    expect(note(mode).get_by_role("status")).to_contain_text(sentence)
    names = note(mode).get_by_role("button")
    expect(names).to_have_count(0)  # folded away
    note(mode).locator("summary").click()
    assert names.all_inner_texts() == left
    names.last.scroll_into_view_if_needed()
    mode.shot("kind")

    lungs = mode.mask(LUNGS)
    answer, labels = mode.answer(lambda: note(mode).get_by_role("button", name=MARKUP, exact=True).click())
    assert mode.asked()["structures"] == [MARKUP]
    np.testing.assert_array_equal(mode.mask(MARKUP), (labels == answer["label_names"][MARKUP]) & ~lungs)
    np.testing.assert_array_equal(mode.mask(LUNGS), lungs)  # kept
    expect(mode.page.locator(".kp-structure[aria-checked='true']")).to_have_text(MARKUP)
    expect(note(mode)).to_be_hidden()  # it was said of another answer

    mode.answer(lambda: mode.button(ALL))
    expect(note(mode)).to_contain_text(sentence)
    mode.press("c")
    mode.answer(lambda: mode.click((mode.grid[0] // 2, mode.grid[1] // 2, 0)))
    expect(note(mode)).to_be_hidden()

    mode.answer(lambda: mode.button(ALL))
    expect(note(mode)).to_contain_text(sentence)
    mode.page.locator("[data-cy='return-to-work-list']").click()
    mode.choose_from_list("xray2")
    expect(mode.page.locator(".kprism-panel").get_by_role("button", name=ALL)).to_be_visible()
    expect(note(mode)).to_be_hidden()


@pytest.fixture
def mode_without_kinds(page: Page, site: Site, tmp_path: Path) -> Iterator[Mode]:
    """The K-Prism mode of a server whose weights take every image for none of their kinds."""
    save_checkpoint(tmp_path / "weights", *weights_that_see(known=False), metadata={})
    PICTURES.mkdir(parents=True, exist_ok=True)
    with serving(site.orthanc, tmp_path, model_path=str(tmp_path / "weights.safetensors")) as found:
        yield Mode(page, found, PICTURES)


def test_an_image_unlike_all_others_is_said_to_be_so(mode_without_kinds: Mode) -> None:
    mode = mode_without_kinds
    mode.open("xray3")
    answer, labels = mode.answer(lambda: mode.button(ALL))
    assert answer["label_names"] == {} and not labels.any()
    unlike = f"unlike those that the network was trained on, so {len(answer['not_asked'])} structures were not"
    expect(note(mode)).to_contain_text(unlike)
    expect(note(mode)).to_contain_text("clicks and references still work")
    expect(mode.page.get_by_text("No structure was looked for in this case.").first).to_be_visible()
    mode.shot("kind-unlike")
    note(mode).locator("summary").click()
    answer, labels = mode.answer(lambda: note(mode).get_by_role("button", name=LUNGS).click())
    assert (labels == answer["label_names"][LUNGS]).any()
    np.testing.assert_array_equal(mode.mask(LUNGS), labels == answer["label_names"][LUNGS])
