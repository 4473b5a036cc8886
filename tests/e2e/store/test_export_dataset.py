# SPDX-License-Identifier: Apache-2.0
"""A data set of the labelled series of a DICOMweb server, with labels of ours and of another tool."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.live_server import free_port
from lib.dicom.series import describe_series
from tests.e2e.site import wait
from tests.e2e.store import foreign
from tests.e2e.store.orthanc_site import Site
from tests.e2e.store.planes import places
from tests.e2e.store.test_learning import study
from tests.unit.export_sites import Exporter

NAME = "exported block"


def test_series_of_a_server_are_exported_with_both_kinds_of_labels(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    studies = {name: study(f"export {name}", place) for name, place in (("ours", (22, 31)), ("other", (41, 24)))}
    images = {name: site.put(instances) for name, (instances, _) in studies.items()}
    instances, label = studies["other"]
    order = [(uid, frame) for uid, frame, _ in places(instances)]
    planes = {key: label[:, :, row].T > 0 for row, key in enumerate(order) if label[:, :, row].any()}
    site.put([foreign.by_ohif(instances, {NAME: planes})])
    mask = site.infer("semantic", images["ours"], {})
    assert site.submit(images["ours"], mask.file(studies["ours"][1]), [NAME]).status_code == 200
    wait(lambda: site.submission(images["other"]) and site.submission(images["ours"]), site.server)
    exporter = Exporter(capsys)
    words = ("--structures", NAME, "--keep-identifiers", "--conf", "state", str(site.state))
    assert exporter.run(site.orthanc.url, "nnunet", tmp_path / "out", *words) == 0, exporter.errors
    folder = tmp_path / "out" / "Dataset501_KPrism"
    found = json.loads((folder / "provenance.json").read_text())
    assert found["source"] == "a DICOMweb server"
    cases = {case["image"]: case for case in found["cases"]}
    assert set(cases) == set(images.values())
    assert cases[images["ours"]]["way"] == "submitted to the server"
    for name, (instances, label) in studies.items():
        case = cases[images[name]]["case"]
        series = describe_series(instances)
        rows = [[str(item.SOPInstanceUID) for item in instances].index(frame.instance) for frame in series.frames]
        written = nibabel.load(folder / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), label[:, :, rows])
        np.testing.assert_allclose(written.affine, series.affine, atol=1e-4)
        image = np.asarray(nibabel.load(folder / "imagesTr" / f"{case}_0000.nii.gz").dataobj)
        pixels = np.stack([instances[row].pixel_array.T for row in rows], axis=2)
        slope, intercept = (float(instances[0][key].value) for key in ("RescaleSlope", "RescaleIntercept"))
        np.testing.assert_allclose(image, pixels * slope + intercept, atol=1e-3)


def test_a_store_that_is_down_is_said_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    exporter = Exporter(capsys)
    assert exporter.run(f"http://127.0.0.1:{free_port()}/dicom-web", "msd", tmp_path / "out") == 1
    assert "does not answer" in exporter.errors
    assert not (tmp_path / "out").exists()
