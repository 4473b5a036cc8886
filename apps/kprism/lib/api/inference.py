# SPDX-License-Identifier: Apache-2.0
"""POST /infer/{model} and PUT /session/ in place of MONAI Label's own.

MONAI Label's route runs a request inside the event loop, where one inference blocks all other users and the viewer's
images. It also lets the form's `params` replace the image, so a client could name any file of the server. This route is
a plain function, which FastAPI runs in a thread, and it takes images only by id, session or upload.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import StreamingResponse
from isal import igzip
from monailabel.config import settings
from monailabel.endpoints import session
from monailabel.endpoints.infer import ResultType
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import get_mime_type

from lib.api.opened_file import pieces
from lib.api.uploads import read_object, store_upload
from lib.dicom.datastore import names_of
from lib.dicom.mixed_store import dicom_part, store_of
from lib.dicom.seg_writer import write_seg
from lib.dicom.volumes import read_labels
from lib.dicom.web import as_bytes
from lib.errors import NotFoundError, RequestError
from lib.infers.request import Source

RESERVED = ("model", "image", "file", "session", "session_id", "label_file", "listener", "description")
"""Keys that the server sets itself; `params` must not hold them."""

UNCOMPRESSED = (".nrrd", ".nii")
"""Masks of these types are compressed for the transfer; other types are compressed already."""

_SESSION = re.compile(r"[A-Za-z0-9-]{1,64}")


def add_routes(router: APIRouter) -> None:
    """Add the routes of this file."""
    router.add_api_route("/infer/{model}", infer, methods=["POST"], tags=["Infer"], response_model=None)
    router.add_api_route("/session/", create_session, methods=["PUT"], tags=["Session"])


def infer(
    request: Request,
    user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: ResultType | None = None,
) -> Any:
    """Run a model on an image of the datastore, of a session or uploaded as `file`; MONAI Label's contract.

    `label` is a labelmap on the image's grid: the scribbles, or the mask that clicks start from.
    """
    app = app_instance()
    if output == ResultType.dicom_seg:
        _check_dicom(app.datastore(), image, session_id, file)
    with tempfile.TemporaryDirectory(prefix="kprism-upload-") as folder:
        request_params = {**read_params(params), "model": model}
        request_params |= _input_files(app, image, session_id, file, label, Path(folder))
        result = app.infer(request_params)
    try:
        if output == ResultType.json:
            return result["params"]
        if output == ResultType.dicom_seg:
            return _dicom_seg(app.datastore(), image, result, request_params)
        if output == ResultType.image:
            return _file_answer(Path(result["file"]), request.headers.get("accept-encoding", ""))
        return _multipart_answer(Path(result["file"]), result["params"])
    finally:
        Path(result["file"]).unlink(missing_ok=True)


def _input_files(
    app: Any, image: str, session_id: str, file: UploadFile | None, label: UploadFile | None, folder: Path
) -> dict[str, Any]:
    """The image and the labelmap of a request as its parameters; uploads are written to `folder`."""
    inputs: dict[str, Any] = {"image": image}
    if session_id:
        inputs["image"] = _session_image(app, session_id)
    elif file is not None:
        inputs["image"] = Source(store_upload(file, folder / "image"), f"the uploaded file {file.filename!r}")
    elif not image:
        raise RequestError("the request names no image; expected the query parameter image or session_id, or a file")
    if label is not None:
        inputs["label_file"] = Source(store_upload(label, folder / "label"), f"the uploaded label {label.filename!r}")
    return inputs


def _file_answer(path: Path, accepts: str = "") -> Response:
    """A file's content, compressed for clients that read gzip: the NRRD that OHIF reads must be raw itself."""
    headers = {"Content-Disposition": f'attachment; filename="{path.name}"', "Vary": "Accept-Encoding"}
    content = path.read_bytes()
    if "gzip" in accepts and path.suffix in UNCOMPRESSED:
        content = igzip.compress(content, compresslevel=1, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return Response(content, headers=headers, media_type=get_mime_type(str(path)))


def _multipart_answer(path: Path, params: Mapping[str, Any]) -> Response:
    """The JSON and the mask in one response, as 3D Slicer reads them; the mask is sent as it is read."""
    boundary = uuid.uuid4().hex
    mime = get_mime_type(str(path))
    before = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f'{json.dumps(params)}\r\n--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"'
        f"\r\nContent-Type: {mime}\r\n\r\n"
    ).encode()
    after = f"\r\n--{boundary}--\r\n".encode()
    stream, size = path.open("rb"), path.stat().st_size
    return StreamingResponse(
        chain([before], pieces(stream, size), [after]),
        headers={"Content-Length": str(len(before) + size + len(after))},
        media_type=f"multipart/form-data; boundary={boundary}",
    )


def create_session(
    background_tasks: BackgroundTasks,
    user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    """MONAI Label's sessions, but no archives: Python 3.11 unpacks their members to any path that they name."""
    if uncompress:
        raise RequestError(f"archives are not unpacked (uncompress, {files[0].filename!r}); send the image itself")
    return session.create_session(background_tasks, False, expiry, files)


def read_params(text: str) -> dict[str, Any]:
    """The form's `params`; RequestError unless it is a JSON object that leaves the image and model alone."""
    params = read_object(text, "params")
    for key in RESERVED:
        if key in params:
            raise RequestError(f"params must not hold {key!r} ({params[key]!r}); it is part of the address")
    return params


def _session_image(app: Any, session_id: str) -> Source:
    sessions = app.sessions()
    stored = sessions.get_session(session_id) if sessions is not None and _SESSION.fullmatch(session_id) else None
    if stored is None:
        raise NotFoundError(f"session {session_id!r} does not exist or has expired")
    return Source(Path(stored.image), f"the image of session {session_id!r}")


def _check_dicom(datastore: Any, image: str, session_id: str, file: UploadFile | None) -> None:
    """RequestError if there is no DICOM series that a segmentation can refer to."""
    if dicom_part(datastore) is None:
        raise RequestError("output 'dicom_seg' needs studies that are DICOM series; this datastore has none")
    if session_id or file is not None or not image:
        raise RequestError("output 'dicom_seg' needs a DICOM series of the datastore, named by the parameter image")
    if store_of(datastore, image) is None:
        raise RequestError(f"output 'dicom_seg' needs a DICOM series; {image!r} is an image file of another type")


def _dicom_seg(datastore: Datastore, image: str, result: Mapping[str, Any], request: Mapping[str, Any]) -> Response:
    """The answer as DICOM SEG; `label_info` of the request may rename the structures, in their order."""
    store = store_of(datastore, image)
    assert store is not None  # see `_check_dicom`
    series = store.series(image)
    labels, _ = read_labels(Path(result["file"]), series)
    if not labels.any():
        raise RequestError(f"the mask of image {image!r} is empty, and DICOM SEG cannot hold an empty mask")
    info = request if request.get("label_info") else result["params"]
    model = str(request["model"])
    labels, names = names_of(labels, info)
    title = f"K-Prism {model}"
    segmentation = write_seg(labels, names, series, title, model, seg_type=store.seg_type)
    headers = {"Content-Disposition": f'attachment; filename="{segmentation.SOPInstanceUID}.dcm"'}
    return Response(as_bytes(segmentation), headers=headers, media_type="application/dicom")
