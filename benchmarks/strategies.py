# SPDX-License-Identifier: Apache-2.0
"""How many labels each strategy of choosing the next case needs for the same Dice on held-out cases, and by chance.

    python -m benchmarks.strategies --data ../shared/data/isic_dermoscopy --cases 40 --labels 20 --seeds 5

For each strategy and seed a fresh server with an empty label store: a case is chosen, the true label is submitted, and
so on; a training of `--minutes` follows every `--after` labels. A seed draws the cases to choose from and the order of
`random`; the other strategies are the server's. At some counts the first masks of held-out cases (the validation and
test lists, the same for all seeds) are measured: by class once a training has taught the structures, else by reference,
as an annotator would start. A strategy that goes by scores is asked when all cases have theirs.

The table has mean and standard error over seeds, the labels needed for the Dice that `random` has in the end, and
whether a paired test tells a strategy apart from `random` (`benchmarks.strategy_statistics`). Says first how long it
will take. Writes strategies-NAME.json, .md and .png to `--out`; started again with the same arguments, or with more
seeds or strategies, it leaves out what is there.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.curves import save_curves
from benchmarks.effort import best_start, chosen_cases, copy_images, site_configuration, wait_for_training
from benchmarks.live_server import LiveServer
from benchmarks.simulated_annotator import Masks, SimulatedAnnotator, masks_in, read_truth
from benchmarks.strategy_statistics import CHANCE, Curve, Curves, Sample, table_of
from kprism_model.metrics import dice

STRATEGIES = (CHANCE, "first", "uncertainty", "disagreement", "diverse")
SCORED = ("uncertainty", "disagreement", "diverse")
PATIENCE = 600.0  # seconds until all cases must have their scores
AROUND = 60.0  # seconds that a training takes beside its budget, for the estimate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.strategies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a data set with a dataset.json")
    parser.add_argument("--cases", type=int, default=40, help="to choose from, of the training list (%(default)s)")
    parser.add_argument("--labels", type=int, default=20, help="that are submitted (%(default)s)")
    parser.add_argument("--at", type=int, nargs="+", default=[1, 2, 3, 5, 8, 12, 16, 20], help="counts of labels")
    parser.add_argument("--held-out", type=int, default=30, help="cases that are measured (%(default)s)")
    parser.add_argument("--after", type=int, default=10, help="labels after which a training starts (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1.5, help="of one training (%(default)s)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs of each strategy, with seeds 0, 1, ... (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    if given.seeds < 1 or not 1 <= given.labels < given.cases or not any(count <= given.labels for count in given.at):
        parser.error(
            f"--seeds {given.seeds} --labels {given.labels} --cases {given.cases} --at {given.at}: expected a seed or "
            "more, fewer labels than cases, and a count of at most so many labels"
        )
    keys = ("cases", "labels", "at", "held_out", "after", "minutes")
    settings = {"data": given.data.name, **{key: getattr(given, key) for key in keys}}
    path = given.out / f"strategies-{given.data.name}.json"
    curves = finished(path, settings)
    held_out = held_out_cases(given.data, given.held_out)
    left = [  # all strategies of a seed before the next seed: an interrupted run can be compared too
        (name, seed)
        for seed in range(given.seeds)
        for name in given.strategies
        if str(seed) not in curves.get(name, {})
    ]
    trainings = given.labels // given.after if given.after else 0
    minutes = len(left) * trainings * (given.minutes + AROUND / 60)
    print(f"{len(left)} runs: {minutes:.0f} minutes of training, and scoring and measuring", flush=True)
    for name, seed in left:
        curves.setdefault(name, {})[str(seed)] = run(name, seed, given, held_out)
        write_results(path, settings, curves)
    print(table_of(curves))
    return 0


def finished(path: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """The curves in a results file of the same settings; none if there is no such file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    return dict(content["curves"]) if content.get("settings") == settings else {}


