# SPDX-License-Identifier: Apache-2.0
"""Repairs of the OHIF that MONAI Label bundles. They are applied when files are served; the files are not changed.

The defects in the bundle of MONAI Label 0.8.5 (OHIF 3.10 beta), and their repairs:

1. "Export DICOM SEG" ends with `Cannot read properties of undefined (reading 'store')`, because the command is called
   without a data source. It gets the active one.
2. The same export puts masks on mirrored slices if the viewer orders images differently from its DICOM library, which
   sorts them by falling distance along the slices' normal. The masks get that order.
3. The MONAI Label panel always calls port 8000 of the host. It calls the server that it was loaded from. So do its
   configuration's ways to the studies, below any path (`relocation`).
4. Requests for files in sub-folders (icons) get the start page, because the server joins paths with ":".

An upgrade of MONAI Label may bring another bundle. If a repair then does not apply, the server logs it at the start and
tests/e2e/viewer/test_stock.py fails.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import monailabel.endpoints.ohif
from fastapi.responses import Response

from lib.api.ohif.files import SHORT, serve
from lib.api.ohif.relocation import relocated

logger = logging.getLogger(__name__)

FOLDER = Path(monailabel.endpoints.ohif.__file__).with_name("static") / "ohif"

BASE = "/ohif/"
"""The path for which it was built."""

SORTED = """const segImages = imageIds.map(imageId => esm.cache.getImage(imageId));
      const distance = ({ referencedImageId }) => {
        const plane = esm.metaData.get('imagePlaneModule', referencedImageId);
        const [a, b, place] = [plane.rowCosines, plane.columnCosines, plane.imagePositionPatient];
        return [0, 1, 2].reduce((sum, i) => {
          const [j, k] = [(i + 1) % 3, (i + 2) % 3];
          return sum + place[i] * (a[j] * b[k] - a[k] * b[j]);
        }, 0);
      };
      segImages.sort((first, second) => distance(second) - distance(first));"""

REPAIRS = (
    (
        "await dataSource.store.dicom(naturalizedReport);",
        "dataSource = dataSource || extensionManager.getActiveDataSource()[0];\n"
        "      await dataSource.store.dicom(naturalizedReport);",
    ),
    (SORTED.partition("\n")[0], SORTED),
    (
        "'http://' + window.location.host.split(':')[0] + ':8000/'",
        "new URL('..', new URL(window.PUBLIC_URL, window.location.href)).href",
    ),
)
"""(text in the bundle, its replacement)."""


CONFIGURATION = (
    ("routerBasename: '/ohif/'", "routerBasename: window.PUBLIC_URL"),
    ("'/proxy/dicom/", "new URL('..', new URL(window.PUBLIC_URL, window.location.href)).pathname + 'proxy/dicom/"),
)
"""The same of app-config.js."""


@lru_cache(maxsize=1)
def repaired_files() -> dict[str, bytes]:
    """The files that a repair changes, with their new content."""
    changed: dict[str, bytes] = {}
    for old, new in REPAIRS:
        hits = [path for path in FOLDER.glob("*.js") if old in path.read_text(errors="ignore")]
        if not hits:
            logger.warning("The bundled OHIF does not contain %r: MONAI Label has changed, see %s", old, __name__)
        for path in hits:
            text = changed.get(path.name, path.read_bytes()).decode()
            changed[path.name] = text.replace(old, new).encode()
    text = (FOLDER / "app-config.js").read_text()
    for old, new in CONFIGURATION:
        text = text.replace(old, new)
    return {**changed, "app-config.js": text.encode()}


def stock_viewer(path: str = "") -> Response:
    """A file of the bundled OHIF, repaired if necessary; its start page for the addresses of its pages."""
    repaired = repaired_files().get(path)
    if repaired is not None:
        return Response(repaired, media_type="text/javascript", headers={"Cache-Control": SHORT})
    return relocated(serve(FOLDER, path, "index.html"), BASE, path)
