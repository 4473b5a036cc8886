# SPDX-License-Identifier: Apache-2.0
"""What a DICOMweb server asks of those who ask it: a token, a password, a certificate, and what it says without."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import requests
from monailabel.config import settings
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth

from lib.dicom.search_address import plain_search

TIMEOUT_SECONDS = (5, 120)
"""Seconds to connect, and between two parts of an answer."""

TOKEN_FILE, CERTIFICATE, KEY, CA = (
    *("dicomweb_token_file", "dicomweb_client_certificate", "dicomweb_client_key"),
    "dicomweb_ca",
)
"""Settings (`--conf`); each names a file."""

PASSWORD = "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"

_TOKEN = re.compile(r"[\x21-\x7e]+")


class TokenFileError(requests.RequestException):
    """There is no token in its file; the message is a sentence."""


class BearerToken(AuthBase):
    """Sends the token in a file, which is read again when it changes: tokens are valid for an hour or so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._state: tuple[int, ...] = ()
        self._token = ""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the token to a request."""
        request.headers["Authorization"] = f"Bearer {self.token()}"
        return request

    def token(self) -> str:
        """The token as the file has it now; TokenFileError without one."""
        with self._lock:
            try:
                status = self._path.stat()
                state = (status.st_mtime_ns, status.st_size, status.st_ino)
                if state != self._state:
                    self._token, self._state = self._path.read_text(encoding="ascii").strip(), state
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise TokenFileError(f"the bearer token in {self._path} cannot be read: {reason}") from error
            if not _TOKEN.fullmatch(self._token):
                raise TokenFileError(f"{self._path} holds no bearer token; expected one word in it")
            return self._token


class StoreAdapter(HTTPAdapter):
    """Adds `TIMEOUT_SECONDS` to each request, which would hang with the server, and the authority `ca` to believe.

    requests would prefer the authorities of REQUESTS_CA_BUNDLE. Searches are sent as `plain_search`.
    """

    def __init__(self, ca: Path | None) -> None:
        self._ca = ca
        super().__init__()

    def send(self, request: requests.PreparedRequest, *arguments: Any, **named: Any) -> requests.Response:
        """Send a request."""
        named["timeout"] = named.get("timeout") or TIMEOUT_SECONDS
        request.url = plain_search(str(request.url))
        if self._ca is not None:
            named["verify"] = str(self._ca)
        return super().send(request, *arguments, **named)


@dataclass(frozen=True)
class StoreAccess:
    """How a server is asked. No part of it is a secret itself, so it may be printed."""

    token_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @classmethod
    def parse(cls, conf: Mapping[str, str]) -> StoreAccess:
        """From settings of the app; ValueError for files that cannot be used."""
        access = cls(*(_file(conf, key) for key in (TOKEN_FILE, CERTIFICATE, KEY, CA)))
        if access.token_file is not None and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
            raise ValueError(f"--conf {TOKEN_FILE}: a server takes a token or a password; unset {PASSWORD}")
        if access.key is not None and access.certificate is None:
            raise ValueError(f"--conf {KEY}: expected --conf {CERTIFICATE} FILE beside it")
        access._check()
        return access

    def _check(self) -> None:
        context = ssl.create_default_context()
        if self.certificate is not None:
            named = f"--conf {CERTIFICATE} {self.certificate}"
            try:
                context.load_cert_chain(self.certificate, self.key, password=lambda: "")
            except (OSError, ValueError) as error:  # of OpenSSL; it would ask for the password of an encrypted key
                raise ValueError(
                    f"{named}: expected a certificate in PEM form and its key, not encrypted, there or in the file "
                    f"of --conf {KEY} ({error})"
                ) from error
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except (OSError, ValueError) as error:
                raise ValueError(f"--conf {CA} {self.ca}: expected certificates in PEM form ({error})") from error

    def session(self) -> requests.Session:
        """A session for requests to the server."""
        session = requests.Session()
        name, word = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        if self.token_file is not None:
            session.auth = BearerToken(self.token_file)
        elif name and word:
            session.auth = HTTPBasicAuth(name.encode(), word.encode())
        if self.certificate is not None:
            session.cert = (str(self.certificate), str(self.key)) if self.key else str(self.certificate)
        for scheme in ("http://", "https://"):
            session.mount(scheme, StoreAdapter(self.ca))
        return session


def _file(conf: Mapping[str, str], key: str) -> Path | None:
    """The absolute path of a setting's file; None where it is not set."""
    text = conf.get(key, "")
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError(f"--conf {key} {text}: there is no such file")
    return path.absolute()  # a link stays one: it may point to a new file when the secret is renewed


