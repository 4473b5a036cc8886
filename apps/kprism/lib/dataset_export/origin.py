# SPDX-License-Identifier: Apache-2.0
"""Where the label of an exported case comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BY_ID, BY_PATTERN, BY_CASE = "PatientID", "pattern", "case"
"""How the patient of a case is known."""

SUBMITTED, FOUND = "submitted to the server", "found in the datastore"


@dataclass(frozen=True)
class Origin:
    """Where the label of a case comes from.

    `at`: when it was submitted, in ISO 8601, empty if that is not known; `by`: by whom. `way` says how it came here.
    `first_mask`: what is known of the mask that the annotator corrected. `warnings`: what of the submitted file is not
    in the label. `patient_by` says how the patient is known.
    """

    at: str
    by: str
    way: str
    first_mask: Mapping[str, Any] | None
    warnings: tuple[str, ...]
    patient_by: str
    is_dicom: bool
