# SPDX-License-Identifier: Apache-2.0
"""The versions of the weights for the mode and the status page, and the rollback to an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from monailabel.interfaces.utils.app import app_instance

from kprism_model.classes import ClassRegistry
from lib.errors import NotFoundError, RequestError
from lib.infers.routed_segmentation import BY_REFERENCES
from lib.learning.version_files import SHIPPED, Version, VersionError
from lib.learning.versions import Versions
from lib.routes import MODES, SEMANTIC

MAX_DIGITS = 10
"""Of the number of a version; Python refuses to read numbers of thousands of digits."""


def listed(app: Any) -> list[dict[str, Any]]:
    """All versions, the newest first; empty if the app keeps no versions."""
    versions = _versions(app)
    if versions is None:
        return []
    current = versions.current().number
    return [_entry(version, current) for version in reversed(versions.known())]


def served(app: Any) -> list[dict[str, Any]]:
    """What answers each structure in each mode: {"structure", "mode", "answered_by", "provisional"}.

    A structure that no network segments by name is not listed for `semantic`, unless a version knows it.
    """
    networks = app.engine.networks()
    earlier = app.learning_loop.earlier_structures.unknown_to(networks.semantic_classes)
    structures = ClassRegistry().add([*networks.semantic_classes.names, *earlier])
    structures = structures.add(name for name in networks.routes.structures() if name not in structures)
    entries = []
    for name, mode in product(structures.names, MODES):
        if mode != SEMANTIC or name in networks.semantic_classes:
            answered_by = networks.of(mode, name).name
        elif name in earlier:
            answered_by = BY_REFERENCES
        else:
            continue
        provisional = networks.is_provisional(mode, name)
        entries.append({"structure": name, "mode": mode, "answered_by": answered_by, "provisional": provisional})
    return entries


def upgrade(app: Any) -> dict[str, Any] | None:
    """What remains to do after an upgrade to a new network, until a version of that network is published.

    The number of versions of an earlier network, the number of labels to train on, the structures that are segmented
    from references until then, and a sentence that says all this. None if nothing remains to do.
    """
    versions = _versions(app)
    published = [version for version in versions.known() if version.number != SHIPPED] if versions else []
    earlier = [version for version in published if version.earlier]
    if not earlier or len(earlier) < len(published):
        return None
    labels = len(app.learning_loop.submission_store.submissions())
    structures = app.learning_loop.earlier_structures.unknown_to(app.engine.networks().semantic_classes)
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
        f"{text} Until its result is published, structures that only the earlier network knew "
        f"({', '.join(structures)}) are segmented from labelled cases, if a request names them."
    )


def roll_back(number: str) -> dict[str, Any]:
    """Let a version serve from the next request on; RequestError if it is missing, damaged, or cannot serve."""
    versions = _versions(app_instance())
    if versions is None or not (number.isascii() and number.isdecimal() and len(number) < MAX_DIGITS):
        raise NotFoundError(f"there is no version {number[:80]!r} of the weights")
    try:
        version = versions.roll_back(int(number))
    except VersionError as error:
        raise RequestError(str(error)) from error
    return _entry(version, version.number)


def _versions(app: Any) -> Versions | None:
    versions = getattr(app, "versions", None)
    return versions if isinstance(versions, Versions) else None


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
        "routes": version.routes.to_json(),
        "warning": version.warning,
    }
