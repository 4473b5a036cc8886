# SPDX-License-Identifier: Apache-2.0
"""Campaign: requests that nobody wrote by hand, near to valid ones; each is answered, or refused with a sentence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import requests
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis import strategies as st

from benchmarks.live_server import LiveServer
from tests.budget import Budget

EXAMPLES = 300
"""Requests of a round; in the suite there is one."""

MODELS = ("semantic", "in_context", "interactive", "scribbles")
IMAGES = ("brain_LPS", "grey", "colour.jpg", "one_slice", "nan", "nobody", "../grey", "")
OPTIONS = (
    *("structures", "references", "presence", "reference_slices", "scope", "slices_around", "slices", "clean_up"),
    *("start_from", "follow_mask", "label", "label_info", "label_names", "label_prompt", "selected_label_name"),
    *("points", "point_labels", "click_order", "result_extension", "result_dtype", "result_compress", "client_id"),
    *("plane", "background", "tumour", "thing", "image", "session_id", "label_file", "model", "device"),
)
"""Names that mean something in the `params` of a request, to one model or to another."""

WORDS = st.sampled_from(
    ("tumour", "lungs", "brain_RAS", "this slice", "whole volume", "final label", ".nrrd", ".png", "uint8", "3-5", "..")
)
INTEGERS = st.integers(-2, 130) | st.integers(-(2**70), 2**70)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=20) | WORDS
POINTS = st.lists(st.lists(st.integers(-1, 130), min_size=2, max_size=4), max_size=4)
VALUES = SCALARS | POINTS | st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
PARAMS = st.dictionaries(st.sampled_from(OPTIONS) | st.text(max_size=8), VALUES, max_size=5).map(json.dumps)
FILE_NAMES = st.sampled_from(("x.nii", "x.nii.gz", "x.nrrd", "x.png", "x", "../x.png")) | st.text(max_size=8)
CONTENTS = st.binary(max_size=64) | st.just(
    b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 2 2\nencoding: raw\n\n\0\0\0\0"
)


@dataclass(frozen=True)
class Call:
    """A request: method and path, query, form, and at most one file (field, name, content)."""

    method: str
    path: str
    query: dict[str, str]
    form: dict[str, str] = field(default_factory=dict)
    file: tuple[str, str, bytes] | None = None

    def send(self, server: LiveServer) -> requests.Response:
        files = None if self.file is None else {self.file[0]: self.file[1:]}
        address = server.url + self.path
        return requests.request(self.method, address, params=self.query, data=self.form, files=files, timeout=120)


TEXTS = PARAMS | st.text(max_size=40)
INFERENCES = st.builds(
    Call,
    st.just("POST"),
    (st.sampled_from(MODELS) | st.just("oracle")).map("/infer/{}".format),
    st.fixed_dictionaries(
        {"image": st.sampled_from(IMAGES)}, optional={"output": st.sampled_from(("json", "all", "7"))}
    ),
    st.fixed_dictionaries({"params": TEXTS}),
    st.none() | st.tuples(st.sampled_from(("label", "file")), FILE_NAMES, CONTENTS),
)
LABELS = st.builds(
    Call,
    st.just("PUT"),
    st.sampled_from(("/datastore/label", "/datastore/label/info")),
    st.fixed_dictionaries(
        {"image": st.sampled_from(("nobody", "../grey", "")), "label": st.just("nobody")},
        optional={"tag": st.sampled_from(("final", "original", "..", ""))},
    ),
    st.fixed_dictionaries({"params": TEXTS, "info": TEXTS}),
    st.tuples(st.just("label"), FILE_NAMES, CONTENTS),
)
"""Labels of images that are not there: the labels of the others are for the tests beside this one."""
LOOKS = st.builds(
    Call,
    st.sampled_from(("GET", "POST", "DELETE", "PUT")),
    st.sampled_from(
        ("/datastore/image", "/datastore/label", "/session/nobody", "/activelearning/oracle", "/train/oracle")
    ),
    st.fixed_dictionaries({}, optional={"image": st.sampled_from(("nobody", "..")), "output": st.text(max_size=5)}),
)


def check_answer(server: LiveServer, answer: requests.Response) -> None:
    """A refusal is a sentence that gives nothing of the server away; what is answered has the form that was asked."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        detail = answer.json()["detail"]
        assert detail and len(answer.text) < 3000
        assert str(server.studies) not in answer.text and "Traceback" not in answer.text
    elif answer.headers["content-type"] == "application/json" and "latencies" in answer.text:
        described = answer.json()
        assert described["label_names"].keys().isdisjoint(described["absent"])
        assert all(math.isfinite(seconds) for seconds in described["latencies"].values())


def test_no_request_breaks_the_server(server: LiveServer, budget: Budget) -> None:
    for number, _ in budget.rounds(short=1):

        @seed(1000 * budget.seed + number)
        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
        @given(INFERENCES | INFERENCES | LABELS | LOOKS)
        def check(call: Call) -> None:
            answer = call.send(server)
            event(f"{call.path} {answer.status_code}")  # shown by --hypothesis-show-statistics
            check_answer(server, answer)

        check()
        assert server.info()["name"] == "K-Prism"
    assert list(server.scratch.glob("kprism-*")) == []
    assert "Traceback" not in server.log()
