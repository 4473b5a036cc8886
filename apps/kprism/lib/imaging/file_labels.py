# SPDX-License-Identifier: Apache-2.0
"""What a label file says about its values, beside its voxels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FileLabels:
    """The values of a label file that was read with 8 bits a voxel.

    `values`: the file's own value of the voxels that are read as 1, 2, ..., as those above 255 have to be; empty if
    values are read as they are. `names`: its own value -> name, for a file that names its segments (`.seg.nrrd`), else
    None. `layered`: it holds several layers, whose segments are numbered 1, 2, ... here. `offset`: where the file's
    first voxel is in the whole image, for a file that may be cropped. `warnings`: sentences about what was lost.
    """

    values: tuple[int, ...] = ()
    names: Mapping[int, str] | None = None
    layered: bool = False
    offset: tuple[int, int, int] | None = None
    warnings: tuple[str, ...] = ()

    def in_file(self, voxels: Iterable[int]) -> list[int]:
        """The file's own values of voxels, ascending."""
        return sorted(self.values[value - 1] if self.values else value for value in voxels)

    def as_read(self, names: Mapping[int, str]) -> dict[int, str]:
        """Value of the voxels -> name, from the names of the file's own values."""
        if not self.values:
            return dict(names)
        return {voxel: names[value] for voxel, value in enumerate(self.values, 1) if value in names}
