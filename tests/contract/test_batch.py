# SPDX-License-Identifier: Apache-2.0
"""Batch inference, which MONAI Label runs in a process that starts the whole app again."""

from __future__ import annotations

import time

import requests

from benchmarks.live_server import LiveServer


def test_batch_inference_without_a_gpu(server: LiveServer) -> None:
    """MONAI Label asks for several GPUs unless told otherwise; one bad file must not end the batch."""
    body = {"structures": "polyp", "max_workers": 1}
    started = requests.post(f"{server.url}/batch/infer/semantic", params={"images": "unlabeled"}, json=body, timeout=60)
    assert started.status_code == 200, started.text
    deadline = time.monotonic() + 120
    status = "SUBMITTED"
    while status in ("SUBMITTED", "RUNNING") and time.monotonic() < deadline:
        time.sleep(0.5)
        task = requests.get(f"{server.url}/batch/infer", timeout=60).json()
        status = task["status"]
    assert status == "DONE", task
    objects = requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"]
    answered = {name for name, entry in objects.items() if "original" in entry["labels"]}
    assert {"grey", "colour", "brain_ASR", "lung"} <= answered
    assert not answered & {"empty", "corrupt", "nan", "constant", "series", "complex"}
    assert objects["grey"]["labels"]["original"]["info"]["params"]["label_names"].keys() <= {"polyp"}
