# SPDX-License-Identifier: Apache-2.0
"""Both builds of OHIF expect one path, /viewer/ or /ohif/. Here their files are served so that any path will do.

A reverse proxy may have the server under a path that it tells nobody. So the addresses in these files become relative,
and scripts find the path themselves: that of the page, or in a worker that of the worker's own script.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.responses import FileResponse, Response

from lib.api.ohif.files import SHORT

SCRIPT_PLACE = 'self.PUBLIC_URL ?? new URL(".", self.location.href).pathname'
"""JavaScript for the path of the build; the page has it in `PUBLIC_URL`."""

TEXTS = (".html", ".css", ".json", ".webmanifest", ".xml")


def relocated(answer: FileResponse, base: str, path: str) -> Response:
    """A file of the build that expects the path `base`, such as /viewer/, as it is at its place `path` below that.

    Files without an address of their own are answered as they are.
    """
    file = Path(answer.path)
    content = at_any_path(file.read_bytes(), file.suffix, base, path) if file.suffix in (".js", *TEXTS) else None
    if content is None:
        return answer
    keep = answer.headers.get("Cache-Control", SHORT)
    return Response(content, media_type=answer.media_type, headers={"Cache-Control": keep})


def at_any_path(content: bytes, suffix: str, base: str, path: str) -> bytes | None:
    """The content of a file with relative addresses in place of those that begin with `base`; None if it has none.

    `path` is where it is asked for, relative to `base`: a page may be `viewer/kprism` or deeper.
    """
    if base.encode() not in content:
        return None
    up = "../" * path.count("/") or "./"
    place = re.escape(base.encode())
    if suffix == ".js" and Path(path).name != "sw.js":
        changed = re.sub(rb'(__webpack_require__\.p = )"%s"' % place, rb"\1%s" % SCRIPT_PLACE.encode(), content)
        return changed if changed != content else None
    page = f'window.PUBLIC_URL = new URL("{up}", window.location.href).pathname'
    content = re.sub(rb"""window\.PUBLIC_URL ?= ?["']%s["']""" % place, page.encode(), content)
    return re.sub(rb"""(["'(])%s""" % place, rb"\1%s" % up.encode(), content)
