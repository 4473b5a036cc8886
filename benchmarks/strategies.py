# SPDX-License-Identifier: Apache-2.0
"""How many labels each strategy of choosing the next case needs for the same Dice on held-out cases.

    python -m benchmarks.strategies --data ../shared/data/isic_dermoscopy --cases 60 --labels 20

For each strategy a fresh server with an empty label store: the server chooses a case, the true label is submitted, and
so on; a training of `--minutes` follows every `--after` labels. At some counts the first masks of held-out cases (the
validation and test lists) are measured: by class once a training has taught the structures, else by reference, as an
annotator would start. A strategy that goes by scores is asked when all cases have theirs. `random` runs twice, which
shows how much is chance. Says first how long it will take. Writes strategies-NAME.json, .md and .png to `--out`;
started again with the same arguments it leaves out what is there.
"""

from __future__ import annotations

import argparse
import json
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
from kprism_model.metrics import dice

STRATEGIES = ("random", "random again", "first", "uncertainty", "disagreement", "diverse")
SCORED = ("uncertainty", "disagreement", "diverse")
PATIENCE = 600.0  # seconds until all cases must have their scores
AROUND = 60.0  # seconds that a training takes beside its budget, for the estimate

Curve = dict[str, float]
"""Labels (as text, for JSON) -> mean Dice of the held-out cases' first masks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.strategies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a data set with a dataset.json")
    parser.add_argument("--cases", type=int, default=60, help="to choose from, of the training list (%(default)s)")
    parser.add_argument("--labels", type=int, default=20, help="that are submitted (%(default)s)")
    parser.add_argument("--at", type=int, nargs="+", default=[1, 2, 3, 5, 8, 12, 16, 20], help="counts of labels")
    parser.add_argument("--held-out", type=int, default=30, help="cases that are measured (%(default)s)")
    parser.add_argument("--after", type=int, default=10, help="labels after which a training starts (%(default)s)")
    parser.add_argument("--minutes", type=float, default=1.5, help="of one training (%(default)s)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seed", type=int, default=0, help="chooses the cases (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    keys = ("cases", "labels", "at", "held_out", "after", "minutes", "seed")
    settings = {"data": given.data.name, **{key: getattr(given, key) for key in keys}}
    path = given.out / f"strategies-{given.data.name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    curves: dict[str, Curve] = before["curves"] if before.get("settings") == settings else {}
    pool = chosen_cases(given.data, given.cases, given.seed)
    held_out = held_out_cases(given.data, given.held_out)
    left = [name for name in given.strategies if name not in curves]
    trainings = given.labels // given.after if given.after else 0
    minutes = len(left) * trainings * (given.minutes + AROUND / 60)
    print(f"{len(left)} strategies: {minutes:.0f} minutes of training, and scoring and measuring", flush=True)
    for name in left:
        curves[name] = run(name, given, pool, held_out)
        write_results(path, settings, curves)
    print(table_of(curves))
    return 0


def held_out_cases(data: Path, count: int) -> dict[str, Masks]:
    """The first cases of the validation and test lists."""
    truth = {**read_truth(data, split="validation"), **read_truth(data, split="test")}
    return dict(list(truth.items())[:count])


def run(name: str, given: argparse.Namespace, pool: Mapping[str, Masks], held_out: Mapping[str, Masks]) -> Curve:
    """Label by one strategy on a server of its own."""
    conf = site_configuration(given.data, pool, given.after, given.minutes)
    strategy = name.split()[0]
    curve: Curve = {}
    with tempfile.TemporaryDirectory(prefix="kprism-strategies-") as folder:
        studies = copy_images(given.data, Path(folder) / "studies", pool)
        with LiveServer(studies, conf=conf) as server:
            annotator = SimulatedAnnotator(server, pool)
            for count in tqdm(range(1, given.labels + 1), desc=name):
                if strategy in SCORED:
                    wait_for_scores(server, studies, len(pool))
                image = annotator.next_case(strategy)
                assert image is not None  # there are more cases than labels
                annotator.submit(image, dict(pool[image]))
                if given.after:
                    wait_for_training(server, given.after)
                if count in given.at:
                    curve[str(count)] = measured(server, given.data, held_out)
    return curve


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


def write_results(path: Path, settings: dict[str, Any], curves: Mapping[str, Curve]) -> None:
    """Figures, table and picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings, "curves": curves}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table_of(curves) + "\n")
    plot(path.with_suffix(".png"), settings["data"], curves)


def table_of(curves: Mapping[str, Curve]) -> str:
    """Dice at each count of labels, and labels needed for what `random` has in the end (the mean of its runs)."""
    counts = list(next(iter(curves.values())))
    chance = [curve[counts[-1]] for name, curve in curves.items() if name.startswith("random")]
    wanted = float(np.mean(chance)) if chance else float("nan")
    lines = [
        f"| strategy | {' | '.join(f'{count} labels' for count in counts)} | labels to {wanted:.3f} |",
        "|---|" + "---|" * (len(counts) + 1),
    ]
    for name, curve in curves.items():
        reached = next((count for count in counts if curve[count] >= wanted), f"more than {counts[-1]}")
        lines.append(f"| {name} | {' | '.join(f'{curve[count]:.3f}' for count in counts)} | {reached} |")
    return "\n".join(lines)


def plot(path: Path, name: str, curves: Mapping[str, Curve]) -> None:
    """Dice against the number of labels, a line for each strategy; chance in grey."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for strategy, curve in curves.items():
        colour = "#999999" if strategy.startswith("random") else None
        axes.plot([int(count) for count in curve], list(curve.values()), "o-", ms=4, label=strategy, color=colour)
    axes.set(xlabel="labels", ylabel="Dice of first masks, held-out cases", title=name)
    save_curves(path, figure, axes)


if __name__ == "__main__":
    raise SystemExit(main())
