# SPDX-License-Identifier: Apache-2.0
"""Pages of other origins: in a real browser, which alone decides what they get to see."""

from __future__ import annotations

import pytest
import requests
from playwright.sync_api import Browser, Page

from tests.e2e.hosting.conftest import Hosted

ASK = """async ([address, options]) => {
    try {
        const answer = await fetch(address, options);
        await answer.arrayBuffer();
        return [answer.status, answer.headers.get('Content-Disposition'), answer.headers.get('X-Accel-Buffering')];
    } catch (error) {
        return [error.name];
    }
}"""

JSON = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": "{}"}


@pytest.fixture
def page_of(browser: Browser) -> Page:
    """A page that takes the proxy's certificate."""
    context = browser.new_context(ignore_https_errors=True)
    yield context.new_page()
    context.close()


def requests_of(hosted: Hosted) -> dict[str, list[object]]:
    """What an OHIF elsewhere asks for: simple, with a preflight, with cookies, and an answer with a file name."""
    _, series = hosted.site.series("far")
    infer = f"{hosted.passing}/infer/interactive?image={series}&output=image"
    form = {"method": "POST", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
    return {
        "info": [f"{hosted.passing}/info/", {}],
        "next case": [f"{hosted.passing}/activelearning/first", JSON],
        "cookies": [f"{hosted.passing}/kprism/api/status", {"credentials": "include"}],
        "own header": [f"{hosted.passing}/info/", {"headers": {"X-Client": "ohif"}}],
        "studies": [f"{hosted.passing}/kprism/dicom-web/studies", {"headers": {"Accept": "application/dicom+json"}}],
        "mask": [infer, {**form, "body": "params=%7B%22liver%22%3A%5B%5B30%2C20%2C2%5D%5D%7D"}],
        "missing": [f"{hosted.passing}/kprism/api/case/1.2.3", {}],
        "put": [f"{hosted.passing}/model/x", {"method": "PUT"}],
    }


def test_an_allowed_origin_reads_every_answer(hosted: Hosted, page_of: Page) -> None:
    page_of.goto(hosted.allowed)
    said = {name: page_of.evaluate(ASK, asked) for name, asked in requests_of(hosted).items()}
    statuses = {name: answer[0] for name, answer in said.items()}
    assert statuses == {
        **dict.fromkeys(("info", "next case", "cookies", "own header", "studies", "mask"), 200),
        "missing": 404,
        "put": 403,
    }
    assert 'filename="' in said["mask"][1]


def test_another_origin_reads_nothing(hosted: Hosted, page_of: Page) -> None:
    page_of.goto(hosted.strange)
    said = {name: page_of.evaluate(ASK, asked) for name, asked in requests_of(hosted).items()}
    assert said == {name: ["TypeError"] for name in said}


def test_the_mode_is_loaded_into_a_viewer_elsewhere(hosted: Hosted, page_of: Page) -> None:
    """An OHIF that lists our mode by its address: modules, their imports, and what they ask the server for."""
    page_of.goto(hosted.allowed)
    modules = f"{hosted.passing}/kprism/viewer"
    assert page_of.evaluate(f"async () => (await import('{modules}/mode.js')).default.id") == "kprism"
    assert page_of.evaluate(f"async () => (await import('{modules}/extension.js')).default.id") == "kprism"
    status = page_of.evaluate(f"async () => (await import('{modules}/core/server.js')).server.status()")
    assert status["name"] == "K-Prism" and status["cases"]["all"] == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_a_preflight_names_the_origin_and_nobody_else(hosted: Hosted, method: str) -> None:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type, x-own"}
    address = f"{hosted.passing}/datastore/label"
    answer = requests.options(
        address, headers={**asked, "Origin": hosted.allowed}, timeout=60, verify=str(hosted.authority)
    )
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == hosted.allowed
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert method in answer.headers["Access-Control-Allow-Methods"]
    for origin in (hosted.strange, "null", hosted.allowed.replace("http:", "https:"), f"{hosted.allowed}.evil.org"):
        refused = requests.options(
            address, headers={**asked, "Origin": origin}, timeout=60, verify=str(hosted.authority)
        )
        assert refused.status_code == 400
        assert "Access-Control-Allow-Origin" not in refused.headers
