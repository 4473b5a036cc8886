# SPDX-License-Identifier: Apache-2.0
"""A real Orthanc behind nginx that asks for a token, a password or a certificate, by an authority of its own."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.config import settings
from PIL import Image

import tests.unit.dicom_files as dicom_files
from benchmarks.live_server import LiveServer, free_port
from benchmarks.places import ROOT
from lib.dicom.access import StoreAccess
from lib.dicom.web import DicomWeb, StoreAccessError
from tests.certificates import HERE, Authority, Pair
from tests.e2e.browser import program
from tests.e2e.hosting.conftest import TLS
from tests.e2e.store.planes import Mask
from tests.e2e.viewer.site import wait
from tests.nginx import nginx
from tools.import_folder import main
from tools.orthanc import Orthanc

TOKEN, WORD = "token-7a5.x_y-z", "pass-9c4"

LOCATIONS = {
    "open": "",
    "token": """
        if ($http_authorization != "Bearer TOKEN") {
            add_header WWW-Authenticate 'Bearer realm="pacs"' always;
            return 401;
        }""".replace("TOKEN", TOKEN),
    "password": "auth_basic pacs; auth_basic_user_file FOLDER/passwords;",
    "unnamed": 'if ($http_authorization = "") { return 401; }',
    "forbidden": "return 403;",
    "certificate": "ssl_verify_client on; ssl_client_certificate AUTHORITY;",
}


@dataclass
class Guarded:
    """Addresses of one Orthanc by what is asked for there, the authority of all, and what a client may have."""

    addresses: Mapping[str, str]
    authority: Path
    client: Pair
    stranger: Pair
    orthanc: Orthanc
    series: str


def _server(folder: Path, kind: str, port: int, pair: Pair, authority: Path, store: Orthanc) -> str:
    """A `server` block that asks for what the words of `kind` name."""
    guards = [LOCATIONS[word] for word in kind.split() if word in LOCATIONS]
    text = "\n".join(guards).replace("FOLDER", str(folder)).replace("AUTHORITY", str(authority))
    whole, inside = ("", text) if "certificate" not in kind else (LOCATIONS["certificate"], "")
    if kind == "everything":
        whole, inside = LOCATIONS["certificate"], LOCATIONS["token"]
    whole = whole.replace("AUTHORITY", str(authority))
    forward = f"{whole}\nlocation / {{ {inside}\n proxy_pass http://127.0.0.1:{store.port}; }}"
    return TLS.format(port=port, certificate=pair.certificate, key=pair.key, locations=forward)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The store and all ways to it."""
    program("Orthanc", "orthanc", package="orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("guarded")
    authority, other = Authority(folder / "certificates"), Authority(folder / "others", "others")
    (folder / "passwords").write_text(f"anna:{{PLAIN}}{WORD}\n")
    right = authority.issue("server", HERE)
    pairs = {"expired": authority.issue("expired", HERE, days=-1), "elsewhere": authority.issue("elsewhere", HERE[:1])}
    kinds = [*LOCATIONS, "everything", *pairs]
    ports = {kind: free_port() for kind in kinds}
    with Orthanc(folder / "orthanc", free_port()) as orthanc:
        images = dicom_files.volume("CT", (48, 40, 6), "guarded")
        DicomWeb.at(orthanc.url).store(images)
        servers = [
            _server(folder, kind, ports[kind], pairs.get(kind, right), authority.certificate, orthanc) for kind in kinds
        ]
        plain = free_port()
        servers.append(f"server {{ listen 127.0.0.1:{plain}; location / {{ return 204; }} }}")
        with nginx(folder / "nginx", "\n".join(servers), f"http://127.0.0.1:{plain}/"):
            addresses = {kind: f"https://127.0.0.1:{port}/dicom-web" for kind, port in ports.items()}
            addresses["plain"] = f"https://127.0.0.1:{plain}/dicom-web"
            addresses["no TLS"] = addresses["open"].replace("https:", "http:")
            client, stranger = authority.issue("client"), other.issue("stranger")
            series = str(images[0].SeriesInstanceUID)
            yield Guarded(addresses, authority.certificate, client, stranger, orthanc, series)


def conf_of(guarded: Guarded, folder: Path, *words: str, token: str = TOKEN) -> dict[str, str]:
    """Settings for what the words name."""
    (folder / "token").write_text(f"{token}\n")
    all_settings = {
        "ca": {"dicomweb_ca": str(guarded.authority)},
        "token": {"dicomweb_token_file": str(folder / "token")},
        "certificate": {
            "dicomweb_client_certificate": str(guarded.client.certificate),
            "dicomweb_client_key": str(guarded.client.key),
        },
        "stranger": {
            "dicomweb_client_certificate": str(guarded.stranger.certificate),
            "dicomweb_client_key": str(guarded.stranger.key),
        },
    }
    return {key: value for word in words for key, value in all_settings[word].items()}


@pytest.mark.parametrize(
    ("address", "words"),
    [("open", ["ca"]), ("token", ["ca", "token"]), ("certificate", ["ca", "certificate"])],
)
def test_who_has_what_is_asked_for_is_let_in(
    guarded: Guarded, tmp_path: Path, address: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(guarded.stranger.certificate))  # for others; ours counts
    web = DicomWeb.at(guarded.addresses[address], StoreAccess.parse(conf_of(guarded, tmp_path, *words)))
    assert [entry.series for entry in web.search()] == [guarded.series]


@pytest.mark.parametrize(
    ("address", "words", "sentence"),
    [
        ("open", [], "has a certificate of an authority that is not known here; --conf dicomweb_ca FILE names"),
        ("expired", ["ca"], "has a certificate that has expired"),
        ("elsewhere", ["ca"], "has a certificate for another name"),
        ("plain", ["ca"], "does not speak TLS there; does its address begin with http://?"),
        ("no TLS", [], "speaks TLS; its address begins with https://"),
        ("token", ["ca"], "asks for a bearer token (--conf dicomweb_token_file FILE)"),
        ("password", ["ca"], "asks for a user and a password (MONAI_LABEL_DICOMWEB_USERNAME and"),
        ("password", ["ca", "token"], "does not accept the bearer token (--conf dicomweb_token_file)"),
        ("unnamed", ["ca"], "asks for a bearer token (--conf dicomweb_token_file FILE) or a user and a password"),
        ("forbidden", ["ca"], "forbids this; it may want a token, a password or a certificate"),
        ("forbidden", ["ca", "token"], "forbids this to the bearer token"),
        ("certificate", ["ca"], "asks for a client certificate (--conf dicomweb_client_certificate FILE"),
        ("certificate", ["ca", "stranger"], "does not accept our client certificate"),
    ],
)
def test_who_has_not_is_told_what_helps(
    guarded: Guarded, tmp_path: Path, address: str, words: list[str], sentence: str
) -> None:
    web = DicomWeb.at(guarded.addresses[address], StoreAccess.parse(conf_of(guarded, tmp_path, *words)))
    with pytest.raises(StoreAccessError) as raised:
        web.search()
    assert str(raised.value).startswith(f"the DICOMweb server {guarded.addresses[address]} {sentence}")
    assert TOKEN not in str(raised.value)


def test_a_server_that_ends_tls_without_a_certificate(guarded: Guarded, tmp_path: Path) -> None:
    """As Orthanc and others do, by an alert in place of an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = guarded.authority.parent
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(guarded.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as wrapped:
                with pytest.raises(ssl.SSLError):
                    wrapped.do_handshake()
                while socket.socket.recv(wrapped, 1 << 16):  # closing before would reset the connection
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        address = f"https://127.0.0.1:{listener.getsockname()[1]}/dicom-web"
        web = DicomWeb.at(address, StoreAccess.parse(conf_of(guarded, tmp_path, "ca")))
        with pytest.raises(StoreAccessError, match="asks for a client certificate"):
            web.search()
        thread.join(20)


def test_a_token_is_read_again_when_it_changes(guarded: Guarded, tmp_path: Path) -> None:
    conf = conf_of(guarded, tmp_path, "ca", "token", token="an-old-one")
    web, file = DicomWeb.at(guarded.addresses["token"], StoreAccess.parse(conf)), tmp_path / "token"
    for content, sentence in (
        (None, "does not accept the bearer token"),
        ("", "holds no bearer token; expected one word in it"),
        ("two words", "holds no bearer token; expected one word in it"),
        ("schlüssel", "cannot be read: it is no text"),
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(StoreAccessError, match=sentence):
            web.search()
    file.unlink()
    with pytest.raises(StoreAccessError, match="cannot be read: No such file"):
        web.search()
    (tmp_path / "new").write_text(TOKEN)
    (tmp_path / "new").rename(file)
    assert len(web.search()) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dicomweb_ca": "nowhere.pem"}, "--conf dicomweb_ca nowhere.pem: there is no such file"),
        ({"dicomweb_ca": "TEXT"}, "expected certificates in PEM form"),
        ({"dicomweb_client_certificate": "TEXT"}, "expected a certificate in PEM form and its key"),
        ({"dicomweb_client_key": "TEXT"}, "expected --conf dicomweb_client_certificate FILE beside it"),
        ({"dicomweb_client_certificate": "PEM"}, "expected a certificate in PEM form and its key, not encrypted"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    guarded: Guarded, tmp_path: Path, given: dict[str, str], sentence: str
) -> None:
    (tmp_path / "text").write_text("nothing of that kind")
    files = {"TEXT": str(tmp_path / "text"), "PEM": str(guarded.client.certificate)}
    with pytest.raises(ValueError, match=sentence):
        StoreAccess.parse({key: files.get(value, value) for key, value in given.items()})


class EarlyServer(LiveServer):
    """A server that has started as soon as it answers anything."""

    def _wait(self, deadline: float) -> None:
        while True:
            assert self.process.poll() is None and time.perf_counter() < deadline, self.log()
            try:
                requests.get(f"{self.url}/info/", timeout=60)
                return
            except requests.ConnectionError:
                time.sleep(0.1)


def ask(server: LiveServer, series: str) -> dict[str, Any]:
    """Address -> answer, of all that the store is asked for."""
    paths = ("/info/", "/kprism/api/status", f"/kprism/api/case/{series}", "/kprism/dicom-web/studies")
    return {path: requests.get(f"{server.url}{path}", timeout=60) for path in (*paths, "/proxy/dicom/qido/studies")}


def test_a_server_on_such_a_store(guarded: Guarded, tmp_path: Path) -> None:
    """With a token that is wrong at first and another time later; no secret is seen anywhere."""
    conf = conf_of(guarded, tmp_path, "ca", "token", "certificate", token="not-yet-valid-1")
    conf |= {"state": str(tmp_path / "state"), "train_after": "0"}
    environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache")}
    series, said = guarded.series, []
    with EarlyServer(guarded.addresses["everything"], conf=conf, environment=environment) as server:
        for path, answer in ask(server, series).items():
            assert answer.status_code == 502, path
            assert "does not accept the bearer token (--conf dicomweb_token_file)" in answer.json()["detail"], path
            said.append(answer.text)
        (tmp_path / "token").write_text(TOKEN)
        wait(lambda: all(answer.ok for answer in ask(server, series).values()), "answer with the new token")
        said += [answer.text for answer in ask(server, series).values()]
        answer = server.infer("interactive", series, {"liver": [[20, 20, 2]], "result_extension": ".nrrd"})
        mask = Mask.read(answer.content)
        mask.voxels[5:9, 4:7, 1:3] = 1
        params = {"label_info": [{"name": "liver", "idx": 1}]}
        sent = requests.put(
            f"{server.url}/datastore/label",
            params={"image": series, "tag": "final"},
            data={"params": json.dumps(params)},
            files={"label": ("label.nrrd", mask.file((mask.voxels > 0).astype(np.uint8)))},
            timeout=120,
        )
        assert sent.status_code == 200, sent.text
        [stored] = DicomWeb.at(guarded.orthanc.url).search(Modality="SEG")
        assert stored.patient == "guarded"
        (tmp_path / "token").write_text("not-valid-2-any-more")
        refused = requests.get(f"{server.url}/kprism/dicom-web/studies", timeout=60)
        assert refused.status_code == 502 and "does not accept the bearer token" in refused.json()["detail"]
        said.append(server.log())
    for secret in ("not-yet-valid-1", TOKEN, "not-valid-2-any-more"):
        assert all(secret not in text for text in said)


def test_import_into_such_a_store(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "fine.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)

    def importing(address: str, *words: str, **user: str) -> tuple[int, str]:
        """(status, what it wrote)."""
        for name in ("USERNAME", "PASSWORD"):
            monkeypatch.setattr(settings, f"MONAI_LABEL_DICOMWEB_{name}", user.get(name, ""))
        conf = [word for pair in conf_of(guarded, tmp_path, *words).items() for word in ("--conf", *pair)]
        status = main([str(picture), "--to", address, *conf])
        written = capsys.readouterr()
        return status, written.out + written.err

    status, text = importing(guarded.addresses["password"], "ca", USERNAME="anna", PASSWORD=WORD)
    assert status == 0 and "Imported 1 of 1 images" in text
    status, text = importing(guarded.addresses["password"], "ca", USERNAME="anna", PASSWORD="wrong-3")
    assert status == 1 and "does not accept the user and password" in text and "wrong-3" not in text
    status, text = importing(guarded.addresses["everything"], "ca", "token", "certificate")
    assert status == 0, text
    status, text = importing(guarded.addresses["everything"], "ca")
    assert status == 1 and "asks for a client certificate" in text
    status, text = importing("http://anna:word-5@127.0.0.1:1/dicom-web")
    assert status == 1 and "holds a password, which would be seen in logs" in text and "word-5" not in text
    assert len({entry.series for entry in DicomWeb.at(guarded.orthanc.url).search(PatientID="fine")}) == 1


def test_the_viewer_on_such_a_store(guarded: Guarded, tmp_path: Path) -> None:
    """`./kprism viewer` says what the store asks for and ends; the password is MONAI Label's own setting."""
    user = {"MONAI_LABEL_DICOMWEB_USERNAME": "anna", "MONAI_LABEL_DICOMWEB_PASSWORD": "wrong-4"}
    words = ["--store", guarded.addresses["password"], "--folder", tmp_path, "--conf", "dicomweb_ca", guarded.authority]
    done = subprocess.run(
        [ROOT / "kprism", "viewer", *words], env={**os.environ, **user}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "does not accept the user and password" in done.stderr and "wrong-4" not in done.stdout + done.stderr
