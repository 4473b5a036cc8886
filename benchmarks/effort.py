# SPDX-License-Identifier: Apache-2.0
"""How many clicks a case costs, and how that falls as labels come in: a simulated annotator on a fresh server.

    python -m benchmarks.effort --data ../shared/data/isic_dermoscopy --cases 60 --out docs/effort
    python -m benchmarks.effort --data ../shared/data/isic_dermoscopy --cases 4 --limit 3 --minutes 0.1 --after 2

Three arms, each on a server of its own with an empty label store: clicks only; with references (every submitted label
serves the next case); with references and training (after every `--after` labels, for `--minutes`; she waits for it,
for she is faster than a person). Prints a table, writes effort-NAME.json, .md and .png to `--out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.annotator import Annotator, Effort, Masks, read_truth
from tests.live_server import LiveServer

ARMS = {"clicks": "clicks only", "references": "with references", "training": "with references and training"}
COLOURS = {"clicks": "#555555", "references": "#0072B2", "training": "#D55E00"}
LAST = 10
"""Cases at the end that are reported apart."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.effort", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set with a dataset.json; its training list")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--strategy", default="random")
    parser.add_argument("--target", type=float, default=0.9, help="Dice at which a structure is right (%(default)s)")
    parser.add_argument("--limit", type=int, default=20, help="clicks a structure at most (%(default)s)")
    parser.add_argument("--after", type=int, default=5, help="labels after which a training starts (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one training (%(default)s)")
    parser.add_argument("--model-path", type=Path, help="other weights than the shipped ones")
    parser.add_argument("--out", type=Path, default=Path("docs/effort"))
    given = parser.parse_args(arguments)
    efforts = {arm: run_arm(arm, given) for arm in given.arms}
    write_results(given.out, f"{given.data.name}-{given.strategy}", efforts, vars(given))
    return 0


def run_arm(arm: str, given: argparse.Namespace) -> list[Effort]:
    """Label all cases on a fresh server."""
    truth = dict(list(read_truth(given.data).items())[: given.cases])
    conf = {
        "train_after": str(given.after if arm == "training" else 0),
        "train_minutes": str(given.minutes),
        "labels": ",".join(dict.fromkeys(name for masks in truth.values() for name in masks)),
    }
    if given.model_path:
        conf["model_path"] = str(given.model_path.resolve())
    with tempfile.TemporaryDirectory(prefix="kprism-effort-") as folder:
        studies = Path(folder) / "studies"
        copy_images(given.data, studies, truth)
        with LiveServer(studies, conf=conf) as server:
            annotator = Annotator(server, truth, target=given.target, limit=given.limit)
            for _ in tqdm(truth, desc=ARMS[arm]):
                image = annotator.next_case(given.strategy)
                if image is None:
                    break
                start = None if arm == "clicks" else best_start(server, truth[image], bool(annotator.efforts))
                annotator.label(image, start)
                if arm == "training":
                    wait_for_training(server)
            return annotator.efforts


def copy_images(data: Path, studies: Path, truth: dict[str, Masks]) -> None:
    """The images of the cases, without their labels."""
    studies.mkdir()
    for file in sorted((data / "images").iterdir()):
        if file.name.removesuffix(".nii.gz").removesuffix(".png") in truth:
            shutil.copy(file, studies)


def best_start(server: LiveServer, masks: Masks, labelled: bool) -> str | None:
    """The model whose answer she starts from: by class once a training has taught the structures, else by reference."""
    known = server.info()["models"]["semantic"]["labels"]
    if all(name in known for name in masks):
        return "semantic"
    return "in_context" if labelled else None


def wait_for_training(server: LiveServer, *, settle: float = 3.0) -> None:
    """Wait until no training is running; `settle` seconds is how long the server may take to start one."""
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < settle:
        answer = requests.get(f"{server.url}/train/", params={"check_if_running": True}, timeout=60)
        if answer.status_code == 200:
            idle_since = time.monotonic()
        time.sleep(0.5)


def write_results(out: Path, name: str, efforts: dict[str, list[Effort]], settings: dict[str, Any]) -> None:
    """Print the table; write it, all figures and the curves."""
    out.mkdir(parents=True, exist_ok=True)
    table = results_table(efforts)
    print(table)
    content = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
        "arms": {arm: [effort.to_dict() for effort in found] for arm, found in efforts.items()},
    }
    (out / f"effort-{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / f"effort-{name}.md").write_text(table + "\n")
    plot(out / f"effort-{name}.png", name, efforts)


def results_table(efforts: dict[str, list[Effort]]) -> str:
    """Clicks a case over all cases and over the last ones, and as a share of clicks only; Dice of the first mask."""
    lines = [
        f"| arm | cases | clicks a case | of clicks only | last {LAST} | of clicks only | first mask, last {LAST} |",
        "|---|---|---|---|---|---|---|",
    ]
    base = efforts.get("clicks")
    for arm, found in efforts.items():
        late = found[-LAST:]
        shares = [
            f"{100 * _mean(part) / _mean(other):.0f} %" if base and _mean(other) else ""
            for part, other in ((found, base or []), (late, (base or [])[-LAST:]))
        ]
        first = np.mean([value for effort in late for value in effort.first_dice.values()])
        lines.append(
            f"| {ARMS[arm]} | {len(found)} | {_mean(found):.1f} | {shares[0]} | {_mean(late):.1f} | {shares[1]} "
            f"| {first:.3f} |"
        )
    return "\n".join(lines)


def _mean(efforts: Sequence[Effort]) -> float:
    return float(np.mean([effort.total for effort in efforts])) if efforts else 0.0


def plot(path: Path, name: str, efforts: dict[str, list[Effort]]) -> None:
    """Clicks a case against the number of the case: dots, and means over nine cases as lines."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for arm, found in efforts.items():
        clicks = np.array([effort.total for effort in found], float)
        numbers = np.arange(1, len(clicks) + 1)
        axes.plot(numbers, clicks, ".", ms=4, alpha=0.4, color=COLOURS[arm])
        reach = 4
        means = [clicks[max(0, n - reach) : n + reach + 1].mean() for n in range(len(clicks))]
        axes.plot(numbers, means, "-", lw=2, color=COLOURS[arm], label=ARMS[arm])
    axes.set(xlabel="case", ylabel="clicks", title=name, ylim=(0, None))
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(main())
