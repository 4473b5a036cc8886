# SPDX-License-Identifier: Apache-2.0
"""A client that goes away while it sends is no fault of the server, and leaves nothing behind."""

from __future__ import annotations

import socket
import time

import pytest

from benchmarks.live_server import LiveServer

FORM = b'--b\r\nContent-Disposition: form-data; name="label"; filename="x.nii"\r\n\r\nabc'


@pytest.mark.parametrize(
    ("method", "address", "kind", "begun"),
    [
        ("POST", "/kprism/api/case/brain_LPS/download?format=nifti", "application/octet-stream", b"\x1f\x8b"),
        ("PUT", "/kprism/api/case/brain_LPS/label", "application/octet-stream", b"\x1f\x8b"),
        ("POST", "/kprism/api/next/first", "application/json", b"{"),
        ("PUT", "/datastore/label?image=brain_LPS", "multipart/form-data; boundary=b", FORM),
        ("POST", "/infer/interactive?image=brain_LPS", "application/x-www-form-urlencoded", b"params="),
    ],
)
def test_nothing_is_wrong_when_a_client_leaves(
    server: LiveServer, method: str, address: str, kind: str, begun: bytes
) -> None:
    before = len(server.log())
    head = f"{method} {address} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: 50000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(head.encode() + begun)
        time.sleep(0.2)
    server.info()
    time.sleep(0.2)
    said = server.log()[before:]
    assert "Traceback" not in said and "[ERROR]" not in said
    assert not list(server.scratch.glob("kprism-upload-*"))
