# SPDX-License-Identifier: Apache-2.0
"""What stands between a browser and the server answers in its place: a login, a limit, a server that is down."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from benchmarks.live_server import free_port
from benchmarks.places import ROOT
from tests.nginx import nginx

SERVER = """
server {{
    listen 127.0.0.1:{port};
    location / {{ default_type text/html; return 200 '<!doctype html><title>Log in</title>'; }}
    location /moved/ {{ return 302 /; }}
    location /s401/ {{ return 401; }}
    location /s413/ {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:{closed}; }}
    location /s502/ {{ proxy_pass http://127.0.0.1:{closed}; }}
    location /s418/ {{ return 418; }}
    location /told/ {{ default_type application/json; return 409 '{{"detail": "somebody was here"}}'; }}
    location /kprism/ {{ alias {app}/page/; index index.html; types {{ text/html html; text/javascript js; }} }}
    location /kprism/viewer/ {{ alias {app}/viewer/; types {{ text/javascript js; }} }}
    location /kprism/api/ {{ default_type text/html; return 200 '<!doctype html><title>Log in</title>'; }}
}}
"""

ASK = """
const real = fetch;
globalThis.fetch = (address, options) => real(ADDRESS, options);
const { server } = await import(MODULE);
try {
  await server.next('first', { text: 'x'.repeat(5000) });
} catch (error) {
  process.stdout.write(JSON.stringify({ name: error.constructor.name, message: error.message, status: error.status }));
}
"""


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of what stands between."""
    port, app = free_port(), ROOT / "apps" / "kprism"
    address = f"http://127.0.0.1:{port}"
    servers = SERVER.format(port=port, closed=free_port(), app=app)
    with nginx(tmp_path_factory.mktemp("between"), servers, address):
        yield address


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/", 0, "Something else answered in place of the K-Prism server, perhaps a login."),
        ("/moved/", 0, "perhaps a login. Log in again in another tab; your work stays here."),
        ("/s401/", 401, "You are not logged in, or not any more."),
        ("/s413/", 413, "A proxy between this page and the server takes no request that large (413)."),
        ("/s502/", 502, "The K-Prism server does not answer (502). Your work stays here"),
        ("/s418/", 418, "The server answered with status 418."),
        ("/told/", 409, "Somebody was here"),
    ],
)
def test_the_panel_says_what_is_wrong(between: str, node: str, path: str, status: int, said: str) -> None:
    module = (ROOT / "apps" / "kprism" / "viewer" / "core" / "server.js").as_uri()
    script = ASK.replace("ADDRESS", json.dumps(between + path)).replace("MODULE", json.dumps(module))
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    answer = json.loads(done.stdout)
    assert (answer["name"], answer["status"]) == ("ServerError", status) and said in answer["message"], done.stderr


def test_the_status_page_says_that_a_login_is_in_between(between: str, browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    try:
        page.goto(f"{between}/kprism/")
        expect(page.locator("#state")).to_contain_text("perhaps a login", timeout=30_000)
        expect(page.locator("#state")).to_have_class("problem")
    finally:
        page.close()
