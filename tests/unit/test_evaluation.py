# SPDX-License-Identifier: Apache-2.0
"""The protocol on pictures whose answers are known, and the whole evaluation of a small network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kprism_model.checkpoint import load_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.data.anatomy import foreign_classes
from kprism_model.data.datasets import read_dataset
from kprism_model.evaluation import command
from kprism_model.evaluation import evaluate as evaluation
from kprism_model.evaluation.dataset import DatasetEvaluation, EvaluationReferences, encoded_blocks
from kprism_model.evaluation.evaluate import choose_cases, evaluate, evaluate_dataset
from kprism_model.evaluation.protocol import Protocol
from kprism_model.evaluation.reference_pool import ReferencePool
from kprism_model.evaluation.report_files import load_report, save_report
from kprism_model.evaluation.scores import ScoreAccumulator, Slice, measure_masks, targets_of
from kprism_model.interaction.click_sessions import ClickSession, run_click_sessions
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.predictor import Prediction, Predictor
from kprism_model.queries import ImageEmbedding, Query
from tests.unit.dataset_files import rectangle, write_dataset

SIZE = 48


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(KPrism(KPrismConfig.tiny(num_classes=1)), ClassRegistry(["box"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training pictures of one box each; three test pictures, one without it; a second class is never trained."""
    root = tmp_path_factory.mktemp("data")
    box = [rectangle((SIZE, SIZE), slice(r, r + 16), slice(c, c + 16)) for r in (4, 20) for c in (2, 14, 28)]
    dataset = write_dataset(root / "boxes", [*box, *box[:2], box[0] * 0], classes=["box", "ring"])
    content = json.loads((dataset / "dataset.json").read_text())
    content["test"] = content["training"][6:]
    content["training"] = content["training"][:6]
    (dataset / "dataset.json").write_text(json.dumps(content))
    return dataset


def protocol(**changes: Any) -> Protocol:
    return replace(Protocol(references=(1, 2), draws=2, click_limit=6), **changes)


def embedding(predictor: Predictor) -> ImageEmbedding:
    return predictor.embed([np.zeros((SIZE, SIZE), np.float32)])[0]


def half(true: np.ndarray, columns: int) -> Prediction:
    """An answer that is right in the first columns of the object and misses the others."""
    mask = true.copy()
    found = np.flatnonzero(true.any(0))
    mask[:, found[columns:]] = False
    return Prediction(mask, mask.astype(np.float32), 1.0)


def improving(steps: Sequence[int]) -> Callable[[Sequence[Query]], list[Prediction]]:
    """A network that finds so many columns of the object after 1, 2, ... clicks."""
    true = rectangle((SIZE, SIZE), slice(10, 20), slice(10, 20)).astype(bool)
    return lambda queries: [half(true, steps[min(len(query.clicks), len(steps)) - 1]) for query in queries]


def test_an_annotator_clicks_until_nothing_can_change(predictor: Predictor) -> None:
    true = rectangle((SIZE, SIZE), slice(10, 20), slice(10, 20)).astype(bool)
    query = Query(embedding(predictor))
    slow, fast = ClickSession(query, true, None), ClickSession(query, true, half(true, 9))
    run_click_sessions(improving([1, 2, 3, 4, 5, 6, 7, 8, 9]), [slow], 20)
    run_click_sessions(improving([9]), [fast], 20)
    assert len(slow.scores) == 9  # 2 * 9 / 19 is the first Dice above 0.90
    assert slow.clicks_to(0.9, 20) == 9 and slow.clicks_to(0.85, 20) == 8
    assert slow.after(1) == pytest.approx(2 / 11) and slow.after(3) == pytest.approx(6 / 13)
    assert fast.clicks_to(0.9, 20) == 0 and len(fast.scores) == 5


