# SPDX-License-Identifier: Apache-2.0
"""A store, a server on it that knows its path and one origin elsewhere, and nginx with TLS in front."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

import tests.unit.dicom_files as dicom_files
from benchmarks.live_server import free_port
from benchmarks.places import ROOT
from lib.dicom.web import DicomWeb
from lib.errors import RequestError
from tests.certificates import HERE, Authority
from tests.conftest import lacking
from tests.e2e.browser import program
from tests.e2e.viewer.site import Site, serving
from tests.nginx import nginx
from tools.ohif import ensure_ohif
from tools.orthanc import Orthanc

ROOT_PATH = "/monai"

TLS = """
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    {locations}
}}
"""

PASSES_ON = "location /monai/ {{ proxy_pass {server}; }}"
TAKES_AWAY = "location {path} {{ proxy_pass {server}/; }}"
PAGE = """
server {{
    listen 127.0.0.1:{port};
    location / {{ default_type text/html; return 200 '<!doctype html><title>elsewhere</title>'; }}
}}
"""


@dataclass
class Hosted:
    """The server, and its addresses through nginx: one that passes its path on, and two that take theirs away.

    The server is told of /monai alone. `allowed` and `strange` are origins with a page, only the first is allowed.
    """

    site: Site
    passing: str
    stripping: str
    untold: str
    allowed: str
    strange: str
    authority: Path

    @property
    def addresses(self) -> dict[str, str]:
        """How the server is reached."""
        own = self.site.url
        return {"direct": own, "passing": self.passing, "stripping": self.stripping, "untold": self.untold}

    def get(self, address: str, **named: object) -> requests.Response:
        """GET from an address as it stands."""
        return requests.get(address, timeout=60, verify=str(self.authority), **named)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """All of it; the store has one small CT, of the patient `far`."""
    program("Orthanc", "orthanc", package="orthanc orthanc-dicomweb")
    try:
        ensure_ohif(ROOT / "var" / "viewer")
    except RequestError as error:
        lacking(f"the browser tests need the OHIF viewer: {error}")
    folder = tmp_path_factory.mktemp("hosted")
    authority = Authority(folder / "certificates")
    pair = authority.issue("server", HERE)
    first, second, allowed, strange = (free_port() for _ in range(4))
    origin = f"http://localhost:{allowed}"
    with Orthanc(folder / "orthanc", free_port()) as orthanc:
        DicomWeb.at(orthanc.url).store(dicom_files.volume("CT", (64, 48, 6), "far"))
        conf = {"root_path": ROOT_PATH, "allow_origin": origin}
        with serving(orthanc, folder, **conf) as site:
            passing, taking = PASSES_ON.format(server=site.url), TAKES_AWAY.format
            named = {"certificate": pair.certificate, "key": pair.key}
            servers = [
                TLS.format(port=first, locations=passing, **named),
                TLS.format(
                    port=second,
                    locations="\n".join(taking(path=path, server=site.url) for path in ("/monai/", "/lab/ai/")),
                    **named,
                ),
                PAGE.format(port=allowed),
                PAGE.format(port=strange),
            ]
            with nginx(folder / "nginx", "\n".join(servers), f"http://127.0.0.1:{allowed}/"):
                yield Hosted(
                    site,
                    f"https://localhost:{first}/monai",
                    f"https://localhost:{second}/monai",
                    f"https://localhost:{second}/lab/ai",
                    origin,
                    f"http://localhost:{strange}",
                    authority.certificate,
                )
