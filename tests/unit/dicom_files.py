# SPDX-License-Identifier: Apache-2.0
"""Small DICOM series of every kind, made for tests."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from lib.dicom.series import Series, describe_series
from lib.dicom.series_writer import dicom_series
from lib.imaging.medical_image import MedicalImage

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.array([[0.9, -0.1, 0.3, 5], [0.15, 0.88, -0.5, -7], [-0.24, 0.4, 2.4, 11], [0, 0, 0, 1]])


def image_of(array: np.ndarray, affine: np.ndarray | None = None) -> MedicalImage:
    """An image (i, j, k[, 3]) as if it had been read from a file."""
    affine = LPS_TO_RAS if affine is None else affine
    dimensions = 3 if array.shape[2] > 1 else 2
    return MedicalImage("case", array, affine, dimensions, ".nii.gz", f"{array.sum()}-{array.shape}")


def orthogonal(affine: np.ndarray) -> np.ndarray:
    """The affine with its axes at right angles."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = left @ right * spacing
    return result


def volume(modality: str = "CT", shape: tuple[int, int, int] = (12, 10, 6), name: str = "case") -> list[Dataset]:
    """An oblique volume of numbered voxels, as single-frame instances; another name makes another patient."""
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return list(dicom_series(image_of(array, orthogonal(OBLIQUE)), name, modality))


def picture(
    modality: str, colour: bool = False, shape: tuple[int, int] = (13, 9), name: str = "picture"
) -> list[Dataset]:
    """One picture without a place in the patient; `shape` is (columns, rows)."""
    array = np.random.default_rng(3).integers(0, 255, (*shape, 1, 3) if colour else (*shape, 1)).astype(np.uint8)
    return list(dicom_series(image_of(array), name, modality))


def several_pictures(
    modality: str, count: int = 3, shape: tuple[int, int] = (13, 9), name: str = "picture"
) -> list[Dataset]:
    """Pictures in one series that have nothing to do with each other in space."""
    pictures = [picture(modality, shape=shape, name=name)[0] for _ in range(count)]
    for number, instance in enumerate(pictures, 1):
        instance.InstanceNumber = number
        instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return pictures


def enhanced(shape: tuple[int, int, int] = (12, 10, 6), name: str = "case") -> list[Dataset]:
    """The volume as one multi-frame instance (Enhanced MR), frames in falling order of place."""
    planes = volume("MR", shape, name)[::-1]
    whole = Dataset()
    whole.update(planes[0])
    whole.file_meta, whole.preamble = planes[0].file_meta, planes[0].preamble
    whole.is_little_endian, whole.is_implicit_VR = True, False
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    whole.NumberOfFrames = len(planes)
    measures, turn = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = planes[0].PixelSpacing, planes[0].SliceThickness
    turn.ImageOrientationPatient = planes[0].ImageOrientationPatient
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([turn])
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for plane in planes:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = plane.ImagePositionPatient
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    whole.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation"):
        delattr(whole, name)
    whole.PixelData = b"".join(plane.PixelData for plane in planes)
    return [whole]


def cine(frames: int = 4, shape: tuple[int, int] = (13, 9), name: str = "picture") -> list[Dataset]:
    """A multi-frame ultrasound: frames in time, no place in the patient."""
    [whole] = picture("US", shape=shape, name=name)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    plane = whole.pixel_array
    stack = np.stack([np.roll(plane, number, axis=0) for number in range(frames)])
    whole.NumberOfFrames = frames
    data = stack.tobytes()
    whole.PixelData = data + b"\0" * (len(data) % 2)
    return [whole]


def phases(shape: tuple[int, int, int], attribute: str, values: SequenceOf[Any], name: str = "phases") -> list[Dataset]:
    """A volume several times in one series, in random order; `attribute` says which time an image is of."""
    instances = []
    for phase, value in enumerate(values):
        for place, image in enumerate(copy.deepcopy(volume("MR", shape, name))):
            uid = phase_uid(name, attribute, phase, place)
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
            image.EchoTime, image.InstanceNumber = "1.0", 1
            setattr(image, attribute, value)
            instances.append(image)
    random.Random(0).shuffle(instances)
    return instances


