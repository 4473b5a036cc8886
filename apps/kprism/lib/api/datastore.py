# SPDX-License-Identifier: Apache-2.0
"""PUT /datastore/image, /datastore/label and their metadata, in place of MONAI Label's own routes.

MONAI Label's routes block the event loop, leave the uploaded file behind if it cannot be stored, and answer broken JSON
of a client as an error of the server.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from pydicom.misc import is_dicom

from lib.api.uploads import read_object, store_upload
from lib.datastore import check_tag
from lib.dicom.label_objects import read_label_file
from lib.dicom.mixed_store import store_of
from lib.dicom.volumes import save_volume
from lib.errors import RequestError
from lib.image_ids import check_id
from lib.imaging.reading import SUFFIXES, suffix_of

Annotator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]


def add_routes(router: APIRouter) -> None:
    """Add the routes of this file."""
    for path, endpoint in (
        ("/datastore/image", add_image),
        ("/datastore/", add_image),
        ("/datastore/label", save_label),
        ("/datastore/image/info", update_image_info),
        ("/datastore/label/info", update_label_info),
        ("/datastore/updatelabelinfo", update_label_params),
    ):
        router.add_api_route(path, endpoint, methods=["PUT"], tags=["Datastore"], response_model=None)


def add_image(
    user: Annotator, file: Annotated[UploadFile, File()], image: str = "", params: Annotated[str, Form()] = "{}"
) -> dict[str, str]:
    """Store an image under the id `image`, by default the name of its file."""
    info = _metadata(params, "params", user)
    name = Path(file.filename or "")
    image_id = image or name.name.removesuffix(name.name[len(name.name) - len(suffix_of(name)) :])
    with tempfile.TemporaryDirectory(prefix="kprism-upload-") as folder:
        path, datastore = store_upload(file, Path(folder) / "image"), app_instance().datastore()
        datastore.check_served(image_id)  # its name may be that of the file, which the address does not show
        datastore.check_new(image_id, path)
        return {"image": datastore.add_image(image_id, str(path), info)}


def save_label(
    user: Annotator,
    image: str,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = DefaultLabelTag.FINAL.value,
) -> dict[str, Any]:
    """Store a label of an image; one with the tag `final` is a submission, and the app learns from it.

    `warnings` in the answer say what of the file is not in the label, such as segments that overlap.
    """
    info = _metadata(params, "params", user)
    with tempfile.TemporaryDirectory(prefix="kprism-upload-") as folder:
        path = store_upload(label, Path(folder) / "label")
        tag = check_tag(tag or DefaultLabelTag.FINAL.value)
        if suffix_of(path) not in SUFFIXES and is_dicom(path):
            path, info = _from_dicom(path, check_id(image), info)
        submission = app_instance().learning_loop.submit(
            check_id(image), path, info, tag=tag, by=_submitter(info, user)
        )
    warnings = {"warnings": list(submission.warnings)} if submission is not None and submission.warnings else {}
    return {"image": image, "label": image, **warnings}


def _from_dicom(path: Path, image_id: str, info: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The label map and the names in a DICOM SEG or RTSTRUCT, as a file on the grid of its series."""
    dicom, title = store_of(app_instance().datastore(), image_id), f"the label of image {image_id!r}"
    if dicom is None:
        raise RequestError(
            f"{title} is a DICOM file, but the image is a file without DICOM headers; expected {', '.join(SUFFIXES)}"
        )
    series = dicom.open_series(image_id)
    read = read_label_file(path, title, series)
    target = path.with_name("label.nii.gz")
    save_volume(read.labels, series.affine, target)
    return target, {**info, "label_names": read.names, **({"notes": list(read.notes)} if read.notes else {})}


def update_image_info(user: Annotator, image: str, info: Annotated[str, Form()] = "{}") -> None:
    """Add to the metadata of an image."""
    app_instance().datastore().update_image_info(image, _metadata(info, "info", user))


def update_label_info(user: Annotator, label: str, tag: str, info: Annotated[str, Form()] = "{}") -> None:
    """Add to the metadata of a label; one that is submitted is read again, because it may have other names now."""
    app_instance().datastore().update_label_info(label, tag, _metadata(info, "info", user))
    if tag == DefaultLabelTag.FINAL:
        app_instance().learning_loop.adopt(label)


def update_label_params(user: Annotator, label: str, tag: str, params: Annotated[str, Form()] = "{}") -> None:
    """The same at MONAI Label's earlier address."""
    update_label_info(user, label, tag, params)


def _submitter(info: dict[str, Any], user: User) -> str:
    """Who submits a label: the user who has logged in, or without logins the name that the client sends."""
    named = str(info.get("client_id") or "")
    return user.username or named if settings.MONAI_LABEL_AUTH_ENABLE else named or user.username


def _metadata(text: str, what: str, user: User) -> dict[str, Any]:
    info = read_object(text, what)
    try:
        json.dumps(info, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} holds text that is not Unicode: {error}") from error
    return {**info, "user": user.username} if user.username else info
