# SPDX-License-Identifier: Apache-2.0
"""Segmentations as other tools make them: OHIF, 3D Slicer (dcmqi), and highdicom with frames cut to a rectangle.

Each takes the images and `drawn`, structure -> {(SOP instance, frame): mask (row, column)}.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import SimpleITK
from highdicom.content import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.e2e.store.planes import places
from tests.unit import dicom_files

Drawn = Mapping[str, Mapping[tuple[str, int], np.ndarray]]

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
ORGAN = {"CodeValue": "123037004", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}


def _item(**values: object) -> Sequence:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return Sequence([item])


def by_ohif(images: list[Dataset], drawn: Drawn) -> Dataset:
    """As dcmjs writes it: only the images that hold something, image after image, times in UTC."""
    image = images[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SEGMENTATION, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    seg = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    seg.is_little_endian, seg.is_implicit_VR = True, False
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "Rows", "Columns", "FrameOfReferenceUID"):
        if name in image:
            seg[name] = image[name]
    seg.SpecificCharacterSet = "ISO_IR 192"
    seg.SOPClassUID, seg.SOPInstanceUID = SEGMENTATION, meta.MediaStorageSOPInstanceUID
    seg.SeriesInstanceUID, seg.Modality, seg.SeriesDescription = generate_uid(), "SEG", "Research Derived series"
    now = datetime.now(UTC)
    seg.ContentDate, seg.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    seg.SegmentationType, seg.BitsAllocated, seg.BitsStored, seg.HighBit = "BINARY", 1, 1, 0
    seg.SamplesPerPixel, seg.PixelRepresentation, seg.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    named = {str(item.SOPInstanceUID): item for item in images}
    references = [
        _item(ReferencedSOPClassUID=item.SOPClassUID, ReferencedSOPInstanceUID=uid)[0] for uid, item in named.items()
    ]
    seg.ReferencedSeriesSequence = _item(
        SeriesInstanceUID=image.SeriesInstanceUID, ReferencedInstanceSequence=Sequence(references)
    )
    seg.SegmentSequence = Sequence(
        _item(SegmentNumber=number, SegmentLabel=name, SegmentAlgorithmType="MANUAL")[0]
        for number, name in enumerate(drawn, 1)
    )
    shared = Dataset()
    if "PixelSpacing" in image:
        shared.PixelMeasuresSequence = _item(PixelSpacing=image.PixelSpacing, SliceThickness=image.SliceThickness)
        shared.PlaneOrientationSequence = _item(ImageOrientationPatient=image.ImageOrientationPatient)
    seg.SharedFunctionalGroupsSequence = Sequence([shared])
    groups, planes = [], []
    for uid, frame, position in places(images):
        for number, masks in enumerate(drawn.values(), 1):
            if (uid, frame) in masks:
                groups.append(_ohif_frame(named[uid], frame, number, position))
                planes.append(masks[uid, frame])
    seg.PerFrameFunctionalGroupsSequence = Sequence(groups)
    seg.NumberOfFrames = len(planes)
    bits = np.packbits(np.stack(planes).ravel(), bitorder="little").tobytes()
    seg.PixelData = bits + b"\0" * (len(bits) % 2)
    seg["PixelData"].VR = "OB"
    return seg


def _ohif_frame(image: Dataset, frame: int, segment: int, position: object) -> Dataset:
    group = Dataset()
    source = {"ReferencedSOPClassUID": image.SOPClassUID, "ReferencedSOPInstanceUID": image.SOPInstanceUID}
    if image.get("NumberOfFrames"):
        source["ReferencedFrameNumber"] = frame
    group.DerivationImageSequence = _item(SourceImageSequence=_item(**source))
    group.SegmentIdentificationSequence = _item(ReferencedSegmentNumber=segment)
    if position is not None:
        group.PlanePositionSequence = _item(ImagePositionPatient=position)
    return group


def by_slicer(images: list[Dataset], drawn: Drawn, folder: Path) -> Dataset:
    """As 3D Slicer's exporter writes it: by dcmqi, from a label map cut to the slices that hold something."""
    order = [(uid, frame) for uid, frame, _ in places(images)]
    rows = [row for row, key in enumerate(order) if any(key in masks for masks in drawn.values())]
    cut = order[rows[0] : rows[-1] + 1]
    labels = np.zeros((len(cut), images[0].Rows, images[0].Columns), np.uint8)
    for number, masks in enumerate(drawn.values(), 1):
        for key, mask in masks.items():
            labels[cut.index(key)][mask] = number
    by_uid = {str(image.SOPInstanceUID): image for image in images}
    first, last = by_uid[cut[0][0]], by_uid[cut[-1][0]]
    turn = np.array(first.ImageOrientationPatient, float)
    step = np.array(last.ImagePositionPatient, float) - np.array(first.ImagePositionPatient, float)
    normal = step / np.linalg.norm(step)
    volume = SimpleITK.GetImageFromArray(labels)
    volume.SetOrigin([float(x) for x in first.ImagePositionPatient])
    volume.SetDirection(np.stack([turn[:3], turn[3:], normal], axis=1).ravel().tolist())
    row, column = (float(x) for x in first.PixelSpacing)
    volume.SetSpacing([column, row, float(np.linalg.norm(step)) / (len(cut) - 1)])
    SimpleITK.WriteImage(volume, str(folder / "labels.nrrd"))
    (folder / "meta.json").write_text(json.dumps(_dcmqi_description(list(drawn))))
    source = folder / "source"
    source.mkdir()
    dicom_files.save(images, source)
    program = Path(sys.executable).with_name("itkimage2segimage")
    command = [program, "--inputImageList", folder / "labels.nrrd", "--inputDICOMDirectory", source]
    command += ["--outputDICOM", folder / "seg.dcm", "--inputMetadata", folder / "meta.json", "--skip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return dcmread(folder / "seg.dcm")


def _dcmqi_description(names: list[str]) -> dict[str, object]:
    segments = [
        {
            "labelID": number,
            "SegmentLabel": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": ORGAN,
            "SegmentedPropertyTypeCodeSequence": {**ORGAN, "CodeValue": "85756007", "CodeMeaning": "Tissue"},
            "recommendedDisplayRGBValue": [10 * number, 200, 90],
        }
        for number, name in enumerate(names, 1)
    ]
    return {
        "ContentCreatorName": "Reader1",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "BodyPartExamined": "",
        "segmentAttributes": [segments],
    }


def by_highdicom(images: list[Dataset], drawn: Drawn) -> Dataset:
    """Frames cut to the rectangle that holds something; structures may overlap."""
    order = [(uid, frame) for uid, frame, _ in places(images)]
    marked = np.any([mask for masks in drawn.values() for mask in masks.values()], axis=0)
    rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    blank = np.zeros(marked.shape, bool)
    pixels = np.stack([[masks.get(key, blank)[box] for masks in drawn.values()] for key in order])
    turn = np.array(images[0].ImageOrientationPatient, float)
    row, column = (float(x) for x in images[0].PixelSpacing)
    shift = turn[:3] * column * columns[0] + turn[3:] * row * rows[0]
    positions = [np.array(image.ImagePositionPatient, float) + shift for image in images]
    organ = Code("123037004", "SCT", "Anatomical Structure")
    segmentation = Segmentation(
        images,
        pixels.transpose(0, 2, 3, 1),
        "BINARY",
        [SegmentDescription(n, name, organ, organ, "MANUAL") for n, name in enumerate(drawn, 1)],
        generate_uid(),
        2,
        generate_uid(),
        1,
        "another tool",
        "tool",
        "2",
        "1",
        pixel_measures=PixelMeasuresSequence((row, column), float(images[0].SliceThickness)),
        plane_orientation=PlaneOrientationSequence("PATIENT", turn),
        plane_positions=[PlanePositionSequence("PATIENT", position) for position in positions],
    )
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    return segmentation
