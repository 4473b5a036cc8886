# SPDX-License-Identifier: Apache-2.0
"""An answer holds one state of a file, whatever happens to the file after the answer has begun."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.testclient import TestClient

from kprism_model.files import write_bytes
from lib.api.opened_file import PIECE, opened_file

CONTENT = os.urandom(PIECE + 1000)  # more than one piece


def replaced_by_a_smaller(path: Path) -> None:
    write_bytes(path, b"new")


def replaced_by_a_larger(path: Path) -> None:
    write_bytes(path, 2 * CONTENT)


def grown(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"one line more\n")


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [replaced_by_a_smaller, replaced_by_a_larger, grown, removed])
@pytest.mark.parametrize("content", [CONTENT, b"a line\n", b""])
def test_a_change_after_the_answer_has_begun_does_not_reach_it(
    tmp_path: Path, change: Callable[[Path], None], content: bytes
) -> None:
    path, application = tmp_path / "label 肝臓.nii.gz", FastAPI()
    path.write_bytes(content)

    @application.get("/")
    def send() -> Response:
        answer = opened_file(path, name=path.name)
        change(path)
        return answer

    answer = TestClient(application).get("/")
    assert answer.content == content
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["Content-Disposition"].endswith("filename*=UTF-8''label%20%E8%82%9D%E8%87%93.nii.gz")


def test_a_missing_file_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened_file(tmp_path / "label.nii.gz")
