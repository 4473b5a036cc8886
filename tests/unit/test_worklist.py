# SPDX-License-Identifier: Apache-2.0
"""Work lists: how they are written, when they are read again, and which requests open an image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.places import ROOT
from lib.api.served import opened_by
from lib.configs.app_config import AppConfig
from lib.worklist import Worklist


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a\nb\n", {"a", "b"}),
        ("# this week\r\n1.2.3  # first\r\n\r\n  1.2.4\r\n", {"1.2.3", "1.2.4"}),
        ("\ufeffLeber 1\n肝臓", {"Leber 1", "肝臓"}),
        ("", set()),
        ("scan #3\nx#y\n#z\na  #\n", {"scan #3", "scan", "x#y", "x", "a"}),
        ("Mu\u0308ller\nZoe\u0308 # NFD", {"M\u00fcller", "Zo\u00eb"}),
    ],
)
def test_a_file_names_one_a_line(tmp_path: Path, content: str, names: set[str]) -> None:
    path = tmp_path / "list=1.txt"
    path.write_bytes(content.encode())
    found = Worklist.parse(str(path))
    assert found is not None and found.names() == names and found.query == {}


def test_a_file_is_read_again_when_it_changes_and_kept_when_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a")
    found = Worklist.parse(str(path))
    assert found is not None and found.names() == {"a"}
    path.write_text("b\nc")
    assert found.names() == {"b", "c"}
    (tmp_path / "new").write_text("d\ne")
    os.replace(tmp_path / "new", path)
    assert found.names() == {"d", "e"}
    path.unlink()
    assert found.names() == {"d", "e"}
    path.write_bytes(b"\xff\xfe\x00broken")
    assert found.names() == {"d", "e"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_be_written_by_windows(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("Zoë\r\n肝臓\r\n".encode(encoding))
    found = Worklist.parse(str(path))
    assert found is not None and found.names() == {"Zoë", "肝臓"}
    assert found.holds("other", "Zoe\u0308") and not found.holds("Zoe")


def test_lines_that_name_nothing(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a\n\n# none\nb #2\n c.nii \nZoe\u0308\nd # the last\n")
    found = Worklist.parse(str(path))
    assert found is not None and found.missing({"a", "b #2", "Zo\u00eb"}) == ["c.nii", "d # the last"]
    assert found.missing({"a", "b", "c.nii", "d", "Zo\u00eb"}) == []
    path.write_text("a\nx")
    assert found.missing({"a"}) == ["x"]


def test_a_problem_is_logged_once_and_told_while_it_lasts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a")
    found = Worklist.parse(str(path))
    assert found is not None and found.names() == {"a"} and found.problem is None
    path.unlink()
    assert [found.names() for _ in range(3)] == [{"a"}] * 3
    assert found.problem is not None and f"{path} cannot be read" in found.problem
    path.write_bytes("ä".encode("latin-1"))
    assert [found.names() for _ in range(3)] == [{"a"}] * 3 and "utf-8" in found.problem
    assert len(caplog.records) == 2
    path.write_text("b")
    assert found.names() == {"b"} and found.problem is None


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("StudyDate=20240101-&ModalitiesInStudy=CT", {"StudyDate": "20240101-", "ModalitiesInStudy": "CT"}),
        ("?PatientID=A%20B", {"PatientID": "A B"}),
        ("AccessionNumber=", {"AccessionNumber": ""}),
    ],
)
def test_a_query_is_one_of_qido(text: str, query: dict[str, str]) -> None:
    found = Worklist.parse(text)
    assert found is not None and found.query == query and found.source == text


@pytest.mark.parametrize("text", ["nowhere.txt", "CT", "/"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a file .* or a query such as StudyDate"):
        Worklist.parse(text)


@pytest.mark.parametrize(
    ("value", "studies", "sentence"),
    [
        ("nowhere.txt", "http://pacs/dicom-web", "--conf worklist: there is no file 'nowhere.txt'"),
        ("StudyDate=2024", "/studies", "--conf worklist: StudyDate=2024 is a query, which needs a DICOMweb server"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(value: str, studies: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AppConfig.parse({"worklist": value}, ROOT / "apps" / "kprism", studies)


def test_no_text_is_no_list() -> None:
    assert Worklist.parse("") is None


@pytest.mark.parametrize(
    ("path", "query", "image"),
    [
        ("/infer/semantic", "image=a%20b&output=json", "a b"),
        ("/kprism/api/infer/interactive", "image=1.2.3&stream=1", "1.2.3"),
        ("/kprism/api/case/1.2.3/label", "", "1.2.3"),
        ("/datastore/image", "image=x", "x"),
        ("/datastore/label/info", "label=x&tag=final", "x"),
        ("/datastore/image", "id=x", "x"),
        ("/datastore/", "image=x", "x"),
        ("/datastore/", "id=x", "x"),
        ("/datastore/updatelabelinfo", "label=x&tag=final", "x"),
        ("/activelearning/first", "", None),
        ("/infer/semantic", "session_id=1", None),
    ],
)
def test_the_image_that_a_request_opens(path: str, query: str, image: str | None) -> None:
    assert opened_by(path, query) == ([] if image is None else [image])


@pytest.mark.parametrize(
    ("path", "query", "images"),
    [
        ("/infer/semantic", "image=a&image=b", ["a", "b"]),
        ("/datastore/label", "image=a&label=b&tag=final", ["a", "b"]),
        ("/datastore/image", "id=c&image=&image=a&label=b", ["a", "b", "c"]),
    ],
)
def test_all_images_that_a_request_names_count(path: str, query: str, images: list[str]) -> None:
    assert opened_by(path, query) == images