def held_out_cases(data: Path, count: int) -> dict[str, Masks]:
    """The first cases of the validation and test lists."""
    truth = {**read_truth(data, split="validation"), **read_truth(data, split="test")}
    return dict(list(truth.items())[:count])


def run(strategy: str, seed: int, given: argparse.Namespace, held_out: Mapping[str, Masks]) -> Curve:
    """Label by one strategy on a server of its own."""
    pool = chosen_cases(given.data, given.cases, seed)
    order = random_order(pool, seed)
    conf = site_configuration(given.data, pool, given.after, given.minutes)
    curve: Curve = {}
    with tempfile.TemporaryDirectory(prefix="kprism-strategies-") as folder:
        studies = copy_images(given.data, Path(folder) / "studies", pool)
        with LiveServer(studies, conf=conf) as server:
            annotator = SimulatedAnnotator(server, pool)
            for count in tqdm(range(1, given.labels + 1), desc=f"{strategy}, seed {seed}"):
                if strategy in SCORED:
                    wait_for_scores(server, studies, len(pool))
                image = order[count - 1] if strategy == CHANCE else annotator.next_case(strategy)
                assert image is not None  # there are more cases than labels
                annotator.submit(image, dict(pool[image]))
                if given.after:
                    wait_for_training(server, given.after)
                if count in given.at:
                    curve[str(count)] = measured(server, given.data, held_out)
    return curve


def random_order(pool: Mapping[str, Masks], seed: int) -> list[str]:
    """The cases of the pool in the order in which `random` labels them; the server's own draw has no seed."""
    order = sorted(pool)
    random.Random(seed).shuffle(order)
    return order


def wait_for_scores(server: LiveServer, studies: Path, count: int) -> None:
    """Until the present version's scores of all cases are on the disk; RuntimeError if they do not come."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        version = requests.get(f"{server.url}/kprism/api/status", timeout=60).json()["weights"]
        file = studies / ".kprism" / "scores" / f"scores-{version}.json"
        if file.exists() and len(json.loads(file.read_text())) >= count:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{count} cases were not scored within {PATIENCE:.0f} s:\n{server.log()[-2000:]}")


def measured(server: LiveServer, data: Path, held_out: Mapping[str, Masks]) -> float:
    """Mean Dice of the first masks of cases that are not in the server's datastore."""
    found = []
    for image, truth in held_out.items():
        file = next(path for path in (data / "images").iterdir() if path.name.split(".")[0] == image)
        start = best_start(server, truth, True)
        params: dict[str, Any] = {"structures": ", ".join(truth), "result_extension": ".nii.gz"}
        assert start is not None  # there are labels
        metadata, content = server.infer_all(start, "", params, files={"file": (file.name, file.read_bytes())})
        masks = masks_in(content, metadata["label_names"], list(truth))
        found += [dice(masks.get(name, np.zeros_like(mask)), mask) for name, mask in truth.items()]
    return float(np.mean(found))


def write_results(path: Path, settings: Mapping[str, Any], curves: Curves) -> None:
    """Figures, table and picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "curves": curves}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table_of(curves) + "\n")
    plot(path.with_suffix(".png"), settings["data"], curves)


def plot(path: Path, name: str, curves: Curves) -> None:
    """Dice against the number of labels, mean and standard error over seeds for each strategy; chance in grey."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for strategy, runs in curves.items():
        counts = list(next(iter(runs.values())))
        samples = [Sample.of([curve[count] for curve in runs.values()]) for count in counts]
        axes.errorbar(
            [int(count) for count in counts],
            [sample.mean for sample in samples],
            yerr=[sample.error for sample in samples],
            fmt="o-",
            markersize=4,
            capsize=2,
            label=strategy,
            color="#999999" if strategy == CHANCE else None,
        )
    axes.set(xlabel="labels", ylabel="Dice of first masks, held-out cases", title=name)
    save_curves(path, figure, axes)


if __name__ == "__main__":
    raise SystemExit(main())
