# SPDX-License-Identifier: Apache-2.0
"""Addresses that people give: what is taken, in which form, and what is refused with which sentence."""

from __future__ import annotations

import pytest

from kprism_model.addresses import check_origins, check_root_path, check_store, own_address
from kprism_model.cli.serve import parse
from kprism_model.cli.usage import UsageError


@pytest.mark.parametrize(
    ("given", "path"),
    [("/monai", "/monai"), ("monai/", "/monai"), ("/a/b-1/", "/a/b-1"), ("/kprism/lab", "/kprism/lab"), ("/", "")],
)
def test_root_paths_are_taken(given: str, path: str) -> None:
    assert check_root_path(given) == path


@pytest.mark.parametrize("given", ["/a b", "/a//b", "/a/../b", "https://x/y", "/a?b", "/kprism", "viewer/", "/docs"])
def test_other_root_paths_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="root path"):
        check_root_path(given)


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("https://ohif.example.org", ("https://ohif.example.org",)),
        ("https://A.example:443/, http://b:3000", ("https://a.example", "http://b:3000")),
        ("http://[::1]:80 http://10.0.0.1", ("http://[::1]", "http://10.0.0.1")),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_origins_are_taken_as_browsers_send_them(given: str, origins: tuple[str, ...]) -> None:
    assert check_origins(given) == origins


@pytest.mark.parametrize("given", ["ohif.example.org", "https://*.example.org", "https://a/b", "null", "* http://a"])
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