def test_traces_do_not_depend_on_how_many_are_answered_together(predictor: Predictor) -> None:
    true = rectangle((SIZE, SIZE), slice(10, 20), slice(10, 20)).astype(bool)
    for together in (1, 2, 5):
        sessions = [ClickSession(Query(embedding(predictor)), true, None) for _ in range(5)]
        run_click_sessions(improving([2, 4, 9]), sessions, 20, batch_size=together)
        assert [len(session.scores) for session in sessions] == [5] * 5


def test_a_trace_fails_at_the_limit_and_a_right_mask_gets_no_click(predictor: Predictor) -> None:
    true = rectangle((SIZE, SIZE), slice(10, 20), slice(10, 20)).astype(bool)
    failing, right = (
        ClickSession(Query(embedding(predictor)), true, None),
        ClickSession(Query(embedding(predictor)), true, None),
    )
    run_click_sessions(improving([1]), [failing], 7)
    run_click_sessions(improving([10]), [right], 7)
    assert len(failing.scores) == 7 and failing.clicks_to(0.9, 7) == 7 and not failing.reached(0.85)
    assert len(right.scores) == 1 and right.after(5) == 1.0


def test_dice_per_case_counts_absent_structures(predictor: Predictor) -> None:
    label = rectangle((SIZE, SIZE), slice(0, 10), slice(0, 10))
    slices = [
        Slice(case, case, 0, np.zeros((SIZE, SIZE), np.float32), label * here, None, None, embedding(predictor))
        for case, here in (("present", 1), ("empty", 0), ("false", 0))
    ]
    box = label.astype(bool)
    answers = [Prediction(box, box.astype(np.float32), presence) for presence in (0.9, 0.1, 0.9)]
    accumulator = ScoreAccumulator("set", ["semantic"])
    measure_masks(accumulator, "semantic", targets_of(slices, {1: "box"}), answers, distances=True)
    figures = {figure.name: figure for figure in accumulator.figures()}
    assert figures["dice_present"].value == 1.0 and figures["dice_present"].count == 1
    assert figures["dice_case"].value == pytest.approx(2 / 3) and figures["dice_case"].count == 3
    assert figures["hd95"].value == 0.0 and figures["hd95"].count == 1 and figures["hd95"].unit == "px"


def test_draws_give_a_mean_and_a_deviation_and_first_masks_save_clicks() -> None:
    accumulator = ScoreAccumulator("set")
    for draw, score in enumerate((0.5, 0.7, 0.9)):
        accumulator.add("box", "in_context_1", "dice_present", score, draw=draw)
    for without, after in ((8, 2), (12, 8)):
        accumulator.add("box", "interactive", "noc90", without)
        accumulator.add("box", "semantic+interactive", "noc90", after)
        accumulator.add("box", "scribble+interactive", "noc90", after)
    figures = {(figure.mode, figure.name): figure for figure in accumulator.figures()}
    assert figures["in_context_1", "dice_present"].value == pytest.approx(0.7)
    assert figures["in_context_1", "dice_present"].std == pytest.approx(0.2)
    assert figures["semantic+interactive", "clicks_saved"].value == pytest.approx(0.5)
    assert ("scribble+interactive", "clicks_saved") not in figures


def test_all_modes_are_measured_and_what_cannot_be_is_noted(predictor: Predictor, folder: Path) -> None:
    report = evaluate(predictor, [folder], protocol(), progress=False)
    result = report.results[0]
    assert result.sample == "3 of 3 cases, 3 of 3 slices" and result.trained == "some"
    modes = {"semantic", "interactive", "semantic+interactive", "in_context_2+interactive"}
    modes |= {f"{kind}_{count}" for kind in ("in_context", "retrieved") for count in (1, 2)}
    assert {figure.mode for figure in report.figures} == modes
    assert {figure.class_name for figure in report.figures} == {"box"}
    present = report.figure("boxes", "box", "in_context_2", "dice_present")
    assert present is not None and present.count == 2 and present.std is not None
    assert any("no semantic figures of ring" in note for note in result.notes)
    assert any("no in-context figures of ring with 1 reference" in note for note in result.notes)
    assert len([case for case in result.worst if case.mode == "semantic"]) == 2


