# SPDX-License-Identifier: Apache-2.0
"""A folder of studies as it is at one moment: a server that labels it meanwhile is neither disturbed nor waited for.

MONAI Label's datastore writes its index whenever it opens a folder. So it gets another folder: links to the images,
and copies of the index and of the submitted labels.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag

from lib.errors import RequestError

INDEX = "datastore_v2.json"
FINAL = DefaultLabelTag.FINAL.value

SETTLED_SECONDS = 2.0
"""A server writes a label first and its index, which names the label's values, a moment later."""

ATTEMPTS = 10
"""How often labels that change just now are copied again."""


def snapshot(studies: Path, folder: Path) -> list[str]:
    """Make `folder` show the studies; returns the names of label files that changed all the time and are left out."""
    folder.mkdir(parents=True)
    labels = str(_index(studies).get("labels_dir") or "labels")
    for entry in os.scandir(studies):
        if not entry.name.startswith(".") and entry.name not in (INDEX, labels):
            (folder / entry.name).symlink_to(Path(entry.path).absolute())
    final = folder / labels / FINAL
    final.mkdir(parents=True)
    source = studies / labels / FINAL
    changing = _files(source)
    index: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(SETTLED_SECONDS)
        before, begun = _index(studies), time.time()
        copied = {name: stamp for name in changing if (stamp := _copy(source / name, final / name)) is not None}
        index, now = _index(studies), _files(source)
        infos = _labels(before), _labels(index)
        changing = {
            name: stamp
            for name, stamp in now.items()
            if (name in changing or not (final / name).exists())
            and (
                copied.get(name) != stamp
                or infos[0].get(name) != infos[1].get(name)
                or 0 <= begun - stamp[0] / 1e9 < SETTLED_SECONDS
            )
        }
        if not changing:
            break
    for name in changing:
        (final / name).unlink(missing_ok=True)
    if index:
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return sorted(changing)


Stamp = tuple[int, int]
"""Time of the last change in nanoseconds, and size."""


def _files(folder: Path) -> dict[str, Stamp]:
    """The files in a folder; none if there is no folder."""
    if not folder.is_dir():
        return {}
    found = {}
    for entry in os.scandir(folder):
        if entry.is_file() and not entry.name.startswith("."):
            status = entry.stat()
            found[entry.name] = (status.st_mtime_ns, status.st_size)
    return found


def _copy(source: Path, target: Path) -> Stamp | None:
    """Copy a file with its time; its stamp before, None if it is gone."""
    try:
        status = source.stat()
        shutil.copy2(source, target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)
        return None
    return status.st_mtime_ns, status.st_size


def _index(studies: Path) -> dict[str, Any]:
    """MONAI Label's index of the folder; empty if it was never served."""
    path = studies / INDEX
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RequestError(f"{path} is not valid JSON ({error}); start the server once, which mends it") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds {type(content).__name__}; expected the index of a folder of studies")
    return content


def _labels(index: Mapping[str, Any]) -> dict[str, Any]:
    """Name of the file -> what the index says about a submitted label."""
    found = {}
    for image_id, entry in index.get("objects", {}).items():
        label = entry.get("labels", {}).get(FINAL)
        if label:
            found[f"{image_id}{label.get('ext', '')}"] = label
    return found
