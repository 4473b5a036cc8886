# SPDX-License-Identifier: Apache-2.0
"""The routes for browsers; they come before MONAI Label's own.

/viewer/                 OHIF with the K-Prism mode              viewer.viewer
/kprism/                 the status page                         files.page
/kprism/viewer/          the mode's modules                      files.mode
/kprism/dicom-web/       the DICOMweb store                      proxy.dicom_web
/kprism/api/...          data for the mode and the status page   cases, downloads, inference, status, versions
/ohif/, /proxy/dicom/    the bundled OHIF, repaired              bundled_viewer, proxy
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from monailabel.config import settings

from lib.api.ohif import bundled_viewer, cases, downloads, files, inference, proxy, status, versions, viewer
from lib.errors import NotFoundError

READ, BOTH = ["GET"], ["GET", "POST"]


def install(application: FastAPI) -> None:
    """Add the routes; call it after `lib.api.app.install`, which answers their errors."""
    router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, include_in_schema=False)
    add = router.add_api_route
    add("/kprism", to_page, methods=READ)
    add("/kprism/viewer/{path:path}", files.mode, methods=READ)
    add("/kprism/dicom-web/{path:path}", proxy.dicom_web, methods=BOTH, response_model=None)
    add("/kprism/api/case/{image_id}", cases.case, methods=READ)
    add("/kprism/api/case/{image_id}/arrival", cases.arrival, methods=READ)
    add("/kprism/api/case/{image_id}/label", cases.case_label, methods=READ)
    add("/kprism/api/case/{image_id}/label", cases.submit, methods=["PUT"])
    add("/kprism/api/case/{image_id}/download", downloads.stored_label, methods=READ)
    add("/kprism/api/case/{image_id}/download", downloads.drawn_label, methods=["POST"])
    add("/kprism/api/case/{image_id}/thumbnail", cases.thumbnail, methods=READ)
    add("/kprism/api/references", cases.references, methods=READ)
    add("/kprism/api/next/{strategy}", cases.next_case, methods=["POST"])
    add("/kprism/api/infer/{model}", inference.infer_planes, methods=["POST"])
    add("/kprism/api/status", status.status, methods=READ)
    add("/kprism/api/report", status.report, methods=READ)
    add("/kprism/api/versions/{number}/current", versions.roll_back, methods=["POST"])
    add("/kprism/api/{path:path}", nothing_there, methods=READ)
    add("/kprism/{path:path}", files.page, methods=READ)
    add("/viewer", to_viewer, methods=READ)
    add("/viewer/{path:path}", viewer.viewer, methods=READ)
    add("/ohif/{path:path}", bundled_viewer.stock_viewer, methods=READ)
    add("/proxy/dicom/{op}/{path:path}", proxy.stock_dicom_web, methods=BOTH, response_model=None)
    application.router.routes[:0] = router.routes


def nothing_there(path: str) -> None:
    """A page in place of data would be saved as if it were the data."""
    raise NotFoundError(
        f"there is nothing to read at kprism/api/{path[: files.MAX_SHOWN]}; addresses have no slash at their end, and "
        "ids of images are encoded (%2F for a slash)"
    )


def to_page() -> RedirectResponse:
    """The status page's address ends with a slash."""
    return RedirectResponse("./kprism/")


def to_viewer() -> RedirectResponse:
    """The viewer's address ends with a slash."""
    return RedirectResponse("./viewer/")
