# SPDX-License-Identifier: Apache-2.0
"""What a client does wrong is answered with a 4xx and a sentence that names the value; the server goes on."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests

from benchmarks.live_server import LiveServer
from tests.contract.conftest import BUDGET_MB

IMAGE = "brain_LPS"
SECRET = "/etc/hostname"
CLICK = {"thing": [[60, 50, 6]]}

BAD: dict[str, tuple[str, str, Any, int, str]] = {
    "unknown image": ("semantic", "nobody", {}, 404, "'nobody'"),
    "unknown model": ("sematic", IMAGE, {}, 404, "'sematic'"),
    "no image": ("semantic", "", {}, 400, "names no image"),
    "unknown structure": ("semantic", IMAGE, {"structures": "spleen"}, 400, "'spleen'"),
    "unknown label number": ("semantic", IMAGE, {"label_prompt": [99]}, 400, "99"),
    "structure in no label": ("in_context", IMAGE, {"structures": "spleen"}, 400, "'spleen'"),
    "unknown reference": ("in_context", IMAGE, {"references": "nobody"}, 404, "'nobody'"),
    "reference without label": ("in_context", IMAGE, {"references": ["grey"]}, 404, "'grey'"),
    "reference to itself": ("in_context", IMAGE, {"references": IMAGE}, 400, f"'{IMAGE}' is the image itself"),
    "reference of another size": ("in_context", IMAGE, {"references": "mislabelled"}, 400, "6 x 5 x 3"),
    "reference that lacks it": (
        "in_context",
        "grey",
        {"references": IMAGE, "structures": "polyp"},
        400,
        f"'{IMAGE}' holds 'tumour', not 'polyp'",
    ),
    "params are no JSON": ("semantic", IMAGE, "{'a'", 400, "not JSON"),
    "params are no object": ("semantic", IMAGE, "[1, 2]", 400, "[1, 2]"),
    "params nest without end": ("semantic", IMAGE, "[" * 100_000, 400, "JSON"),
    "no clicks": ("interactive", IMAGE, {"thing": [], "background": []}, 400, "no clicks"),
    "click outside": ("interactive", IMAGE, {"thing": [[120, 0, 0]]}, 400, "[120, 0, 0]"),
    "click in a slice that is not there": ("interactive", IMAGE, {"thing": [[60, 50, 12]]}, 400, "[60, 50, 12]"),
    "huge image": ("semantic", "huge", {}, 413, "512 x 512 x 1000 voxels, which take 500 MiB"),
    "negative click": ("interactive", IMAGE, {"thing": [[0, -1, 0]]}, 400, "[0, -1, 0]"),
    "fractional click": ("interactive", IMAGE, {"thing": [[0.5, 1, 0]]}, 400, "[0.5, 1, 0]"),
    "click that is no number": ("interactive", IMAGE, '{"thing": [[NaN, 1, 0]]}', 400, "nan"),
    "click of text": ("interactive", IMAGE, {"thing": ["here"]}, 400, "'here'"),
    "thousands of clicks": (
        "interactive",
        IMAGE,
        {"thing": [[i, j, 0] for i in range(99) for j in range(99)]},
        400,
        "9801",
    ),
    "too many on one slice": (
        "interactive",
        IMAGE,
        {"thing": [[i, j, 0] for i in range(30) for j in range(20)]},
        400,
        "600",
    ),
    "contradiction": ("interactive", IMAGE, {**CLICK, "background": CLICK["thing"]}, 400, "[60, 50, 6]"),
    "background on nothing": ("interactive", "other", {"background": [[0, 0, 0]]}, 400, "[0, 0, 0]"),
    "endless value": ("semantic", IMAGE, {"structures": "x" * 100_000}, 400, "xxx"),
    "structures of another kind": ("semantic", IMAGE, {"structures": {"a": 1}}, 400, "structures is {'a': 1}"),
    "unknown choice": ("interactive", IMAGE, {**CLICK, "start_from": "yesterday"}, 400, "'yesterday'"),
    "option out of range": ("semantic", IMAGE, {"presence": 7}, 400, "presence is 7"),
    "option that is no number": ("semantic", IMAGE, {"presence": "much"}, 400, "'much'"),
    "scribbles without a labelmap": ("scribbles", IMAGE, {}, 400, "no file 'label'"),
    "unknown result type": ("semantic", IMAGE, {"result_extension": ".dcm"}, 400, "'.dcm'"),
    "volume as PNG": ("semantic", IMAGE, {"result_extension": ".png"}, 400, "12 slices"),
    "unknown value type": ("semantic", IMAGE, {"result_dtype": "float128"}, 400, "'float128'"),
    "tag that is a path": ("semantic", "grey", {"save_label": True, "label_tag": "../../x"}, 400, "'../../x'"),
    "empty file": ("semantic", "empty", {}, 400, "'empty' is an empty file"),
    "corrupt file": ("semantic", "corrupt", {}, 400, "'corrupt' is not a readable"),
    "NaN in the image": ("semantic", "nan", {}, 400, "'nan' has 1 voxels that are not finite"),
    "constant image": ("semantic", "constant", {}, 400, "'constant' is constant"),
    "four axes": ("semantic", "series", {}, 400, "6 x 5 x 4 x 3"),
    "complex numbers": ("semantic", "complex", {}, 400, "complex64"),
    "file of the server": ("semantic", SECRET, {}, 404, SECRET),
    "way out of the datastore": ("semantic", f"../../../../../../..{SECRET}", {}, 404, SECRET),
    "file of the server in params": ("semantic", IMAGE, {"image": SECRET}, 400, SECRET),
    "label file in params": ("scribbles", IMAGE, {"label_file": SECRET}, 400, SECRET),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_request(server: LiveServer, case: str) -> None:
    model, image, params, status, named = BAD[case]
    answer = server.infer(model, image, params)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert named in detail
    assert len(detail) < 1010
    assert str(server.studies) not in detail
    assert server.info()["name"] == "K-Prism"


@pytest.mark.parametrize("path", ["wsi/semantic", "wsi_v2/semantic"])
def test_other_ways_to_a_file_of_the_server(server: LiveServer, path: str) -> None:
    answer = requests.post(f"{server.url}/infer/{path}", params={"image": SECRET}, json={}, timeout=30)
    assert 400 <= answer.status_code < 500
    assert SECRET in answer.text or answer.status_code == 404


@pytest.mark.parametrize("field", ["data file", "datafile"])
def test_a_header_cannot_point_to_a_file_of_the_server(server: LiveServer, tmp_path: Path, field: str) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(64))
    header = f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 8 8\nencoding: raw\n{field}: {secret}\n\n"
    info = [{"name": "foreground_scribbles", "id": 1}]
    params = {"label_info": info, "selected_label_name": "tumour"}
    answer = server.infer("scribbles", IMAGE, params, files={"label": ("x.nrrd", header.encode())})
    assert answer.status_code == 400, answer.text
    assert f"outside of the file ({field}: {secret})" in answer.json()["detail"]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_weights_cannot_be_changed_over_http(server: LiveServer, method: str) -> None:
    version = server.infer_all("semantic", IMAGE, {})[0]["weights_version"]
    upload = {"file": ("x.safetensors", b"nonsense")}
    answer = requests.request(method, f"{server.url}/model/semantic", files=upload, timeout=30)
    assert answer.status_code == 403
    assert "'semantic'" in answer.json()["detail"]
    assert server.infer_all("semantic", IMAGE, {})[0]["weights_version"] == version


def test_archives_are_not_unpacked(server: LiveServer, tmp_path: Path) -> None:
    archive, escaped = io.BytesIO(), tmp_path / "escaped.txt"
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo(str(escaped))
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    files = {"files": ("x.tar", archive.getvalue())}
    answer = requests.put(f"{server.url}/session/", params={"uncompress": "true"}, files=files, timeout=30)
    assert answer.status_code == 400
    assert "'x.tar'" in answer.json()["detail"]
    assert not escaped.exists()


def test_other_origins_are_not_let_in(server: LiveServer) -> None:
    answer = requests.get(f"{server.url}/info/", headers={"Origin": "http://elsewhere.example"}, timeout=30)
    assert "access-control-allow-origin" not in answer.headers


def test_sessions_are_no_paths(server: LiveServer) -> None:
    for session in ("../../../etc", "nobody"):
        answer = requests.post(f"{server.url}/infer/semantic", params={"session_id": session}, timeout=30)
        assert answer.status_code == 404
        assert session in answer.json()["detail"]


def test_labels_and_images_stay_in_the_datastore(server: LiveServer) -> None:
    before = sorted(path for path in server.studies.parent.rglob("*") if server.studies not in path.parents)
    upload = {"label": ("x.nii.gz", b"anything")}
    wrong = [{"image": "grey", "tag": "../../escaped"}, {"image": "../escaped"}, {"image": "nobody"}]
    for params in wrong:
        answer = requests.put(f"{server.url}/datastore/label", params=params, files=upload, timeout=30)
        assert answer.status_code in (400, 404), answer.text
        assert list(params.values())[-1] in answer.json()["detail"]
    answer = requests.put(
        f"{server.url}/datastore/image",
        params={"image": "../escaped"},
        files={"file": ("x.png", b"anything")},
        timeout=30,
    )
    assert answer.status_code == 404
    assert sorted(path for path in server.studies.parent.rglob("*") if server.studies not in path.parents) == before


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("scribbles.nrrd", b"nonsense", "not a readable .nrrd"),
        ("x.exe", b"y", "'.exe'"),
        ("raw.bin", b"123", "raw.bin"),
    ],
)
def test_bad_labelmaps(server: LiveServer, name: str, content: bytes, named: str) -> None:
    info = [{"name": "foreground_scribbles", "id": 1}]
    params = {"label_info": info, "selected_label_name": "tumour"}
    answer = server.infer("scribbles", IMAGE, params, files={"label": (name, content)})
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["detail"]


def test_nonsense_in_a_saved_label_harms_nobody(server: LiveServer) -> None:
    params = {"label_names": {"a": "b", "background": 0}, "label_info": 7, "params": []}
    saved = requests.put(
        f"{server.url}/datastore/label",
        params={"image": "colour"},
        data={"params": json.dumps(params)},
        files={"label": ("x.png", b"no picture")},
        timeout=30,
    )
    assert saved.status_code == 400, saved.text
    assert "the label of image 'colour'" in saved.json()["detail"]
    assert server.infer("in_context", "grey", {"structures": "tumour", "presence": 1}).status_code == 200
    answer = server.infer("in_context", "grey", {"references": "colour", "structures": "tumour"})
    assert answer.status_code == 404
    assert "'colour' is no labelled case" in answer.json()["detail"]


def test_nonsense_in_the_datastore_harms_nobody(server: LiveServer) -> None:
    """A label that came by another way than a submission, as a colleague puts files into the folder."""
    nonsense = server.studies / "labels" / "final" / "colour.png"
    nonsense.write_bytes(b"no picture")
    deadline = time.monotonic() + 30
    while "final" not in stored(server, "colour")["labels"]:
        assert time.monotonic() < deadline, server.log()[-2000:]
        time.sleep(0.2)
    assert server.infer("in_context", "grey", {"structures": "tumour", "presence": 1}).status_code == 200
    answer = server.infer("in_context", "grey", {"references": "colour", "structures": "tumour"})
    assert answer.status_code == 400
    assert "colour" in answer.json()["detail"]
    requests.delete(f"{server.url}/datastore/label", params={"id": "colour", "tag": "final"}, timeout=30)
    assert not nonsense.exists()


def stored(server: LiveServer, image: str) -> dict[str, Any]:
    """What the datastore knows of an image and its labels."""
    objects = requests.get(f"{server.url}/datastore/", params={"output": "all"}, timeout=30).json()["objects"]
    return dict(objects[image])


def test_uploads_have_a_limit(server: LiveServer) -> None:
    upload = {"label": ("x.nii.gz", bytes((BUDGET_MB << 20) + 1))}
    for address in ("/datastore/label", "/infer/interactive"):
        send = requests.put if address.startswith("/datastore") else requests.post
        answer = send(f"{server.url}{address}", params={"image": IMAGE}, files=upload, timeout=60)
        assert answer.status_code == 413, answer.text
        assert "longer than 256 MiB" in answer.json()["detail"]


@pytest.mark.parametrize("params", ["[1]", "{", "7"])
def test_a_label_s_information_is_an_object(server: LiveServer, params: str) -> None:
    for address, form in (("label", {"params": params}), ("label/info", {"info": params})):
        answer = requests.put(
            f"{server.url}/datastore/{address}",
            params={"image": "grey", "label": "grey", "tag": "final"},
            data=form,
            files={"label": ("x.png", b"anything")},
            timeout=30,
        )
        assert answer.status_code == 400, answer.text


def test_a_mask_at_another_place_is_refused(server: LiveServer, tmp_path: Path) -> None:
    image = nibabel.load(server.studies / f"{IMAGE}.nii.gz")
    moved = image.affine.copy()
    moved[:3, 3] += 30
    nibabel.save(nibabel.Nifti1Image(np.ones(image.shape, np.uint8), moved), tmp_path / "moved.nii.gz")
    upload = {"label": ("moved.nii.gz", (tmp_path / "moved.nii.gz").read_bytes())}
    answer = server.infer("interactive", IMAGE, CLICK, files=upload)
    assert answer.status_code == 400, answer.text
    assert "'moved.nii.gz' lies elsewhere than image 'brain_LPS'" in answer.json()["detail"]


def test_failed_requests_leave_no_file(server: LiveServer) -> None:
    before = set(server.scratch.iterdir())
    for case in ("unknown structure", "click outside", "tag that is a path", "huge image"):
        model, image, params, status, _ = BAD[case]
        upload = {"label": ("x.nii.gz", b"anything")}
        assert server.infer(model, image, params, files=upload).status_code == status
    assert set(server.scratch.iterdir()) <= before


def test_dicom_seg_needs_dicom_series(server: LiveServer) -> None:
    answer = server.infer("semantic", IMAGE, {}, output="dicom_seg")
    assert answer.status_code == 400
    assert "needs studies that are DICOM series" in answer.json()["detail"]


def test_others_are_served_during_a_long_request(server: LiveServer) -> None:
    """MONAI Label's own route would hold up everybody until the answer is there."""
    finished: list[float] = []

    def long_request() -> None:
        params = json.dumps({"presence": 0, "structures": "tumour,lungs,polyp"})
        requests.post(
            f"{server.url}/infer/semantic", params={"image": "brain_nrrd"}, data={"params": params}, timeout=120
        )
        finished.append(time.perf_counter())

    thread = threading.Thread(target=long_request)
    thread.start()
    answered = []
    while thread.is_alive():
        server.info()
        answered.append(time.perf_counter())
    thread.join()
    assert sum(moment < finished[0] for moment in answered) >= 2


def test_the_log_holds_no_unhandled_error(server: LiveServer) -> None:
    """All that the tests of this folder have asked so far stands in it, from the start on."""
    log = server.log()
    assert "App Init..." in log
    assert "Exception in ASGI application" not in log
    assert "Traceback" not in log
