# SPDX-License-Identifier: Apache-2.0
"""Names of files that answers are saved as."""

from __future__ import annotations

from urllib.parse import quote


def attachment(name: str) -> str:
    """The Content-Disposition of a file to save (RFC 6266): also for clients that read ASCII only."""
    plain = name.encode("ascii", "replace").decode().replace("?", "_").replace('"', "_")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
