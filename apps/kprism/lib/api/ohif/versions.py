# SPDX-License-Identifier: Apache-2.0
"""The versions of the weights for mode and page, and the way back to an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monailabel.interfaces.utils.app import app_instance

from lib.errors import NotFoundError, RequestError
from lib.learning.version_files import SHIPPED, Version, VersionError
from lib.learning.versions import Versions


def listed(app: Any) -> list[dict[str, Any]]:
    """All versions, the newest first; empty where the app keeps none."""
    versions = _versions(app)
    if versions is None:
        return []
    current = versions.current().number
    return [_entry(version, current) for version in reversed(versions.known())]


def upgrade(app: Any) -> dict[str, Any] | None:
    """What an upgrade to another network has left to do, for as long as no version of that network is published.

    How many versions are of an earlier network, how many labels there are to train on, the structures that are answered
    after labelled cases until then, and a sentence about all this. None if there is nothing to do.
    """
    versions = _versions(app)
    published = [version for version in versions.known() if version.number != SHIPPED] if versions else []
    earlier = [version for version in published if version.earlier]
    if not earlier or len(earlier) < len(published):
        return None
    labels = len(app.learning_loop.submission_store.submissions())
    structures = app.learning_loop.earlier_structures.unknown_to(app.engine.network().registry)
    return {
        "versions": len(earlier),
        "labels": labels,
        "structures": structures,
        "sentence": _upgrade_sentence(len(earlier), labels, structures),
    }


def _upgrade_sentence(versions: int, labels: int, structures: Sequence[str]) -> str:
    count = "1 version of the weights is" if versions == 1 else f"{versions} versions of the weights are"
    text = (
        f"{count} of an earlier network and cannot serve; the shipped weights serve. "
        f"The labels are kept ({labels}): one training on all of them teaches them to the present network."
    )
    if not structures:
        return text
    return (
        f"{text} Until its result is published, what only the earlier network knew ({', '.join(structures)}) is "
        "segmented after labelled cases where it is asked for by name."
    )


def roll_back(number: str) -> dict[str, Any]:
    """Let a version serve from the next request on; RequestError if it is not there, damaged, or cannot serve."""
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
    dice = version.metadata.get("dice")
    title = "as shipped" if version.number == SHIPPED else f"version {version.number}"
    return {
        "id": str(version.number),
        "title": title,
        "made": version.made,
        "dice": float(dice) if isinstance(dice, int | float) else None,
        "current": version.number == current,
        "earlier": version.earlier,
    }
