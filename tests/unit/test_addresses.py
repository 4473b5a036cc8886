# SPDX-License-Identifier: Apache-2.0
"""Addresses that people give: what is taken, in which form, and what is refused with which sentence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kprism_model.addresses import check_origins, check_root_path, check_store, own_address
from kprism_model.cli.serve import ServeOptions, parse
from kprism_model.cli.settings import FILES, SETTINGS
from kprism_model.cli.usage import UsageError
from lib.configs.app_config import AppConfig
from lib.dicom import access


@pytest.mark.parametrize(
    ("given", "path"),
    [
        *(("/monai", "/monai"), ("monai/", "/monai"), ("/a/b-1/", "/a/b-1"), ("/kprism/lab", "/kprism/lab"), ("/", "")),
        *(("/a/datastore", "/a/datastore"), ("/monai/viewer", "/monai/viewer")),
    ],
)
def test_root_paths_are_taken(given: str, path: str) -> None:
    assert check_root_path(given) == path


@pytest.mark.parametrize(
    "given",
    [
        *("/a b", "/a//b", "/a/../b", "https://x/y", "/a?b", "/kprism", "viewer/", "/docs"),
        *("/kprism/api", "/kprism/viewer/x", "kprism/dicom-web/", "/datastore/image", "/ohif/lab", "/infer/a/b"),
    ],
)
def test_other_root_paths_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="root path"):
        check_root_path(given)


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("https://ohif.example.org", ("https://ohif.example.org",)),
        ("https://A.example:443/, http://b:3000", ("https://a.example", "http://b:3000")),
        ("http://[::1]:80 http://10.0.0.1", ("http://[::1]", "http://10.0.0.1")),
        ("http://[0:0:0:0:0:0:0:1]:3000 https://[FD00::0001]", ("http://[::1]:3000", "https://[fd00::1]")),
        ("https://a:0443,http://a:00080/,https://a:80", ("https://a", "http://a", "https://a:80")),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_origins_are_taken_as_browsers_send_them(given: str, origins: tuple[str, ...]) -> None:
    assert check_origins(given) == origins


@pytest.mark.parametrize(
    "given",
    [
        *("ohif.example.org", "https://*.example.org", "https://a/b", "null", "* http://a"),
        *("https://a:0", "https://a:65536", "http://a:99999", "http://[1::2::3]", "https://[fd00::12345]"),
    ],
)
def test_other_origins_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        check_origins(given)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:80"),
        ("workstation", "http://workstation:80"),
    ],
)
def test_a_printed_address_can_be_opened(host: str, address: str) -> None:
    assert own_address(host, 80) == address


def test_options_become_settings() -> None:
    options = parse(
        ["--root-path", "monai/", "--allow-origin", "https://a", "--allow-origin", "http://B:1/", "--host", "[::1]"]
    )
    assert options is not None and options.host == "::1" and options.only_this_machine
    assert dict(options.conf) == {"root_path": "/monai", "allow_origin": "https://a http://b:1"}
    assert options.root_path == "/monai"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--root-path", "/info"], "--root-path: root path '/info' is an address of the server itself"),
        (["--allow-origin", "a.org"], "--allow-origin: origin 'a.org': expected a scheme and a host"),
        (["--studies", "http://me:secret@pacs/dicom-web"], "--studies: the address of pacs holds a password"),
    ],
)
def test_wrong_options_are_named(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(words)
    assert str(raised.value).startswith(sentence)
    assert "secret" not in str(raised.value)


def test_a_store_without_a_password_in_its_address_is_taken() -> None:
    for address in ("http://127.0.0.1:8042/dicom-web", "https://pacs.example.org/rs", "http://[::1]:8042/dicom-web"):
        assert check_store(address) == address


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://127.0.0.1:8042/dicom-web", "http://127.0.0.1:8042/dicom-web"),
        ("HTTPS://PACS.example.org/rs/", "https://PACS.example.org/rs/"),
        ("Http://[::1]:80", "http://[::1]:80"),
        ("", ""),
    ],
)
def test_addresses_of_stores_are_taken(given: str, address: str) -> None:
    assert check_store(given) == address


@pytest.mark.parametrize(
    "given",
    [
        "http://",
        "https:///rs",
        "http://a b/",
        "localhost:8042",
        "ftp://a",
        "http://a:0",
        "http://a:99999",
        "http://a/?x",
    ],
)
def test_other_addresses_of_stores_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"expected one such as http://127\.0\.0\.1:8042/dicom-web"):
        check_store(given)


def test_all_settings_of_the_app_are_known() -> None:
    own = {access.TOKEN_FILE, access.CERTIFICATE, access.KEY, access.CA}
    assert set(SETTINGS) == {field.name for field in fields(AppConfig)} | own and own < set(FILES)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--conf", "work_list", "x"], "--conf work_list: there is no setting 'work_list'; perhaps worklist is meant."),
        (["--conf", "Device", "cpu"], "perhaps device is meant"),
        (["--conf", "colour", "red"], "there is no setting 'colour'; expected one of allow_origin, cache_mb"),
        (["--studies", ""], "--studies: the value is empty"),
        (["--studies", " "], "--studies: the value is empty"),
        (["--studies", __file__], "it is a file; expected the folder"),
        (["--studies", "http://"], "--studies: address 'http://': expected one such as"),
        (["--host", ""], "--host: the value is empty"),
        (["--allow-origin", ""], "--allow-origin: the value is empty"),
        (["--allow-origin", " , "], "--allow-origin: the value is empty"),
        (["--port", "9" * 5000], "--port: expected a number from 1 to 65535"),
    ],
)
def test_values_without_a_meaning_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert sentence in str(caught.value)


def test_files_of_settings_are_those_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a")
    (tmp_path / "token").symlink_to("today")
    given = {"worklist": "list.txt", "dicomweb_token_file": "token", "state": "a/b", "dicomweb_ca": "/ca.pem"}
    options = parse([word for pair in given.items() for word in ("--conf", *pair)])
    expected = {
        "worklist": f"{tmp_path}/list.txt",
        "dicomweb_token_file": f"{tmp_path}/token",
        "state": f"{tmp_path}/a/b",
        "dicomweb_ca": "/ca.pem",
    }
    assert options is not None and dict(options.conf) == expected
    query = parse(["--conf", "worklist", "StudyDate=20240101-"])
    assert query is not None and query.conf == (("worklist", "StudyDate=20240101-"),)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("LocalHost", True)),
        *(("0.0.0.0", False), ("::", False), ("127.example.org", False), ("10.0.0.1", False)),
    ],
)
def test_who_can_reach_the_server(host: str, alone: bool) -> None:
    assert ServeOptions(host=host).only_this_machine is alone
