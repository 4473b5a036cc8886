# SPDX-License-Identifier: Apache-2.0
"""A label is judged again when anything changed that its verdict depends on: names, image, settings, rules."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lib.imaging.hand_names import HandNames
from lib.imaging.reading import read_image
from lib.labelled_cases import known_names
from lib.learning.submission_store import Submission
from lib.learning.submitted_label import REFUSE
from tests.unit.seg_nrrd_files import write_seg_nrrd
from tests.unit.test_submissions import LIVER_AND_SPLEEN, SHAPE, Site, write

AFFINE = np.diag([1.0, 1.0, 5.0, 1.0])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "studies")


def put_by_hand(site: Site, *values: int, image: str = "a") -> None:
    """Copy a label file with blocks of these values into the folder of labels."""
    site.label(*values).rename(site.folder / "labels" / "final" / f"{image}.nii.gz")
    site.datastore.refresh()


def name(site: Site, labels: dict[str, Any] | str) -> None:
    text = labels if isinstance(labels, str) else json.dumps({"labels": labels})
    (site.folder / "labels.json").write_text(text)


def again(site: Site, **settings: Any) -> Site:
    """The site after a restart."""
    return Site(site.folder, **settings)


def only(site: Site) -> Submission:
    [entry] = site.store.submissions()
    return entry


def in_slices(site: Site, voxels: np.ndarray) -> np.ndarray:
    """Voxels (i, j, k) as the slices of the image `a`."""
    return read_image(site.folder / "a.nii.gz", "a").to_slices(voxels)


def check(site: Site, expected: dict[str, int]) -> None:
    """The structures of the only case are the blocks of these numbers."""
    case = site.submissions.load(only(site))
    assert set(case.structures) == set(expected)
    for structure, block in expected.items():
        mask = np.zeros(SHAPE, bool)
        mask[2 * block : 2 * block + 2, 2:8] = True
        np.testing.assert_array_equal(case.mask(structure), in_slices(site, mask))


FAULTS: list[tuple[Any, str]] = [
    ({}, "nothing names the values 1, 2"),
    ({"1": "liver"}, "nothing names the value 2"),
    ({"liver": 1, "spleen": 1}, "gives the value 1 two names"),
    ("{", "is not JSON"),
    ('{"1": "liver", "2": "spleen"}', 'must be an object with "labels" or "cases"'),
    ('{"label": {"1": "liver", "2": "spleen"}}', 'must be an object with "labels" or "cases"'),
    ('["liver", "spleen"]', 'must be an object with "labels" or "cases"'),
]


@pytest.mark.parametrize(("wrong", "reason"), FAULTS)
@pytest.mark.parametrize("restarts", [False, True])
def test_names_that_are_corrected_after_a_rejection_count(site: Site, wrong: Any, reason: str, restarts: bool) -> None:
    put_by_hand(site, 1, 2)
    name(site, wrong)
    [message] = site.submissions.reconcile().messages
    assert reason in message and reason in site.store.rejected()["a"]["reason"]
    assert site.store.submissions() == [] and site.submissions.reconcile().submissions == []
    name(site, {"2": "liver", "1": "spleen"})
    site = again(site) if restarts else site
    assert [entry.image_id for entry in site.submissions.reconcile().submissions] == ["a"]
    assert site.store.rejected() == {}
    check(site, {"spleen": 0, "liver": 1})
    assert site.submissions.reconcile() == ([], [])


@pytest.mark.parametrize("restarts", [False, True])
def test_a_renamed_structure_has_its_new_name_everywhere(site: Site, restarts: bool) -> None:
    name(site, {"1": "liver", "2": "spleen"})
    put_by_hand(site, 1, 2)
    site.submissions.reconcile()
    before = only(site)
    name(site, {"1": "肝臓", "2": "spleen"})
    site = again(site) if restarts else site
    told = site.submissions.reconcile()
    entry = only(site)
    assert told.submissions == [entry]
    assert told.messages == ["the label of image 'a' was read again, because its names, image or settings changed"]
    check(site, {"肝臓": 0, "spleen": 1})
    assert entry.key != before.key and entry.revision == 2  # references and training go by the key
    assert (entry.raw, entry.at, entry.by, entry.fold) == (before.raw, before.at, before.by, before.fold)
    assert known_names(site.datastore) == ["肝臓", "spleen"] and "肝臓" in site.label_registry.indices()
    assert sorted(path.name for path in (site.store.folder / "raw").iterdir()) == [Path(before.raw).name]
    assert [path.name for path in (site.store.folder / "labels").iterdir()] == [Path(entry.label).name]


def test_names_that_are_exchanged_and_exchanged_back(site: Site) -> None:
    name(site, {"1": "liver", "2": "spleen"})
    put_by_hand(site, 1, 2)
    site.submissions.reconcile()
    before = only(site)
    for numbers in ({"1": "spleen", "2": "liver"}, {"1": "liver", "2": "spleen"}):
        name(site, numbers)
        site.submissions.reconcile()
        check(site, {structure: int(value) - 1 for value, structure in numbers.items()})
    assert only(site).key == before.key


def test_a_label_counts_as_before_while_its_names_are_broken(site: Site) -> None:
    name(site, {"1": "liver", "2": "spleen"})
    put_by_hand(site, 1, 2)
    site.submissions.reconcile()
    before = only(site)
    name(site, '{"labels": {"1": "liver"')
    [message] = site.submissions.reconcile().messages
    assert "labels.json of the datastore is not JSON" in message and list(site.store.rejected()) == ["a"]
    assert only(site) == before
    other = site.submissions.submit("b", site.label(1), {"label_names": {"liver": 1}})  # it names its values itself
    assert other is not None and list(site.store.rejected()) == ["a"]
    name(site, {"1": "liver", "2": "spleen"})
    assert site.submissions.reconcile() == ([], [])
    assert site.store.rejected() == {} and site.store.get("a") == before


def test_other_cases_are_not_read_again(site: Site) -> None:
    name(site, '{"labels": {"1": "liver"}, "cases": {"b*": {"1": "spleen"}}}')
    for image in "ab":
        put_by_hand(site, 1, image=image)
    site.submissions.submit("c", site.label(1), {"label_names": {"liver": 1}})
    site.submissions.reconcile()
    before = {entry.image_id: entry for entry in site.store.submissions()}
    name(site, '{"labels": {"1": "liver"}, "cases": {"b*": {"1": "kidney"}}}')
    assert [entry.image_id for entry in site.submissions.reconcile().submissions] == ["b"]
    after = {entry.image_id: entry for entry in site.store.submissions()}
    assert after["a"] == before["a"] and after["c"] == before["c"] and dict(after["b"].structures) == {"kidney": 1}


def test_information_about_a_label_that_changes_counts(site: Site) -> None:
    site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    site.datastore.update_label_info("a", "final", {"label_info": [{"name": "spleen"}, {"name": "kidney"}]})
    entry = site.submissions.adopt("a")
    assert entry is not None and entry == only(site)
    check(site, {"spleen": 0, "kidney": 1})


def test_prompts_go_with_a_structure_that_is_renamed(site: Site) -> None:
    name(site, {"1": "liver", "2": "spleen"})
    put_by_hand(site, 1, 2)
    prompts = {"liver": {1: ((3, 1, True),)}, "spleen": {2: ((4, 2, True), (0, 0, False))}}
    site.submissions.notes.note("a", {"weights_version": "0", "model": "m", "label_names": {"liver": 1}}, prompts)
    site.submissions.reconcile()
    assert only(site).prompts == prompts
    name(site, {"1": "kidney", "2": "Spleen"})
    site.submissions.reconcile()
    assert only(site).prompts == {"kidney": prompts["liver"], "spleen": prompts["spleen"]}


def test_an_image_that_is_replaced_makes_the_case_another_one(site: Site) -> None:
    site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    before = only(site)
    write(site.folder / "a.nii.gz", np.random.default_rng(1).normal(50, 10, SHAPE).astype(np.float32))
    assert [entry.image_id for entry in site.submissions.reconcile().submissions] == ["a"]
    entry = only(site)
    assert entry.content == before.content and entry.key == f"{before.key}:1"  # its references are of the old image
    assert site.submissions.reconcile() == ([], [])
    case = site.submissions.load(entry)
    assert case.mask("liver").sum() == 2 * 6 * 4
    again(site).submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    assert only(site).key == entry.key


def test_an_image_that_is_replaced_by_one_that_does_not_fit_is_told(site: Site) -> None:
    site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    write(site.folder / "a.nii.gz", np.random.default_rng(1).normal(50, 10, (12, 10, 7)).astype(np.float32))
    [message] = site.submissions.reconcile().messages
    assert "has 12 x 10 x 4 voxels, but image 'a' has 12 x 10 x 7" in message
    assert site.submissions.reconcile() == ([], [])
    write(site.folder / "a.nii.gz", np.random.default_rng(2).normal(50, 10, SHAPE).astype(np.float32))
    site.submissions.reconcile()
    assert site.store.rejected() == {}


def test_an_image_that_moves_takes_a_label_that_moves_with_it(site: Site) -> None:
    """The label has no place of its own here, so it fits both."""
    labels = np.asarray(nibabel.load(site.label(1, 2)).dataobj)
    header = nibabel.Nifti1Header()
    header.set_data_shape(SHAPE)
    header["pixdim"][1:4], header["sform_code"], header["qform_code"] = 0, 0, 0
    header["magic"], header["vox_offset"], header["datatype"], header["bitpix"] = b"n+1", 352, 2, 8
    file = site.folder / "labels" / "final" / "a.nii"
    file.write_bytes(header.binaryblock + bytes(4) + labels.tobytes(order="F"))
    site.datastore._extensions = ["*.nii.gz", "*.nii"]
    site.datastore.refresh()
    name(site, {"1": "liver", "2": "spleen"})
    site.submissions.reconcile()
    voxels = np.asarray(nibabel.load(site.folder / "a.nii.gz").dataobj)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), site.folder / "a.nii.gz")
    site.submissions.reconcile()
    check(site, {"liver": 0, "spleen": 1})


def test_a_file_that_is_only_copied_keeps_its_key(site: Site) -> None:
    site.submissions.submit("a", site.label(1, 2), LIVER_AND_SPLEEN)
    before = only(site)
    content = (site.folder / "a.nii.gz").read_bytes()
    (site.folder / "a.nii.gz").write_bytes(content)
    assert site.submissions.reconcile() == ([], [])
    assert only(site).key == before.key and only(site).inputs != before.inputs


@pytest.mark.parametrize("restarts", [False, True])
def test_a_setting_that_changes_counts(site: Site, restarts: bool) -> None:
    strict = again(site, unknown=REFUSE)
    put_by_hand(strict, 1, 2)
    name(strict, {"1": "liver", "2": "spleen"})
    [message] = strict.submissions.reconcile().messages
    assert "names 'spleen'; this server accepts only its own labels: liver" in message
    assert strict.submissions.reconcile() == ([], [])
    if restarts:
        strict = again(site)
        assert len(strict.submissions.reconcile().submissions) == 1
    else:
        strict.label_registry.add(["spleen"])  # it has become one of the server's labels
        assert len(strict.submissions.reconcile().submissions) == 1
    check(strict, {"liver": 0, "spleen": 1})


def test_the_pattern_of_patients_counts(site: Site) -> None:
    for image in "ab":
        site.submissions.submit(image, site.label(1), {"label_names": {"liver": 1}})
    assert {entry.patient for entry in site.store.submissions()} == {"a", "b"}
    grouped = again(site, patients=re.compile("^[ab]?()"))
    assert len(grouped.submissions.reconcile().submissions) == 2
    assert {entry.patient for entry in grouped.store.submissions()} == {""}
    assert len({entry.fold for entry in grouped.store.submissions()}) == 1


def test_cases_of_an_earlier_version_of_the_app_are_judged_again_where_names_could_be_lost(site: Site) -> None:
    name(site, {"1": "liver"})
    put_by_hand(site, 1)
    site.submissions.submit("b", site.label(1), {"label_names": {"spleen": 1}})
    site.submissions.reconcile()
    for image in "ab":
        file = site.store.folder / "cases" / f"{image}.json"
        content = json.loads(file.read_text())
        for key in ("inputs", "image", "image_revision", "warnings"):
            del content[key]
        file.write_text(json.dumps(content))
    name(site, {"1": "kidney"})
    upgraded = again(site)
    assert [entry.image_id for entry in upgraded.submissions.reconcile().submissions] == ["a"]
    assert dict(upgraded.store.get("a").structures) == {"kidney": 1}  # type: ignore[union-attr]
    assert dict(upgraded.store.get("b").structures) == {"spleen": 1}  # type: ignore[union-attr]
    assert all(entry.inputs for entry in upgraded.store.submissions())
    (site.store.folder / "rejected.json").write_text('{"c": {"sha256": "0", "reason": "an old reason"}}')
    assert again(site).store.rejected()["c"]["reason"] == "an old reason"


def test_what_layers_lose_is_kept_with_the_case(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    layers = np.zeros((2, *SHAPE), np.uint8)
    layers[0, 2:8, 2:8], layers[1, 4:6, 4:6, 1:3] = 1, 1
    sent = write_seg_nrrd(site.folder.parent / "label.nrrd", layers, AFFINE, [("organ", 1, 0), ("lesion", 1, 1)])
    entry = site.submissions.submit("a", sent, {})
    assert entry is not None
    [warning] = entry.warnings
    assert warning.startswith("'organ' and 'lesion' overlap in 8 of the 144 voxels of 'organ'")
    assert f"The label of image 'a': {warning}" in caplog.messages
    assert again(site).store.get("a") == entry
    case = site.submissions.load(entry)
    np.testing.assert_array_equal(case.mask("lesion"), in_slices(site, layers[1] == 1))
    np.testing.assert_array_equal(case.mask("organ"), in_slices(site, (layers[0] == 1) & (layers[1] == 0)))
    assert known_names(site.datastore) == ["organ", "lesion"]


@pytest.mark.parametrize(
    "labels",
    [
        '{"lesion": 1, "spleen": 2, "lesion": 3}',
        '{"1": "lesion", "2": "spleen", "3": "Lesion"}',
        '{"lesion": [1, 3], "spleen": 2}',
    ],
)
def test_two_values_of_one_structure_are_that_structure(site: Site, labels: str) -> None:
    name(site, f'{{"labels": {labels}}}')
    put_by_hand(site, 1, 2, 3)
    site.submissions.reconcile()
    case = site.submissions.load(only(site))
    assert set(case.structures) == {"lesion", "spleen"}
    blocks = np.zeros(SHAPE, np.uint8)
    for row, value in enumerate((1, 2, 1)):
        blocks[2 * row : 2 * row + 2, 2:8] = value
    np.testing.assert_array_equal(case.labels, in_slices(site, blocks))


@pytest.mark.parametrize("names", [{"label_names": {"cortex": 1001, "white": 2035, "ventricle": 3}}, {}])
def test_values_above_255_are_labels(site: Site, names: dict[str, Any]) -> None:
    voxels = np.zeros(SHAPE, np.int32)
    for row, value in enumerate((2035, 3, 1001)):
        voxels[2 * row : 2 * row + 2, 2:8] = value
    file = write(site.folder.parent / "free.nii.gz", voxels)
    if not names:
        with pytest.raises(ValueError, match="nothing names the values 3, 1001, 2035; expected params like"):
            site.submissions.submit("a", file, {})
        name(site, {"1001": "cortex", "2035": "white", "3": "ventricle", "1": "not this", "2": "nor this"})
    site.submissions.submit("a", file, names)
    check(site, {"white": 0, "ventricle": 1, "cortex": 2})
    assert np.unique(site.stored("a")).tolist() == [0, 3, 1001, 2035]


@pytest.mark.parametrize("count", [256, 1000])
def test_more_than_255_values_are_refused(site: Site, count: int) -> None:
    voxels = (np.arange(np.prod(SHAPE)) % (count + 1)).reshape(SHAPE).astype(np.int16)
    if count > np.prod(SHAPE):
        voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    file = write(site.folder.parent / "many.nii.gz", voxels)
    with pytest.raises(ValueError, match="the label of image 'a' holds more than 255 different values"):
        site.submissions.submit("a", file, {})


def test_names_that_a_client_sends_twice_must_agree(site: Site) -> None:
    exchanged = [{"name": "spleen", "id": 1}, {"name": "liver", "id": 2}]
    both = {"label_names": {"liver": 1, "spleen": 2}, "label_info": exchanged}
    with pytest.raises(ValueError, match="the label of image 'a': label_names calls the value 1 'liver'"):
        site.submissions.submit("a", site.label(1, 2), both)
    assert site.store.submissions() == []
    site.submissions.submit("a", site.label(1, 2), {**both, **LIVER_AND_SPLEEN})
    check(site, {"liver": 0, "spleen": 1})


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_patterns_and_names_are_the_same_however_they_are_composed(site: Site, form: Any, other: Any) -> None:
    image = unicodedata.normalize(form, "Schädel1")
    write(site.folder / f"{image}.nii.gz", np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32))
    pattern, name_ = unicodedata.normalize(other, "Schä*"), unicodedata.normalize(other, "Knöchel")
    name(site, json.dumps({"cases": {pattern: {"1": name_}}}))
    site.datastore.refresh()
    put_by_hand(site, 1, image=image)
    site.submissions.submit("a", site.label(1), {"label_names": {unicodedata.normalize(form, "KNÖCHEL"): 1}})
    site.submissions.reconcile()
    assert {entry.image_id: dict(entry.structures) for entry in site.store.submissions()} == {
        "a": {"KNÖCHEL": 1},
        image: {"KNÖCHEL": 1},
    }


@pytest.mark.parametrize("image", ["scan [1]", "a[b-c]d", "what?", "[x]", "50*2"])
def test_an_image_is_named_as_it_stands_though_its_name_looks_like_a_pattern(tmp_path: Path, image: str) -> None:
    text = {"cases": {"*": {"1": "any"}, image: {"1": "liver"}, "b?": {"1": "spleen"}}, "labels": {"1": "none"}}
    (tmp_path / "labels.json").write_text(json.dumps(text))
    names = HandNames.read(tmp_path)
    assert names.of(image) == {1: "liver"}
    assert names.of("b1") == {1: "any"}  # of patterns the first one


@pytest.mark.parametrize("damage", ["removed", "cut off", "empty"])
@pytest.mark.parametrize("by_hand", [None, {"1": "kidney", "2": "bladder"}])
@pytest.mark.parametrize(
    "names",
    [
        {"label_names": {"liver": 1, "spleen": 2}},
        {"label_info": [{"name": "liver", "id": 1}, {"name": "spleen", "id": 2}]},
        {"params": {"label_names": {"liver": 1, "spleen": 2}}},
    ],
)
def test_names_that_a_client_sent_outlive_the_index(
    site: Site, names: dict[str, Any], by_hand: dict[str, str] | None, damage: str
) -> None:
    """MONAI Label's index holds them; without it, the label would be named by labels.json, or by nothing."""
    site.submissions.submit("a", site.label(1, 2), names)
    index = site.folder / "datastore_v2.json"
    if damage == "removed":
        index.unlink()
    else:
        index.write_text(index.read_text()[:200] if damage == "cut off" else "")
    if by_hand is not None:
        name(site, by_hand)
    later = again(site)
    assert later.submissions.reconcile() == ([], []) and later.store.rejected() == {}
    check(later, {"liver": 0, "spleen": 1})
    assert known_names(later.datastore) == ["liver", "spleen"]
    changed = {"label_names": {"heart": 1, "spleen": 2}}
    later.datastore.update_label_info("a", "final", changed)
    later.submissions.reconcile()
    index.unlink()
    last = again(site)
    assert last.submissions.reconcile() == ([], [])
    assert only(last).sent_names["label_names"] == changed["label_names"]
    check(last, {"heart": 0, "spleen": 1})


def test_cases_from_before_get_the_names_of_the_index(site: Site) -> None:
    site.submissions.submit("a", site.label(1, 2), {"label_names": {"liver": 1, "spleen": 2}})
    case = site.store.folder / "cases" / "a.json"
    content = json.loads(case.read_text())
    assert content.pop("sent_names") == {"label_names": {"liver": 1, "spleen": 2}}
    case.write_text(json.dumps(content))
    assert again(site).submissions.reconcile() == ([], [])
    (site.folder / "datastore_v2.json").unlink()
    last = again(site)
    assert last.submissions.reconcile() == ([], [])
    check(last, {"liver": 0, "spleen": 1})
