# SPDX-License-Identifier: Apache-2.0
"""A site opened to be read: the datastore that a server has, without a change to its studies, index and state."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX

from kprism_model.addresses import is_url
from kprism_model.checkpoint import load_checkpoint
from lib.configs.app_config import AppConfig, apply_monailabel_settings
from lib.dataset_export.snapshot import snapshot
from lib.datastore import GuardedDatastore
from lib.dicom.access import StoreAccess
from lib.dicom.datastore import DicomStore
from lib.dicom.dicom_folder import DicomFolder
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.dicom.mixed_store import MixedStore, dicom_part
from lib.dicom.open_store import dicom_files_in, has_images, is_writable
from lib.files import read_json
from lib.folder_store import FolderStore
from lib.imaging.label_registry import LabelRegistry
from lib.learning.submission_store import Submission

logger = logging.getLogger(__name__)

Store = TypeVar("Store", bound=DicomStore)

ARRIVAL_SECONDS = 30.0
"""How long files that are just being copied into a folder of DICOM are waited for."""


@dataclass(frozen=True)
class Site:
    """What an export reads.

    `source` is the kind of store in words. `submissions`: image id -> the label that counts, as the server has recorded
    it. `registry` knows how the site spells its structures. `left_out` are sentences about labels that cannot be used.
    """

    config: AppConfig
    datastore: GuardedDatastore
    source: str
    submissions: Mapping[str, Submission]
    registry: LabelRegistry
    left_out: list[str] = field(default_factory=list)


def open_site(studies: str, conf: Mapping[str, str], app: Path, scratch: Path) -> Site:
    """Open the studies, a folder or the address of a DICOMweb server, with all labels that are there now.

    All that has to be written goes to the folder `scratch`. ValueError for a setting that cannot be used; RequestError
    (StoreDownError) if the studies cannot be read.
    """
    apply_monailabel_settings()
    config = AppConfig.parse(conf, app, studies)
    submissions = _recorded(config.state / "intake" / "cases")
    by_age = sorted(submissions.values(), key=lambda entry: entry.at)
    known = load_checkpoint(config.model_path).registry.names
    registry = LabelRegistry([*known, *config.labels, *(name for entry in by_age for name in entry.structures)])
    if is_url(studies):
        store: GuardedDatastore = _server(studies, conf, config, scratch)
        return Site(config, store, "a DICOMweb server", submissions, registry, _unusable(store))
    store, left_out = _folder(Path(studies), config, scratch)
    has_dicom, has_files = dicom_part(store) is not None, isinstance(store, FolderStore)
    images = " and ".join(["image files"] * has_files + ["DICOM files"] * has_dicom)
    return Site(config, store, f"a folder of {images}", submissions, registry, [*left_out, *_unusable(store)])


def _server(studies: str, conf: Mapping[str, str], config: AppConfig, scratch: Path) -> DicomStore:
    client = DICOMwebClientX(
        url=studies.rstrip("/").strip(),
        session=StoreAccess.parse(conf).session(),
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    filters = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    with _unwatched():
        store = DicomStore(client, scratch / "dicom", filters, volume_bytes=config.image_mb << 20)
    return _settled(store, config)


def _folder(studies: Path, config: AppConfig, scratch: Path) -> tuple[GuardedDatastore, list[str]]:
    """The datastore of a folder, and sentences about what is left out of it."""
    left_out: list[str] = []
    series: DicomFolderStore | None = None
    if next(dicom_files_in(studies), None) is not None:
        series = _dicom_folder(studies, config, scratch)
        left_out += [f"series {uid}: its files are being changed" for uid in series.files.changing]
        if not has_images(studies):
            return series, left_out
    folder = scratch / "studies"
    changing = snapshot(studies, folder)
    left_out += [f"label file {name}: it changes all the time" for name in changing]
    options = {"extensions": settings.MONAI_LABEL_DATASTORE_FILE_EXT, "auto_reload": False}
    store = FolderStore(str(folder), **options) if series is None else MixedStore(str(folder), series, **options)
    store.worklist = config.worklist
    return store, left_out


def _dicom_folder(studies: Path, config: AppConfig, scratch: Path) -> DicomFolderStore:
    """The DICOM series of a folder; what a server has noted of its files need not be read again."""
    notes, elsewhere = scratch / "files.jsonl", config.state / "segmentations"
    noted = config.state / "dicom" / "files.jsonl"
    if noted.is_file():
        shutil.copyfile(noted, notes)
    segmentations = elsewhere if elsewhere.is_dir() and not is_writable(studies) else None
    files = DicomFolder(studies, notes, segmentations=segmentations, without=[config.state])
    until = time.monotonic() + ARRIVAL_SECONDS
    files.search()
    while files.changing and time.monotonic() < until:
        time.sleep(0.2)
        files.search()
    with _unwatched():
        store = DicomFolderStore(files, scratch / "dicom", volume_bytes=config.image_mb << 20)
    return _settled(store, config)


@contextmanager
def _unwatched() -> Iterator[None]:
    """Datastores that are opened meanwhile do not watch their folders: nobody else writes to the scratch folder."""
    before = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
    settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
    try:
        yield
    finally:
        settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = before


def _settled(store: Store, config: AppConfig) -> Store:
    store.worklist = config.worklist
    store.web.search(Modality="SEG")  # raises what `settle` logs: the server is down
    store.settle()
    return store


def _unusable(store: GuardedDatastore) -> list[str]:
    series = dicom_part(store)
    found = [] if series is None else series.unusable()
    return [f"segmentation {segmentation.entry.series}: {segmentation.reason}" for segmentation in found]


def _recorded(folder: Path) -> dict[str, Submission]:
    """Image id -> the label that counts; one whose file is damaged is left out with a warning."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            entry = Submission.from_json(read_json(path) or {})
        except ValueError as error:
            logger.warning("%s is not a submission and is skipped: %s", path, error)
            continue
        found[entry.image_id] = entry
    return found
