# SPDX-License-Identifier: Apache-2.0
"""Campaign: several people ask, label, take labels back and change versions while the server trains on what they do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import requests

from benchmarks.live_server import LiveServer
from lib.learning.versions import Versions
from tests.budget import Budget
from tests.e2e.site import NEW, Site, as_file, block, get, submit, wait

USERS = 3
ACTIONS = 12
"""Of one user in one round."""


class User:
    """Somebody who labels two cases of their own and looks at all of them; `labels` are those that are to be there."""

    def __init__(self, server: LiveServer, site: Site, number: int) -> None:
        self.labels: dict[str, np.ndarray] = {}
        self._server, self._images = server, [*site.labels]
        self._own = self._images[2 * number : 2 * number + 2]

    def act(self, rng: np.random.Generator) -> None:
        """Do some things one after the other; each is answered, or refused for a reason that can be."""
        actions: list[Callable[[np.random.Generator], None]] = [
            *(self._label, self._label, self._take_back),
            *(self._click, self._ask_by_name, self._ask_by_references, self._ask_for_next, self._change_version),
        ]
        for action in rng.choice(len(actions), ACTIONS):
            actions[action](rng)

    def _label(self, rng: np.random.Generator) -> None:
        image, label = str(rng.choice(self._own)), block(*rng.integers(20, 44, 2))
        answer = submit(self._server, image, as_file(label))
        assert answer.status_code == 200, answer.text
        self.labels[image] = label

    def _take_back(self, rng: np.random.Generator) -> None:
        image = str(rng.choice(self._own))
        address = f"{self._server.url}/datastore/label"
        answer = requests.delete(address, params={"id": image, "tag": "final"}, timeout=60)
        assert answer.status_code in ((200,) if image in self.labels else (200, 404)), answer.text
        self.labels.pop(image, None)

    def _click(self, rng: np.random.Generator) -> None:
        clicks = {NEW: [[*map(int, rng.integers(0, 64, 2)), int(rng.integers(3))]]}
        answer = self._server.infer("interactive", str(rng.choice(self._images)), clicks, output="json")
        assert answer.status_code == 200, answer.text
        assert answer.json()["label_names"] == {NEW: 1}

    def _ask_by_name(self, rng: np.random.Generator) -> None:
        self._ask("semantic", rng)  # refused while the weights that serve do not know the structure

    def _ask_by_references(self, rng: np.random.Generator) -> None:
        self._ask("in_context", rng)  # refused where nobody has a label, or only the case itself has one

    def _ask(self, model: str, rng: np.random.Generator) -> None:
        answer = self._server.infer(model, str(rng.choice(self._images)), {"structures": NEW}, output="json")
        assert answer.status_code == 200 or (answer.status_code == 400 and NEW in answer.json()["detail"]), answer.text

    def _ask_for_next(self, rng: np.random.Generator) -> None:
        strategy = str(rng.choice([*self._server.info()["strategies"]]))
        answer = requests.post(f"{self._server.url}/activelearning/{strategy}", json={}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert not answer.json() or answer.json()["id"] in self._images

    def _change_version(self, rng: np.random.Generator) -> None:
        chosen = rng.choice([entry["id"] for entry in get(self._server, "/kprism/api/status")["versions"]])
        answer = requests.post(f"{self._server.url}/kprism/api/versions/{chosen}/current", timeout=60)
        assert answer.status_code == 200, answer.text


def test_every_label_is_the_last_one_of_its_user(tmp_path: Path, budget: Budget) -> None:
    site = Site(tmp_path)
    with site.serve(train_after="3", train_minutes="0.05") as server:
        users = [User(server, site, number) for number in range(USERS)]
        for _, rng in budget.rounds(short=1):
            with ThreadPoolExecutor(USERS) as threads:
                for done in [threads.submit(user.act, own) for user, own in zip(users, rng.spawn(USERS), strict=True)]:
                    done.result()
            check_labels(server, site, users)
        wait(lambda: not get(server, "/kprism/api/status")["training"]["running"], server)
        assert get(server, "/kprism/api/status")["warning"] is None
        assert "Exception in ASGI application" not in server.log()
    versions = Versions(site.versions, site.weights)
    assert [versions.fault(version) for version in versions.known()] == [None] * len(versions.known())


def check_labels(server: LiveServer, site: Site, users: list[User]) -> None:
    """What is stored is what each user submitted last and has not taken back."""
    expected = {image: label for user in users for image, label in user.labels.items()}
    assert get(server, "/datastore/")["completed"] == len(expected)
    for image, label in expected.items():
        stored = nibabel.load(site.studies / "labels" / "final" / f"{image}.nii")
        np.testing.assert_array_equal(np.asarray(stored.dataobj), label, err_msg=image)
