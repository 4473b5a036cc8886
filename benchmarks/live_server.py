# SPDX-License-Identifier: Apache-2.0
"""A running server: started with the launcher as a user does, spoken to over HTTP only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil
import requests
from requests_toolbelt.multipart import decoder

from benchmarks.places import ROOT

START_LIMIT = 180.0  # seconds; a start takes a few, this is for a busy machine


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_samples(folder: Path) -> Path:
    """Copy the sample datastore to `folder`, which must not exist, and return it."""
    return Path(shutil.copytree(ROOT / "sample-datastore", folder))


class LiveServer:
    """`./kprism serve` on a folder of studies or the address of a DICOMweb server, while in the context.

    `app` is another MONAI Label app to serve, `environment` is added to this process's. `start_seconds` is the time
    from starting the process to the first answer of /info/, `scratch` the folder of its temporary files. `timeout` is
    how many seconds `infer` waits.
    """

    def __init__(
        self,
        studies: Path | str,
        *,
        conf: dict[str, str] | None = None,
        app: Path | None = None,
        environment: dict[str, str] | None = None,
        timeout: float = 300.0,
    ) -> None:
        self.studies = studies
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start_seconds = float("nan")
        self._conf = conf or {}
        self._app = app
        self._timeout = timeout
        self.scratch = Path(tempfile.mkdtemp(prefix="server-"))
        self._environment = {**os.environ, "TMPDIR": str(self.scratch), **(environment or {})}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command: list[str | Path] = [ROOT / "kprism", "serve"]
        if self._app is not None:
            command = [
                sys.executable,
                "-m",
                "monailabel.main",
                "start_server",
                "--app",
                self._app,
                "--host",
                "127.0.0.1",
            ]
        command += ["--studies", self.studies, "--port", str(self.port)]
        for key, value in self._conf.items():
            command += ["--conf", key, value]
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.studies if isinstance(self.studies, Path) else None,
            env=self._environment,
            start_new_session=True,
        )
        try:
            self._wait(started + START_LIMIT)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def _wait(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}:\n{self.log()[-10_000:]}")
            try:
                left = max(5.0, deadline - time.perf_counter())  # a server with many cases takes its time
                requests.get(f"{self.url}/info/", timeout=left).raise_for_status()
                return
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.1)
        raise RuntimeError(f"no answer from {self.url}/info/ within {START_LIMIT:.0f} s:\n{self.log()[-10_000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._log.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process

    def stop(self) -> None:
        """End the server as Ctrl-C does, by force if that takes longer than 20 s."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self) -> str:
        """All that the server wrote so far."""
        # pread: a seek would move the place where the server, which shares the open file, writes next.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def memory(self) -> int:
        """Resident memory of the server process in bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def info(self) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/info/", timeout=60)
        answer.raise_for_status()
        return dict(answer.json())

    def infer(
        self,
        model: str,
        image: str,
        params: dict[str, Any] | str,
        *,
        output: str = "image",
        files: dict[str, Any] | None = None,
    ) -> requests.Response:
        """POST /infer/{model}: `params` goes out as the form's JSON field, a string as it stands."""
        text = params if isinstance(params, str) else json.dumps(params)
        return requests.post(
            f"{self.url}/infer/{model}",
            params={"image": image, "output": output},
            data={"params": text},
            files=files,
            timeout=self._timeout,
        )

    def infer_all(
        self, model: str, image: str, params: dict[str, Any], *, files: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """The answer's JSON and file, as 3D Slicer asks for both (output=all); HTTPError unless the status is 200."""
        answer = self.infer(model, image, params, output="all", files=files)
        answer.raise_for_status()
        parts = decoder.MultipartDecoder.from_response(answer).parts
        form, file = sorted(parts, key=lambda part: b"filename=" in part.headers[b"Content-Disposition"])
        return json.loads(form.content), file.content
