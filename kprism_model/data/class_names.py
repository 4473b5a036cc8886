# SPDX-License-Identifier: Apache-2.0
"""One name for one structure: data sets that mean the same by other words share a class of the network.

The words are those of TotalSegmentator and SNOMED CT where these have one. A name that means different things in
different sets ("vessel") is told apart.
"""

from __future__ import annotations

CLASS_NAMES: dict[str, dict[str, str]] = {
    "density_mammography": {"dense breast tissue": "fibroglandular tissue"},
    "fives_fundus": {"vessel": "retinal vessel"},
    "hrf_retina": {"vessel": "retinal vessel"},
    "ocdc_oral_he": {"tumour": "squamous cell carcinoma"},
    "scd_cardiac_mr": {"left ventricular cavity": "left ventricle"},
    "usgra_us": {"nerve": "peripheral nerve"},
}
"""Name of a data set -> name of a class there -> its name here; classes that are not listed keep theirs."""


def class_name(dataset: str, name: str) -> str:
    """The network's name of a class that `dataset` calls `name`."""
    return CLASS_NAMES.get(dataset, {}).get(name, name)
