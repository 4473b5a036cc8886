# SPDX-License-Identifier: Apache-2.0
"""Requests as the K-Prism mode of OHIF sends them (apps/kprism/viewer/core), timed.

Masks travel as planes: gzip of four bytes (little-endian: the length of the JSON), a JSON header that lists slices
under `planes`, and these slices, one byte a pixel, column fastest. A server that can stream answers `stream=1` with a
sequence of such messages, each after four bytes with its length; others answer with one message.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import requests
from numpy.typing import NDArray

from benchmarks.enlarged_samples import Click
from benchmarks.live_server import LiveServer

TIMEOUT = 1800.0  # seconds; a whole volume takes minutes

GZIP = b"\x1f\x8b"
"""How a message begins."""

DEFLATED = b"\x1f\x8b\x08"
"""How a message begins whose length does not stand before it."""

IDLE = 0.2
"""A server that uses less than this share of a processor has stopped computing."""

Planes = Mapping[int, NDArray[np.uint8]]
"""Slice -> its pixels (row, column)."""


def pack(header: Mapping[str, Any], planes: Planes) -> bytes:
    """A message with a header and some planes."""
    text = json.dumps({**header, "planes": list(planes)}).encode()
    body = b"".join(plane.tobytes() for plane in planes.values())
    return gzip.compress(len(text).to_bytes(4, "little") + text + body, compresslevel=1)


def unpack(message: bytes, plane: tuple[int, int]) -> tuple[dict[str, Any], dict[int, NDArray[np.uint8]]]:
    """(header, planes) of a message about slices of `plane` (rows, columns)."""
    content = gzip.decompress(message)
    start = 4 + int.from_bytes(content[:4], "little")
    header = json.loads(content[4:start])
    pixels = np.frombuffer(content, np.uint8, offset=start).reshape(-1, *plane)
    return header, dict(zip(header["planes"], pixels, strict=True))


def is_streamed(head: bytes) -> bool:
    """Whether an answer whose first six bytes are `head` is a sequence of messages."""
    return head[4:6] == GZIP and head[:3] != DEFLATED


def messages(answer: requests.Response) -> Iterator[tuple[bytes, bool]]:
    """The messages of an answer as they arrive, and whether the server streams; one message if it does not."""
    head = _read(answer, 6)
    if not is_streamed(head):
        yield head + answer.raw.read(), False
        return
    while len(head) >= 4:
        length = int.from_bytes(head[:4], "little")
        yield head[4:] + _read(answer, length - len(head[4:])), True
        head = _read(answer, 4)


def _read(answer: requests.Response, count: int) -> bytes:
    """The next `count` bytes of an answer, fewer at its end."""
    parts = []
    while count > 0 and (part := answer.raw.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


@dataclass(frozen=True)
class Answer:
    """The JSON of an answer, all its planes, and the seconds to its end and to the first plane that was not sent.

    `first` is None if the server does not stream.
    """

    result: dict[str, Any]
    planes: dict[int, NDArray[np.uint8]]
    seconds: float
    first: float | None


class ModeClient:
    """A user of the mode on a case, whose slices have `plane` (rows, columns) pixels."""

    def __init__(self, server: LiveServer, case: str, plane: tuple[int, int]) -> None:
        self.server, self.case, self.plane = server, case, plane
        self._api = f"{server.url}/kprism/api"
        self._client = "benchmark"

    def open(self) -> dict[str, Any]:
        """Open the case: its slices and, at the same time, the references."""
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(self._get, address) for address in (f"/case/{self.case}", "/references")]
            return dict(asked[0].result().json())

    def _get(self, address: str) -> requests.Response:
        answer = requests.get(f"{self._api}{address}", timeout=TIMEOUT)
        answer.raise_for_status()
        return answer

    def has_arrived(self) -> bool:
        """Whether the server has the whole series; True where it says nothing of it, as then opening fetches it."""
        answer = requests.get(f"{self._api}/case/{self.case}/arrival", timeout=TIMEOUT)
        if not answer.ok or "json" not in answer.headers.get("Content-Type", ""):
            return True
        arrival = answer.json()
        return bool(arrival["arrived"] >= arrival["total"])

    def click(self, structure: str, clicks: Sequence[Click]) -> Answer:
        """Ask for the structure on the slice of some clicks, all of one round that began with no mask."""
        inside, outside = ([list(click.voxel) for click in clicks if click.inside is on] for on in (True, False))
        order = [list(click.voxel) for click in clicks]
        params = {"structure": structure, structure: inside, "background": outside, "click_order": order}
        return self.infer("interactive", params, {clicks[-1].voxel[2]: np.zeros(self.plane, np.uint8)})

    def follow_params(self, structure: str) -> dict[str, Any]:
        """What the mode adds to the drawn planes to have a structure followed through all slices."""
        return {"scope": "whole volume", "structure": structure, "follow_mask": True}

    def infer(self, model: str, params: Mapping[str, Any], planes: Planes | None = None) -> Answer:
        """Ask a model; the planes of a streamed answer are put together."""
        started = time.perf_counter()
        first: float | None = None
        result: dict[str, Any] = {}
        found: dict[int, NDArray[np.uint8]] = {}
        with self._ask(model, params, planes) as answer:
            for message, streams in messages(answer):
                header, received = unpack(message, self.plane)
                found.update(received)
                result = header.get("result") or result
                if first is None and streams and set(received) - set(planes or {}):
                    first = time.perf_counter() - started
        return Answer(result, found, time.perf_counter() - started, first)

    def cancel(self, model: str, params: Mapping[str, Any], planes: Planes | None = None) -> float | None:
        """Hang up after the first planes; the seconds until the server computes no more, None if it does not stream."""
        with self._ask(model, params, planes) as answer:
            for message, streams in messages(answer):
                if not streams:
                    return None
                if set(unpack(message, self.plane)[1]) - set(planes or {}):
                    break
        return until_idle(self.server)

    def _ask(self, model: str, params: Mapping[str, Any], planes: Planes | None) -> requests.Response:
        form: dict[str, tuple[str | None, str | bytes]] = {
            "params": (None, json.dumps({**params, "client_id": self._client}))
        }
        if planes is not None:
            form["planes"] = ("planes.gz", pack({}, planes))
        answer = requests.post(
            f"{self._api}/infer/{model}",
            params={"image": self.case, "stream": "1"},
            files=form,
            timeout=TIMEOUT,
            stream=True,
        )
        answer.raise_for_status()
        return answer

    def submit(self, names: Mapping[str, int], planes: Planes) -> None:
        """Store planes as the case's first label, then list the references again."""
        header = {"names": dict(names), "based_on": None, "replace": False, "client_id": self._client}
        message = pack(header, planes)
        requests.put(f"{self._api}/case/{self.case}/label", data=message, timeout=TIMEOUT).raise_for_status()
        self._get("/references")

    def label(self) -> tuple[dict[str, Any], dict[int, NDArray[np.uint8]]]:
        """(header, planes) of the submitted label."""
        return unpack(self._get(f"/case/{self.case}/label").content, self.plane)


def until_idle(server: LiveServer) -> float:
    """The seconds from now until the server stops computing."""
    process = psutil.Process(server.process.pid)
    started = time.perf_counter()
    while True:
        begun, used = time.perf_counter(), sum(process.cpu_times()[:2])
        time.sleep(0.1)
        if sum(process.cpu_times()[:2]) - used < IDLE * 0.1:
            return begun - started
