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
    if path[1:] in OWN_ADDRESSES:
        raise ValueError(
            f"root path {text!r} is an address of the server itself; choose another, such as /monai. A proxy that "
            "takes its path away before it asks the server needs no root path"
        )
    return path


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
    if not _ORIGIN.fullmatch(origin):
        raise ValueError(f"origin {word!r}: expected a scheme and a host, such as https://ohif.example.org, or *")
    return origin.removesuffix(_DEFAULT_PORTS[origin.partition(":")[0]])


def check_store(text: str) -> str:
    """The address of a DICOMweb server as it is; ValueError if it holds a password, which would be seen in logs."""
    if urlsplit(text).password is not None:
        raise ValueError(
            f"the address of {urlsplit(text).hostname} holds a password, which would be seen in logs; expected an "
            "address without it, and the variables MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
        )
    return text


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
