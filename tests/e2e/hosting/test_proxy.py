# SPDX-License-Identifier: Apache-2.0
"""The server behind a real reverse proxy with TLS, under a path that the proxy passes on or takes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from playwright.sync_api import Browser, Page

from kprism_model.addresses import OWN_ADDRESSES
from lib.api.ohif.planes import unpack
from tests.e2e.hosting.conftest import Hosted
from tests.e2e.viewer.driver import IDLE, Mode

NONE_RUNS = "/train/?check_if_running=true"
"""What MONAI Label answers by 404 while no training runs."""

WAYS = ["direct", "passing", "stripping", "untold"]


@pytest.fixture
def far_page(browser: Browser) -> Iterator[Page]:
    """A page that takes the proxy's certificate; errors of its scripts, and answers of 400 and more, fail the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 700}, ignore_https_errors=True)
    context.set_default_timeout(180_000)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("response", lambda answer: problems.append(answer.url) if answer.status >= 400 else None)
    yield opened
    found = [problem for problem in problems if not problem.endswith(NONE_RUNS)]
    context.close()
    assert found == []


def inside(page: Page, address: str) -> list[str]:
    """From now on, the addresses that a page asks for and that do not lie below `address`."""
    outside: list[str] = []
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else outside.append(asked.url),
    )
    return outside


@pytest.mark.parametrize("way", WAYS)
def test_the_status_page_finds_all_that_it_shows(hosted: Hosted, far_page: Page, way: str) -> None:
    address = hosted.addresses[way]
    outside = inside(far_page, address)
    far_page.goto(f"{address}/kprism")
    far_page.wait_for_function("() => document.getElementById('state').textContent.startsWith('Connected')")
    assert far_page.url == f"{address}/kprism/"
    far_page.wait_for_function("() => document.querySelectorAll('#waiting a').length === 1")
    study, series = hosted.site.series("far")
    link = far_page.evaluate("() => document.querySelector('#waiting a').href")
    assert link == f"{address}/viewer/kprism?StudyInstanceUIDs={study}&initialSeriesInstanceUID={series}"
    links = far_page.evaluate("() => [...document.querySelectorAll('nav a, #report')].map(one => one.href)")
    assert links == [f"{address}/viewer/", f"{address}/ohif/", f"{address}/kprism/api/report"]
    assert outside == []


@pytest.mark.parametrize("way", ["passing", "untold"])
def test_a_study_is_opened_from_the_list_and_a_click_is_answered(
    hosted: Hosted, far_page: Page, way: str, tmp_path: Path
) -> None:
    address = hosted.addresses[way]
    outside = inside(far_page, address)
    site = type(hosted.site)(address, hosted.site.orthanc, hosted.site.state)
    mode = Mode(far_page, site, tmp_path)
    mode.open_from_list("far")
    assert far_page.url.startswith(f"{address}/viewer/kprism?")
    mode.name_structure("ball")
    mode.press("c")
    mode.show(2)
    result, labels = mode.answer(lambda: mode.click((30, 20, 2)))
    assert list(result["label_names"]) == ["ball"]
    np.testing.assert_array_equal(mode.labels()[:, :, 2], labels[:, :, 2])
    far_page.reload()
    far_page.wait_for_function(IDLE)
    assert outside == []


def test_the_viewer_of_monai_label_lists_the_studies_and_connects(hosted: Hosted, far_page: Page) -> None:
    address = hosted.passing
    far_page.route(lambda asked: not asked.startswith(address), lambda route: route.abort())  # fonts of the network
    study, _ = hosted.site.series("far")
    far_page.goto(f"{address}/ohif/monai-label?StudyInstanceUIDs={study}")
    far_page.get_by_text("Confirm and Hide").click()
    far_page.locator("[data-cy=viewport-pane] canvas").first.wait_for()
    far_page.locator(".settingsTable button.actionButton").click()
    far_page.locator(".tab", has=far_page.locator(".tab-label", has_text="Auto-Segmentation")).wait_for()
    assert far_page.locator(".settingsTable input").first.input_value() == f"{address}/"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("/kprism", "/kprism/"),
        ("/viewer", "/viewer/"),
        ("/info", "/info/"),
        ("/datastore?output=all", "/datastore/?output=all"),
    ],
)
def test_redirects_stay_behind_the_proxy(hosted: Hosted, way: str, asked: str, place: str) -> None:
    address = hosted.addresses[way] + asked
    answer = hosted.get(address, allow_redirects=False)
    assert answer.status_code in (307, 308)
    assert urljoin(address, answer.headers["Location"]) == hosted.addresses[way] + place
    assert not urlsplit(answer.headers["Location"]).netloc
    assert hosted.get(hosted.addresses[way] + place).status_code == 200


@pytest.mark.parametrize("way", ["direct", "passing", "stripping"])
def test_the_description_of_the_addresses_is_found_and_names_the_path(hosted: Hosted, way: str) -> None:
    address = hosted.addresses[way]
    for page in ("/", "/docs"):
        text = hosted.get(address + page).text
        assert "openapi.json" in text and '"/openapi.json' not in text and "'/openapi.json" not in text
    described = hosted.get(f"{address}/openapi.json").json()
    assert [server["url"] for server in described["servers"]] == ["/monai"]
    assert {path.split("/")[1] for path in described["paths"]} <= OWN_ADDRESSES


@pytest.mark.parametrize("way", ["passing", "stripping", "untold"])
def test_parts_of_an_answer_and_large_uploads_pass_the_proxy(hosted: Hosted, way: str) -> None:
    address = hosted.addresses[way]
    _, series = hosted.site.series("far")
    form = {"params": json.dumps({"liver": [[30, 20, 2]], "scope": "whole volume"}), "image": ""}
    target = f"{address}/kprism/api/infer/interactive?image={series}&stream=1"
    answer = requests.post(target, data=form, timeout=120, verify=str(hosted.authority))
    assert answer.status_code == 200, answer.text
    content, messages = answer.content, []
    while content:
        length = int.from_bytes(content[:4], "little")
        messages.append(unpack(content[4 : 4 + length], (64, 48, 6))[0])
        content = content[4 + length :]
    assert "result" in messages[-1]
    direct = requests.post(target.replace(address, hosted.site.url), data=form, timeout=120)
    assert direct.headers["X-Accel-Buffering"] == "no"
    large = np.random.default_rng(0).integers(0, 255, 5 << 20, np.uint8).tobytes()
    files = {"file": ("noise.png", large)}
    refused = requests.post(f"{address}/infer/semantic", files=files, timeout=120, verify=str(hosted.authority))
    assert refused.status_code == 400 and "noise.png" in refused.json()["detail"]


@pytest.mark.parametrize("way", ["passing", "stripping", "untold"])
def test_the_client_of_3d_slicer_works_through_the_proxy(
    hosted: Hosted, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(hosted.authority))
    client = MONAILabelClient(hosted.addresses[way], str(tmp_path))
    assert client.info()["name"] == "K-Prism"
    chosen: dict[str, Any] = client.next_sample("first", {})
    assert chosen["id"] == hosted.site.series("far")[1]
    _, params = client.infer("interactive", chosen["id"], {"liver": [[30, 20, 2]], "result_extension": ".nrrd"})
    assert params["label_names"] == {"liver": 1}
