# SPDX-License-Identifier: Apache-2.0
"""A state folder that was written before the app's modules were renamed opens as it is, and no file of it is rewritten.

The folder is that of `tests/e2e/old_site/make_state.py`: four submissions, one published version, weights that were not
published, references, scores, the log of a training, a refused label, and an interrupted submission.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch

from lib.configs.app_config import AppConfig
from lib.datastore import GuardedDatastore
from lib.learning.pending_submission import PendingSubmission
from lib.learning.submission_store import FOLDS
from lib.learning.training_schedule import FINISHED
from lib.learning.version_files import VersionError
from lib.learning_loop import LearningLoop

ARCHIVE = Path(__file__).parents[1] / "e2e" / "old_site" / "old_state.tar.xz"
LABELLED = list("abcd")


class OldSite:
    """A copy of the site, opened by the present code."""

    def __init__(self, folder: Path) -> None:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        self.studies = folder / "studies"
        self.state = self.studies / ".kprism"
        self.before = self.contents()
        self.datastore = GuardedDatastore(str(self.studies), extensions=["*.png"], auto_reload=False)
        conf = {"model_path": str(folder / "shipped.safetensors"), "device": "cpu"}
        self.loop = LearningLoop(AppConfig.parse(conf, folder, str(self.studies)), self.datastore)

    def contents(self) -> dict[str, bytes]:
        files = [path for path in self.state.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(self.state)): path.read_bytes() for path in files}

    def read(self, name: str) -> dict[str, object]:
        return dict(json.loads(self.before[name]))


@pytest.fixture
def site(tmp_path: Path) -> OldSite:
    return OldSite(tmp_path)


def test_the_archive_is_small() -> None:
    assert ARCHIVE.stat().st_size < 300_000


def test_submissions_are_read_with_a_fold_and_their_initial_masks(site: OldSite) -> None:
    submissions = site.loop.submission_store.submissions()
    assert [submission.image_id for submission in submissions] == LABELLED
    for submission in submissions:
        written = site.read(f"intake/cases/{submission.image_id}.json")
        assert (written["side"] in ("training", "validation")) and submission.fold in range(FOLDS)
        assert submission.initial_mask_version == written["first_mask"]
        assert (submission.by, submission.structures, submission.revision) == ("anna", {"tumour": 1}, 1)
        case = site.loop.submissions.load(submission)
        assert case.images.shape == case.labels.shape == (1, 64, 64) and case.labels.sum() == 320
    assert {str(submission.initial_mask_version) for submission in submissions} == {
        site.loop.versions.version(0).weights_version
    }
    assert list(site.loop.submission_store.rejected()) == ["f"]


def test_a_case_that_is_recorded_again_keeps_all_but_the_split_which_becomes_a_fold(site: OldSite) -> None:
    store = site.loop.submission_store
    before = store.submissions()
    for submission in before:
        store.record(submission)
        file = f"intake/cases/{submission.image_id}.json"
        written = json.loads(site.contents()[file])
        expected = {**site.read(file), "fold": submission.fold, "first_mask_origin": None, "prompts": {}}
        expected |= {"inputs": "", "image": "", "image_revision": 0, "warnings": [], "sent_names": {}}
        del expected["side"]
        assert written == expected
    assert store.submissions() == before
    others = [name for name in site.before if not name.startswith("intake/cases/")]
    assert all(site.contents()[name] == site.before[name] for name in others)


def test_the_published_version_is_listed_and_cannot_serve(site: OldSite) -> None:
    """It was written before versions had routes, so nobody knows what it answers better than the shipped weights."""
    served = site.loop.versions.load()
    assert (served.number, served.warning, served.routes.numbers()) == (0, None, ())
    version = site.loop.versions.version(1)
    assert (version.parent, version.earlier, version.classes) == (0, True, ("liver", "spleen", "tumour"))
    assert version.metadata["trained_on"] == LABELLED and str(version.metadata["gate"]).startswith("mean Dice rises")
    assert site.loop.versions.fault(version) is None
    with pytest.raises(VersionError, match="version 1 of the weights is of an earlier network"):
        site.loop.versions.roll_back(1)
    assert site.loop.earlier_structures.unknown_to(site.loop.engine.networks().semantic_classes) == ["tumour"]
    assert site.contents() == site.before


def test_the_last_training_used_all_labels(site: OldSite) -> None:
    last = site.loop.trainer.log.read()
    assert (last["state"], last["attempts"]) == (FINISHED, 1)
    assert last["cases"] == [submission.key for submission in site.loop.submission_store.submissions()]
    stats = site.loop.trainer.stats()
    assert stats["published"] == 1 and stats["message"].startswith("published as version 1: mean Dice rises")


def test_references_are_computed_for_the_shipped_weights(site: OldSite) -> None:
    network = site.loop.engine.networks().shipped
    submissions = site.loop.submission_store.submissions()
    assert site.loop.reference_cache.update(network.predictor, network.version, submissions) == len(LABELLED)
    image = site.loop.submissions.load(submissions[0]).images[0]
    query = network.predictor.embed([image])[0]
    entries = site.loop.reference_cache.find(network.version, "tumour", query, image_id="a")
    assert len(entries) == 3 and {entry.image_id for entry in entries} == {"b", "c", "d"}
    references = site.loop.reference_cache.references(network.predictor, network.version, entries)
    assert references.keys.shape[:2] == (1, 3) and bool(torch.isfinite(references.keys).all())
    after = site.contents()
    assert {name: after[name] for name in site.before} == site.before


def test_the_interrupted_submission_is_finished(site: OldSite) -> None:
    [path] = PendingSubmission.paths(site.state / "intake")
    pending = PendingSubmission.read(path)
    assert (pending.image_id, pending.by, pending.note.initial_mask_version) == ("e", "anna", None)
    assert site.loop.submissions.recover() == ["the label of image 'e', interrupted before, is stored now"]
    submission = site.loop.submission_store.get("e")
    assert submission is not None and submission.raw == pending.raw and submission.at == pending.at
    written = json.loads((site.state / "intake" / "cases" / "e.json").read_text())
    added = {"fold", "first_mask_origin", "prompts", "inputs", "image", "image_revision", "warnings", "sent_names"}
    assert set(written) - added == set(site.read("intake/cases/a.json")) - {"side"}
    assert not path.exists()
    after = site.contents()
    assert [name for name in site.before if after.get(name) != site.before[name]] == [f"intake/pending/{path.name}"]
