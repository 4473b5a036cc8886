# SPDX-License-Identifier: Apache-2.0
"""A submission on its way: the file as it was sent, in `raw/`, and a JSON file in `pending/` with all else about it.

The JSON file is removed when the label is stored. One that is still there at a start belongs to a submission that a
kill interrupted.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kprism_model.files import write_bytes
from lib.files import read_json, sha256, write_json
from lib.image_ids import shortened
from lib.imaging.metaimage import as_one_file
from lib.imaging.reading import files_of, suffix_of
from lib.learning.annotation_notes import AnnotationNote, prompts_from_json

RAW_NAME_BYTES = 200
"""Bytes of an image id that a file in `raw/` begins with: a name has 255 at most, and more is added."""


def kept_as(file: Path) -> tuple[bytes, str]:
    """The content and the extension of the one file that is kept of a label; a header and its voxels become `.mha`."""
    if len(files_of(file)) == 1:
        return file.read_bytes(), suffix_of(file)
    return b"".join(as_one_file(file)), ".mha"


def digest_of(file: Path) -> str:
    """SHA-256 of a label file as it is kept, hexadecimal; empty if it is not there."""
    if not file.is_file():
        return ""
    return sha256(file) if len(files_of(file)) == 1 else hashlib.sha256(kept_as(file)[0]).hexdigest()


@dataclass(frozen=True)
class PendingSubmission:
    """The content of one JSON file at `path`; `raw` is relative to the store's folder, all else as in `Submission`.

    `info` is the label's information, which names its values. `note` is what was known about the image.
    """

    path: Path
    image_id: str
    raw: str
    sha256: str
    info: Mapping[str, Any]
    by: str
    at: float
    note: AnnotationNote

    @classmethod
    def create(
        cls, folder: Path, image_id: str, file: Path, info: Mapping[str, Any], by: str, note: AnnotationNote
    ) -> PendingSubmission:
        """Copy `file` into the store at `folder` and write the JSON file, in this order."""
        content, suffix = kept_as(file)
        raw = f"raw/{shortened(image_id, RAW_NAME_BYTES)}-{uuid.uuid4().hex[:12]}{suffix}"
        write_bytes(folder / raw, content)
        pending = cls(
            path=folder / "pending" / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json",
            image_id=image_id,
            raw=raw,
            sha256=hashlib.sha256(content).hexdigest(),
            info=dict(info),
            by=by,
            at=time.time(),
            note=note,
        )
        write_json(pending.path, pending._to_json())
        return pending

    @classmethod
    def read(cls, path: Path) -> PendingSubmission:
        """From its JSON file; ValueError names a file that is damaged."""
        content = read_json(path) or {}
        try:
            return cls(
                path=path,
                image_id=content["image"],
                raw=content["raw"],
                sha256=content["sha256"],
                info=content["info"],
                by=content["by"],
                at=content["at"],
                note=AnnotationNote(
                    initial_mask_version=content["first_mask"],
                    initial_mask_origin=content.get("first_mask_origin"),
                    prompts=prompts_from_json(content.get("prompts", {})),
                ),
            )
        except LookupError as error:
            raise ValueError(f"{path} has no entry {error}") from error

    @staticmethod
    def paths(folder: Path) -> Iterator[Path]:
        """The JSON files in the store at `folder`, the oldest first."""
        yield from sorted((folder / "pending").glob("*.json"))

    def remove(self) -> None:
        """Remove the JSON file; the file as it was sent stays."""
        self.path.unlink(missing_ok=True)

    def _to_json(self) -> dict[str, Any]:
        return {
            "image": self.image_id,
            "raw": self.raw,
            "sha256": self.sha256,
            "info": dict(self.info),
            "by": self.by,
            "at": self.at,
            "first_mask": self.note.initial_mask_version,
            "first_mask_origin": self.note.initial_mask_origin,
            "prompts": self.note.prompts,
        }
