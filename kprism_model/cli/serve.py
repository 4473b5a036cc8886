# SPDX-License-Identifier: Apache-2.0
"""`kprism serve`: checks the arguments, then becomes the MONAI Label server with the app of this installation."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TypeVar

from kprism_model.addresses import check_origins, check_root_path, check_store, is_url, own_address
from kprism_model.cli.processes import become
from kprism_model.cli.settings import check_setting
from kprism_model.cli.usage import UsageError, usage
from kprism_model.locations import app_folder, checkout, data_folder

Value = TypeVar("Value")

DICOMWEB_CACHE_SECONDS = "5"
"""How long lists of a DICOMweb server are kept, in seconds (MONAI Label: two hours); read before the app can set it."""


@dataclass(frozen=True)
class ServeOptions:
    """`studies`: absolute folder, address of a DICOMweb server, or None for the samples; `conf`: the app's settings."""

    studies: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    conf: tuple[tuple[str, str], ...] = ()

    @property
    def root_path(self) -> str:
        """The path under which a reverse proxy has the server; "" for none."""
        return dict(self.conf).get("root_path", "")

    @property
    def only_this_machine(self) -> bool:
        """Whether the server cannot be reached from another machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def run(name: str, words: Sequence[str]) -> int:
    """Start the server in place of this process; `UsageError` where the arguments cannot be used."""
    options = parse(words)
    if options is None:
        print(usage(), end="")
        return 0
    if find_spec("monailabel") is None:
        raise UsageError("MONAI Label is not installed: pip install --no-deps monailabel==0.8.5")
    check_address(options.host, options.port)
    return start(options, options.studies or str(sample_studies()))


def start(options: ServeOptions, studies: str) -> NoReturn:
    """Become the server."""
    if not options.only_this_machine:
        _say(f"kprism: anyone who reaches {options.host} port {options.port} can read and change these studies.")
    address = own_address(options.host, options.port)
    _say(f"K-Prism serves {studies} on {address} (viewer: {address}/ohif/)")
    if options.root_path:
        _say(f"kprism: a reverse proxy has it under {options.root_path}/, as {options.root_path}/ohif/")
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_CACHE_EXPIRY", DICOMWEB_CACHE_SECONDS)
    os.chdir(checkout() or Path.cwd())
    listen = ["--host", options.host, "--port", str(options.port)]
    conf = [word for key, value in options.conf for word in ("--conf", key, value)]
    become("monailabel.main", "start_server", "--app", str(app_folder()), "--studies", studies, *listen, *conf)


def parse(words: Sequence[str]) -> ServeOptions | None:
    """The options, or None where help is asked for; `UsageError` names the first that cannot be used."""
    left = list(words)
    studies, host, port, conf = None, ServeOptions.host, ServeOptions.port, []
    origins: list[str] = []
    while left:
        option = left.pop(0)
        if option in ("-h", "--help"):
            return None
        if option == "--conf":
            if len(left) < 2:
                raise UsageError("--conf needs a key and a value.")
            conf.append(_setting(left.pop(0), left.pop(0)))
            continue
        if option not in ("--studies", "--port", "--host", "--root-path", "--allow-origin"):
            raise UsageError(f"serve: unknown option {option!r} (see ./kprism help).")
        if not left:
            raise UsageError(f"{option} needs a value.")
        value = left.pop(0)
        if option == "--studies":
            studies = check_studies(value)
        elif option == "--port":
            port = check_port(value)
        elif option == "--root-path":
            conf.append(("root_path", _checked(option, check_root_path, value)))
        elif option == "--allow-origin":
            origins += _checked(option, _some_origins, value)
        else:
            host = check_host(value)
    if origins:
        conf.append(("allow_origin", " ".join(_checked("--allow-origin", check_origins, " ".join(origins)))))
    return ServeOptions(studies, host, port, tuple(conf))


def check_studies(text: str) -> str:
    """The absolute path of a folder, or an address as it is."""
    if is_url(text):
        return _checked("--studies", check_store, text)
    path = Path(text).expanduser()
    if not text.strip():  # such as a variable of a script that is not set; the current folder is nobody's choice
        raise UsageError("--studies: the value is empty; expected a folder or the address of a DICOMweb server.")
    if not path.is_dir():
        hint = ": it is a file; expected the folder that it is in" if path.is_file() else ""
        raise UsageError(f"--studies: there is no folder {text!r}{hint}.")
    return str(path.resolve())


def check_host(text: str) -> str:
    """An address or a name, without the brackets of an address of version 6."""
    if not text.strip():
        raise UsageError("--host: the value is empty; expected an address such as 127.0.0.1, or 0.0.0.0 for all.")
    return text.strip().removeprefix("[").removesuffix("]")


def _setting(key: str, value: str) -> tuple[str, str]:
    try:
        return check_setting(key, value)
    except ValueError as error:
        raise UsageError(f"--conf {key}: {error}.") from error


def _some_origins(text: str) -> tuple[str, ...]:
    origins = check_origins(text)
    if not origins:
        raise ValueError("the value is empty; expected an origin such as https://ohif.example.org, or *")
    return origins


def _checked(option: str, check: Callable[[str], Value], text: str) -> Value:
    """The value of an option as `check` reads it."""
    try:
        return check(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from error


def check_port(text: str) -> int:
    """The number of a TCP port."""
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= 65535):
        raise UsageError(f"--port: expected a number from 1 to 65535, got {text!r}.")
    return int(text)


def check_address(host: str, port: int) -> None:
    """`UsageError` unless this machine can listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"cannot listen on {host} port {port}: {reason}. Choose another with --port N.") from error


def sample_studies() -> Path:
    """The working copy of the samples, made once: the server writes into the folder that it serves."""
    root = checkout()
    if root is None:
        raise UsageError("--studies is needed: the sample studies are not part of the installed package.")
    copy = data_folder() / "sample-datastore"
    if not copy.is_dir():
        partial = copy.with_name("sample-datastore.partial")
        shutil.rmtree(partial, ignore_errors=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / "sample-datastore", partial)
        partial.rename(copy)
    return copy


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def check_arguments(words: Sequence[str]) -> int:
    """The exit status of arguments alone: the shell script asks before it installs anything."""
    try:
        parse(words)
    except UsageError as error:
        _say(f"kprism: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(check_arguments(sys.argv[1:]))
