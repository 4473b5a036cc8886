# SPDX-License-Identifier: Apache-2.0
"""What sites agree on, which tensors travel, who is refused before anything is trained, and the gate at a site."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from kprism_model.checkpoint import Checkpoint, load_checkpoint
from kprism_model.classes import ClassRegistry
from kprism_model.network.config import KPrismConfig
from kprism_model.network.kprism import KPrism
from kprism_model.training.weights import CLASS_TABLES
from lib.federation.adoption import adopt
from lib.federation.aggregate import Aggregate, by_fold, read_aggregate
from lib.federation.exchange import assembled, check, expected_names, row_name, sent, take_in
from lib.federation.local_site import ERROR_NAME, SITES_VARIABLE, LocalSite
from lib.federation.plan import FederationError, FederationPlan
from lib.federation.simulation import Place, check_places
from lib.federation.site import check_sites, open_site
from lib.federation.site_training import SENT_NAME, SiteTraining
from lib.learning.version_archive import EXPORTED
from tests.federated_sites import make_site, shipped_in
from tests.tiny_network import STRUCTURES, WEIGHTS
from tools.federate import main
from tools.versions import describe


def plan(**values: object) -> FederationPlan:
    base = load_checkpoint(WEIGHTS).weights_version
    return FederationPlan(**{"structures": ("tumour", "cyst"), "rounds": 2, "base": base, "steps": 3, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"structures": ()}, "expected one or more names that all sites agree on, got none"),
        ({"structures": ("Tumour", "tumour ")}, "listed twice"),
        ({"structures": ("",)}, "non-empty"),
        ({"rounds": 0}, "rounds: expected a number from 1, got 0"),
        ({"steps": 0}, "steps of a round: expected a number from 1, got 0"),
        ({"steps": None, "minutes": 0.0}, "minutes of a round: expected more than 0 and at most 1440, got 0"),
        ({"batch_size": 1}, "batch size: expected a number from 2 to 256, got 1"),
        ({"learning_rate": 0.0}, "learning rate: expected more than 0"),
    ],
)
def test_a_plan_that_no_site_could_train_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(FederationError, match=message):
        plan(**values)


def test_a_plan_travels_as_one_word() -> None:
    for agreed in (plan(), plan(structures=("Läsion, links",), steps=None, minutes=2.5, fold=1), plan(seed=7)):
        word = agreed.encoded()
        assert word.isascii() and not set(word) & set(" =\"'$") and FederationPlan.decoded(word) == agreed
    for wrong in ("", "abc", FederationPlan.encoded(plan())[:-9]):
        with pytest.raises(FederationError, match="is no plan of a federation"):
            FederationPlan.decoded(wrong)


def network(names: tuple[str, ...], value: float) -> tuple[KPrism, ClassRegistry]:
    """A network whose floating-point values are all `value`, and rows value + 1, value + 2, ... by place."""
    model = KPrism(KPrismConfig.tiny(num_classes=len(names))).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.fill_(value)
        if name in CLASS_TABLES:
            for row in range(len(names)):
                tensor[row] = value + row + 1
    return model, ClassRegistry(names)


def test_rows_travel_by_name_whatever_their_order_and_spelling() -> None:
    one, own = network(("liver", "spleen", "tumour", "cyst"), 1.0)
    other, others = network(("CYST", "liver", "Tumour"), 50.0)
    arrays = sent(one, own, ("tumour", "cyst"))
    rows = {row_name(table, name) for table in CLASS_TABLES for name in ("tumour", "cyst")}
    assert {name for name in arrays if "[" in name} == rows
    for name, tensor in one.state_dict().items():
        assert (name in arrays) == (tensor.is_floating_point() and name not in CLASS_TABLES)
        if name in arrays:
            assert arrays[name].dtype == np.float32 and np.array_equal(arrays[name], tensor.numpy())
    take_in(other, others, ("tumour", "cyst"), arrays)
    for table in CLASS_TABLES:
        values = other.state_dict()[table]
        assert (values[0] == 5).all() and (values[1] == 52).all() and (values[2] == 4).all()
    assert all(
        torch.equal(value, one.state_dict()[name])
        for name, value in other.state_dict().items()
        if name not in CLASS_TABLES and value.is_floating_point()
    )


def test_sent_tensors_are_copies_and_counters_stay() -> None:
    model, registry = network(("liver",), 1.0)
    arrays = sent(model, registry, ("liver",))
    model.decoder.class_content.data.fill_(9.0)
    assert (arrays[row_name(CLASS_TABLES[0], "liver")] == 2).all()
    assert not [name for name in arrays if name.endswith("num_batches_tracked")]
    assert [name for name in arrays if name.endswith("running_mean")]


def test_an_aggregate_is_put_together_with_the_shipped_classes() -> None:
    model, registry = network(("liver", "spleen"), 1.0)
    shipped = Checkpoint(model, registry, {}, "0", WEIGHTS)
    trained, names = network(("tumour", "spleen"), 7.0)
    result, classes = assembled(shipped, ("tumour", "spleen"), sent(trained, names, names.names))
    assert classes.names == ("liver", "spleen", "tumour") and not result.training
    table = result.state_dict()[CLASS_TABLES[0]]
    assert (table[0] == 2).all() and (table[1] == 9).all() and (table[2] == 8).all()


def test_the_mean_of_a_single_number_is_taken_in() -> None:
    model, registry = network(("liver",), 1.0)
    model.register_buffer("scale", torch.tensor(3.0))
    take_in(model, registry, ("liver",), {"scale": np.float64(4.5)})  # type: ignore[dict-item]
    assert float(model.scale) == 4.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("decoder.heads.0.last.bias"), r"other tensors than this network: decoder\.heads"),
        (lambda arrays: arrays.update(image=np.zeros(3, np.float32)), r"other tensors .*: image \(1 in all\)"),
        (lambda arrays: arrays.update({row_name(CLASS_TABLES[0], "liver"): np.zeros(1)}), r"other tensors .*\[liver\]"),
        (lambda arrays: arrays.update({row_name(CLASS_TABLES[0], "cyst"): np.zeros(2)}), r"has shape \(2,\), expected"),
        (
            lambda arrays: arrays.update({"decoder.heads.0.last.bias": np.full(1, np.nan)}),
            "holds values that are not finite",
        ),
    ],
)
def test_other_tensors_than_agreed_are_refused(change: object, message: str) -> None:
    model, registry = network(("liver", "tumour", "cyst"), 1.0)
    model.decoder.heads[0].last.bias.data = torch.zeros(1)
    arrays = sent(model, registry, ("tumour", "cyst"))
    check(arrays, model, ("tumour", "cyst"), "the aggregate")
    change(arrays)  # type: ignore[operator]
    with pytest.raises(FederationError, match=f"the aggregate.*{message}"):
        check(arrays, model, ("tumour", "cyst"), "the aggregate")


def test_names_and_folders_of_sites_are_checked(tmp_path: Path) -> None:
    def places(*names: str) -> dict[str, Place]:
        return {name: Place(tmp_path / str(number), {}) for number, name in enumerate(names)}

    check_places(places("north", "st-anna_2"))
    for wrong in ("two words", "a/b", "server", "", "-x"):
        with pytest.raises(FederationError, match="is no name of a site"):
            check_places(places("north", wrong))
    with pytest.raises(FederationError, match="has 2 sites or more; got 1"):
        check_places(places("north"))
    with pytest.raises(FederationError, match="sites north and south have the same folder"):
        check_places({"north": Place(tmp_path, {}), "south": Place(tmp_path / "x" / "..", {})})


def test_sites_that_cannot_take_part_are_named(tmp_path: Path) -> None:
    conf = shipped_in(tmp_path)
    north = make_site(tmp_path, "north", 3, {"tumour": 1}, conf)
    south = make_site(tmp_path, "south", 2, {"Tumour": 1, "cyst": 2}, conf)
    check_sites([north, south], plan())
    with pytest.raises(FederationError, match="no site has a label to train on of kidney; expected one at some site"):
        check_sites([north, south], plan(structures=("tumour", "kidney")))
    with pytest.raises(FederationError, match="site north has 0 labelled cases of cyst; expected 2 or more"):
        check_sites([south, north], plan(structures=("cyst",)))
    with pytest.raises(FederationError, match=r"site south has 1 labelled case of tumour, cyst outside .* fold 0"):
        check_sites([north, south], plan(fold=0))
    with pytest.raises(FederationError, match=r"site north has the shipped weights \w+; expected other at every site"):
        check_sites([north, south], plan(base="other"))
    with pytest.raises(FederationError, match="site west: there is no folder"):
        open_site("west", tmp_path / "nowhere")


def test_a_site_trains_only_what_was_agreed_and_keeps_what_it_sent(tmp_path: Path) -> None:
    site = make_site(tmp_path, "north", 4, {"secret": 2, "Tumour": 1}, shipped_in(tmp_path))
    training = SiteTraining(site, plan(structures=("cyst", "tumour"), fold=0))
    assert (training.cases, training.structures) == (2, ["tumour"])  # patients 0 and 3 are in fold 0
    assert training.tuner.registry.names == (*STRUCTURES, "tumour")
    shipped = load_checkpoint(WEIGHTS)
    start = sent(shipped.model, shipped.registry, ("cyst", "tumour"))
    first = training.train(start, 0)
    assert training.tuner.step == 3 and not (np.array_equal(first[name := next(iter(first))], start[name]))
    arrays = training.train({name: np.zeros_like(value) for name, value in first.items()}, 1)
    assert training.tuner.step == 6
    assert set(arrays) == expected_names(training.tuner.model, ("tumour",))
    kept = site.folder / SENT_NAME
    assert kept.stat().st_size < 4 * sum(np.size(value) for value in arrays.values()) + 60_000  # and a list of names
    assert b"patient" not in kept.read_bytes() and b"secret" not in kept.read_bytes()
    assert not (site.folder / "run").exists() and not (site.folder / "slices").exists()


def test_an_error_stays_at_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path, "north", 2, {"tumour": 1}, shipped_in(tmp_path))
    for case in ("north-patient0", "north-patient1"):
        (tmp_path / "north" / f"{case}.nii.gz").write_bytes(b"damaged")
    entry = {"studies": str(tmp_path / "north"), "conf": {"model_path": str(tmp_path / "shipped.safetensors")}}
    (tmp_path / "sites.json").write_text(json.dumps({"north": entry}))
    monkeypatch.setenv(SITES_VARIABLE, str(tmp_path / "sites.json"))
    with pytest.raises(FederationError) as raised:
        LocalSite("north", plan(structures=("tumour",))).train({}, 0)
    assert str(raised.value) == "site north failed; the reason is in its own folder federation/error.txt"
    assert raised.value.__context__ is None
    reason = (site.folder / ERROR_NAME).read_text()
    assert reason.startswith("training needs 2 labelled cases") and "north-patient1" in reason
    with pytest.raises(FederationError, match=f"site south: {SITES_VARIABLE} must name a JSON file like"):
        LocalSite("south", plan()).train({}, 0)


def test_the_gate_judges_what_comes_back_on_patients_that_nobody_trained_on(tmp_path: Path) -> None:
    site = make_site(tmp_path, "north", 6, {"tumour": 1}, shipped_in(tmp_path))
    agreed = plan(structures=("tumour",), rounds=1, steps=25, batch_size=4, learning_rate=2e-3)
    aggregates = {}
    for fold in (0, 1, 2):
        training = SiteTraining(site, agreed.without_fold(fold))
        arrays = training.train(sent(*shipped_pair(), ()), 0)
        aggregates[fold] = Aggregate(agreed.without_fold(fold), 3, arrays)  # type: ignore[arg-type]
    published = adopt(site, aggregates, in_context=False)
    assert published.number == 1, published.message
    [semantic] = [one for one in published.metadata["gate"] if one["mode"] == "semantic"]
    assert semantic["patients"] == 6 and semantic["dice"]["new"] > semantic["dice"]["base"]
    version = site.versions.current()
    facts = version.metadata["federated"]
    assert (facts["sites"], facts["rounds"], facts["folds"]) == (3, 1, [0, 1, 2]) and "federated" in EXPORTED
    assert "federated: 3 sites, rounds: 1" in describe(version)
    working = site.state / "training" / "working"  # the next training of the site goes on from here
    seen = {fold: json.loads((working / f"fold{fold}.json").read_text())["metadata"] for fold in (0, 1, 2)}
    for fold, metadata in seen.items():
        held = {entry.patient for entry in site.labelled() if entry.fold == fold}
        assert len(held) == 2 and not held & set(metadata["patients"]) and metadata["serving"] == 1


def shipped_pair() -> tuple[KPrism, ClassRegistry]:
    shipped = load_checkpoint(WEIGHTS)
    return shipped.model, shipped.registry


def test_a_site_without_patients_that_were_held_back_cannot_judge(tmp_path: Path) -> None:
    site = make_site(tmp_path, "north", 3, {"tumour": 1}, shipped_in(tmp_path))
    with pytest.raises(FederationError, match=r"no patients that the federation did not train on \(folds none\)"):
        adopt(site, {})


def written(path: Path, agreed: FederationPlan, **changed: str) -> Path:
    """A file with an aggregate of the tiny network."""
    model, registry = network((*STRUCTURES, "tumour", "cyst"), 1.0)
    metadata = {"rounds": "2", "sites": "3", "plan": agreed.encoded(), **changed}
    safetensors.numpy.save_file(dict(sent(model, registry, agreed.structures)), path, metadata)
    return path


def test_a_received_aggregate_is_checked(tmp_path: Path) -> None:
    model, registry = shipped_pair()
    shipped = Checkpoint(model, registry, {}, plan().base, WEIGHTS)
    good = read_aggregate(written(tmp_path / "good", plan(fold=1)), shipped)
    assert (good.plan, good.sites, by_fold([good])) == (plan(fold=1), 3, {1: good})
    for changed, message in (
        ({"rounds": "1"}, "has 1 of 2 rounds"),
        ({"rounds": "x"}, "cannot be used"),
        ({"plan": "x"}, "is no plan of a federation"),
        ({"plan": plan(base="other").encoded()}, "started from the shipped weights other; here are"),
        ({"plan": plan(structures=("tumour", "cyst", "stone")).encoded()}, r"lacks decoder\.\w+\[stone\]"),
    ):
        with pytest.raises(FederationError, match=f"the aggregate .*wrong.*{message}"):
            read_aggregate(written(tmp_path / "wrong", plan(), **changed), shipped)
    for content in (b"", b"PK"):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(FederationError, match="damaged cannot be used"):
            read_aggregate(tmp_path / "damaged", shipped)
    with pytest.raises(FederationError, match="nowhere cannot be used"):
        read_aggregate(tmp_path / "nowhere", shipped)


def test_aggregates_that_do_not_belong_together_are_refused() -> None:
    def one(fold: int | None, **values: object) -> Aggregate:
        return Aggregate(plan(fold=fold, **values), 3, {})

    assert list(by_fold([one(2), one(0)])) == [2, 0]
    with pytest.raises(FederationError, match="two aggregates of fold 1"):
        by_fold([one(1), one(1)])
    with pytest.raises(FederationError, match="different plans"):
        by_fold([one(0), one(1, seed=5)])
    with pytest.raises(FederationError, match="was trained on all patients, so no site can judge it"):
        by_fold([one(None)])
    with pytest.raises(FederationError, match="there is no aggregate"):
        by_fold([])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--site", "a=x", "--site", "a=y"], "a name of a site is given twice: a, a"),
        (["--site", "a=x"], "a federation has 2 sites or more; got 1"),
        (["--site", "a=nowhere", "--site", "b=nothing"], "site a: there is no folder nowhere"),
        (["--site", "a=nowhere", "--received", "x"], "site a: there is no folder nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--structures", "tumour"]) == 1
    assert message in capsys.readouterr().err


def test_without_flare_the_command_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nvflare" else found(name))
    assert main(["--site", "a=x", "--site", "b=y", "--structures", "tumour"]) == 1
    assert "NVIDIA FLARE is not installed" in capsys.readouterr().err
