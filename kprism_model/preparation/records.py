# SPDX-License-Identifier: Apache-2.0
"""What is known of each prepared case, a line of JSON each: a second run goes on where the first one ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kprism_model.preparation.files import RECORDS_NAME
from kprism_model.preparation.findings import FoundCase

_VERSION = 1  # prepared cases of another version are prepared again


@dataclass(frozen=True)
class CaseRecord:
    """A prepared case: `key` of its sources (`case_key`), file names, shape, spacing in mm, and voxels by class.

    `slices` are those across the plane in which the network looks at a volume; 1 for pictures. `remarks` are sentences
    about what was seen while the label was read.
    """

    name: str
    key: str
    image: str
    label: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    slices: int
    voxels: Mapping[str, int]
    remarks: tuple[str, ...] = ()


def case_key(case: FoundCase, classes: Mapping[int, str]) -> str:
    """Changes with the files of a case, with how they are read, and with the classes."""
    files = (*case.image.files, *case.label.files)
    how = f"{case.image!r} {case.label!r}"
    for path in files:  # the download may be moved
        how = how.replace(repr(path), path.name)
    digest = hashlib.sha256(json.dumps([_VERSION, case.name, how, sorted(classes.items())]).encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_records(folder: Path) -> dict[str, CaseRecord]:
    """The records of a folder by name; a line that is none, or was cut off by a kill, is left out."""
    records: dict[str, CaseRecord] = {}
    try:
        lines = (folder / RECORDS_NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return records
    for line in lines:
        try:
            values = json.loads(line)
            values |= {"shape": tuple(values["shape"]), "spacing": tuple(values["spacing"])}
            values["remarks"] = tuple(values.get("remarks", ()))
            records[values["name"]] = CaseRecord(**values)
        except (ValueError, TypeError, KeyError):
            continue
    return records


def append_record(folder: Path, record: CaseRecord) -> None:
    """Add a line; a line that was cut off before it is ended first."""
    path = folder / RECORDS_NAME
    with path.open("ab+") as file:
        cut_off = file.tell() > 0 and (file.seek(-1, 2), file.read(1))[1] != b"\n"
        file.write((b"\n" if cut_off else b"") + json.dumps(asdict(record)).encode() + b"\n")
