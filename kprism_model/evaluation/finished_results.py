# SPDX-License-Identifier: Apache-2.0
"""Finished data sets of an evaluation on disk, so that a killed run continues where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kprism_model.data.datasets import Dataset
from kprism_model.evaluation.contact_sheet import WorstCase
from kprism_model.evaluation.report import DatasetResult, result_from_dict
from kprism_model.files import write_bytes

_FORMAT_VERSION = 1
_PICTURES = ("image", "target", "prediction")


class FinishedResults:
    """Results by data set in `folder`; a result is used again only with the same `protocol` and dataset.json.

    `protocol` must hold everything that the figures depend on: the settings and the version of the weights.
    """

    def __init__(self, folder: Path, protocol: dict[str, Any]) -> None:
        self._folder = folder
        self._protocol = protocol

    def load(self, dataset: Dataset) -> DatasetResult | None:
        """The finished result; None if there is none for this protocol or it cannot be read."""
        path = self._path(dataset)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] != self._key(dataset):
                return None
            result = result_from_dict(content["result"])
            with np.load(path.with_suffix(".npz")) as arrays:
                for number, described in enumerate(content["result"]["worst"]):
                    pictures = {name: arrays[f"{name}_{number}"] for name in _PICTURES}
                    result.worst.append(WorstCase(**described, **pictures))
        except (OSError, ValueError, KeyError, TypeError, BadZipFile):
            return None
        return result

    def save(self, dataset: Dataset, result: DatasetResult) -> None:
        """Write the result: first the pictures, then the JSON, which marks the result as complete."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(dataset)
        path.unlink(missing_ok=True)  # an old JSON must not belong to new pictures
        arrays = {
            f"{name}_{number}": getattr(case, name) for number, case in enumerate(result.worst) for name in _PICTURES
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(path.with_suffix(".npz"), buffer.getvalue())
        content = {"key": self._key(dataset), "result": result.to_dict()}
        write_bytes(path, json.dumps(content, ensure_ascii=False, allow_nan=False).encode())

    def _path(self, dataset: Dataset) -> Path:
        return self._folder / f"{dataset.name}.json"

    def _key(self, dataset: Dataset) -> str:
        return measurement_key(dataset, [_FORMAT_VERSION, self._protocol])


def measurement_key(dataset: Dataset, settings: object) -> str:
    """A hash of dataset.json and of `settings` (JSON-ready): all that a measurement of the data set depends on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update((dataset.folder / "dataset.json").read_bytes())
    return digest.hexdigest()
