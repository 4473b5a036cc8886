# SPDX-License-Identifier: Apache-2.0
"""How many clicks a case costs, and how that falls as labels come in: a simulated annotator on a fresh server.

    python -m benchmarks.effort --data ../shared/data/isic_dermoscopy --cases 60
    python -m benchmarks.effort --data ../shared/data/acdc_mr --cases 30
    python -m benchmarks.effort --data ../shared/data/isic_dermoscopy --cases 3 --limit 2 --minutes 0.05 --after 2

Three arms, each on a server of its own with an empty label store: clicks only; with references (every submitted label
is used for the next case); with references and training (after every `--after` labels, for `--minutes`; the annotator
waits for it, because a simulation is faster than a person). All arms get the same cases in the same order, chosen by
`--seed` over whole patients, unless `--strategy` lets the server choose.

Says first how long it will take. `--stop-after MINUTES` ends it between two cases; the same command goes on where it
ended. Prints a table over the cases that all arms have done, writes effort-NAME.json, .md and .png to `--out`. Studies,
labels and versions of the weights stay in `--work`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.curves import save_curves
from benchmarks.live_server import LiveServer
from benchmarks.simulated_annotator import Effort, Masks, SimulatedAnnotator, read_truth

ARMS = {"clicks": "clicks only", "references": "with references", "training": "with references and training"}
COLOURS = {"clicks": "#555555", "references": "#0072B2", "training": "#D55E00"}
LAST = 10
"""Cases at the end that are reported apart."""

SAME = "same"
"""The strategy by which every arm gets the cases in the same order."""

KEPT = ("data", "cases", "strategy", "seed", "target", "limit", "after", "minutes", "model_path")
"""Arguments that must not change when an interrupted run goes on."""

CLICKS = 6  # clicks a structure, for the estimate
AROUND = 90.0  # seconds that a training takes beside its budget, for the estimate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.effort", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a data set with a dataset.json; its training list")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--strategy", default=SAME, help=f"{SAME} or one of the server's (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the cases and their order (%(default)s)")
    parser.add_argument("--target", type=float, default=0.9, help="Dice at which a structure is right (%(default)s)")
    parser.add_argument("--limit", type=int, default=20, help="clicks a structure at most (%(default)s)")
    parser.add_argument("--after", type=int, default=5, help="labels after which a training starts (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one training (%(default)s)")
    parser.add_argument("--stop-after", type=float, metavar="MINUTES", help="end then; the same command goes on later")
    parser.add_argument("--model-path", type=Path, help="other weights than the shipped ones")
    parser.add_argument("--work", type=Path, help="default: var/effort/NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    name = f"{given.data.name}-{given.strategy}"
    work = (given.work or Path("var/effort") / name).resolve()
    settings = {key: str(value) if isinstance(value := getattr(given, key), Path) else value for key in KEPT}
    try:
        check_settings(work, settings)
    except ValueError as error:
        parser.error(str(error))
    truth = chosen_cases(given.data, given.cases, given.seed)
    print(
        f"{len(truth)} cases, {', '.join(ARMS[arm] for arm in given.arms)}: {estimate(given, work, truth)}", flush=True
    )
    began = time.monotonic()
    efforts = {}
    for number, arm in enumerate(given.arms):
        left = None if given.stop_after is None else 60 * given.stop_after - (time.monotonic() - began)
        share = None if left is None else left / (len(given.arms) - number)
        efforts[arm] = run_arm(arm, given, work / arm, truth, share)
    write_results(given.out, name, efforts, settings)
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    unfinished = [arm for arm, found in efforts.items() if len(found) < len(truth)]
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}; the same command goes on")
    return 0


def check_settings(work: Path, settings: Mapping[str, Any]) -> None:
    """Note what a run is; ValueError if `work` holds another one."""
    path = work / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            f"{key} {before.get(key)} instead of {value}" for key, value in settings.items() if before.get(key) != value
        ]
        if changed:
            raise ValueError(f"{work} holds a run with {', '.join(changed)}; delete it or name another --work")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=1) + "\n")


def chosen_cases(data: Path, count: int, seed: int) -> dict[str, Masks]:
    """Cases of patients drawn by `seed`, in an order drawn by it."""
    patients = patients_of(data)
    drawn = list(dict.fromkeys(patients.values()))
    rng = random.Random(seed)
    rng.shuffle(drawn)
    images = [image for patient in drawn for image, of in patients.items() if of == patient][:count]
    rng.shuffle(images)
    truth = read_truth(data, images)
    return {image: truth[image] for image in images}


def patients_of(data: Path) -> dict[str, str]:
    """Image id -> patient, of the training list; the image itself where no patient is named."""
    entries = json.loads((data / "dataset.json").read_text())["training"]
    names = [Path(entry["image"]).name.removesuffix(".nii.gz").removesuffix(".png") for entry in entries]
    return {name: str(entry.get("patient", name)) for name, entry in zip(names, entries, strict=True)}


def configuration(arm: str, given: argparse.Namespace, truth: Mapping[str, Masks]) -> dict[str, str]:
    """The configuration of an arm's server."""
    conf = site_configuration(given.data, truth, given.after if arm == "training" else 0, given.minutes)
    return {**conf, "model_path": str(given.model_path.resolve())} if given.model_path else conf


