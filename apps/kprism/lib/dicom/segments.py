# SPDX-License-Identifier: Apache-2.0
"""The code of a structure in DICOM SEG and its colour in the viewer, from its name alone."""

from __future__ import annotations

import colorsys
import hashlib

from pydicom.sr.coding import Code

from lib.dicom.text import label

ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
PRIVATE = "99KPRISM"
"""Coding scheme of names without a code; designators that begin with 99 are for private use (PS3.16, clause 8.2)."""

CODES = {
    "liver": "10200004",
    "spleen": "78961009",
    "kidney": "64033007",
    "left kidney": "18639004",
    "right kidney": "9846003",
    "pancreas": "15776009",
    "stomach": "69695003",
    "lung": "39607008",
    "lungs": "74101002",
    "heart": "80891009",
    "left ventricle": "87878005",
    "right ventricle": "53085002",
    "myocardium": "74281007",
    "aorta": "15825003",
    "brain": "12738006",
    "breast": "76752008",
    "vertebra": "51282000",
    "rib": "113197003",
    "bowel": "113276009",
    "prostate": "41216001",
    "bladder": "89837001",
    "gallbladder": "28231008",
    "esophagus": "32849002",
    "hippocampus": "5366008",
    "nucleus": "84640000",
}
"""SNOMED CT codes of anatomical structures (PS3.16, annex D)."""

FINDINGS = {
    "tumour": "108369006",
    "tumor": "108369006",
    "polyp": "41329004",
    "lesion": "52988006",
    "nodule": "27925004",
    "cyst": "367643001",
}
"""SNOMED CT codes of abnormal structures; the last word of a name decides, as in "brain tumour"."""


def codes_of(name: str) -> tuple[Code, Code]:
    """(category, type) of a structure; a name without a SNOMED code gets a private code with the name as meaning."""
    plain = " ".join(name.lower().split())
    finding = FINDINGS.get(plain.rsplit(" ", 1)[-1])
    if finding is not None:
        return ABNORMAL, Code(finding, "SCT", label(name))
    if plain in CODES:
        return ANATOMY, Code(CODES[plain], "SCT", label(name))
    return ANATOMY, Code(hashlib.blake2b(plain.encode(), digest_size=8).hexdigest(), PRIVATE, label(name))


def colour_of(name: str) -> tuple[int, int, int]:
    """Red, green, blue (0 to 255) of a structure: always the same for a name, and different for most other names."""
    digest = hashlib.blake2b(" ".join(name.lower().split()).encode(), digest_size=4).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + digest[2] / 637.5, 0.8 + digest[3] / 1275)
    return round(red * 255), round(green * 255), round(blue * 255)


def cielab(colour: tuple[int, int, int]) -> list[int]:
    """A colour as DICOM's RecommendedDisplayCIELabValue: CIELab (D50) scaled to 16 bits (PS3.3, C.10.7.1.1)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    # sRGB to XYZ of the D50 white, and divided by that white
    rows = ((0.4360747, 0.3850649, 0.1430804), (0.2225045, 0.7168786, 0.0606169), (0.0139322, 0.0971045, 0.7141733))
    white = (0.96422, 1.0, 0.82521)
    xyz = [sum(a * b for a, b in zip(row, linear, strict=True)) / w for row, w in zip(rows, white, strict=True)]
    fx, fy, fz = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in xyz)
    lab = (116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz))
    scaled = (lab[0] * 65535 / 100, (lab[1] + 128) * 65535 / 255, (lab[2] + 128) * 65535 / 255)
    return [min(65535, max(0, round(value))) for value in scaled]
