# SPDX-License-Identifier: Apache-2.0
"""The mode's route to the models: the same as /infer, but masks are sent and answered as planes (see `planes`).

A request carries everything that its answer depends on: clicks, and planes with strokes and the mask that they correct,
as the user sees it. So an edit with brush or eraser is never lost. To undo a click, the mode sends the others again.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import File, Form, UploadFile
from fastapi.responses import Response
from monailabel.interfaces.utils.app import app_instance

from kprism_model.volumes.slice_map import SliceMap
from lib.api.inference import read_params
from lib.api.ohif.cases import store
from lib.api.ohif.planes import pack, unpack
from lib.api.ohif.streaming import streamed
from lib.errors import RequestError
from lib.image_ids import check_id
from lib.infers.parts import Listener
from lib.infers.request import DrawnPlanes

INITIAL_MASK, INSIDE, OUTSIDE = 1, 2, 3
"""Values in uploaded planes: the mask to correct, strokes on the structure, strokes beside it."""

SEGMENTS = ({"name": "foreground_scribbles", "id": INSIDE}, {"name": "background_scribbles", "id": OUTSIDE})


def infer_planes(
    model: str,
    image: str,
    params: Annotated[str, Form()] = "{}",
    planes: Annotated[UploadFile | None, File()] = None,
    stream: bool = False,
) -> Response:
    """Run a model on a case; the answer holds planes of the mask, and JSON that names its values.

    With `stream`, planes are sent as they are found, see `streaming`; the last message is the answer.

    `params` as for /infer; with `planes` they also hold `structure`, the name of the structure that is corrected. The
    answer holds the planes that were sent, and all others that are not empty.
    """
    app, datastore = app_instance(), store()
    grid = datastore.open_series(check_id(image)).grid
    request: dict[str, Any] = read_params(params)
    sent: list[int] = []
    if planes is not None:
        header, drawn = unpack(planes.file.read(), grid)
        sent = header["planes"]
        request |= _correction(request.pop("structure", None), drawn)
    request |= {"model": model, "image": image, "result_extension": ".nii"}

    def answered(listener: Listener | None) -> bytes:
        answer = app.answered({**request, "listener": listener})
        labels = answer.on_planes()
        return pack({"result": answer.json()}, labels, sorted({*sent, *labels.filled}))

    return streamed(answered) if stream else Response(answered(None), media_type="application/octet-stream")


def _correction(name: Any, drawn: SliceMap[np.uint8]) -> dict[str, Any]:
    """The parameters of the models for uploaded planes: `drawn` as a labelmap, and the names of its values."""
    if not isinstance(name, str) or not name.strip():
        raise RequestError(f"structure is {name!r}; expected the name of the structure whose mask is corrected")
    strokes = SEGMENTS if any((plane >= INSIDE).any() for plane in drawn.slices.values()) else ()
    return {
        "label_file": DrawnPlanes(drawn, "the uploaded mask"),
        "label_info": [{"name": name, "id": INITIAL_MASK}, *strokes],
        "selected_label_name": name,
        "label": name,
    }
