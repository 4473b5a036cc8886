# SPDX-License-Identifier: Apache-2.0
"""Fetching the OHIF viewer once: npm's prebuilt `@ohif/app`, checked against a fixed checksum, unpacked for our path.

The package expects to be served under "/"; its few absolute addresses are rewritten for `BASE_PATH`. Source maps, the
ONNX runtime and the slide viewer (160 of 204 MB) are left out: the K-Prism mode uses none of them. Loading modes by
address is not a documented interface of OHIF, so the version is fixed; tests/e2e notices a change.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import requests

from lib.errors import RequestError

VERSION = "3.13.2"
CHECKSUM = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
"""SHA-512 of the package, base64, as the npm registry states it."""

PACKAGE_URL = f"https://registry.npmjs.org/@ohif/app/-/app-{VERSION}.tgz"
BASE_PATH = "/viewer/"
"""The path under which the server serves the viewer."""

EXCLUDED_FILES = re.compile(r"(^|/)(ort|dicom-microscopy-viewer)/|\.map$|(^|/)(sw|init-service-worker)\.js$")
TEXT_SUFFIXES = (".js", ".html", ".css", ".json")
_ABSOLUTE = re.compile(r"""(["'(])/((?:assets/|[\w.-]+\.(?:js|css|woff2|json|wasm)\b))""")


def ensure_ohif(folder: Path) -> Path:
    """The unpacked viewer in `folder`, fetched first if it is missing; RequestError if it cannot be fetched."""
    place = folder / f"ohif-{VERSION}"
    if (place / "index.html").is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Fetching the OHIF viewer {VERSION} from npm (50 MB, once) ...", file=sys.stderr)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ohif-", dir=folder) as work:
        package = _download(Path(work))
        _check(package)
        unpack(package, Path(work) / "viewer")
        os.replace(Path(work) / "viewer", place)
    print(f"The OHIF viewer is in {place} after {time.monotonic() - started:.0f} s.", file=sys.stderr)
    return place


def _download(folder: Path) -> Path:
    """Download with npm if it is installed, because it uses the user's proxies and mirrors; else from its registry."""
    if npm := shutil.which("npm"):
        done = subprocess.run(
            [npm, "pack", "--silent", f"@ohif/app@{VERSION}"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return folder / done.stdout.split()[-1]
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise RequestError(f"npm could not fetch @ohif/app {VERSION}: {reason[0]}")
    try:
        answer = requests.get(PACKAGE_URL, timeout=300)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise RequestError(f"the OHIF viewer could not be fetched from {PACKAGE_URL}: {error}") from error
    path = folder / f"app-{VERSION}.tgz"
    path.write_bytes(answer.content)
    return path


def _check(package: Path) -> None:
    with package.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha512").digest()
    if base64.b64encode(digest).decode() != CHECKSUM:
        raise RequestError(f"{package.name} is not the expected package: its checksum differs")


def unpack(package: Path, place: Path) -> None:
    """Unpack `dist/` of the package to `place`, for serving under `BASE_PATH`."""
    root = "package/dist/"
    with tarfile.open(package) as archive:
        for member in archive:
            name = member.name.removeprefix(root)
            if not member.isfile() or name == member.name or EXCLUDED_FILES.search(name) or ".." in name:
                continue
            stream = archive.extractfile(member)
            content = stream.read() if stream else b""
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rebase(content) if path.suffix in TEXT_SUFFIXES else content)


def rebase(content: bytes) -> bytes:
    """A text of the viewer with its absolute addresses under `BASE_PATH`."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content
    text = text.replace('__webpack_require__.p = "/"', f'__webpack_require__.p = "{BASE_PATH}"')
    text = text.replace('window.PUBLIC_URL="/"', f'window.PUBLIC_URL="{BASE_PATH}"')
    text = re.sub(r'<script rel="preload"[^>]*init-service-worker[^>]*></script>', "", text)
    return _ABSOLUTE.sub(rf"\g<1>{BASE_PATH}\g<2>", text).encode()
