# SPDX-License-Identifier: Apache-2.0
"""Where a NIfTI header puts its voxels: its two affines, their unit, and which of them ITK (3D Slicer) reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from lib.imaging.places import Affine

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Code of the unit of space (metre, millimetre, micron) -> millimetres; headers without a unit mean millimetres."""

SCANNER = 1
"""Code of an affine in the scanner's coordinates."""

MAX_SHEAR = 1e-4
"""ITK takes an sform for sheared if its directions differ by more from those at right angles."""


class NiftiPlaces(NamedTuple):
    """Affines in millimetres (RAS+) that a header states, the sform first, and the one that ITK reads.

    `stated` is empty if neither sform nor qform has a code; `itk` is None if ITK cannot read the header.
    """

    stated: tuple[Affine, ...]
    itk: Affine | None


def nifti_places(header: Nifti1Header) -> NiftiPlaces:
    """The places of a header. They are stated in its unit too: many tools read all numbers as millimetres.

    What has two axes lies in the plane z = 0 too: readers of pictures know no other.
    """
    unit = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    forms = [form for form in (_sform(header), _qform(header)) if form is not None]
    itk = _as_itk(header)
    if header["dim"][0] == 2:
        forms += [_in_plane(form) for form in forms]
        itk = forms[-1] if itk is None and forms else itk
    stated = [_scaled(form, unit) for form in forms] + ([] if unit == 1 else forms)
    return NiftiPlaces(tuple(stated), None if itk is None else _scaled(itk, unit))


def _scaled(form: Affine, unit: float) -> Affine:
    return np.vstack([form[:3] * unit, form[3:]])


def _in_plane(form: Affine) -> Affine:
    """The affine of a picture without what leads out of the plane z = 0."""
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3] = form[:2, :2], form[:2, 3]
    return affine


def _sform(header: Nifti1Header) -> Affine | None:
    return np.asarray(header.get_sform(), np.float64) if header["sform_code"] > 0 else None


def _qform(header: Nifti1Header) -> Affine | None:
    """The affine of the quaternion; None without a code, or if nibabel finds it damaged."""
    try:
        return np.asarray(header.get_qform(), np.float64) if header["qform_code"] > 0 else None
    except (HeaderDataError, ValueError):
        return None


def _as_itk(header: Nifti1Header) -> Affine | None:
    """The affine that ITK 5.3 and later read, in the header's unit.

    Of two forms it is the sform if that has right angles and is the scanner's or equal to the qform, else the qform.
    Distances always come from `pixdim`. An image of two axes lies in the plane z = 0.
    """
    dimensions = int(header["dim"][0])
    sform, qform = _sform(header), _qform(header)
    spacing = np.array(header["pixdim"][1:4], np.float64)
    spacing[dimensions:] = 1
    spacing[~np.isfinite(spacing) | (spacing == 0)] = 1
    if not (spacing > 0).all():
        return None
    if sform is not None and not _has_right_angles(sform):
        sform = None
    if sform is not None and qform is not None and header["sform_code"] != SCANNER:
        sform = sform if np.allclose(sform, qform, atol=1e-4) else None
    form = qform if sform is None else sform
    if form is None:
        is_stated = header["sform_code"] > 0 or header["qform_code"] > 0
        return None if is_stated else np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine = np.eye(4)
    axes = min(dimensions, 3)
    lengths = np.linalg.norm(form[:axes, :axes], axis=0)
    if not (np.isfinite(form).all() and lengths.all()):
        return None
    affine[:axes, :axes] = form[:axes, :axes] / lengths * spacing[:axes]
    affine[:axes, 3] = form[:axes, 3]
    return affine


def _has_right_angles(form: Affine) -> bool:
    directions, lengths = form[:3, :3], np.linalg.norm(form[:3, :3], axis=0)
    if not (np.isfinite(form).all() and lengths.all()):
        return False
    directions = directions / lengths
    return bool(np.abs(directions @ directions.T - np.eye(3)).max() <= MAX_SHEAR)
