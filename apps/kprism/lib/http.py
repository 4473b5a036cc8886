# SPDX-License-Identifier: Apache-2.0
"""POST /infer/{model} in place of MONAI Label's own, and 4xx answers with a sentence for what a client did wrong.

MONAI Label's route runs a request inside the event loop, where one inference blocks every other user and the viewer's
images; it also lets the form's `params` replace the image, so that a client could name any file of the server. This one
is a plain function, which FastAPI runs in a thread, and takes images only by id, session or upload.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import binary_to_image, nifti_to_dicom_seg
from monailabel.endpoints import session
from monailabel.endpoints.infer import ResultType, send_response
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import remove_file

from lib.datastore import image_path
from lib.errors import ForbiddenError, NotFoundError, OutOfMemoryError, RequestError
from lib.infers.base import Source
from lib.reading import suffix_of

RESERVED = ("model", "image", "file", "session", "session_id", "label_file", "description")
"""What a request is about; `params` must not say otherwise."""

LONGEST = 1000
"""Characters of a message; a client's value in it may be of any length."""

_SESSION = re.compile(r"[A-Za-z0-9-]{1,64}")


def install(application: FastAPI) -> None:
    """Put our route before MONAI Label's and have errors answered with sentences."""
    router = APIRouter(prefix=settings.MONAI_LABEL_API_STR)
    router.add_api_route("/infer/{model}", infer, methods=["POST"], tags=["Infer"], response_model=None)
    for method in ("PUT", "DELETE"):
        router.add_api_route("/model/{model}", refuse_to_change_weights, methods=[method], tags=["Model"])
    router.add_api_route("/session/", create_session, methods=["PUT"], tags=["Session"])
    application.router.routes[:0] = router.routes
    application.add_exception_handler(RequestError, _answer_request_error)
    application.add_exception_handler(MONAILabelException, _answer_monailabel_error)
    # MONAI Label lets pages of any origin call the server, and its setting for that ends the start (0.8.5). The viewer
    # is of the server's own origin and 3D Slicer is no browser, so nobody needs it.
    application.user_middleware = [layer for layer in application.user_middleware if layer.cls is not CORSMiddleware]
    application.middleware_stack = None  # built again, with these handlers, at the next request


def infer(
    background_tasks: BackgroundTasks,
    user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: ResultType | None = None,
) -> Any:
    """Run a model on an image of the datastore, of a session or uploaded as `file`; MONAI Label's contract."""
    app = app_instance()
    if output == ResultType.dicom_seg and not isinstance(app.datastore(), DICOMWebDatastore):
        raise RequestError("output 'dicom_seg' needs studies in a DICOMweb server; this datastore is a folder")
    with tempfile.TemporaryDirectory(prefix="kprism-upload-") as folder:
        request = {**read_params(params), "model": model, "image": image}
        if session_id:
            request["image"] = _session_image(app, session_id)
        elif file is not None:
            path = _store(file, Path(folder) / "image")
            request["image"] = Source(path, f"the uploaded file {file.filename!r}")
        elif not image:
            raise RequestError(
                "the request names no image; expected the query parameter image or session_id, or a file"
            )
        if label is not None:
            request["label_file"] = Source(
                _store_label(app, label, Path(folder) / "label", image), "the uploaded label"
            )
        try:
            result = app.infer(request)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemoryError(f"too little memory for model {model!r} on image {image!r}: {error}") from error
        except RequestError:
            raise
        except ValueError as error:
            raise RequestError(str(error)) from error
    if output == ResultType.dicom_seg:
        background_tasks.add_task(remove_file, result["file"])
        result["dicom_seg"] = _dicom_seg(app, image, result, request)
    return send_response(app.datastore(), result, output, background_tasks)


def refuse_to_change_weights(model: str) -> None:
    """MONAI Label's routes would overwrite or remove the weights of all models without looking at them."""
    raise ForbiddenError(f"the weights of {model!r} cannot be replaced or deleted over HTTP")


def create_session(
    background_tasks: BackgroundTasks,
    user: Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))],
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> Any:
    """MONAI Label's sessions, without archives: Python 3.11 unpacks one to wherever its members' paths point."""
    if uncompress:
        raise RequestError(f"archives are not unpacked (uncompress, {files[0].filename!r}); send the image itself")
    return session.create_session(background_tasks, False, expiry, files)


def read_params(text: str) -> dict[str, Any]:
    """The form's `params`; RequestError unless it is a JSON object that leaves the image and model alone."""
    try:
        params = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"params is not JSON: {error}") from error
    if not isinstance(params, dict):
        raise RequestError(f"params is {text[:80]!r}; expected a JSON object")
    for key in RESERVED:
        if key in params:
            raise RequestError(f"params must not hold {key!r} ({params[key]!r}); it is part of the address")
    return params


def _session_image(app: Any, session_id: str) -> Source:
    sessions = app.sessions()
    known = sessions.get_session(session_id) if sessions is not None and _SESSION.fullmatch(session_id) else None
    if known is None:
        raise NotFoundError(f"session {session_id!r} does not exist or has expired")
    return Source(Path(known.image), f"the image of session {session_id!r}")


def _store(upload: UploadFile, stem: Path) -> Path:
    """Write an upload beside `stem`, keeping only the extension of the client's file name."""
    path = stem.with_name(stem.name + (suffix_of(Path(upload.filename)) if upload.filename else ".nii.gz"))
    with path.open("wb") as stream:
        shutil.copyfileobj(upload.file, stream)
    return path


def _store_label(app: Any, upload: UploadFile, stem: Path, image_id: str) -> Path:
    """A labelmap; raw voxels (`.bin`, x fastest) get the grid of the image."""
    path = _store(upload, stem)
    if path.suffix != ".bin":
        return path
    try:
        converted = Path(binary_to_image(str(image_path(app.datastore(), image_id)), str(path)))
    except ValueError as error:
        raise RequestError(
            f"the uploaded label {upload.filename!r} does not fit image {image_id!r}: {error}"
        ) from error
    return Path(shutil.move(converted, stem.with_name(stem.name + suffix_of(converted))))


def _dicom_seg(app: Any, image: str, result: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """The answer as DICOM SEG; MONAI Label takes names for the values present, in their order."""
    absent = result["params"]["absent"]
    info = request.get("label_info") or [{"name": n} for n in result["params"]["label_names"] if n not in absent]
    if not info:
        raise RequestError(f"nothing was found in image {image!r}, and DICOM SEG cannot hold an empty mask")
    path = image_path(app.datastore(), image)
    series = str(path).removesuffix(suffix_of(path))
    segmentation = nifti_to_dicom_seg(series, result["file"], info, use_itk=True)
    if not segmentation:
        raise HTTPException(status_code=500, detail=f"the answer for image {image!r} could not be made a DICOM SEG")
    return str(segmentation)


def _answer_request_error(request: Request, error: Exception) -> JSONResponse:
    sentence = str(error)
    if len(sentence) > LONGEST:
        sentence = f"{sentence[:LONGEST]} ..."
    return JSONResponse({"detail": sentence}, getattr(error, "status", 400))


def _answer_monailabel_error(request: Request, error: Exception) -> JSONResponse:
    missing = isinstance(error, ImageNotFoundException | LabelNotFoundException)
    return JSONResponse({"detail": getattr(error, "msg", str(error))}, 404 if missing else 400)
