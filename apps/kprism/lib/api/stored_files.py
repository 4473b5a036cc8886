# SPDX-License-Identifier: Apache-2.0
"""GET of images, labels, data sets, weights and the log, in place of MONAI Label's own routes.

Its routes send files that may be replaced meanwhile (see `opened_file`), block the event loop while a ZIP archive is
written, and never remove it. 3D Slicer loads the one file that it gets, so an image or label of two files goes out
as one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from lib.api.attachments import attachment
from lib.api.opened_file import opened_file
from lib.errors import NotFoundError, RequestError
from lib.imaging.metaimage import as_one_file
from lib.imaging.reading import files_of

Viewer = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Annotator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
Administrator = Annotated[User, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>K-Prism: log</title>{again}</head>
<body><pre style="white-space: pre-wrap">{content}</pre></body></html>
"""

CHECK_SUMS = ("md5", "sha1", "sha256", "sha512")

MAX_LINES = 100_000
"""Lines of the log on a page."""

ATTEMPTS = 2
"""A file that is replaced by one of another type is found at the second attempt."""


def add_routes(router: APIRouter) -> None:
    """Add the routes of this file."""
    for path, endpoint, tag in (
        ("/datastore/image", send_image, "Datastore"),
        ("/datastore/label", send_label, "Datastore"),
        ("/datastore/dataset", send_dataset, "Datastore"),
        ("/model/{model}", send_weights, "Model"),
        ("/logs/", send_log, "Others"),
        ("/logs/gpu", send_gpu, "Others"),
    ):
        router.add_api_route(path, endpoint, methods=["GET"], tags=[tag], response_model=None)
    for path, check in (("/datastore/image", check_image), ("/datastore/label", check_label)):
        router.add_api_route(path, check, methods=["HEAD"], tags=["Datastore"], response_model=None)


def send_image(user: Viewer, image: str) -> Response:
    """The file of an image; `.mha` for a header with its voxels beside it."""
    return _sent(lambda: app_instance().datastore().get_image_uri(image), _as_one_file, f"image {image!r}")


def check_image(user: Viewer, image: str, check_sum: str = "") -> Response:
    """Whether an image is there, and is the same if its `check_sum` is given: `SHA256:...`, or of another algorithm."""
    answer = send_image(user, image)
    if check_sum:
        algorithm, _, digest = check_sum.rpartition(":")
        algorithm = algorithm.lower().replace("-", "") or "sha256"
        if algorithm not in CHECK_SUMS:
            raise RequestError(
                f"check_sum is {check_sum[:80]!r}; expected one of {', '.join(CHECK_SUMS)} before the colon"
            )
        with Path(app_instance().datastore().get_image_uri(image)).open("rb") as file:
            if hashlib.file_digest(file, algorithm).hexdigest() != digest.lower():
                raise NotFoundError(f"image {image!r} has another check sum")
    return answer


def check_label(user: Viewer, tag: str, label: str = "", image: str = "") -> Response:
    """Whether a label is there; MONAI Label calls it `image` here, and `label` where it is sent."""
    return send_label(user, label or image, tag)


def _as_one_file(path: Path) -> Response:
    if len(files_of(path)) == 1:
        return opened_file(path, name=path.name)
    headers = {"Content-Disposition": attachment(f"{path.stem}.mha")}
    return StreamingResponse(as_one_file(path), headers=headers, media_type="application/octet-stream")


def send_label(user: Viewer, label: str, tag: str) -> Response:
    """The file of a label with a tag, `final` for the submitted one; `.mha` as for an image."""
    what = f"label {label!r} with the tag {tag!r}"
    return _sent(lambda: app_instance().datastore().get_label_uri(label, tag), _as_one_file, what)


def send_dataset(user: Annotator, limit_cases: int | None = None) -> Response:
    """All images with labels as a ZIP archive, which is removed as soon as it is opened."""
    datastore = app_instance().datastore()
    if limit_cases is not None and limit_cases < 1:
        raise RequestError(f"limit_cases is {limit_cases}; expected at least 1")
    if not datastore.get_labeled_images():
        raise NotFoundError("no image has a submitted label yet, so there is no data set to download")
    archive = Path(datastore.get_dataset_archive(limit_cases))
    try:
        return opened_file(archive, name="dataset.zip", media_type="application/zip")
    finally:
        archive.unlink()


def send_weights(user: Administrator, model: str) -> Response:
    """The published weights."""

    def answer(path: Path) -> Response:
        return opened_file(path, name=model + path.suffix)

    return _sent(lambda: app_instance().model_file(model), answer, f"model {model!r}")


def send_log(
    user: Administrator,
    lines: int = 300,
    html: bool = True,
    text: bool = False,
    refresh: int = 0,
) -> Any:
    """The last lines of the server's log, on a page or as text; all of it without `lines`."""
    path = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    if lines > 0:
        return _last_lines(path, min(lines, MAX_LINES), is_page=html and not text, refresh=refresh)
    return _sent(lambda: str(path), lambda found: opened_file(found, media_type="text/plain"), "the log")


def _last_lines(path: Path, count: int, *, is_page: bool, refresh: int) -> Response:
    """The end of the log. The page needs nothing from the internet, which hospitals keep out."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            content = "".join(deque(stream, count))
    except FileNotFoundError as error:
        raise NotFoundError("the log is not on this server") from error
    if not is_page:
        return Response(content, media_type="text/plain")
    again = f'<meta http-equiv="refresh" content="{min(max(refresh, 3), 3600)}">' if refresh > 0 else ""
    return HTMLResponse(PAGE.format(again=again, content=escape(content)))


def send_gpu(user: Administrator) -> Response:
    """What `nvidia-smi` says."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NotFoundError("this machine has no nvidia-smi, so nothing is known of a GPU")
    found = subprocess.run([program], capture_output=True, check=False, timeout=60)
    return Response(found.stdout.decode(errors="replace"), media_type="text/plain")


def _sent(find: Callable[[], str], answer: Callable[[Path], Response], what: str) -> Response:
    """The answer for the file that is found; NotFoundError if there is none."""
    for _ in range(ATTEMPTS):
        path = Path(find() or "")
        try:
            if path.is_file():
                return answer(path)
        except FileNotFoundError:  # removed since; another may have taken its place
            continue
    raise NotFoundError(f"{what} is not on this server")
