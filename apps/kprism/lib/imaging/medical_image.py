# SPDX-License-Identifier: Apache-2.0
"""An image as it is stored, and its place in space; `kprism_model.volumes.data.Volume` cuts and scales it.

Stored arrays are indexed (i, j, k), i fastest, as viewers count voxels and as NIfTI and NRRD store them. A 2-D picture
is a volume of one slice: i is its column, j its row, k is 0.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from kprism_model.intensity import IntensityRange, Slices, rescaled
from kprism_model.orientation import SliceOrientation
from kprism_model.volumes.data import JoinedSlices, StoredSlices, Volume
from kprism_model.volumes.slice_map import SliceMap
from lib.errors import RequestError
from lib.imaging.cropped import moved, offset_between, pasted
from lib.imaging.file_labels import FileLabels
from lib.imaging.places import on_places, reordered

Voxel = tuple[int, int, int]
"""(i, j, k) of a voxel of the stored image."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The axes of NRRD and DICOM run to left and posterior, those of NIfTI to right and anterior."""


class Arrival(Protocol):
    """Voxels that are still being fetched."""

    def wait(self, planes: Sequence[int]) -> None:
        """Return when the planes k are there; RequestError if they cannot be fetched."""


@dataclass(frozen=True)
class MedicalImage:
    """A picture or volume with everything needed to write a mask on the same grid.

    `array` is (i, j, k) or (i, j, k, 3) for colour, as stored, and `rescale` the slope and the intercept that make
    values of it; `affine` maps (i, j, k, 1) to millimetres in RAS+ (NIfTI's axes); `dimensions` is 2 if the file itself
    has two axes; `suffix` is the file's extension; `digest` identifies its content; `name` stands for the image in
    messages; `placed` says whether `affine` comes from the file. Pictures, and volumes whose file has no usable affine,
    are compared by their number of voxels alone. `slice_axis` and `plane` as in `SliceOrientation.of`: the axis that
    images were stacked along if the file states it, and the plane to cut in.

    Readers of a file may choose different places of those that it states: `also_at` are the affines of the others, and
    `itk_affine` is the one that ITK reads, and with it 3D Slicer, if it is another than `affine`. `exif_orientation` is
    that of the picture in the file (1 to 8); `array` is upright.

    A DICOM series of several phases, echoes or b-values holds that many `volumes`, one after the other along k. One of
    them is an image too (`part`), with the `whole` and its own `first` slice in that.

    `file_labels`: what a label file says about its values.

    `arrival` is set while voxels are being fetched. What reads `array` itself waits for all of them (`values`).
    """

    name: str
    array: NDArray[Any] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    dimensions: int
    suffix: str
    digest: str
    header: Nifti1Header | None = field(default=None, repr=False)
    placed: bool = True
    slice_axis: int | None = None
    plane: str | None = None
    volumes: int = 1
    whole: MedicalImage | None = field(default=None, repr=False)
    first: int = 0
    rescale: tuple[float, float] = (1.0, 0.0)
    also_at: tuple[NDArray[np.float64], ...] = field(default=(), repr=False)
    itk_affine: NDArray[np.float64] | None = field(default=None, repr=False)
    exif_orientation: int = 1
    arrival: Arrival | None = field(default=None, repr=False, compare=False)
    file_labels: FileLabels | None = field(default=None, repr=False)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Voxels along i, j and k."""
        return self.array.shape[:3]  # type: ignore[return-value]

    @property
    def is_colour(self) -> bool:
        """Whether voxels have the channels red, green and blue."""
        return self.array.ndim == 4

    @property
    def places(self) -> tuple[NDArray[np.float64], ...]:
        """All affines that the file states."""
        return (self.affine, *self.also_at)

    @property
    def affine_in_itk(self) -> NDArray[np.float64]:
        """Where ITK puts the voxels: the place to write in files that state one only."""
        return self.affine if self.itk_affine is None else self.itk_affine

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along i, j and k in millimetres."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @cached_property
    def orientation(self) -> SliceOrientation:
        """How this image is cut into slices; known without scaling it."""
        return SliceOrientation.of(self.affine, self.grid, self.plane, self.slice_axis)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.orientation.stack_shape[0]

    @property
    def slice_shape(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.orientation.stack_shape[1:]

    def to_slices(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A view (slice, row, column[, 3]) of an array (i, j, k[, 3]) on this image's grid."""
        return self.orientation.to_slices(volume)

    @property
    def values(self) -> NDArray[Any]:
        """The values of all voxels (i, j, k[, 3])."""
        self._wait(range(self.grid[2]))
        return rescaled(self.array, self.rescale)

    @cached_property
    def intensities(self) -> IntensityRange:
        """The range of intensities, which is that of the slices as acquired (see `StoredSlices.intensities`)."""
        return self._stored(replace(self, plane=None).orientation).intensities

    @cached_property
    def volume(self) -> Volume:
        """The image cut into slices in [0, 1], as the network sees it; its digest names the plane too."""
        images: Slices
        if self.volumes > 1:  # each has a range of values of its own
            numbers = sorted(range(0, self.grid[2], self.grid[2] // self.volumes), key=self.slice_at)
            parts = (self.part(number) for number in numbers)
            images = JoinedSlices(tuple(part._stored(part.orientation, part.intensities) for part in parts))
        else:
            images = self._stored(self.orientation, self.intensities)
        return Volume.of_slices(images, self.orientation, f"{self.digest} {self.orientation.plane}")

    def _stored(self, orientation: SliceOrientation, known: IntensityRange | None = None) -> StoredSlices:
        """The voxels cut into slices, which wait for what they need."""

        def wait(numbers: Sequence[int]) -> None:
            if orientation.axes[0] != 2:
                self._wait(range(self.grid[2]))
            else:
                last = self.grid[2] - 1
                self._wait([last - number if orientation.flips[0] else number for number in numbers])

        pending = None if self.arrival is None else wait
        return StoredSlices(orientation.to_slices(self.array), self.rescale, pending, known)

    def _wait(self, planes: Sequence[int]) -> None:
        """Wait for planes k of this image."""
        if self.arrival is not None:
            self.arrival.wait([self.first + k for k in planes])

    @property
    def scaled(self) -> Slices:
        """Intensities in [0, 1] as (slice, row, column) or (slice, row, column, 3): the slices of `volume`."""
        return self.volume.images

    def part(self, index: int) -> MedicalImage:
        """The volume that holds the image k = `index`; this image itself if it is a single one."""
        if self.volumes == 1:
            return self
        count = self.grid[2] // self.volumes
        first = index // count * count
        parts: dict[int, MedicalImage] = self.__dict__.setdefault("_parts", {})  # each knows its range of intensities
        if first not in parts:
            array = self.array[:, :, first : first + count]
            digest = f"{self.digest} {first}"
            parts[first] = replace(self, array=array, digest=digest, volumes=1, whole=self, first=first)
        return parts[first]

    def on_whole(self, labels: SliceMap[Any]) -> SliceMap[Any]:
        """Labels of a part as labels of the whole, 0 in its other volumes; unchanged for other images."""
        if self.whole is None:
            return labels
        planes = labels.turned(planes_of(self.grid))
        moved = {self.first + k: values for k, values in planes.slices.items()}
        whole = SliceMap(planes_of(self.whole.grid), labels.dtype, moved)
        return whole.turned(replace(self.whole, plane=self.plane).orientation)

    def on_stored_planes(self, labels: SliceMap[Any]) -> SliceMap[Any]:
        """Labels in this image's slices as planes k of the stored image (row j, column i), of the whole for a part."""
        whole = self.on_whole(labels)
        return whole.turned(planes_of(whole.orientation.shape))

    def of_whole(self, labels: NDArray[Any]) -> NDArray[Any]:
        """The labels (i, j, k) of this part, from those of the whole."""
        return labels if self.whole is None else labels[:, :, self.first : self.first + self.grid[2]]

    def in_plane(self, plane: str) -> MedicalImage:
        """This image cut in an anatomical plane (see `SliceOrientation.of`); itself if it is cut in that already.

        RequestError if its slices would be single rows of pixels, as those of a picture across its plane, or would show
        several volumes.
        """
        if plane == self.orientation.plane:
            return self
        if self.volumes > 1:
            raise RequestError(
                f"plane is {plane!r}, but {self.name} holds {self.volumes} volumes (phases, echoes or b-values), "
                f"which can be cut only one at a time; expected {self.orientation.plane!r}"
            )
        turned = replace(self, plane=plane)
        if 1 in turned.slice_shape:
            raise RequestError(
                f"plane is {plane!r}, but {self.name} of {describe(self.grid)} voxels has only one slice, "
                f"which is {self.orientation.plane}"
            )
        if "intensities" in self.__dict__:
            turned.__dict__["intensities"] = self.intensities
        return turned

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return self.array.nbytes

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels lie in a file, so that they take no memory that others need."""
        base: Any = self.array
        while isinstance(base, np.ndarray):
            base = base.base
        return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)

    def locate(self, voxel: Voxel) -> tuple[int, int, int]:
        """The (slice, row, column) of a voxel."""
        return self.orientation.locate(voxel)

    def slice_at(self, index: int) -> int:
        """The number of the slice that has this index along its axis of the stored image; in a part, of the whole."""
        return self._mirrored(index - self._first_index)

    def index_of(self, number: int) -> int:
        """The inverse of `slice_at`."""
        return self._mirrored(number) + self._first_index

    @property
    def indices(self) -> tuple[int, int]:
        """The first and last index of the slices, as in `slice_at`."""
        return self._first_index, self._first_index + self.slices - 1

    @property
    def _first_index(self) -> int:
        return self.first if self.orientation.axes[0] == 2 else 0

    def _mirrored(self, number: int) -> int:
        return self.slices - 1 - number if self.orientation.flips[0] else number

    def on_grid(self, mask: MedicalImage, what: str) -> NDArray[Any]:
        """The values of `mask` on this image's grid; axes in another order or direction are reordered.

        `what` stands for the mask in messages. RequestError names the difference if the mask has another number of
        voxels or lies at another place. For a part, `mask` is one of the whole.
        """
        if self.whole is not None:
            return self.of_whole(self.whole.on_grid(mask, what))
        if mask.file_labels is not None and mask.file_labels.offset is not None:
            mask = _uncropped(mask, self, what)
        expected = f"{self.name} has {describe(self.grid)}{self._turned}"
        if mask.is_colour or sorted(mask.grid) != sorted(self.grid):
            raise RequestError(f"{what} has {describe(mask.array.shape)} voxels, but {expected}")
        if not (mask.placed and self.placed):
            slice_axis = self.orientation.axes[0]
            columns_and_rows = tuple(np.delete(self.grid, slice_axis))
            if mask.dimensions == 2 and self.slices == 1 and mask.grid[:2] == columns_and_rows:
                return mask.array.reshape(self.grid)
            if mask.grid != self.grid:
                raise RequestError(f"{what} has {describe(mask.grid)} voxels, but {expected}")
            return mask.array
        array = on_places(mask.array, mask.places, self.places, self.grid)
        if array is None:
            raise RequestError(
                f"{what} lies elsewhere than {self.name}: their affines are {_rounded(mask.affine)} and "
                f"{_rounded(self.affine)}; resample it to the image's grid"
            )
        return array

    @property
    def _turned(self) -> str:
        """The end of a sentence about the grid of a picture that is not upright in its file."""
        return (
            ""
            if self.exif_orientation == 1
            else f" (upright: its file states EXIF orientation {self.exif_orientation})"
        )


def _uncropped(mask: MedicalImage, image: MedicalImage, what: str) -> MedicalImage:
    """A `.seg.nrrd`, whose voxels may be a part of the image that was segmented, on the grid of that image.

    A file without a place says itself where its first voxel is. RequestError, which calls it `what`, for labelled
    voxels outside of the image.
    """
    array, affine, offset = mask.array, mask.affine, mask.file_labels.offset if mask.file_labels else None
    if mask.placed and image.placed:
        if on_places(array, mask.places, image.places, image.grid) is not None:
            return mask
        array, affine = reordered(array, affine, image.affine_in_itk)
        offset = offset_between(affine, image.affine_in_itk)
    if offset is None or (array.shape == image.grid and not any(offset)):
        return mask
    whole = pasted(array, offset, image.grid)
    if whole is None:
        raise RequestError(f"{what} holds labelled voxels outside of {image.name} of {describe(image.grid)} voxels")
    return replace(mask, array=whole, affine=moved(affine, offset))


def planes_of(grid: tuple[int, int, int]) -> SliceOrientation:
    """The orientation of the planes k of a grid as they are stored: rows are j, columns i."""
    return SliceOrientation((2, 1, 0), (False, False, False), grid, (1.0, 1.0, 1.0), "as stored")


def _rounded(affine: NDArray[np.float64]) -> list[list[float]]:
    return [[round(float(value), 3) for value in row] for row in affine[:3]]


def describe(shape: tuple[int, ...]) -> str:
    """A shape for messages, like 256 x 256 x 23."""
    return " x ".join(str(side) for side in shape)
