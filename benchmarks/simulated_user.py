# SPDX-License-Identifier: Apache-2.0
"""Time the simulated user of training: row by row with SciPy, and a batch at a time in torch.

    python -m benchmarks.simulated_user [--device cpu] [--masks 16] [--sizes 128 192] [--threads 1] [--repeats 5]

Prints the median milliseconds of one call for all masks, smooth random blobs, answered by others; on a CPU those of the
processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from kprism_model.interaction.simulated_user import BatchedUser, RowwiseUser, SimulatedUser


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--masks", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def blobs(count: int, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Smooth random masks (count, 1, size, size)."""
    smooth = ndimage.gaussian_filter(rng.standard_normal((count, size, size)), (0, size / 16, size / 16))
    return torch.from_numpy(smooth > 0)[:, None].float()


def milliseconds(task: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median time of a call after the first, until the device has done it."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        start = clock()
        task()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (clock() - start))
    return statistics.median(times[1:])


def tasks(user: SimulatedUser, masks: torch.Tensor, predictions: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The user's tasks in training."""
    return {
        "clicks": lambda: user.clicks(predictions, masks),
        "scribbles": lambda: user.scribbles(masks),
        "corrupted masks": lambda: user.corrupted_masks(masks, predictions),
        "propagated masks": lambda: user.propagated_masks(masks),
    }


def main() -> None:
    """Measure and print."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    for size in arguments.sizes:
        rng = np.random.default_rng(0)
        masks, answers = (blobs(arguments.masks, size, rng).to(device) for _ in range(2))
        users: dict[str, SimulatedUser] = {"SciPy": RowwiseUser(rng), "torch": BatchedUser(rng, device)}
        for name, user in users.items():
            times = {
                what: milliseconds(task, arguments.repeats, device)
                for what, task in tasks(user, masks, answers).items()
            }
            listed = "  ".join(f"{what} {time:.1f}" for what, time in times.items())
            print(f"{arguments.masks} masks of {size} px on {device}, {name}, ms: {listed}")


if __name__ == "__main__":
    main()
