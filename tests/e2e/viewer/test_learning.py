# SPDX-License-Identifier: Apache-2.0
"""Training and versions, from the panel of the mode and from the status page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from benchmarks.places import ROOT
from kprism_model.checkpoint import load_checkpoint
from lib.learning.versions import Versions
from tests.e2e.viewer.conftest import PICTURES
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import PATIENCE, Site, wait

LIMIT = PATIENCE * 1000
SHIPPED = ROOT / "apps" / "kprism" / "model" / "kprism_small.safetensors"


@pytest.fixture
def published(site: Site) -> Site:
    """A version beside the shipped weights serves, put there as a training puts it: from another process."""
    versions = Versions(site.state / "versions", SHIPPED)
    if len(versions.known()) < 2:
        shipped = load_checkpoint(SHIPPED)
        routes = {"semantic": {"lungs": None}}
        versions.publish(shipped.model, shipped.registry, metadata={"dice": 0.75}, routes=routes)
    return site


def test_a_training_is_started_from_the_panel_followed_and_stopped(mode: Mode, site: Site) -> None:
    mode.open("pyradiomics_brain1")
    learning = mode.page.locator(".kprism-panel section", has_text="Learning")
    learning.get_by_role("button", name="Train on the labels").click()
    bar = learning.get_by_label("Progress of the training")
    expect(learning).to_contain_text(re.compile(r"Training: \d+ of \d+ rounds"), timeout=LIMIT)
    assert bar.is_visible()
    assert site.status()["training"]["running"]
    learning.scroll_into_view_if_needed()
    mode.shot("training")
    learning.get_by_role("button", name="Stop").click()
    expect(learning).to_contain_text("It was stopped", timeout=LIMIT)
    expect(bar).to_be_hidden()


def test_a_training_reaches_its_end_and_the_panel_tells_its_verdict(mode: Mode, site: Site) -> None:
    mode.open("pyradiomics_brain1")
    learning = mode.page.locator(".kprism-panel section", has_text="Learning")
    learning.get_by_role("button", name="Train on the labels").click()
    expect(learning).to_contain_text("The last training is done", timeout=LIMIT)
    sentence = site.status()["training"]["sentence"]
    assert re.search(r"Published as version \d+: |Nothing changes: ", sentence), sentence
    expect(learning).to_contain_text(sentence, timeout=LIMIT)
    learning.scroll_into_view_if_needed()
    mode.shot("training-done")
    expect(mode.page.locator(".kp-status")).to_contain_text(site.status()["weights"], timeout=LIMIT)


def test_the_panel_lists_the_versions_and_goes_back(mode: Mode, published: Site) -> None:
    mode.open("pyradiomics_brain1")
    before = published.status()["weights"]
    versions = mode.page.get_by_label("Versions of the weights")
    expect(versions.locator("option")).not_to_have_count(0, timeout=LIMIT)
    assert versions.locator("option").all_inner_texts() == [v["title"] for v in published.status()["versions"]]
    current = next(v["id"] for v in published.status()["versions"] if v["current"])
    other = next(v["id"] for v in published.status()["versions"] if not v["current"])
    versions.select_option(other)
    mode.button("Use this version")
    assert [v["id"] for v in published.status()["versions"] if v["current"]] == [other]
    versions.scroll_into_view_if_needed()
    mode.shot("versions")
    versions.select_option(current)
    mode.button("Use this version")
    expect(mode.page.locator(".kp-status")).to_contain_text(before, timeout=LIMIT)
    assert [v["id"] for v in published.status()["versions"] if v["current"]] == [current]


def routed(site: Site) -> set[str]:
    """The structures that other weights than the shipped ones answer."""
    return {entry["structure"] for entry in site.status()["served"] if entry["answered_by"] != "shipped"}


def test_the_page_tells_what_the_server_does_and_goes_back(page: Page, published: Site) -> None:
    wait(lambda: routed(published), "version that was chosen last")  # it is loaded a moment after it is chosen
    page.set_viewport_size({"width": 768, "height": 1024})  # a tablet
    page.goto(f"{published.url}/kprism/")
    expect(page.locator("#state")).to_contain_text("Connected", timeout=LIMIT)
    status = published.status()
    cases = status["cases"]
    assert page.locator("#labelled").inner_text() == str(cases["labelled"])
    assert page.locator("#all").inner_text() == str(cases["all"])
    page.get_by_text("Waiting for a label").click()
    assert page.locator("#waiting li").all_inner_texts() == [case["title"] for case in cases["waiting"]]
    rows = page.locator("#versions tr")
    assert rows.count() == len(status["versions"]) >= 2
    assert page.locator("#versions tr.current").count() == 1
    assert page.locator("#weights").inner_text() == status["weights"]
    assert set(page.locator("#served td:first-child").all_inner_texts()) == routed(published)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / "page-tablet.png", full_page=True)
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= 768
    smallest = page.evaluate(
        "() => Math.min(...[...document.querySelectorAll('button:not([hidden])')]"
        ".filter(b => b.offsetHeight).map(b => b.getBoundingClientRect().height))"
    )
    assert smallest >= 44  # pixels, for fingers

    current = page.locator("#versions tr.current td").first.inner_text()
    other = page.locator("#versions tr:not(.current)").first
    chosen = other.locator("td").first.inner_text()
    other.get_by_role("button", name="Use this version").click()
    expect(page.locator("#versions tr.current td").first).to_have_text(chosen, timeout=LIMIT)
    back = page.locator("#versions tr", has_text=current)
    back.get_by_role("button", name="Use this version").click()
    expect(page.locator("#versions tr.current td").first).to_have_text(current, timeout=LIMIT)


def test_the_page_opens_the_last_report(page: Page, site: Site) -> None:
    reports = site.state / "training" / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    (reports / "written-by-a-test.html").write_text("<h1>Verdict of a training</h1>")
    page.goto(f"{site.url}/kprism/")
    with page.context.expect_page() as opened:
        page.get_by_text("What the last training was given and achieved").click()
    expect(opened.value.get_by_role("heading")).to_have_text("Verdict of a training", timeout=LIMIT)


def test_the_page_says_when_the_server_is_gone(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/kprism/")
    expect(page.locator("#state")).to_contain_text("Connected", timeout=LIMIT)
    page.context.set_offline(True)
    expect(page.locator("#state")).to_contain_text("The server does not answer", timeout=LIMIT)
    page.context.set_offline(False)
    expect(page.locator("#state")).to_contain_text("Connected", timeout=LIMIT)
