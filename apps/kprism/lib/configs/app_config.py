# SPDX-License-Identifier: Apache-2.0
"""The settings `--conf KEY VALUE`, and those settings of MONAI Label whose defaults do not suit the app."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from monailabel.config import settings

from kprism_model.addresses import check_origins, check_root_path
from lib.dicom.seg_labelmap import BINARY, SEG_TYPES
from lib.errors import RequestError
from lib.imaging.reading import SUFFIXES
from lib.learning.submitted_label import ADD, REFUSE
from lib.learning.training_schedule import NEW_LABELS_PER_TRAINING
from lib.learning.versions import KEPT_VERSIONS
from lib.options import names_in
from lib.trainers.active_learner import TRAINING_MINUTES
from lib.trainers.processes import ONE_PER_GPU
from lib.trainers.tracking import check_tracking
from lib.worklist import Worklist

Value = TypeVar("Value")

WEIGHTS = "kprism_small.safetensors"

MAX_REQUEST_MB = 2048
"""Megabytes that one request may have, whatever images may."""

MONAI_LABEL_SETTINGS: dict[str, Any] = {
    "MONAI_LABEL_TRACKING_ENABLED": False,  # our own: `tracking_uri`
    "MONAI_LABEL_AUTO_UPDATE_SCORING": False,  # there are no scoring methods
    "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": {},  # every modality, not CT alone
    "MONAI_LABEL_DATASTORE_FILE_EXT": [f"*{suffix}" for suffix in SUFFIXES],  # in any letter case
}


@dataclass(frozen=True)
class AppConfig:
    """The settings; each has the name of its `--conf` key.

    - `model_path`: weights file.
    - `device`: "cpu", "cuda" or "cuda:N".
    - `cache_mb`: memory for what is computed from images; also the limit for a picture while it is decoded.
    - `image_mb`: disk for the voxels of images in use; also the limit for one image, and up to `MAX_REQUEST_MB` for one
      request (0: images are in memory, within `cache_mb`).
    - `labels`: names to offer for clicks in addition to those that the weights and the datastore know.
    - `state`: folder of submitted labels, versions of the weights, trainings and scores.
    - `train_after`: new labels that start a training (0: only the Train button does).
    - `train_minutes`: how long a training lasts by default.
    - `train_processes`: processes of one training (0: one on each GPU).
    - `tracking_uri`: MLflow server or database that trainings are logged to ("": none).
    - `unknown_structures`: "add" makes a new name in a label a structure, "refuse" refuses the label.
    - `patients`: pattern that finds the patient in an image id.
    - `strategy`: the strategy behind the name "random", the only one that OHIF asks for.
    - `keep_versions`: versions of the weights that are kept.
    - `worklist`: what is served of the studies (None: all).
    - `root_path`: path under which a reverse proxy has the server, such as /monai ("": none).
    - `allow_origin`: origins of pages elsewhere that may ask the server, or "*".
    - `seg_type`: how segmentations are stored in a DICOMweb store, "binary" or "labelmap".
    """

    model_path: Path
    device: str
    cache_mb: int
    image_mb: int
    labels: tuple[str, ...]
    state: Path
    train_after: int
    train_minutes: float
    train_processes: int
    tracking_uri: str
    unknown_structures: str
    patients: re.Pattern[str] | None
    strategy: str
    keep_versions: int
    worklist: Worklist | None
    root_path: str
    allow_origin: tuple[str, ...]
    seg_type: str

    @property
    def request_bytes(self) -> int:
        """The limit for the body of one request."""
        return min(self.image_mb or self.cache_mb, MAX_REQUEST_MB) << 20

    @classmethod
    def parse(cls, conf: Mapping[str, str], app_dir: Path, studies: str) -> AppConfig:
        """From MONAI Label's `--conf` strings; ValueError names the key and the value."""
        device = conf.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--conf device {device}: this machine has no such device ({error})") from error
        model_path = Path(conf.get("model_path") or app_dir / "model" / WEIGHTS)
        if not model_path.is_file():
            raise ValueError(f"{model_path}: there are no weights (--conf model_path FILE names others)")
        unknown = conf.get("unknown_structures", ADD)
        if unknown not in (ADD, REFUSE):
            raise ValueError(f"--conf unknown_structures {unknown}: expected {ADD} or {REFUSE}")
        return cls(
            model_path=model_path,
            device=device,
            cache_mb=_count(conf, "cache_mb", 512, "a whole number of megabytes"),
            image_mb=_count(conf, "image_mb", 8192, "a whole number of megabytes"),
            labels=tuple(names_in(conf.get("labels", ""))),
            state=Path(conf.get("state") or _state_folder(studies, app_dir)).resolve(),
            train_after=_count(conf, "train_after", NEW_LABELS_PER_TRAINING, "a whole number of labels"),
            train_minutes=_minutes(conf),
            train_processes=_count(conf, "train_processes", ONE_PER_GPU, "a whole number of processes"),
            tracking_uri=check_tracking(conf.get("tracking_uri", "")),
            unknown_structures=unknown,
            patients=_pattern(conf.get("patients", "")),
            strategy=conf.get("strategy", "random"),
            seg_type=_seg_type(conf),
            keep_versions=_count(conf, "keep_versions", KEPT_VERSIONS, "a whole number of versions"),
            worklist=_checked(conf, "worklist", partial(_worklist, studies)),
            root_path=_checked(conf, "root_path", check_root_path),
            allow_origin=_checked(conf, "allow_origin", check_origins),
        )


