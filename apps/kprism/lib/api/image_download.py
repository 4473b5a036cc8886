# SPDX-License-Identifier: Apache-2.0
"""GET /datastore/image, in place of MONAI Label's own route: an image of two files goes out as one.

3D Slicer loads the one file that it gets, and a MetaImage header without its voxels is no image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.datastore import download_image
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.api.attachments import attachment
from lib.imaging.metaimage import as_one_file
from lib.imaging.reading import files_of

Viewer = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]


def add_routes(router: APIRouter) -> None:
    """Add the route of this file."""
    router.add_api_route("/datastore/image", send_image, methods=["GET"], tags=["Datastore"], response_model=None)


def send_image(user: Viewer, image: str) -> Any:
    """The file of an image; `.mha` for a header with its voxels beside it."""
    path = Path(app_instance().datastore().get_image_uri(image) or "")
    if not path.is_file() or len(files_of(path)) == 1:
        return download_image(image)
    headers = {"Content-Disposition": attachment(f"{path.stem}.mha")}
    return StreamingResponse(as_one_file(path), headers=headers, media_type="application/octet-stream")
