# SPDX-License-Identifier: Apache-2.0
"""Make the README's picture: a real server, the sample studies, and a simulated annotator who clicks on the errors.

    python -m benchmarks.pictures

Writes docs/pictures/clicks.png. The true outlines (labels of the samples) are dashed.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray

from benchmarks.live_server import LiveServer, copy_samples
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice
from kprism_model.preprocess import scale_intensity

ROOT = Path(__file__).resolve().parent.parent
CASES = (("pyradiomics_brain1", "brain tumour"), ("pyradiomics_lung1", "lung tumour"))
CLICKS = (1, 3, 5)


def read(path: Path) -> NDArray[Any]:
    """Voxels (i, j, k) of a NIfTI file."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def annotate(server: LiveServer, case: str, label: str, truth: NDArray[np.bool_], k: int) -> list[tuple[Any, Any]]:
    """Click on slice `k` until the last number of CLICKS; (clicks so far, mask of the slice) after each click."""
    mask = np.zeros(truth.shape[:2], bool)
    clicks: dict[str, list[list[int]]] = {label: [], "background": []}
    steps = []
    for _ in range(max(CLICKS)):
        click = next_click(mask, truth[..., k])
        if click is not None:
            clicks[label if click[2] else "background"].append([int(click[0]), int(click[1]), k])
        params = {**clicks, "result_extension": ".nii.gz"}
        _, file = server.infer_all("interactive", case, params)
        answer = nib.Nifti1Image.from_bytes(gzip.decompress(file))
        mask = np.asarray(answer.dataobj)[..., k] > 0
        steps.append(({name: list(points) for name, points in clicks.items()}, mask))
    return steps


def draw(axis: Any, image: NDArray[Any], truth: NDArray[Any], mask: NDArray[Any] | None, clicks: Any) -> None:
    """One slice as a radiologist sees it, with outlines and clicks (green: on the structure, red: beside it)."""
    axis.imshow(image.T, cmap="gray", vmin=0, vmax=1)
    axis.contour(truth.T, [0.5], colors="white", linewidths=0.8, linestyles="dashed")
    if mask is not None and mask.any():
        axis.contour(mask.T, [0.5], colors="#ffb000", linewidths=1.4)
    for name, points in (clicks or {}).items():
        colour = "#ff4040" if name == "background" else "#40ff60"
        axis.scatter([p[0] for p in points], [p[1] for p in points], s=26, c=colour, edgecolors="black", zorder=3)
    rows, columns = np.nonzero(truth)
    reach = 55
    axis.set_xlim(rows.mean() - reach, rows.mean() + reach)
    axis.set_ylim(columns.mean() + reach, columns.mean() - reach)
    axis.axis("off")


def main() -> None:
    """Ask the server and write the picture."""
    figure, axes = pyplot.subplots(len(CASES), 1 + len(CLICKS), figsize=(11, 5.6), facecolor="#111111")
    with tempfile.TemporaryDirectory() as folder, LiveServer(copy_samples(Path(folder) / "studies")) as server:
        studies = Path(server.studies)
        for row, (case, label) in zip(axes, CASES, strict=True):
            image = scale_intensity(read(studies / f"{case}.nii.gz"))
            truth = read(studies / "labels" / "final" / f"{case}.nii.gz") > 0
            k = int(truth.sum((0, 1)).argmax())
            steps = annotate(server, case, label, truth, k)
            draw(row[0], image[..., k], truth[..., k], None, None)
            row[0].set_title(label, color="white")
            for axis, count in zip(row[1:], CLICKS, strict=True):
                clicks, mask = steps[count - 1]
                draw(axis, image[..., k], truth[..., k], mask, clicks)
                score = dice(mask, truth[..., k])
                axis.set_title(f"{count} click{'s' * (count > 1)}: Dice {score:.2f}", color="white")
                print(f"{case} slice {k}: {count} clicks, Dice {score:.3f}")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pictures" / "clicks.png", dpi=90, facecolor=figure.get_facecolor())


if __name__ == "__main__":
    main()
