# SPDX-License-Identifier: Apache-2.0
"""Files are read again if they have changed, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib.learning.changed_files import ChangedFile, ChangedFiles
from lib.learning.submission_store import Submission, SubmissionStore

LONG_AGO = 1_600_000_000


class Read:
    """Reads text, and notes the names of the files that were read since the last look at them."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def __call__(self, path: Path) -> str | None:
        self._names.append(path.stem)
        return None if path.read_text() == "damaged" else path.read_text()

    def names(self) -> list[str]:
        names, self._names = self._names, []
        return names


def write(path: Path, text: str, seconds: int = LONG_AGO) -> None:
    """As every writer does: beside its place, then renamed; the file is as old as `seconds` since 1970 say."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.utime(part, (seconds, seconds))
    part.replace(path)


@pytest.fixture
def read() -> Read:
    return Read()


def test_a_folder_is_read_once_and_then_only_what_has_changed(tmp_path: Path, read: Read) -> None:
    files = ChangedFiles(tmp_path, read)
    for number in range(20):
        write(tmp_path / f"{number:02}.json", f"text {number}")
    assert files.contents() == [f"text {number}" for number in range(20)]
    assert len(read.names()) == 20
    write(tmp_path / "05.json", "text X")  # of the same size and time
    write(tmp_path / "20.json", "new")
    (tmp_path / "00.json").unlink()
    assert files.contents() == [f"text {number}" if number != 5 else "text X" for number in range(1, 20)] + ["new"]
    assert read.names() == ["05", "20"]
    write(tmp_path / "06.json", "damaged")
    assert len(files.contents()) == 19
    assert len(files.contents()) == 19
    assert read.names() == ["06"]


def test_a_folder_that_nobody_touched_is_not_listed(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.json", "text")
    os.utime(tmp_path, (LONG_AGO, LONG_AGO))
    files = ChangedFiles(tmp_path, read)
    assert files.contents() == ["text"]
    monkeypatch.setattr(os, "scandir", None)
    files.contents().append("of the caller")
    assert files.contents() == ["text"]


def test_what_was_written_just_now_is_read_again(tmp_path: Path, read: Read) -> None:
    """Another change may have the same time, and even the number of the file that it replaced."""
    path = tmp_path / "a.json"
    path.write_text("one")
    files, file = ChangedFiles(tmp_path, read), ChangedFile(path, read)
    assert (files.contents(), file.content()) == (["one"], "one")
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (files.contents(), file.content()) == (["two"], "two")


def test_a_file_is_read_once(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.json"
    file = ChangedFile(path, lambda path: read(path) if path.exists() else "none")
    assert file.content() == "none"
    write(path, "text")
    assert file.content() == file.content() == "text"
    assert read.names() == ["a"]
    write(path, "more")
    assert file.content() == "more"
    path.unlink()
    assert file.content() == "none"


def test_a_submission_among_many_reads_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SubmissionStore(tmp_path)
    for number in range(30):
        store.record(submission(f"c{number:02}"))
        os.utime(tmp_path / "cases" / f"c{number:02}.json", (LONG_AGO, LONG_AGO))
    assert len(store.submissions()) == 30
    read: list[str] = []
    original = Submission.from_json
    monkeypatch.setattr(
        Submission, "from_json", lambda content: (read.append(content["image_id"]), original(content))[1]
    )
    store.record(submission("new"))
    assert len(store.submissions()) == 31
    assert set(read) <= {"new"}
    assert len(SubmissionStore(tmp_path).submissions()) == 31


def test_rejections_of_another_process_are_seen(tmp_path: Path) -> None:
    store, other = SubmissionStore(tmp_path), SubmissionStore(tmp_path)
    store.reject("a", "0", "empty")
    other.reject("b", "1", "empty")
    store.rejected().clear()
    assert set(store.rejected()) == set(other.rejected()) == {"a", "b"}
    other.record(submission("a"))
    assert set(store.rejected()) == {"b"}


def submission(name: str) -> Submission:
    return Submission(name, name, 0, {"liver": 1}, f"labels/{name}.nii.gz", "", "", name, "", 0.0)