def test_structures_of_other_kinds_of_images_are_false_positives(predictor: Predictor, tmp_path: Path) -> None:
    kinds = {"boxes": ("MRI", "box"), "sibling": ("MRI", "ball"), "rings": ("CT", "ring"), "more": ("CT", "box")}
    label = rectangle((SIZE, SIZE), slice(10, 20), slice(10, 20))
    folders = [
        write_dataset(tmp_path / name, [label] * 3, classes=[held], modality=modality, split="test")
        for name, (modality, held) in kinds.items()
    ]
    read = [read_dataset(folder) for folder in folders]
    assert [foreign_classes(dataset, read) for dataset in read] == [["ring"], ["ring"], ["ball"], ["ball"]]
    torch.manual_seed(0)
    network = KPrism(replace(predictor.model.config, num_classes=3)).eval()
    torch.nn.init.zeros_(network.decoder.presence[2].weight)
    asked = Predictor(network, ClassRegistry(["box", "ball", "ring"]))
    [block] = encoded_blocks(asked, read[0], read[0].cases("test"))
    assert all(asked.predict(class_name="ring", embedding=part.embedding).mask.any() for part in block)
    for bias, expected in ((3.0, 1.0), (-3.0, 0.0)):
        torch.nn.init.constant_(network.decoder.presence[2].bias, bias)
        for protocol_name, figure in (("instances", "false_positive_rate"), ("first", "claimed")):
            settings = Protocol(modes=("semantic",), name=protocol_name)
            result = evaluate_dataset(asked, read[0], settings, ["ring"], progress=False)
            [found] = [one for one in result.figures if one.class_name == "other kinds"]
            assert (found.name, found.value, found.count) == (figure, expected, 3)


