# SPDX-License-Identifier: Apache-2.0
"""The mode's route to the models: the same as /infer, but masks are sent and answered as planes (see `planes`).

A request carries everything that its answer depends on: clicks, and planes with strokes and the mask that they correct,
as the user sees it. So an edit with brush or eraser is never lost. To undo a click, the mode sends the others again.
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
from lib.api.ohif.cases import store
from lib.api.ohif.planes import filled, pack, unpack
from lib.datastore import check_id
from lib.errors import RequestError
from lib.infers.request import Source

INITIAL_MASK, INSIDE, OUTSIDE = 1, 2, 3
"""Values in uploaded planes: the mask to correct, strokes on the structure, strokes beside it."""

SEGMENTS = ({"name": "foreground_scribbles", "id": INSIDE}, {"name": "background_scribbles", "id": OUTSIDE})


def infer_planes(
    model: str,
    image: str,
    params: Annotated[str, Form()] = "{}",
    planes: Annotated[UploadFile | None, File()] = None,
) -> Response:
    """Run a model on a case; the answer holds planes of the mask, and JSON that names its values.

    `params` as for /infer; with `planes` they also hold `structure`, the name of the structure that is corrected. The
    answer holds the planes that were sent, and all others that are not empty.
    """
    app, datastore = app_instance(), store()
    grid = datastore.open_series(check_id(image)).grid
    request: dict[str, Any] = read_params(params)
    sent: list[int] = []
    with tempfile.TemporaryDirectory(prefix="kprism-planes-") as folder:
        if planes is not None:
            header, drawn = unpack(planes.file.read(), grid)
            sent = header["planes"]
            request |= _correction(request.pop("structure", None), drawn, Path(folder))
        result = app.infer({**request, "model": model, "image": image, "result_extension": ".nii"})
    answer = Path(result["file"])
    try:
        mask: Any = nibabel.load(answer)  # typed as the base class, which has no voxels
        labels = np.asarray(mask.dataobj, np.uint8).reshape(grid)
    finally:
        answer.unlink()
    return Response(
        pack({"result": result["params"]}, labels, sorted({*sent, *filled(labels)})),
        media_type="application/octet-stream",
    )


def _correction(name: Any, drawn: NDArray[np.uint8], folder: Path) -> dict[str, Any]:
    """The parameters of the models for uploaded planes: `drawn` as a labelmap, and the names of its values."""
    if not isinstance(name, str) or not name.strip():
        raise RequestError(f"structure is {name!r}; expected the name of the structure whose mask is corrected")
    path = folder / "label.bin"
    path.write_bytes(drawn.tobytes(order="F"))
    strokes = SEGMENTS if (drawn >= INSIDE).any() else ()
    return {
        "label_file": Source(path, "the uploaded mask"),
        "label_info": [{"name": name, "id": INITIAL_MASK}, *strokes],
        "selected_label_name": name,
        "label": name,
    }
