# SPDX-License-Identifier: Apache-2.0
"""A real reverse proxy: nginx with a configuration and files of its own, started and ended by a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.conftest import lacking

PATIENCE = 60.0  # seconds; nginx takes a moment, this is for a busy machine

FRAME = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-For $remote_addr;
    {servers}
}}
"""


def program() -> str:
    """Path of nginx; without it the test is skipped, and fails where CI=true."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if found is None:
        lacking("the tests of reverse proxies need nginx, which is not installed (Debian, Ubuntu: apt install nginx)")
    return found


@contextmanager
def nginx(folder: Path, servers: str, answers_at: str) -> Iterator[None]:
    """nginx with these `server` blocks, from its first answer at an address of its own (of any status) to its end."""
    path = program()
    folder.mkdir(parents=True, exist_ok=True)
    user = "user root;" if os.geteuid() == 0 else ""
    settings = folder / "nginx.conf"
    settings.write_text(FRAME.format(folder=folder, user=user, servers=servers))
    command = [path, "-p", str(folder), "-c", str(settings), "-e", str(folder / "error.log")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, folder / "error.log", answers_at)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _wait(process: subprocess.Popen[bytes], log: Path, address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            requests.get(address, timeout=5, verify=False)
            return
        except requests.exceptions.SSLError:
            return  # it wants a client certificate
        except requests.RequestException:
            time.sleep(0.05)
    raise AssertionError(f"nginx does not answer at {address}: {log.read_text()}")
