# SPDX-License-Identifier: Apache-2.0
"""The closed contours of a structure set, and the images of a series that they are drawn on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from kprism_model.polygons import Points
from lib.dicom.series import Series
from lib.imaging.medical_image import LPS_TO_RAS

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Types of contours that enclose an area."""

BETWEEN = 0.1
"""A contour is between images if it is further from the nearest than this part of their distance."""

SLANTED = 0.25
"""A contour is not in a plane of images if its points differ by more than this part of their distance."""

NEAR = 0.501
"""A contour is drawn on an image that is not further away than this part of the distance of two images."""

BEYOND = 1.0
"""A contour is cut if it reaches further beyond the outermost centres of pixels than this, in pixels."""

CONTOUR_DATA = Tag("ContourData")


@dataclass(frozen=True)
class Contour:
    """A closed contour: its type, its points (n, 3) in millimetres (LPS), and the images that it names."""

    kind: str
    points: NDArray[np.float64]
    images: tuple[tuple[str, int], ...]


def closed_contours(items: Iterable[Dataset]) -> tuple[list[Contour], int]:
    """The contours that enclose something, and how many of the others there are."""
    contours = []
    others = 0
    for item in items:
        kind = str(item.get("ContourGeometricType") or CLOSED[0])
        points = _points(item)
        if kind not in CLOSED or points is None or len(points) < 3:
            others += 1
            continue
        named = [image for image in item.get("ContourImageSequence") or [] if image.get("ReferencedSOPInstanceUID")]
        images = ((str(image.ReferencedSOPInstanceUID), _frame_number(image)) for image in named)
        contours.append(Contour(kind, points, tuple(images)))
    return contours, others


def _frame_number(image: Dataset) -> int:
    numbers = image.get("ReferencedFrameNumber") or 1  # one number, or several
    return int(numbers if isinstance(numbers, int) else numbers[0])


def _points(item: Dataset) -> NDArray[np.float64] | None:
    """The points (n, 3) of a contour; None if they are not numbers, three for each."""
    element = item.get_item(CONTOUR_DATA)
    values = element.value if element is not None else b""
    try:  # as the text that it is in the file: a number object for each value would take seconds
        numbers = np.array(
            values.decode("ascii").strip(" \0").split("\\") if isinstance(values, bytes) else values, float
        )
    except ValueError:
        return None
    whole = numbers.ndim == 1 and len(numbers) % 3 == 0 and bool(np.isfinite(numbers).all())
    return numbers.reshape(-1, 3) if whole else None


class ContourPlanes:
    """The planes of the images of a series, which must have positions."""

    def __init__(self, series: Series) -> None:
        self.size = series.grid[:2]
        self._series, self._index = series, series.index()
        axes = (LPS_TO_RAS @ series.affine)[:3]
        self._step = float(np.linalg.norm(axes[:, 2]))
        normal = np.cross(axes[:, 0], axes[:, 1])
        self._normal = normal / np.linalg.norm(normal)
        self._origins = np.array([frame.position for frame in series.frames], np.float64)
        self._depths = self._origins @ self._normal
        self._to_pixels = np.linalg.pinv(axes[:, :2])
        self._frame_of_reference = str(series.headers[0].get("FrameOfReferenceUID") or "")

    def placed(
        self, contours: list[Contour], frame_of_reference: str
    ) -> tuple[dict[int, list[Contour]], dict[str, int]]:
        """The contours of a ROI by slice, and how many were treated in which unusual way.

        If contours of several depths are nearest to one image, those that are nearest are drawn on it.
        """
        told = dict.fromkeys((OTHER_FRAME, ACROSS, OUTSIDE, DENSER, MOVED, CUT), 0)
        if self._is_elsewhere(contours, frame_of_reference):
            return {}, {OTHER_FRAME: len(contours)}
        found: dict[int, list[tuple[float, Contour]]] = {}
        for contour in contours:
            depths = contour.points @ self._normal
            if np.ptp(depths) > SLANTED * self._step:
                told[ACROSS] += 1
                continue
            k, distance = self._nearest(float(depths.mean()), contour)
            if distance > NEAR * self._step:
                told[OUTSIDE] += 1
                continue
            found.setdefault(k, []).append((distance, contour))
        placed = {}
        for k, entries in found.items():
            limit = min(distance for distance, _ in entries) + BETWEEN * self._step
            placed[k] = [contour for distance, contour in entries if distance <= limit]
            told[DENSER] += len(entries) - len(placed[k])
            told[MOVED] += sum(BETWEEN * self._step < distance <= limit for distance, _ in entries)
            told[CUT] += sum(self._reaches_out(contour, k) for contour in placed[k])
        return placed, told

    def pixels(self, contour: Contour, k: int) -> Points:
        """The points of a contour as (column, row) of an image, along the normal of the images."""
        points: Points = (contour.points - self._origins[k]) @ self._to_pixels.T
        return points

    def _is_elsewhere(self, contours: list[Contour], frame_of_reference: str) -> bool:
        """Whether contours are in another frame of reference and name none of the images."""
        known = self._frame_of_reference
        is_other = bool(known and frame_of_reference) and known != frame_of_reference
        return is_other and not any(image in self._index for contour in contours for image in contour.images)

    def _nearest(self, depth: float, contour: Contour) -> tuple[int, float]:
        """The image nearest to a contour, and its distance; of several at one place the one that the contour names."""
        distances = np.abs(self._depths - depth)
        nearest = int(np.argmin(distances))
        named = [self._index[image] for image in contour.images if image in self._index]
        same = [k for k in named if distances[k] <= distances[nearest] + BETWEEN * self._step]
        k = same[0] if same else nearest
        return k, float(distances[k])

    def _reaches_out(self, contour: Contour, k: int) -> bool:
        points = self.pixels(contour, k)
        return bool((points < -BEYOND).any() or (points > np.array(self.size) - 1 + BEYOND).any())


OTHER_FRAME = "left out: in another frame of reference"
ACROSS = "left out: not parallel to the images"
OUTSIDE = "left out: on none of the images"
DENSER = "left out: others are nearer to the same image"
MOVED = "between images, and drawn on the nearest"
CUT = "cut at the border of the images"