ANY = "a token, a password or a certificate"
WANTS_TOKEN = f"asks for a bearer token (--conf {TOKEN_FILE} FILE)"
WANTS_PASSWORD = f"asks for a user and a password ({PASSWORD})"
WANTS_CERTIFICATE = f"asks for a client certificate (--conf {CERTIFICATE} FILE, --conf {KEY} FILE)"
REFUSES_CERTIFICATE = f"does not accept our client certificate (--conf {CERTIFICATE})"
UNKNOWN_AUTHORITY = (
    f"has a certificate of an authority that is not known here; --conf {CA} FILE names the authority's own"
)

_TLS_ERRORS = (
    (("Hostname mismatch", "IP address mismatch", "doesn't match"), "has a certificate for another name"),
    (("certificate has expired",), "has a certificate that has expired"),
    (("certificate is not yet valid",), "has a certificate that is not valid yet; are the clocks right?"),
    (("CERTIFICATE_VERIFY_FAILED",), UNKNOWN_AUTHORITY),
    (("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE"), WANTS_CERTIFICATE),
    (("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED"), REFUSES_CERTIFICATE),
    (("EOF occurred",), f"ends the connection; perhaps it {WANTS_CERTIFICATE}"),
    (
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"),
        "does not speak TLS there; does its address begin with http://?",
    ),
)
"""(words in an error, what the server does)."""


def tls_refusal(error: requests.RequestException) -> str | None:
    """What is wrong between a server and us where no answer came because of that; None for other reasons."""
    if isinstance(error, TokenFileError):
        return None
    text = str(error)
    for words, sentence in _TLS_ERRORS:
        if any(word.lower() in text.lower() for word in words):
            return sentence
    return f"cannot be spoken to by TLS ({text[-200:]})" if isinstance(error, requests.exceptions.SSLError) else None


def refusal(answer: requests.Response) -> str | None:
    """What a server asks for that answers without doing what it was asked; None where it is not about us."""
    if answer.status_code in (400, 495, 496):
        return _certificate_refusal(answer)
    if answer.status_code not in (401, 403, 407):
        return None
    sent = str(answer.request.headers.get("Authorization") or "").partition(" ")[0].lower()
    what = {"bearer": f"the bearer token (--conf {TOKEN_FILE})", "basic": f"the user and password ({PASSWORD})"}
    if answer.status_code == 403:
        return f"forbids this to {what[sent]}" if sent in what else f"forbids this; it may want {ANY}"
    if sent in what:
        return f"does not accept {what[sent]}"
    wanted = answer.headers.get("WWW-Authenticate", "").lower()
    if "bearer" in wanted:
        return WANTS_TOKEN
    return WANTS_PASSWORD if "basic" in wanted else f"{WANTS_TOKEN} or {WANTS_PASSWORD.removeprefix('asks for ')}"


def _certificate_refusal(answer: requests.Response) -> str | None:
    """What nginx says about certificates, by a status of its own or with 400."""
    text = answer.text[:2000]
    if answer.status_code == 496 or "No required SSL certificate" in text:
        return WANTS_CERTIFICATE
    if answer.status_code == 495 or "SSL certificate error" in text:
        return REFUSES_CERTIFICATE
    return "speaks TLS; its address begins with https://" if "plain HTTP request was sent to HTTPS" in text else None
