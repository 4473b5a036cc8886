# SPDX-License-Identifier: Apache-2.0
"""Make pictures of the docs: a real server, the sample studies, and a simulated annotator who clicks on the errors.

    python -m benchmarks.pictures

Writes docs/pictures/clicks.png and propagation.png. The true outlines (labels of the samples) are dashed.
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
from benchmarks.places import ROOT
from kprism_model.intensity import scale_intensity
from kprism_model.interaction.clicks import next_click
from kprism_model.metrics import dice

CASES = (("pyradiomics_brain1", "brain tumour"), ("pyradiomics_lung1", "lung tumour"))
CLICKS = (1, 3, 5)
PROPAGATED_CLICKS = 3
REACH = 55  # pixels around a structure
SLICES = 7  # of each structure in the picture of propagation, beyond its ends too


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
        mask = ask(server, case, clicks)[..., k]
        steps.append(({name: list(points) for name, points in clicks.items()}, mask))
    return steps


def ask(server: LiveServer, case: str, clicks: dict[str, list[list[int]]], **options: str) -> NDArray[np.bool_]:
    """The mask (i, j, k) that the server answers to clicks."""
    _, file = server.infer_all("interactive", case, {**clicks, "result_extension": ".nii.gz", **options})
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(file)).dataobj) > 0


def draw(
    axis: Any, image: NDArray[Any], truth: NDArray[Any], mask: NDArray[Any] | None, clicks: Any, centre: NDArray[Any]
) -> None:
    """One slice as a radiologist sees it, with outlines and clicks (green: on the structure, red: beside it)."""
    axis.imshow(image.T, cmap="gray", vmin=0, vmax=1)
    if truth.any():
        axis.contour(truth.T, [0.5], colors="white", linewidths=0.8, linestyles="dashed")
    if mask is not None and mask.any():
        axis.contour(mask.T, [0.5], colors="#ffb000", linewidths=1.4)
    for name, points in (clicks or {}).items():
        colour = "#ff4040" if name == "background" else "#40ff60"
        axis.scatter([p[0] for p in points], [p[1] for p in points], s=26, c=colour, edgecolors="black", zorder=3)
    axis.set_xlim(centre[0] - REACH, centre[0] + REACH)
    axis.set_ylim(centre[1] + REACH, centre[1] - REACH)
    axis.axis("off")


def load(server: LiveServer, case: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A sample's image, scaled to [0, 1], and its true mask, both (i, j, k)."""
    studies = Path(server.studies)
    truth = read(studies / "labels" / "final" / f"{case}.nii.gz") > 0
    return scale_intensity(read(studies / f"{case}.nii.gz")), truth


def draw_clicks(server: LiveServer) -> None:
    """The mask of one slice after each number of clicks."""
    figure, axes = pyplot.subplots(len(CASES), 1 + len(CLICKS), figsize=(11, 5.6), facecolor="#111111")
    for row, (case, label) in zip(axes, CASES, strict=True):
        image, truth = load(server, case)
        k = int(truth.sum((0, 1)).argmax())
        centre = np.argwhere(truth[..., k]).mean(0)
        steps = annotate(server, case, label, truth, k)
        draw(row[0], image[..., k], truth[..., k], None, None, centre)
        row[0].set_title(label, color="white")
        for axis, count in zip(row[1:], CLICKS, strict=True):
            clicks, mask = steps[count - 1]
            draw(axis, image[..., k], truth[..., k], mask, clicks, centre)
            score = dice(mask, truth[..., k])
            axis.set_title(f"{count} click{'s' * (count > 1)}: Dice {score:.2f}", color="white")
            print(f"{case} slice {k}: {count} clicks, Dice {score:.3f}")
    save(figure, "clicks.png")


def draw_propagation(server: LiveServer) -> None:
    """The masks of slices to which a structure is propagated from clicks on its middle slice, beyond its ends too."""
    figure, axes = pyplot.subplots(len(CASES), SLICES, figsize=(15, 4.8), facecolor="#111111")
    for row, (case, label) in zip(axes, CASES, strict=True):
        image, truth = load(server, case)
        shown = np.flatnonzero(truth.any((0, 1)))
        middle = int(shown[len(shown) // 2])
        clicks, _ = annotate(server, case, label, truth, middle)[PROPAGATED_CLICKS - 1]
        mask = ask(server, case, clicks, scope="whole volume")
        centre = np.argwhere(truth[..., middle]).mean(0)
        first, last = max(0, int(shown[0]) - 2), min(truth.shape[2] - 1, int(shown[-1]) + 2)
        numbers = sorted({middle, *np.linspace(first, last, SLICES).round().astype(int).tolist()})[:SLICES]
        for axis, number in zip(row, numbers, strict=True):
            shown_clicks = clicks if number == middle else None
            draw(axis, image[..., number], truth[..., number], mask[..., number], shown_clicks, centre)
            axis.set_title(f"slice {number}" + (", clicked" if number == middle else ""), color="white")
        print(f"{case}: volume Dice {dice(mask, truth):.3f}, {int(mask.any((0, 1)).sum())} slices, true {len(shown)}")
    save(figure, "propagation.png")


def save(figure: Any, name: str) -> None:
    """Write a figure into docs/pictures."""
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pictures" / name, dpi=90, facecolor=figure.get_facecolor())


def main() -> None:
    """Ask the server and write the pictures."""
    with tempfile.TemporaryDirectory() as folder, LiveServer(copy_samples(Path(folder) / "studies")) as server:
        draw_clicks(server)
        draw_propagation(server)


if __name__ == "__main__":
    main()
