# SPDX-License-Identifier: Apache-2.0
"""Text in DICOM objects: read with the character set that an object declares, written as UTF-8 within DICOM's limits.

A label (VR LO) has at most 64 characters, no backslash and no control characters (PS3.5, 6.2). What does not fit is
shortened there, and is whole in a longer attribute beside it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pydicom.charset import python_encoding
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

UTF_8 = "ISO_IR 192"

LABEL_LENGTH = 64
"""Characters, not bytes, of a label (VR LO)."""

TEXT_LENGTH = 1024
"""Characters of a description (VR ST)."""

TEXT_TYPES = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""VRs whose bytes depend on the character set (PS3.5, 6.1.2.2)."""

_NOT_IN_LABELS = re.compile(r"[\\\x00-\x1f\x7f]")


def label(text: str) -> str:
    """A text as a label; a longer one ends with an ellipsis, and what a label cannot hold is a space."""
    plain = _NOT_IN_LABELS.sub(" ", text).strip()
    return plain if len(plain) <= LABEL_LENGTH else plain[: LABEL_LENGTH - 1] + "…"


def identifier(text: str) -> str:
    """A text as a label that differs for different texts, however long they are."""
    short = label(text)
    if short == text:
        return short
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{short[: LABEL_LENGTH - 9].rstrip('…')}~{digest}"


def person_name(text: str) -> str:
    """A text as the one component of a person's name (VR PN)."""
    return identifier(text.replace("=", "-"))


def whole(short: str, description: str) -> str:
    """The text of which `short` is the label: the description if it is that text, else the label itself."""
    description = description.strip()
    return description if description and label(description) == short else short


def declares_set(dataset: Dataset) -> bool:
    """Whether an object says how its text is encoded, in a way that DICOM knows."""
    declared = dataset.get("SpecificCharacterSet") or ()
    terms = [declared] if isinstance(declared, str) else declared
    return any(_plain_term(str(term)) in _TERMS for term in terms)


def _plain_term(term: str) -> str:
    """A defined term as it is compared: "ISO-IR 192" is common too."""
    return re.sub("[-_ ]+", " ", term.strip().upper())


_TERMS = {_plain_term(term) for term in python_encoding} - {"", "ISO IR 6", "ISO 2022 IR 6"}


def read_text(dataset: Dataset, keyword: str, *, declared: bool) -> str:
    """An attribute as text, empty if there is none; if the set is not `declared`, UTF-8 is recognised."""
    value = one_text(dataset.get(keyword))
    return value if declared else _recognised(value)


def one_text(value: Any) -> str:
    """A value as one text: a backslash in a name, which DICOM does not allow, makes several values of it."""
    if value is None or isinstance(value, str | PersonName | int | float):
        return "" if value is None else str(value)
    return "\\".join(map(one_text, value))


def to_utf_8(dataset: Dataset) -> None:
    """Decode all text of an object, with the sets that it declares, and declare UTF-8, in which it is then written.

    Without a set, bytes that are UTF-8 are read so and all others as Latin-1.
    """
    _decode(dataset, declares_set(dataset))
    dataset.SpecificCharacterSet = UTF_8


def _decode(dataset: Dataset, declared: bool) -> None:
    for element in dataset:  # pydicom decodes an element when it is looked at
        if element.VR == "SQ":
            for item in element.value:
                _decode(item, declared or declares_set(item))
                item.pop("SpecificCharacterSet", None)
        elif element.VR in TEXT_TYPES and element.value:
            element.value = _each(element.value, declared)


def _each(value: Any, declared: bool) -> Any:
    if not isinstance(value, str | PersonName):
        return [_each(part, declared) for part in value]
    text = str(value).rstrip("\0")
    return text if declared else _recognised(text)


def _recognised(text: str) -> str:
    """Text that was read as Latin-1, as UTF-8 if its bytes are that."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