def test_stopping_early_where_a_structure_is_absent_changes_no_figure(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(threshold: float) -> list[tuple[Any, ...]]:
        monkeypatch.setattr("kprism_model.evaluation.dataset.THRESHOLD", threshold)
        run = DatasetEvaluation(predictor, dataset, ["semantic", "in_context"], EvaluationReferences(drawn), 6)
        for block in encoded_blocks(predictor, dataset, dataset.cases("test")):
            run.measure(block)
        return [(figure.mode, figure.name, figure.value, figure.count) for figure in run.accumulator.figures()]

    dataset = read_dataset(folder)
    drawn = ReferencePool(dataset, ()).draw(predictor, (1,), 1, 0, [])
    assert figures(0.5) == figures(0.0)


def test_retrieved_references_are_of_other_patients_and_the_most_similar(predictor: Predictor, folder: Path) -> None:
    dataset = read_dataset(folder)
    retrieved = ReferencePool(dataset, ()).candidates(predictor, seed=0)
    block = next(encoded_blocks(predictor, dataset, dataset.cases("training")))
    own = retrieved.find(block[3].embedding, 1, 1, patient="nobody")
    other = retrieved.find(block[3].embedding, 1, 1, patient=block[3].patient)
    wanted = predictor.embed_references([block[3].image], [block[3].labels == 1])
    assert own is not None and other is not None
    assert torch.equal(own.keys, wanted.keys) and not torch.equal(other.keys, wanted.keys)
    assert retrieved.find(block[3].embedding, 1, 7, patient="nobody") is None
    assert retrieved.find(block[3].embedding, 2, 1, patient="nobody") is None


def test_a_data_set_without_training_cases_has_no_references(predictor: Predictor, tmp_path: Path) -> None:
    alone = write_dataset(tmp_path / "alone", [rectangle((SIZE, SIZE), slice(0, 20), slice(0, 20))], split="test")
    result = evaluate(predictor, [alone], protocol(modes=("in_context", "interactive")), progress=False).results[0]
    assert {figure.mode for figure in result.figures} == {"interactive"}
    assert any("no in-context figures of disc with 2 reference(s), only 0" in note for note in result.notes)


def test_a_killed_run_goes_on_where_it_stopped(
    predictor: Predictor, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = write_dataset(tmp_path / "more", [rectangle((SIZE, SIZE), slice(0, 20), slice(0, 20))], split="test")
    settings: dict[str, Any] = {"weights_version": "one", "keep": tmp_path / "kept", "progress": False}
    only = protocol(modes=("semantic", "interactive"))
    first = evaluate(predictor, [folder], only, **settings)
    measured: list[str] = []
    real = evaluation.evaluate_dataset

    def counted(predictor: Predictor, dataset: Any, *rest: Any, **settings: Any) -> Any:
        measured.append(dataset.name)
        return real(predictor, dataset, *rest, **settings)

    monkeypatch.setattr(evaluation, "evaluate_dataset", counted)
    again = evaluate(predictor, [folder, second], only, **settings)
    assert measured == ["more"]
    assert again.results[0].to_dict() == first.results[0].to_dict()
    assert np.array_equal(again.results[0].worst[0].image, first.results[0].worst[0].image)
    evaluate(predictor, [folder], only, **{**settings, "weights_version": "two"})
    evaluate(predictor, [folder], replace(only, seed=1), **settings)
    assert measured == ["more", "boxes", "boxes"]


def test_the_report_is_written_and_read_again(predictor: Predictor, folder: Path, tmp_path: Path) -> None:
    report = evaluate(predictor, [folder], protocol(), progress=False)
    save_report(report, tmp_path)
    assert load_report(tmp_path / "evaluation.json").to_dict()["datasets"][0]["figures"] == [
        figure.__dict__ for figure in report.figures
    ]
    for name in ("modes.png", "clicks.png", "worst_cases.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (tmp_path / "evaluation.md").read_text()
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation\.json is not a readable evaluation"):
        load_report(tmp_path / "evaluation.json")


def test_clicks_are_answered_in_windows_unless_told_otherwise(repository: Path, tmp_path: Path) -> None:
    shipped = repository / "apps" / "kprism" / "model" / "kprism_small"
    checkpoint = load_checkpoint(shipped)
    small = [rectangle((200, 200), slice(40, 60), slice(c, c + 24)) for c in (30, 110)]
    data = write_dataset(tmp_path / "small", small, split="test")
    reports, encoded = [], []
    for window in (True, False):
        predictor = Predictor(checkpoint.model, checkpoint.registry)
        reports.append(evaluate(predictor, [data], protocol(modes=("interactive",), window=window), progress=False))
        encoded.append(predictor.encoder_passes)
    assert encoded[0] > encoded[1] == 2
    first = [report.figure("small", "disc", "interactive", "dice_1") for report in reports]
    assert first[0] == first[1]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--checkpoint", str(shipped), "--data", str(data), "--modes", "interactive", "--max-slices", "1"]
    assert command.run(parser.parse_args([*given, "--out", str(tmp_path), "--no-window"])) == 0
    assert load_report(tmp_path / "evaluation.json").protocol["window"] is False


def test_a_limit_takes_whole_cases_by_seed(tmp_path: Path) -> None:
    label = np.zeros((SIZE, SIZE, 5), np.uint8)
    dataset = read_dataset(write_dataset(tmp_path / "volumes", [label] * 4, images=[label] * 4, split="test"))
    cases, sample = choose_cases(dataset, protocol(max_slices=11))
    assert len(cases) == 2 and sample == "2 of 4 cases, 10 of 20 slices"
    assert len(choose_cases(dataset, protocol(max_slices=1))[0]) == 1
    seeds = {tuple(case.name for case in choose_cases(dataset, protocol(max_slices=11, seed=s))[0]) for s in range(6)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ("semantics",)}, "unknown modes"),
        ({"split": "testing"}, "unknown split 'testing'"),
        ({"name": "second"}, "unknown protocol 'second'; expected one of instances, first"),
        ({"references": (0,)}, "at least 1"),
        ({"click_limit": 4}, "at least 5, got 4"),
        ({"max_slices": 0}, "max_slices"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol(**changes)
