# SPDX-License-Identifier: Apache-2.0
"""The mode's own way to the models: the same as /infer, but masks go both ways as planes (see `planes`).

A request carries all that its answer depends on: clicks, strokes, and under `before` the mask that they correct, as the
user sees it. So an edit with brush or eraser is never lost, and undoing a click is asking again without it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
from fastapi import File, Form, UploadFile
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance
from numpy.typing import NDArray

from lib.api.inference import read_params
from lib.api.ohif.cases import fetched, store
from lib.api.ohif.planes import filled, pack, unpack
from lib.errors import RequestError
from lib.infers.task import Source

BEFORE, INSIDE, OUTSIDE = 1, 2, 3
"""Values in uploaded planes: the mask to correct, strokes on the structure, strokes beside it."""

SEGMENTS = ({"name": "foreground_scribbles", "id": INSIDE}, {"name": "background_scribbles", "id": OUTSIDE})


def infer_planes(
    model: str,
    image: str,
    params: Annotated[str, Form()] = "{}",
    planes: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """Run a model on a case; the answer's planes are those that it covers, its JSON says what they mean.

    `params` as for /infer, and for clicks, strokes and masks to follow `structure`, the name of what is corrected. The
    planes that were sent come back in any case, others where they hold something.
    """
    app, datastore = app_instance(), store()
    fetched(datastore, image)
    request: dict[str, Any] = read_params(params)
    grid = datastore.series(image).grid
    touched: list[int] = []
    with tempfile.TemporaryDirectory(prefix="kprism-planes-") as folder:
        if planes is not None:
            header, drawn = unpack(planes.file.read(), grid)
            touched = header["planes"]
            request |= _correction(request.pop("structure", None), drawn, Path(folder))
        result = app.infer({**request, "model": model, "image": image, "result_extension": ".nii"})
    answer = Path(result["file"])
    try:
        labels = np.asarray(nibabel.Nifti1Image.from_filename(answer).dataobj, np.uint8).reshape(grid)
    finally:
        answer.unlink()
    return Response(
        pack({"result": result["params"]}, labels, sorted({*touched, *filled(labels)})),
        media_type="application/octet-stream",
    )


def _correction(name: Any, drawn: NDArray[np.uint8], folder: Path) -> dict[str, Any]:
    """What the models are told of the uploaded planes: `drawn` as a labelmap, and what its values mean."""
    if not isinstance(name, str) or not name.strip():
        raise RequestError("the request corrects a mask but does not name its structure")
    path = folder / "label.bin"
    path.write_bytes(drawn.tobytes(order="F"))
    strokes = SEGMENTS if (drawn >= INSIDE).any() else ()
    return {
        "label_file": Source(path, "the uploaded mask"),
        "label_info": [{"name": name, "id": BEFORE}, *strokes],
        "selected_label_name": name,
        "label": name,
    }
