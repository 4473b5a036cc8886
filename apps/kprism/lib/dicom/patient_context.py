# SPDX-License-Identifier: Apache-2.0
"""What an object that is made from a series says of its patient and study: the same as the images, in UTF-8."""

from __future__ import annotations

from copy import deepcopy

from pydicom.dataset import Dataset

from lib.dicom.text import to_utf_8

TYPE_2 = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that must be there and may be empty; some scanners and exporters omit them."""

OPTIONAL = (
    *("SpecificCharacterSet", "StudyInstanceUID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight"),
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID"),
)


def patient_context(image: Dataset) -> Dataset:
    """A new data set with the patient and study of an image."""
    context = Dataset({image[name].tag: deepcopy(image[name]) for name in (*TYPE_2, *OPTIONAL) if name in image})
    for name in TYPE_2:
        if name not in context:
            setattr(context, name, "")
    to_utf_8(context)
    return context
