# SPDX-License-Identifier: Apache-2.0
"""The tasks of the Medical Segmentation Decathlon that have our names for classes and anatomy: `decathlon.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("decathlon.toml")


@dataclass(frozen=True)
class DecathlonTask:
    """A row of the table; `folder` is that of the download."""

    folder: str
    prefix: str
    modality: str
    anatomy: str
    classes: Mapping[str, str]
    warning: str = ""

    def class_name(self, label: str) -> str:
        """The class of a label of dataset.json; upper and lower case are the same."""
        return {key.casefold(): name for key, name in self.classes.items()}[label.casefold()]


@cache
def decathlon_tasks() -> tuple[DecathlonTask, ...]:
    """The rows of the table."""
    content = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return tuple(DecathlonTask(folder=folder, **values) for folder, values in content.items())


def known_task(cases: Collection[str], labels: Collection[str]) -> DecathlonTask | None:
    """The task whose cases and labels these are; the name of a folder may be changed."""
    names = {label.casefold() for label in labels}
    for task in decathlon_tasks():
        prefix = f"{task.prefix}_".casefold()
        if names == {label.casefold() for label in task.classes} and all(
            case.casefold().startswith(prefix) for case in cases
        ):
            return task
    return None
