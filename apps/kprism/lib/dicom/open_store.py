# SPDX-License-Identifier: Apache-2.0
"""The DICOMweb datastore with MONAI Label's settings."""

from __future__ import annotations

import sys
from pathlib import Path

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.utils.others.generic import md5_digest

from lib.dicom.access import StoreAccess
from lib.dicom.datastore import DicomStore
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
