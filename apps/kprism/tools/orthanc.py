# SPDX-License-Identifier: Apache-2.0
"""A local DICOMweb store: the system's Orthanc, or one from docker compose.

Debian's Orthanc 1.10.1 always listens on all network addresses (`HttpBindAddresses` is newer), so it is protected in
two other ways: it answers requests of this machine only (`RemoteAccessAllowed`), and its DICOM port is off.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from lib.errors import RequestError

COMPOSE = Path(__file__).with_name("orthanc-compose.yaml")
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")
START_TIMEOUT_SECONDS = 60.0


class Orthanc:
    """A running Orthanc with its data in `folder`, from entering the context to leaving it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start Orthanc and wait until it answers; RequestError with its log if it does not."""
        command = self._command()
        with (self.folder / "orthanc.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=self._environment()
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process; RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("Orthanc has not been started")
        return self._process

    def stop(self) -> None:
        """End Orthanc with SIGTERM, or by force if that takes longer than 20 s."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def configuration(self) -> dict[str, object]:
        """Orthanc's settings (the Orthanc Book, "Configuration")."""
        plugins = next((folder for folder in PLUGINS if (Path(folder) / "libOrthancDicomWeb.so").is_file()), None)
        if plugins is None:
            raise RequestError("Orthanc is installed without DICOMweb (Debian, Ubuntu: apt install orthanc-dicomweb)")
        return {
            "Name": "K-Prism",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(Path(plugins) / "libOrthancDicomWeb.so")],
            "HttpPort": self.port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": False,
            "OverwriteInstances": True,
            "StableAge": 1,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        }

    def _command(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        program = shutil.which("Orthanc") or shutil.which("orthanc")
        if program is not None:
            (self.folder / "storage").mkdir(exist_ok=True)
            settings = self.folder / "orthanc.json"
            partial = settings.with_suffix(".partial")
            partial.write_text(json.dumps(self.configuration(), indent=2))
            os.replace(partial, settings)
            return [program, str(settings)]
        if shutil.which("docker"):
            return ["docker", "compose", "-f", str(COMPOSE), "-p", f"kprism-{self.port}", "up"]
        raise RequestError(
            "there is no DICOMweb store: install Orthanc (Debian, Ubuntu: apt install orthanc orthanc-dicomweb; "
            "macOS, Windows: https://www.orthanc-server.com) or Docker, or use your own store: --store URL"
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KPRISM_ORTHANC_PORT": str(self.port), "KPRISM_ORTHANC_STORAGE": str(self.folder)}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                log = (self.folder / "orthanc.log").read_text(errors="replace")[-2000:]
                raise RequestError(f"Orthanc ended with status {self.process.returncode}:\n{log}")
            try:
                requests.get(f"{self.url}/studies", params={"limit": 1}, timeout=5).raise_for_status()
                return
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.1)
        raise RequestError(f"Orthanc did not answer at {self.url} within {START_TIMEOUT_SECONDS:.0f} s")


if __name__ == "__main__":
    with Orthanc(Path(sys.argv[1]), int(sys.argv[2])) as store:
        print(store.url, flush=True)
        store.process.wait()
