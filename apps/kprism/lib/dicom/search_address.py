# SPDX-License-Identifier: Apache-2.0
"""The address of a DICOMweb search (QIDO-RS) as every server understands it."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlsplit

SEARCHED = ("studies", "series", "instances")
"""Last parts of the paths of searches."""


def plain_search(address: str) -> str:
    """The address of a search with as little encoded as possible: Orthanc's DICOMweb 1.7 decodes no query.

    A space or ^ becomes DICOM's wildcard for one character, so "Miller Anna" also finds MILLER^ANNA. Other addresses
    stay as they are.
    """
    parts = urlsplit(address)
    if not parts.query or parts.path.rstrip("/").rpartition("/")[2] not in SEARCHED:
        return address
    items = parse_qsl(parts.query, keep_blank_values=True)
    return parts._replace(query="&".join(f"{_plain(key)}={_plain(value)}" for key, value in items)).geturl()


def _plain(text: str) -> str:
    return quote(text.replace(" ", "?").replace("^", "?"), safe="!$'()*,;:@/?")
