# SPDX-License-Identifier: Apache-2.0
"""Which volume a request is about, in a series of several (phases, echoes, b-values): that of the image clicked on.

Else that of the image in view, which a client may send as `slice`; else the first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lib.errors import RequestError
from lib.imaging.medical_image import MedicalImage


def in_view(params: Mapping[str, Any], image: MedicalImage) -> int:
    """The image k that is in view; 0 if the client does not send it or the image is a single volume."""
    index = params.get("slice")
    if index is None or image.volumes == 1:
        return 0
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < image.grid[2]:
        raise RequestError(f"slice is {index!r}; expected the number of an image, from 0 to {image.grid[2] - 1}")
    return index


def prompted(indices: Collection[int], image: MedicalImage) -> int | None:
    """The first of the images k with prompts; None without any. RequestError if they are in several volumes."""
    count = image.grid[2] // image.volumes
    first = {index // count: index for index in sorted(indices, reverse=True)}
    if len(first) > 1:
        one, other, *_ = sorted(first.values())
        raise RequestError(
            f"there are prompts on the images {one} and {other}, which belong to different volumes of the series "
            f"(phases, echoes or b-values of {count} slices each); expected prompts on one volume"
        )
    return next(iter(first.values()), None)
