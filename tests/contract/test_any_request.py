# SPDX-License-Identifier: Apache-2.0
"""Requests of proxies, scripts and mistyped addresses: the right answer or a 4xx with a sentence, never a 500.

HEAD is answered wherever GET is; what is no address of the server is not answered by a page.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from benchmarks.live_server import LiveServer

IMAGE = "brain_LPS"
CASE = f"/kprism/api/case/{IMAGE}"


def asked(server: LiveServer, method: str, address: str, **named: Any) -> requests.Response:
    return requests.request(method, server.url + address, timeout=60, allow_redirects=False, **named)


def sentence(answer: requests.Response, status: int) -> str:
    """The `detail` of an answer with this status."""
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str) and detail
    return detail


@pytest.mark.parametrize(
    "address",
    [
        *("/", "/docs", "/openapi.json", "/info/", "/kprism", "/kprism/", "/kprism/page.js", "/kprism/api/status"),
        *("/kprism/viewer/mode.js", "/viewer", "/viewer/app-config.js", "/ohif/", "/datastore/", "/logs/?text=true"),
        *(f"/datastore/image?image={IMAGE}", f"/datastore/label?label={IMAGE}&tag=final", "/datastore/dataset"),
        *(f"{CASE}/download?format=nifti", f"{CASE}/download?format=seg", f"{CASE}/thumbnail", "/model/semantic"),
    ],
)
def test_head_is_answered_as_get_without_a_body(server: LiveServer, address: str) -> None:
    head, get = asked(server, "HEAD", address), asked(server, "GET", address)
    assert head.status_code == get.status_code and not head.content
    same = ("content-type", "content-disposition", "location", "cache-control")
    assert {key: head.headers.get(key) for key in same} == {key: get.headers.get(key) for key in same}


def test_head_of_a_file_tells_whether_it_is_the_same(server: LiveServer) -> None:
    content = (Path(server.studies) / f"{IMAGE}.nii.gz").read_bytes()
    md5, sha = hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
    for given, status in (
        *((sha, 200), (f"SHA256:{sha}", 200), (f"MD5:{md5}", 200), (f"sha256:{sha.upper()}", 200)),
        *((md5, 404), (f"SHA256:{md5}", 404), (f"CRC:{md5}", 400), (":", 404)),
    ):
        address = f"/datastore/image?image={IMAGE}&check_sum={given}"
        assert asked(server, "HEAD", address).status_code == status, given
    for name in ("label", "image"):
        assert asked(server, "HEAD", f"/datastore/label?{name}={IMAGE}&tag=final").status_code == 200
        assert asked(server, "HEAD", f"/datastore/label?{name}=nobody&tag=final").status_code == 404


@pytest.mark.parametrize(
    "address",
    [
        *("/kprism/api/", "/kprism/api/stauts", "/kprism/api/status/", "/kprism/api//status", f"{CASE}/", f"{CASE}/x"),
        *(f"{CASE}/download/?format=nifti", "/kprism/api/case/a%2Fb/download", "/kprism/api/next/first"),
        *("/kprism/page", "/kprism/a/b", "/kprism//", "/kprism/%00", "/kprism/viewer/%00.js", "/kprism/viewer/"),
        *(f"/kprism/{'a' * 300}", f"/kprism/viewer/{'a' * 300}.js", f"/kprism/viewer/{'a/' * 3000}x.js"),
        *("/ohif/%00.js", f"/ohif/{'a' * 300}.js", f"/viewer/{'a' * 300}.js", "/kprism/..%2fmain.py"),
    ],
)
def test_what_is_no_address_gets_no_page(server: LiveServer, address: str) -> None:
    detail = sentence(asked(server, "GET", address), 404)
    assert len(detail) < 500


@pytest.mark.parametrize(
    ("method", "address", "named", "status", "said"),
    [
        ("GET", "/kprism/api/references?limit=x", {}, 422, "the query's limit is 'x'"),
        ("GET", "/datastore/?output=nope", {}, 422, "the query's output is 'nope'"),
        ("PUT", f"/datastore/label?image={IMAGE}", {}, 422, "the request's label: Field required"),
        ("PUT", f"/datastore/label?image={IMAGE}", {"data": {"label": "text"}}, 422, "the request's label is 'text'"),
        ("PUT", f"/datastore/label?image={IMAGE}", {"files": {"params": ("p", b"{}")}}, 422, "the request's params"),
        ("POST", "/activelearning/first", {"json": []}, 422, "the request: Input should be a valid dictionary"),
        ("POST", "/kprism/api/versions/%C2%B2/current", {}, 404, "'²'"),
        ("POST", "/kprism/api/versions/%D9%A3/current", {}, 404, "'٣'"),
        ("POST", f"/kprism/api/versions/{'9' * 5000}/current", {}, 404, "there is no version '999"),
        ("PUT", "/datastore/", {"files": {"file": ("zz.nii.gz", b"no image")}}, 400, "'zz' is not a readable"),
        ("PUT", f"/datastore/updatelabelinfo?label={IMAGE}&tag=final", {"data": {"params": "{'a"}}, 400, "not JSON"),
        ("PUT", f"/datastore/updatelabelinfo?label={IMAGE}&tag=final", {"data": {"params": "[]"}}, 400, "'[]'"),
    ],
)
def test_wrong_requests_get_a_sentence(
    server: LiveServer, method: str, address: str, named: dict[str, Any], status: int, said: str
) -> None:
    detail = sentence(asked(server, method, address, **named), status)
    assert said in detail and len(detail) < 1010
    assert not (Path(server.studies) / "zz.nii.gz").exists()


@pytest.mark.parametrize("name", ["x.\0nii", "x.a\nb", "x.\x7f", "x." + "y" * 300, "x.nii.gz" * 60, "../../x.nii.gz"])
def test_names_of_uploaded_files_do_no_harm(server: LiveServer, name: str) -> None:
    answer = asked(server, "PUT", f"/datastore/label?image={IMAGE}", files={"label": (name, b"no label")})
    assert "the label of image 'brain_LPS' is" in sentence(answer, 400)


def message(header: Any, planes: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return gzip.compress(len(text).to_bytes(4, "little") + text + planes)


@pytest.mark.parametrize(
    "header",
    [
        *(
            b"[" * 900_000,
            b'{"planes":' + b"[" * 100_000,
            b'{"planes": [' + b"9" * 5000 + b"]}",
            b"\xff",
            [1],
            "planes",
        ),
        *({"planes": [0], "names": {name: 1}} for name in ("\ud800", "a\0b", "a\nb", " ", "\x1b[31m", "n" * 65)),
        *({"planes": [0], "names": {"a": value}} for value in (True, 1.0, "1", None, 0, 256, [1], 10**400)),
    ],
    ids=lambda header: repr(header)[:30],
)
def test_wrong_planes_get_a_sentence(server: LiveServer, header: Any) -> None:
    body = message(header, b"\1" * (120 * 100))
    for kind in ("nifti", "nrrd"):
        detail = sentence(asked(server, "POST", f"{CASE}/download?format={kind}", data=body), 400)
        assert len(detail) < 500 and ("expected" in detail or "planes" in detail)


def test_the_log_is_a_page_that_needs_no_internet(server: LiveServer) -> None:
    asked(server, "GET", f"/datastore/image?image={quote('<script>alert(1)</script>')}")
    server.infer("semantic", "<script>alert(1)</script>", {})
    page = asked(server, "GET", "/logs/?lines=99999999999999999999&refresh=1")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert (
        "http://" not in page.text.partition("<pre")[0]
        and "<script" not in page.text
        and "https://ajax" not in page.text
    )
    assert 'content="3"' in page.text and "mislabelled" in page.text
    text = asked(server, "GET", "/logs/?lines=2&text=true").text
    assert text.count("\n") == 2
    assert asked(server, "GET", "/logs/gpu").status_code in (200, 404)


def test_the_first_page_says_something_without_the_internet(server: LiveServer) -> None:
    page = asked(server, "GET", "/").text
    start = page.partition("<script")[0]
    assert "K-Prism is running" in start and 'href="kprism/"' in start and "swagger" in page