def site_configuration(data: Path, truth: Mapping[str, Masks], after: int, minutes: float) -> dict[str, str]:
    """A server's configuration: when to train, the structures, and which images are of one patient."""
    patients = sorted({patient for image, patient in patients_of(data).items() if image != patient})
    conf = {
        "train_after": str(after),
        "train_minutes": str(minutes),
        "labels": ",".join(dict.fromkeys(name for masks in truth.values() for name in masks)),
    }
    return {**conf, "patients": f"^({'|'.join(patients)})_"} if patients else conf


def estimate(given: argparse.Namespace, work: Path, truth: Mapping[str, Masks]) -> str:
    """How long it will take, after a look at how long a first mask and a click take here."""
    studies = copy_images(given.data, work / "probe", truth)
    image, masks = next(iter(truth.items()))
    name, mask = next(iter(masks.items()))
    with LiveServer(studies, conf=configuration("clicks", given, truth)) as server:
        voxel = [int(values[len(values) // 2]) for values in np.nonzero(mask)]
        seconds = []
        for params in ({name: [voxel]}, {name: [voxel], "background": [[0, 0, voxel[2]]]}):
            began = time.perf_counter()
            server.infer_all("interactive", image, {**params, "label": name, "result_extension": ".nii.gz"})
            seconds.append(time.perf_counter() - began)
    shutil.rmtree(studies)
    first, click = seconds
    structures = sum(map(len, truth.values())) / len(truth)
    arm = len(truth) * (3 * first + structures * min(CLICKS, given.limit) * click) / 60
    training = len(truth) // given.after * (given.minutes + AROUND / 60) if "training" in given.arms else 0.0
    total = arm * len(given.arms) + training
    return (
        f"about {total:.0f} minutes if nothing is done yet, {training:.0f} of them training "
        f"({first:.2f} s for a first mask, {click:.2f} s for a click here)"
    )


def run_arm(
    arm: str, given: argparse.Namespace, folder: Path, truth: Mapping[str, Masks], seconds: float | None
) -> list[Effort]:
    """Label all cases, or as many as fit into `seconds`; goes on after those that are done."""
    path = folder / "efforts.json"
    done = [Effort(**effort) for effort in json.loads(path.read_text())] if path.exists() else []
    if len(done) == len(truth):
        return done
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        copy_images(given.data, folder / "studies", truth)
    began = time.monotonic()
    with LiveServer(folder / "studies", conf=configuration(arm, given, truth)) as server:
        annotator = SimulatedAnnotator(server, truth, target=given.target, limit=given.limit, efforts=done)
        for _ in tqdm(range(len(done), len(truth)), desc=ARMS[arm]):
            image = next_case(annotator, given.strategy, truth)
            if image is None or (seconds is not None and time.monotonic() - began > seconds):
                break
            start = None if arm == "clicks" else best_start(server, truth[image], bool(annotator.efforts))
            annotator.label(image, start)
            path.write_text(json.dumps([effort.to_dict() for effort in annotator.efforts], indent=1) + "\n")
            if arm == "training":
                wait_for_training(server, given.after)
        return annotator.efforts


def next_case(annotator: SimulatedAnnotator, strategy: str, truth: Mapping[str, Masks]) -> str | None:
    """The next image, None when all are labelled."""
    if strategy != SAME:
        return annotator.next_case(strategy)
    labelled = {effort.image for effort in annotator.efforts}
    return next((image for image in truth if image not in labelled), None)


def copy_images(data: Path, studies: Path, truth: Mapping[str, Masks]) -> Path:
    """The images of the cases, without their labels."""
    shutil.rmtree(studies, ignore_errors=True)
    studies.mkdir(parents=True)
    for file in sorted((data / "images").iterdir()):
        if file.name.removesuffix(".nii.gz").removesuffix(".png") in truth:
            shutil.copy(file, studies)
    return studies


def best_start(server: LiveServer, masks: Masks, labelled: bool) -> str | None:
    """The initial model: by class after a training on the structures, else by reference."""
    known = server.info()["models"]["semantic"]["labels"]
    if all(name in known for name in masks):
        return "semantic"
    return "in_context" if labelled else None


def wait_for_training(server: LiveServer, after: int, *, patience: float = 120.0) -> None:
    """If a training is due, wait until it has ended and the server follows; at most `patience` s until it starts."""
    completed = requests.get(f"{server.url}/datastore/", timeout=60).json()["completed"]
    if completed - _training(server).get("found", 0) < after:
        return
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < patience:
        running = requests.get(f"{server.url}/train/", params={"check_if_running": True}, timeout=60).ok
        stats = _training(server)
        if not running and stats.get("found", 0) == completed and "total_time" in stats:
            tqdm.write(stats["message"])
            time.sleep(2)  # the server looks twice a second whether there is a new version
            return
        if running:
            idle_since = time.monotonic()
        time.sleep(1)
    tqdm.write(f"no training has started within {patience:.0f} s after {completed} labels")


def _training(server: LiveServer) -> dict[str, Any]:
    stats = server.info()["train_stats"]
    return dict(next(iter(stats.values()), {}) or {})


def write_results(out: Path, name: str, efforts: dict[str, list[Effort]], settings: Mapping[str, Any]) -> None:
    """Print the table; write it, all figures and the curves."""
    out.mkdir(parents=True, exist_ok=True)
    common = min(len(found) for found in efforts.values())
    compared = {arm: found[:common] for arm, found in efforts.items()} if common else efforts
    table = results_table(compared)
    print(table)
    content = {
        "settings": {**settings, "data": Path(settings["data"]).name},
        "arms": {arm: [effort.to_dict() for effort in found] for arm, found in efforts.items()},
    }
    (out / f"effort-{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / f"effort-{name}.md").write_text(table + "\n")
    plot(out / f"effort-{name}.png", name, compared)


def results_table(efforts: dict[str, list[Effort]]) -> str:
    """Clicks a case over all cases and over the last ones, and as a share of clicks only; Dice of the first mask."""
    lines = [
        f"| arm | cases | clicks a case | of clicks only | last {LAST} | of clicks only | first mask, last {LAST} "
        "| seconds a case |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = efforts.get("clicks")
    for arm, found in efforts.items():
        late = found[-LAST:]
        shares = [
            f"{100 * _mean(part) / _mean(other):.0f} %" if base and _mean(other) else ""
            for part, other in ((found, base or []), (late, (base or [])[-LAST:]))
        ]
        first = np.mean([value for effort in late for value in effort.first_dice.values()]) if late else np.nan
        seconds = np.mean([effort.seconds for effort in found]) if found else np.nan
        lines.append(
            f"| {ARMS[arm]} | {len(found)} | {_mean(found):.1f} | {shares[0]} | {_mean(late):.1f} | {shares[1]} "
            f"| {first:.3f} | {seconds:.1f} |"
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
    axes.set(xlabel="case", ylabel="clicks", title=name.removesuffix(f"-{SAME}"), ylim=(0, None))
    save_curves(path, figure, axes)


if __name__ == "__main__":
    raise SystemExit(main())