def _count(conf: Mapping[str, str], key: str, default: int, expected: str) -> int:
    text = conf.get(key, str(default))
    if not text.isdecimal():
        raise ValueError(f"--conf {key} {text}: expected {expected}")
    return int(text)


def _checked(conf: Mapping[str, str], key: str, check: Callable[[str], Value]) -> Value:
    """A setting as `check` reads it; "" where it is not set."""
    try:
        return check(conf.get(key, ""))
    except ValueError as error:
        raise ValueError(f"--conf {key}: {error}") from error


def _worklist(studies: str, text: str) -> Worklist | None:
    found = Worklist.parse(text)
    if found is not None and found.query and not studies.startswith(("http://", "https://")):
        raise ValueError(
            f"{text} is a query, which needs a DICOMweb server; expected a file with an image in each line"
        )
    return found


def _seg_type(conf: Mapping[str, str]) -> str:
    text = conf.get("seg_type", BINARY)
    if text not in SEG_TYPES:
        raise ValueError(f"--conf seg_type {text}: expected {' or '.join(SEG_TYPES)}")
    return text


def _minutes(conf: Mapping[str, str]) -> float:
    text = conf.get("train_minutes", str(TRAINING_MINUTES.default))
    try:
        return float(TRAINING_MINUTES.read("train_minutes", text))  # type: ignore[arg-type]
    except RequestError as error:
        raise ValueError(f"--conf train_minutes {text}: {error}") from error


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise ValueError(f"--conf patients {text}: expected a regular expression ({error})") from error


def _state_folder(studies: str, app_dir: Path) -> Path:
    """In the folder of studies, or in the app's folder for a DICOMweb server and for studies that are read-only."""
    is_url = studies.startswith(("http://", "https://"))
    if not is_url and not settings.MONAI_LABEL_DATASTORE_READ_ONLY:
        return Path(studies) / ".kprism"
    return app_dir / "state" / hashlib.sha256(studies.encode()).hexdigest()[:12]


def apply_monailabel_settings() -> None:
    """Set what the user has not set, here and for the processes that MONAI Label starts."""
    fields = type(settings).model_fields
    for name, value in MONAI_LABEL_SETTINGS.items():
        if getattr(settings, name) == fields[name].default:
            setattr(settings, name, value)
            os.environ[name] = json.dumps(value)
