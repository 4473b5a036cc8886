# SPDX-License-Identifier: Apache-2.0
"""The masks that clicks start from. Nothing is remembered of earlier requests: what a request names can be had again.

In this order:

1. a labelmap uploaded with the request as `label`; `label_info` names its values, without it every voxel that is not 0
   belongs to the label that is clicked;
2. the option `start_from`: the label that the datastore holds for the image, submitted (tag final) or a draft (tag
   original), or what `semantic` finds, clicked structures that only an earlier network knew among it;
3. nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from monailabel.interfaces.datastore import DefaultLabelTag
from numpy.typing import NDArray

from lib.errors import RequestError
from lib.imaging.label_maps import values_in
from lib.imaging.medical_image import Voxel
from lib.infers.class_segmentation import DEFAULTS, search_classes
from lib.infers.earlier_references import EarlierReferences
from lib.infers.input_masks import read_uploaded, stored_masks, uploaded_values
from lib.infers.structure_references import StructureReferences
from lib.infers.task import AppContext, InferRequest

NOTHING, FINAL, ORIGINAL, SEMANTIC = "nothing", "final label", "original label", "semantic"
START = (NOTHING, FINAL, ORIGINAL, SEMANTIC)
"""Choices of the option `start_from`."""

UPLOAD = "uploaded label"

TAGS = {FINAL: DefaultLabelTag.FINAL.value, ORIGINAL: DefaultLabelTag.ORIGINAL.value}


class InitialMasks:
    """What the clicks of one request start from; `origins` says for each label that was looked up where it is from.

    `clicked` are the labels that an uploaded mask without names may belong to: exactly one.
    """

    def __init__(
        self, job: InferRequest, house: AppContext, clicked: Sequence[str], earlier: EarlierReferences
    ) -> None:
        self._job = job
        self._house = house
        self._earlier = earlier
        self._clicked = clicked
        self.origins: dict[str, str] = {}
        self._source, self._masks = self._find()

    def under(self, voxels: Sequence[Voxel]) -> list[str]:
        """The labels whose mask to start from holds one of the voxels."""
        return [name for name, mask in self._masks.items() if any(mask[voxel] for voxel in voxels)]

    def names(self) -> list[str]:
        """The labels that have a mask to start from."""
        return list(self._masks)

    def mask(self, name: str) -> NDArray[np.bool_] | None:
        """The mask (i, j, k) of a label, or None."""
        found = self._masks.get(name)
        self.origins[name] = NOTHING if found is None else self._source
        return found

    def _find(self) -> tuple[str, dict[str, NDArray[np.bool_]]]:
        job, book = self._job, self._house.book
        if job.params.get("label_file") is not None:
            return UPLOAD, self._uploaded()
        start = job.options["start_from"]
        if start in TAGS:
            image_id = job.source.image_id
            if image_id is None:
                raise RequestError(f"start_from is {start!r}, but {job.source.name} is not in the datastore")
            with job.report.step("read"):
                engine, datastore = self._house.engine, self._house.datastore
                return start, stored_masks(engine, datastore, book, job.image, image_id, TAGS[start])
        if start == SEMANTIC:
            shown = self._shown()
            found = search_classes(self._house.engine, job.network, job.image, DEFAULTS, job.report, shown)
            present = values_in(found.labels)
            return start, {name: found.labels == value for value, name in enumerate(found.names, 1) if value in present}
        return NOTHING, {}

    def _shown(self) -> dict[str, StructureReferences]:
        """References for clicked structures that only an earlier network knew; without any there is no first mask."""
        network = self._job.network
        unknown = {name for name in self._clicked if name not in network.registry}
        asked = [name for name in self._earlier.names(network) if name in unknown] if unknown else []
        try:
            return self._earlier.find(self._job, asked, DEFAULTS)
        except RequestError:
            return {}

    def _uploaded(self) -> dict[str, NDArray[np.bool_]]:
        job, book = self._job, self._house.book
        upload = job.params["label_file"]
        with job.report.step("read"):
            labels = read_uploaded(upload.path, upload.name, job.image, self._house.engine.cache.budget)
        values = uploaded_values(job.params, book)
        if values:
            return {name: labels == value for name, value in values.items()}
        current = job.params.get("label")
        candidates = list(self._clicked) or ([book.canonical(current)] if isinstance(current, str) else [])
        if len(candidates) != 1:
            raise RequestError(
                f"{upload.name} comes without label_info, so it must be of one label, but the request is about "
                f"{', '.join(candidates) or 'none'}"
            )
        return {candidates[0]: labels > 0}
