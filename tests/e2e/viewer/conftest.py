# SPDX-License-Identifier: Apache-2.0
"""The viewers in a real browser, on a real DICOMweb store, with a server started as a user starts it.

One store, one server and one browser serve all tests; each test has a page and a case of its own. Pictures of the pages
are kept in var/screenshots, or where KPRISM_SCREENSHOTS says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page

from benchmarks.places import ROOT
from lib.errors import RequestError
from tests.conftest import SHARED, lacking
from tests.e2e.browser import program
from tests.e2e.viewer.driver import Mode
from tests.e2e.viewer.site import Site, running
from tools.ohif import ensure_ohif

XRAYS = SHARED / "data" / "montgomery_xray"
PICTURES = Path(os.environ.get("KPRISM_SCREENSHOTS", ROOT / "var" / "screenshots"))


def xrays(count: int) -> list[dict[str, str]]:
    """The first entries of the training list."""
    return list(json.loads((XRAYS / "dataset.json").read_text())["training"][:count])


def lungs(number: int) -> NDArray[np.bool_]:
    """The true lungs (column, row) of xray1, xray2, ..."""
    return np.asarray(Image.open(XRAYS / xrays(number)[-1]["label"])).T > 0


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Site]:
    """Store and server, with sample volumes and four chest X-rays, xray1 to xray4."""
    program("Orthanc", "orthanc", package="orthanc orthanc-dicomweb")
    try:
        ensure_ohif(ROOT / "var" / "viewer")
    except RequestError as error:
        lacking(f"the browser tests need the OHIF viewer: {error}")
    with running(tmp_path_factory.mktemp("viewer"), [XRAYS / entry["image"] for entry in xrays(4)]) as found:
        yield found


@pytest.fixture
def mode(page: Page, site: Site) -> Mode:
    """The K-Prism mode; it asks nobody but the server it came from."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    return Mode(page, site, PICTURES)
