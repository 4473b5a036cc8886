# SPDX-License-Identifier: Apache-2.0
"""What a layout finds in a download: cases that can be prepared, and a list of all that is missing, doubled or odd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kprism_model.preparation.images import ImageSource
from kprism_model.preparation.labels import LabelSource

Split = Literal["training", "validation", "test"]

Remark = Literal["missing", "doubled", "faulty", "unlabelled", "ignored", "note"]
"""missing: a file that the layout or a table promises. doubled: two files for one case. faulty: cannot be used.

unlabelled: images that the download has no labels of. ignored: files of other kinds. note: anything else worth knowing.
"""


@dataclass(frozen=True)
class FoundCase:
    """A labelled image of a download.

    `name` is its name in the data set, without suffix; names are unique. `patient` is the same for all images of one
    patient. `split` is the official list that the case is on, None if there are no official lists.
    """

    name: str
    patient: str
    split: Split | None
    image: ImageSource
    label: LabelSource


@dataclass
class Findings:
    """The cases of a download, and remarks about the rest: for each kind of remark, sentences that name the file.

    `classes` are those of downloads that name them themselves (label index -> name), else None. `about` overrides
    entries of the catalogue in dataset.json, such as the licence that a download states.
    """

    cases: list[FoundCase] = field(default_factory=list)
    remarks: dict[Remark, list[str]] = field(default_factory=dict)
    classes: Mapping[int, str] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def remark(self, kind: Remark, sentence: str) -> None:
        """Add a remark."""
        self.remarks.setdefault(kind, []).append(sentence)

    def check(self, source: Path) -> None:
        """ValueError if there is no case, or two with one name (upper and lower case are the same)."""
        if not self.cases:
            reasons = [
                sentence for kind in ("missing", "faulty", "unlabelled") for sentence in self.remarks.get(kind, [])
            ]
            reason = f": {'; '.join(reasons[:5])}" if reasons else ""
            raise ValueError(f"{source} holds no labelled case of this download{reason}")
        names: dict[str, FoundCase] = {}
        for case in self.cases:
            other = names.setdefault(case.name.casefold(), case)
            if other is not case:
                files = f"{other.image.files[0]} and {case.image.files[0]}"
                raise ValueError(f"{source}: two images would be called {case.name}: {files}")
