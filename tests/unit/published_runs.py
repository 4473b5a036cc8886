# SPDX-License-Identifier: Apache-2.0
"""A small published training for the tests, in this process or in those of `torchrun`, and the gradients of its steps.

python published_runs.py gradients OUT [torchrun starts several of them]
python published_runs.py train RUN_FOLDER LOADERS SAVE_MINUTES
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kprism_model.data.slices import SliceSet, SliceStore
from kprism_model.interaction.simulated_user import CentralClicks
from kprism_model.published.training.batch import RawBatch, StepBatch
from kprism_model.published.training.recipe import PublishedRecipe
from kprism_model.published.training.run import PublishedTraining, RunOptions
from kprism_model.published.training.sampling import PublishedSampler
from kprism_model.training.distributed import Workers
from kprism_model.training.schedule import MODES

SIZE = 64
RECIPE = PublishedRecipe(preset="tiny", size=SIZE, batch=4, epochs=2)


def slice_set(name: str, cases: int, slices: int, classes: tuple[str, ...], *, size: int = SIZE) -> SliceSet:
    """Noise with a rectangle for each class; class c is in the slices from c on, so deep slices show more."""
    rng = np.random.default_rng([len(name), cases, slices])
    count, names = cases * slices, dict(enumerate(classes, start=1))
    labels = np.zeros((count, size, size), np.uint8)
    for row in range(count):
        for value in [value for value in names if row % slices >= value - 1]:
            top, left = rng.integers(2, size // 2, 2)
            labels[row, top : top + 16 + value, left : left + 20] = value
    images = np.clip(rng.normal(60 + 50 * labels[..., None], 20), 0, 255).astype(np.uint8)
    return SliceSet(
        name=name,
        modality="MRI",
        anatomy="abdomen",
        classes=names,
        case_names=tuple(f"case{number}" for number in range(cases)),
        patients=tuple(f"patient{number}" for number in range(cases)),
        images=images,
        labels=labels,
        case=np.repeat(np.arange(cases), slices),
        number=np.tile(np.arange(slices), cases),
        content=np.full((count, 2), size),
        pixels=np.stack([(labels == value).sum(axis=(1, 2)) for value in names], axis=1),
    )


def store() -> SliceStore:
    """Two sets of the experiment, 21 and 6 slices."""
    sets = (slice_set("amos_mr", 3, 7, ("spleen", "liver")), slice_set("busi_us", 6, 1, ("breast lesion",)))
    return SliceStore(Path("memory"), "training", SIZE, sets)


def training(
    folder: Path, recipe: PublishedRecipe = RECIPE, options: RunOptions | None = None, workers: Workers | None = None
) -> PublishedTraining:
    """A training of the tiny network in `folder`."""
    sampler = PublishedSampler(store(), recipe, {"amos_mr": 0.3, "busi_us": 0.2}, seed=5)
    options = options or RunOptions(precision="float32")
    # More channels than groups of the group normalization: on an empty map, each of a single one would be divided by 0.
    config = recipe.network(num_classes=len(sampler.registry), width=64, dense_channels=128)
    return PublishedTraining(config, sampler, folder, options, workers=workers)


def cases() -> Iterator[tuple[str, PublishedRecipe, RunOptions, bool, bool]]:
    """Name, recipe, options, whether statistics are frozen, whether in float64, of each comparison of gradients."""
    options = RunOptions(precision="float32")
    for number, mode in enumerate(MODES):
        shares = tuple(float(other == number) for other in range(len(MODES)))
        recipe = replace(RECIPE, mode_shares=shares)  # type: ignore[arg-type]
        yield f"{mode} frozen", recipe, options, True, False
        yield f"{mode} accumulated", recipe, replace(options, images_at_once=1), True, False
        yield f"{mode} recomputed", recipe, replace(options, recompute=True), True, False
        yield f"{mode} double", recipe, options, True, True
        yield f"{mode} training", recipe, options, False, False


def gradients(folder: Path, workers: Workers | None = None) -> dict[str, dict[str, Tensor]]:
    """Case -> "loss" and the gradient of each parameter that has one, of step 1."""
    results = {}
    for name, recipe, options, frozen, double in cases():
        with in_double() if double else in_float():
            made = training(folder / name, recipe, options, workers)
            if frozen:
                freeze(made.model)
            values = made.gradients(made.batches(1))
            results[name] = {
                key: parameter.grad.double().contiguous()
                for key, parameter in made.model.named_parameters()
                if parameter.grad is not None
            }
            loss = values[:1].double()
            made.workers.average_values([loss])
            results[name]["loss"] = loss
            if workers is not None and not frozen:
                own, mean = statistics(made.model), statistics(made.network())
                save_file({"own": own, "mean": mean}, folder / f"statistics of {mode_of(name)}.safetensors")
    return results


def statistics(model: nn.Module) -> Tensor:
    """All running statistics of batch normalization."""
    parts = [m.running_mean for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    return torch.cat(parts)


def mode_of(case: str) -> str:
    """The mode of a comparison."""
    return case.split()[0]


def freeze(model: nn.Module) -> None:
    """Let batch normalization use its running statistics; its weights are trained all the same."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@contextmanager
def in_float() -> Iterator[None]:
    """As it is."""
    yield


@contextmanager
def in_double() -> Iterator[None]:
    """Networks are made in float64, and get batches in float64."""
    as_it_is, clicks_as_they_are = RawBatch.augmented, CentralClicks.clicks

    def augmented(raw: RawBatch, device: torch.device) -> StepBatch:
        torch.set_default_dtype(torch.float32)
        batch = as_it_is(raw, device)
        torch.set_default_dtype(torch.float64)
        return replace(batch, images=batch.images.double(), masks=batch.masks.double())

    def clicks(user: CentralClicks, predictions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        points, labels = clicks_as_they_are(user, predictions, masks)
        return points.double(), labels

    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(RawBatch, "augmented", augmented), patch.object(CentralClicks, "clicks", clicks):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    if sys.argv[1] == "gradients":
        workers = Workers.join("cpu")
        out = Path(sys.argv[2])
        results = gradients(out / str(workers.rank), workers)
        if workers.rank == 0:
            flat = {f"{case}/{name}": value for case, parts in results.items() for name, value in parts.items()}
            save_file(flat, out / "gradients.safetensors")
        workers.leave()
        return
    options = RunOptions(precision="float32", loaders=int(sys.argv[3]), save_minutes=float(sys.argv[4]))
    made = training(Path(sys.argv[2]), options=options)
    for _ in made.steps():
        pass
    print(made.step, made.stopped)


if __name__ == "__main__":
    main()
