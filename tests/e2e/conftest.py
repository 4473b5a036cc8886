# SPDX-License-Identifier: Apache-2.0
"""A server with the shipped weights, started as a user starts it, on the sample studies and a few chest X-rays.

And the browser: one for all tests of a process, because Playwright cannot be started twice in a thread.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.live_server import LiveServer, copy_samples
from tests.conftest import SHARED
from tests.e2e.browser import FLAGS, WINDOW, program
from tests.e2e.viewer.site import PATIENCE

XRAYS = SHARED / "data" / "montgomery_xray"


def read_picture(content: bytes) -> np.ndarray:
    """A PNG as (row, column)."""
    return np.asarray(Image.open(io.BytesIO(content)))


def read_volume(content: bytes) -> nibabel.Nifti1Image:
    """A .nii.gz file."""
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))


def xrays(count: int) -> dict[str, tuple[Path, Path]]:
    """The first chest X-rays of the test list: image id -> (image, mask of the lungs)."""
    entries = json.loads((XRAYS / "dataset.json").read_text())["test"][:count]
    return {f"xray{number}": (XRAYS / e["image"], XRAYS / e["label"]) for number, e in enumerate(entries)}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server; its X-rays, where the reference material is there, are unlabelled."""
    studies = copy_samples(tmp_path_factory.mktemp("e2e") / "my studies")
    if XRAYS.is_dir():
        for name, (image, _) in xrays(4).items():
            shutil.copyfile(image, studies / f"{name}.png")
    with LiveServer(studies) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = program("chromium", "chromium-browser", package="chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page; an error that its scripts do not catch fails the test."""
    context = browser.new_context(viewport=WINDOW)
    context.set_default_timeout(PATIENCE * 1000)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    found = list(errors)  # closing the page aborts what its workers still load
    context.close()
    assert found == []
