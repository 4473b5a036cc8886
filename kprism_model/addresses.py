# SPDX-License-Identifier: Apache-2.0
"""Addresses that people give to the server and its commands: what they must look like, and how they are printed."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

ANY_ORIGIN = "*"

OWN_ADDRESSES = frozenset(
    {
        *("activelearning", "batch", "datastore", "docs", "favicon.ico", "infer", "info", "kprism", "logs", "model"),
        *("ohif", "openapi.json", "proxy", "reload", "scoring", "session", "static", "train", "viewer"),
    }
)
"""First parts of the server's own addresses."""

OWN_FOLDERS = frozenset({"api", "dicom-web", "viewer"})
"""The folders below /kprism."""

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def check_root_path(text: str) -> str:
    """A path such as /monai without a slash at its end, "" for none; ValueError for anything else."""
    path = text.rstrip("/")
    if path and not path.startswith("/"):
        path = f"/{path}"
    if path and (not _ROOT_PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        raise ValueError(f"root path {text!r}: expected a path such as /monai")
    if _is_own(path):
        raise ValueError(
            f"root path {text!r} is an address of the server itself; choose another, such as /monai. A proxy that "
            "takes its path away before it asks the server needs no root path"
        )
    return path


def _is_own(path: str) -> bool:
    """Whether the server has an address there itself, or below it: it could not tell the two apart."""
    first, *rest = path[1:].split("/")
    return first in OWN_ADDRESSES and (first != "kprism" or not rest or rest[0] in OWN_FOLDERS)


def check_origins(text: str) -> tuple[str, ...]:
    """Origins such as https://ohif.example.org, with commas or blanks between them, or * alone; ValueError for others.

    An origin is a scheme and a host, and a port unless it is the scheme's own; browsers send it in this form.
    """
    words = text.replace(",", " ").split()
    if ANY_ORIGIN in words and len(words) > 1:
        raise ValueError(f"origins {text!r}: * allows all pages, so no other origin can be named beside it")
    return tuple(word if word == ANY_ORIGIN else _origin(word) for word in words)


def _origin(word: str) -> str:
    origin = word.lower().removesuffix("/")
    found = _ORIGIN.fullmatch(origin)
    if found is None or int((found[2] or ":1")[1:]) not in range(1, 65536):
        raise ValueError(f"origin {word!r}: expected a scheme and a host, such as https://ohif.example.org, or *")
    scheme, host = origin.partition(":")[0], found[1]
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError as error:
            raise ValueError(f"origin {word!r}: {error}; expected an address such as http://[::1]:3000") from error
    port = f":{int(found[2][1:])}" if found[2] else ""
    return f"{scheme}://{host}{'' if port == _DEFAULT_PORTS[scheme] else port}"


def is_url(text: str) -> bool:
    """Whether a text is meant as an address rather than a folder."""
    return re.match(r"https?:", text, re.IGNORECASE) is not None


def check_store(text: str) -> str:
    """The address of a DICOMweb server, its scheme in small letters; ValueError for one that cannot be asked.

    One with a password is refused, because it would be seen in logs. "" stands for none.
    """
    scheme, _, rest = text.partition(":")
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and parts.hostname and not re.search(r"\s", text)
        fits = fits and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        fits = False
    if text and not fits:
        raise ValueError(f"address {text!r}: expected one such as http://127.0.0.1:8042/dicom-web")
    if urlsplit(text).password is not None:
        raise ValueError(
            f"the address of {urlsplit(text).hostname} holds a password, which would be seen in logs; expected an "
            "address without it, and the variables MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
        )
    return f"{scheme.lower()}:{rest}" if text else text


def own_address(host: str, port: int) -> str:
    """The address to open on this machine of a server that listens on `host`, which may stand for all addresses."""
    try:
        number = ipaddress.ip_address(host)
    except ValueError:  # a name
        return f"http://{host}:{port}"
    if number.is_unspecified:
        number = ipaddress.ip_address("::1" if number.version == 6 else "127.0.0.1")
    text = str(number).replace("%", "%25")  # the zone of a link-local address
    return f"http://[{text}]:{port}" if number.version == 6 else f"http://{text}:{port}"
