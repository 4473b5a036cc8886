# SPDX-License-Identifier: Apache-2.0
"""The datastore of the studies, with MONAI Label's settings: a DICOMweb server, or a folder of any kind of images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.utils.others.generic import md5_digest

from lib.datastore import GuardedDatastore
from lib.dicom.access import StoreAccess
from lib.dicom.datastore import DicomStore
from lib.dicom.dicom_files import looks_like_dicom
from lib.dicom.dicom_folder import DicomFolder
from lib.dicom.dicom_folder_store import DicomFolderStore
from lib.dicom.mixed_store import MixedStore
from lib.folder_store import FolderStore
from lib.imaging.reading import SUFFIXES
from lib.worklist import Worklist


def open_dicom_store(url: str, volume_bytes: int, access: StoreAccess, worklist: Worklist | None) -> DicomStore:
    """The store at an address, with MONAI Label's settings for prefixes, password, cache folder and filter.

    `volume_bytes` is what local copies of its series may take on the disk, `worklist` what is served of it.
    """
    client = DICOMwebClientX(
        url=url.rstrip("/").strip(),
        session=access.session(),
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    cache = (settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip()
    folder = Path(cache or Path.home() / ".cache" / "monailabel" / "dicom") / md5_digest(client.base_url)
    is_server = "monailabel.app" in sys.modules  # a training is another process
    filters = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    store = DicomStore(client, folder, filters, auto_sync=is_server, volume_bytes=volume_bytes)
    store.worklist = worklist
    if is_server:
        store.list_soon()
    return store


def open_folder(studies: Path, state: Path, volume_bytes: int, worklist: Worklist | None) -> GuardedDatastore:
    """A folder of studies: its DICOM series, its other image files, or both; `state` is the folder for what is noted.

    A folder that holds nothing yet is watched for both. `worklist` is what is served of it.
    """
    has_files = has_images(studies)
    has_dicom = next(dicom_files_in(studies), None) is not None
    options = {
        "extensions": settings.MONAI_LABEL_DATASTORE_FILE_EXT,
        "auto_reload": settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
        "read_only": settings.MONAI_LABEL_DATASTORE_READ_ONLY,
    }
    if has_files and not has_dicom:
        images = FolderStore(str(studies), **options)
        images.worklist = worklist
        return images
    is_server = "monailabel.app" in sys.modules  # a training is another process
    segmentations = None if is_writable(studies) else state / "segmentations"
    notes = state / "dicom" / "files.jsonl"
    files = DicomFolder(studies, notes, segmentations=segmentations, without=[state], scans=is_server)
    store = DicomFolderStore(files, state / "dicom", auto_sync=is_server, volume_bytes=volume_bytes)
    store.worklist = worklist
    if is_server:
        store.list_soon()
    if has_dicom and not has_files:
        return store
    both = MixedStore(str(studies), store, begins_empty=not has_dicom, **options)
    both.worklist = worklist
    return both


def check_folder(studies: Path) -> None:
    """ValueError for a folder that cannot be written to, unless it holds DICOM alone, whose labels may be elsewhere."""
    if os.access(studies, os.W_OK) or not studies.is_dir():
        return
    if has_images(studies) or next(dicom_files_in(studies), None) is None:
        raise ValueError(
            f"the folder of studies {studies} cannot be written to, but the labels of images other than DICOM are kept "
            "in it; expected a folder that can be written to, such as a copy, or one of DICOM files alone"
        )


def has_images(studies: Path) -> bool:
    """Whether image files other than DICOM lie directly in a folder of studies."""
    return any(file.name.lower().endswith(SUFFIXES) and file.is_file() for file in studies.iterdir())


def dicom_files_in(folder: Path) -> Iterator[Path]:
    """Files in a folder and its subfolders that begin as DICOM files do; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and not name.lower().endswith(SUFFIXES) and looks_like_dicom(path):
                yield path


def is_writable(studies: Path) -> bool:
    """Whether the server may and can write into a folder of studies."""
    return not settings.MONAI_LABEL_DATASTORE_READ_ONLY and os.access(studies, os.W_OK)
