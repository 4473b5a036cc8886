# SPDX-License-Identifier: Apache-2.0
"""The versions of the weights for mode and page, and the way back to an earlier one."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.utils.app import app_instance

from lib.errors import NotFoundError, RequestError
from lib.versions import SHIPPED, Version, VersionError, Versions


def listed(app: Any) -> list[dict[str, Any]]:
    """All versions, the newest first; empty where the app keeps none."""
    versions = _versions(app)
    if versions is None:
        return []
    current = versions.current().number
    return [_entry(version, current) for version in reversed(versions.known())]


def roll_back(number: str) -> dict[str, Any]:
    """Let a version serve from the next request on; RequestError if it is not there or damaged."""
    versions = _versions(app_instance())
    if versions is None or not number.isdigit():
        raise NotFoundError(f"there is no version {number!r} of the weights")
    try:
        version = versions.roll_back(int(number))
    except VersionError as error:
        raise RequestError(str(error)) from error
    return _entry(version, version.number)


def _versions(app: Any) -> Versions | None:
    found = getattr(app, "versions", None)
    return found if isinstance(found, Versions) else None


def _entry(version: Version, current: int) -> dict[str, Any]:
    dice = version.note.get("dice")
    title = "as shipped" if version.number == SHIPPED else f"version {version.number}"
    return {
        "id": str(version.number),
        "title": title,
        "made": version.made,
        "dice": float(dice) if isinstance(dice, int | float) else None,
        "current": version.number == current,
    }
