# SPDX-License-Identifier: Apache-2.0
"""`./kprism viewer`: a DICOMweb store with the sample studies, the server on it, and the viewer in the browser."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

import requests

from kprism_model.addresses import check_store
from kprism_model.cli.serve import check_port
from kprism_model.cli.usage import UsageError
from kprism_model.locations import checkout, data_folder
from lib.dicom.access import StoreAccess
from lib.dicom.web import DicomWeb
from lib.errors import RequestError
from tools.import_dicom import Tally
from tools.import_folder import find, import_found, others, summary
from tools.ohif import ensure_ohif
from tools.orthanc import Orthanc

VIEWERS = data_folder() / "viewer"
STORE_PORT = 8042
START_TIMEOUT_SECONDS = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Start everything, print the addresses, and end everything together."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        options.store = check_store(options.store or "")
        if options.studies is not None and not options.studies.exists():
            raise RequestError(f"--studies: there is no file or folder {str(options.studies)!r}")
        viewer = ensure_ohif(VIEWERS)
        options.folder.mkdir(parents=True, exist_ok=True)
        store = nullcontext() if options.store else Orthanc(options.folder / "orthanc", _free_port(options.store_port))
        with store as own:
            url = options.store if own is None else own.url
            if options.studies is not None:
                _fill(DicomWeb.at(url, StoreAccess.parse(dict(options.conf))), options.studies)
            with _server(url, viewer, options) as server:
                _announce(options.port, url)
                _watch(server, own)
    except KeyboardInterrupt:
        print("\nStopped; the studies and labels are kept.", file=sys.stderr)
    except ValueError as error:  # a RequestError, or a setting that cannot be used
        print(f"kprism: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    root = checkout()
    parser = argparse.ArgumentParser(prog="./kprism viewer", description=__doc__)
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="port of the server (8000)")
    parser.add_argument("--store", metavar="URL", help="your own DICOMweb store instead of an Orthanc started here")
    parser.add_argument("--store-port", type=_port, default=STORE_PORT, metavar="N", help=f"its port ({STORE_PORT})")
    parser.add_argument(
        "--studies",
        type=Path,
        default=None if root is None else root / "sample-datastore",
        metavar="FOLDER",
        help="DICOM files to put into the store, and other images to put into an empty one (the sample studies)",
    )
    parser.add_argument(
        "--folder", type=Path, default=VIEWERS, metavar="FOLDER", help="for the store, caches and logs (%(default)s)"
    )
    parser.add_argument("--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="as for serve")
    return parser


def _port(text: str) -> int:
    """A port, for argparse."""
    try:
        return check_port(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--port: ")) from error


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _free_port(wanted: int) -> int:
    """The wanted port, or any free one if it is in use."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RequestError("this machine has no free port for the DICOMweb store")


def _fill(store: DicomWeb, studies: Path) -> None:
    """Import the studies: DICOM objects that the store does not have, and other images into a store that is empty."""
    is_empty = not store.search()
    found, tally = find(studies), Tally()
    if not is_empty and found.files:
        if found.dicom.series:
            print(f"The store is not empty: of {studies} only DICOM files are imported.", file=sys.stderr)
        found = replace(found, files=[])
    if not found.files and not found.dicom.series:
        return
    print(f"Importing {studies} into the store ...", file=sys.stderr)
    for problem in import_found([found], None, store, tally):
        print(f"kprism: left out: {problem}", file=sys.stderr)
    for sentence in others([found]):
        print(f"kprism: {sentence}", file=sys.stderr)
    print(f"Imported {summary([found], tally)}.", file=sys.stderr)


@contextmanager
def _server(url: str, viewer: Path, options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """A context with the running server, from its first answer on."""
    command = [sys.executable, "-m", "kprism_model", "serve", "--studies", url, "--port", str(options.port)]
    for key, value in options.conf:
        command += ["--conf", key, value]
    environment = {
        **os.environ,
        "KPRISM_VIEWER": str(viewer),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(options.folder / "cache"),
    }
    log = options.folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{options.port}/info/", log)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RequestError(f"the server ended with status {process.returncode}; the end of {log}:\n{_tail(log)}")
        try:
            requests.get(address, timeout=10).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.2)
    raise RequestError(f"the server did not answer within {START_TIMEOUT_SECONDS:.0f} s; see {log}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:].strip()


def _watch(server: subprocess.Popen[bytes], store: Orthanc | None) -> None:
    """Wait until the server ends, which is an error; restart our own store if it ends."""
    while server.poll() is None:
        if store is not None and store.process.poll() is not None:
            print("The store has ended; starting it again.", file=sys.stderr)
            store.start()
        time.sleep(1)
    raise RequestError(f"the server ended with status {server.returncode}; see its log")


def _announce(port: int, url: str) -> None:
    address = f"http://127.0.0.1:{port}"
    print(
        f"Open {address}/viewer/ : choose a study, then the mode K-Prism.\n"
        f"Also {address}/kprism/ (what the server is doing) and {address}/ohif/ (MONAI Label's own OHIF).\n"
        f"Studies are in {url}; add yours with: ./kprism import FOLDER --to {url}\n"
        "Ctrl-C ends it.",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