def phase_uid(name: str, attribute: str, phase: int, place: int) -> str:
    """The SOP instance of an image of `phases`."""
    return str(generate_uid(entropy_srcs=[name, attribute, str(phase), str(place)]))


def jpeg_2000(plane: np.ndarray) -> bytes:
    """Lossless JPEG 2000."""
    stream = io.BytesIO()
    Image.fromarray(plane.astype(np.uint16)).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


def jpeg(plane: np.ndarray) -> bytes:
    """JPEG baseline, of eight bits."""
    stream = io.BytesIO()
    Image.fromarray(plane).save(stream, "JPEG", quality=100, subsampling=0)
    return stream.getvalue()


def jpeg_ls(plane: np.ndarray) -> bytes:
    """Lossless JPEG-LS."""
    import pillow_jpls  # noqa: F401 - registers the format

    stream = io.BytesIO()
    Image.fromarray(plane.astype(np.uint16) if plane.dtype.itemsize == 2 else plane).save(stream, "JPEG-LS")
    return stream.getvalue()


def compress(instances: list[Dataset], syntax: str, encode: Callable[[np.ndarray], bytes]) -> list[Dataset]:
    """Compress the pixels, frame by frame."""
    for instance in instances:
        planes = instance.pixel_array.reshape(int(instance.get("NumberOfFrames") or 1), instance.Rows, instance.Columns)
        instance.PixelData = encapsulate([encode(plane) for plane in planes])
        instance["PixelData"].VR = "OB"
        instance.file_meta.TransferSyntaxUID = syntax
        instance["PixelData"].is_undefined_length = True
    return instances


def save(instances: list[Dataset], folder: Path) -> dict[str, Path]:
    """Write instances as files; SOP instance -> file."""
    files = {}
    for instance in instances:
        path = folder / f"{instance.SOPInstanceUID}.dcm"
        instance.save_as(path, write_like_original=False)
        files[str(instance.SOPInstanceUID)] = path
    return files


def series_of(instances: list[Dataset]) -> Series:
    """The series of instances as the app sees it."""
    return describe_series(instances)


def unusual(kind: str) -> list[Dataset]:
    """Images that lack what others have, or have it elsewhere."""
    if kind == "groups of frames":
        [whole] = enhanced()
        shared = whole.SharedFunctionalGroupsSequence[0]
        for group in whole.PerFrameFunctionalGroupsSequence:
            group.update(copy.deepcopy(shared))
        del whole.SharedFunctionalGroupsSequence
        return [whole]
    images = picture("CR") if kind == "one frame" else volume("CT")
    images = images[:1] if kind == "one frame, placed" else images
    for image in images:
        if kind == "no spacing":
            del image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices
        if kind == "lossy":
            image.LossyImageCompression = "01"
        if kind.startswith("one frame"):
            image.NumberOfFrames = 1
        if kind == "several times":
            image.ImagePositionPatient = images[0].ImagePositionPatient
    return images


USUAL: dict[str, Callable[[], list[Dataset]]] = {
    "CT": lambda: volume("CT"),
    "MR": lambda: volume("MR"),
    "MR, multi-frame": enhanced,
    "US": lambda: picture("US"),
    "US, colour": lambda: picture("US", colour=True),
    "US, multi-frame": cine,
    "CR": lambda: picture("CR"),
    "ES": lambda: picture("ES", colour=True),
    "OT": lambda: picture("OT"),
    "CR, several": lambda: several_pictures("CR"),
}
"""Kinds of series, and what makes one."""

KINDS: dict[str, Callable[[], list[Dataset]]] = USUAL | {
    kind: partial(unusual, kind)
    for kind in ("no spacing", "lossy", "one frame", "one frame, placed", "groups of frames", "several times")
}
"""All kinds of series, also those that lack something."""
