# SPDX-License-Identifier: Apache-2.0
"""What an object that is made from a series says of its patient and study: the same as the images, in UTF-8."""

from __future__ import annotations

from copy import deepcopy

from pydicom.dataset import Dataset

from lib.dicom.seg_writer import REQUIRED_ATTRIBUTES, is_valid
from lib.dicom.text import to_utf_8

OPTIONAL = (
    *("SpecificCharacterSet", "StudyInstanceUID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight"),
    *("IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID"),
)


def patient_context(image: Dataset) -> Dataset:
    """A new data set with the patient and study of an image."""
    context = Dataset(
        {image[name].tag: deepcopy(image[name]) for name in (*REQUIRED_ATTRIBUTES, *OPTIONAL) if name in image}
    )
    to_utf_8(context)
    for name in REQUIRED_ATTRIBUTES:
        if name not in context or not is_valid(name, context[name].value):
            setattr(context, name, "")
    return context
