# SPDX-License-Identifier: Apache-2.0
"""Whose mistake an error is: the client's is a 4xx with a sentence, the server's a 500 with an entry in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from fastapi import FastAPI, Form
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from lib.api.app import install
from lib.errors import NotFoundError, RequestError

LIMIT = 1 << 20
ORIGIN = "https://viewer.example"

ERRORS: dict[str, tuple[Exception, int, str]] = {
    "request": (RequestError("option x is 7"), 400, "option x is 7"),
    "long": (RequestError("y" * 5000), 400, "y" * 1000 + " ..."),
    "missing": (NotFoundError("no image 'a'"), 404, "no image 'a'"),
    "value": (ValueError("shapes (3,) and (4,) not aligned"), 500, "the server failed (ValueError)"),
    "key": (KeyError("a"), 500, "the server failed (KeyError)"),
    "no image": (ImageNotFoundException("Image a not found"), 404, "Image a not found"),
    "refused": (MONAILabelException(MONAILabelError.INVALID_INPUT, "no model"), 400, "no model"),
    "broken": (MONAILabelException(MONAILabelError.SERVER_ERROR, "it broke"), 500, "it broke"),
    "memory": (MemoryError(), 503, "too little memory"),
    "gpu": (
        torch.OutOfMemoryError("CUDA out of memory"),
        503,
        "too little memory for this request on this machine: CUDA",
    ),
}


@pytest.fixture
def client() -> Iterator[TestClient]:
    application = FastAPI()
    install(application, LIMIT, allow_origin=[ORIGIN])

    def raising(error: Exception) -> Callable[[], None]:
        def endpoint() -> None:
            raise error

        return endpoint

    for name, (error, _, _) in ERRORS.items():
        application.add_api_route(f"/{name}", raising(error))

    @application.post("/echo")
    def echo(text: str = Form("")) -> int:
        return len(text)

    with TestClient(application, raise_server_exceptions=False) as running:
        yield running


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_answered_with_a_sentence(client: TestClient, name: str, caplog: pytest.LogCaptureFixture) -> None:
    _, status, sentence = ERRORS[name]
    with caplog.at_level(logging.ERROR):
        answer = client.get(f"/{name}", headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(sentence)
    assert bool(caplog.records) == (status >= 500)


def test_long_requests_are_refused_whatever_length_they_claim(client: TestClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/echo", content=b"text=abc", headers=form).json() == 3

    def pieces() -> Iterator[bytes]:
        yield b"text="
        for _ in range(40):
            yield b"x" * (LIMIT // 32)

    for content in (b"text=" + b"x" * LIMIT, pieces()):
        answer = client.post("/echo", content=content, headers=form)
        assert answer.status_code == 413
        assert answer.json()["detail"] == "the request is longer than 1 MiB, this server's limit (--conf image_mb)"
