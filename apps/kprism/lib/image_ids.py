# SPDX-License-Identifier: Apache-2.0
"""Which names images can have: the name of a file without its extension is the id that clients send."""

from __future__ import annotations

import re
from typing import Any

from lib.errors import NotFoundError

MAX_BYTES = 246
"""Bytes of an id in UTF-8: with `.seg.nrrd`, the longest extension of a label, it is a file name of 255 bytes."""

_FORBIDDEN = re.compile(r"[/\\\x00-\x1f]")


def problem_of_id(image_id: str) -> str | None:
    """Why a name cannot be an image id, as the end of a sentence; None if it can be one."""
    if not image_id:
        return "has no name before its extension; rename it"
    if image_id.startswith("."):
        return "is a hidden file, because its name begins with a dot; rename it if it is an image"
    if _FORBIDDEN.search(image_id):
        return "has a slash, backslash, line break or control character in its name; rename it"
    try:
        size = len(image_id.encode())
    except UnicodeEncodeError:  # Linux keeps bytes, and another system may have written them
        return "has a name that is not UTF-8; rename it"
    if size > MAX_BYTES:
        return (
            f"has a name of {size} bytes, at most {MAX_BYTES} before the extension leave room for its label; shorten it"
        )
    return None


def shortened(image_id: str, size: int) -> str:
    """The beginning of an id, at most `size` bytes in UTF-8, to begin the name of a file with."""
    return image_id.encode()[:size].decode(errors="ignore")


def check_id(image_id: Any) -> str:
    """The image id, or NotFoundError if it is not a valid id: ids are single names, never paths."""
    if not isinstance(image_id, str) or problem_of_id(image_id) is not None:
        raise NotFoundError(f"{image_id!r} is not an image id of this datastore")
    return image_id
