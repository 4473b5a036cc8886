# SPDX-License-Identifier: Apache-2.0
"""How the viewer follows the images of a case that arrive: when it asks again, and when it stops."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

SCRIPT = """
    const pauses = [], shown = [], said = [];
    globalThis.document = { hidden: false };
    globalThis.setTimeout = (go, pause) => { pauses.push(pause); queueMicrotask(go); };
    globalThis.fetch = async () => {
        const answer = answers.length > 1 ? answers.shift() : answers[0];
        if (answer === null) throw new TypeError('network error');
        const body = typeof answer === 'number' ? { detail: 'no' } : answer;
        return new Response(JSON.stringify(body), { status: typeof answer === 'number' ? answer : 200 });
    };
    const session = {
        case: { id: 'case' }, arrival: null, changed() { shown.push(this.arrival?.arrived ?? null); },
        scene: { notify: sentence => said.push(sentence) },
    };
    await watchArrival(session, 'case');
    process.stdout.write(JSON.stringify({ pauses, shown, said }));
"""


def watched(node: str, repository: Path, answers: list[Any]) -> dict[str, list[Any]]:
    """The pauses, what was shown and what was said; an answer is an object, a status, or null for none."""
    module = (repository / "apps" / "kprism" / "viewer" / "core" / "arrival.js").as_uri()
    script = f"import {{ watchArrival }} from {json.dumps(module)}; const answers = {json.dumps(answers)}; {SCRIPT}"
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def at(arrived: int, failed: int = 0, total: int = 40) -> dict[str, int]:
    return {"arrived": arrived, "total": total, "failed": failed}


def test_it_is_over_when_all_have_arrived(node: str, repository: Path) -> None:
    found = watched(node, repository, [at(3), at(9), at(40)])
    assert found == {"pauses": [1000, 1000], "shown": [3, 9, None], "said": []}


def test_images_that_cannot_be_fetched_are_said_once(node: str, repository: Path) -> None:
    found = watched(node, repository, [at(3), at(37, failed=2), at(38, failed=2)])
    assert found["shown"] == [3, 37, None]
    [sentence] = found["said"]
    assert sentence.startswith("2 of 40 images of this case could not be fetched")
    [sentence] = watched(node, repository, [at(0, failed=1, total=1)])["said"]
    assert sentence.startswith("The image of this case could not be fetched")


def test_pauses_grow_while_nothing_changes_or_nobody_answers(node: str, repository: Path) -> None:
    found = watched(node, repository, [at(3), at(3), 503, None, 503, None, at(3), at(4), at(40)])
    assert found["pauses"] == [1000, 2000, 4000, 8000, 16000, 16000, 16000, 1000]
    assert found["shown"] == [3] * 7 + [4, None]
    assert watched(node, repository, [503, at(40)]) == {"pauses": [2000], "shown": [None, None], "said": []}


def test_a_case_that_the_server_does_not_have_is_not_asked_for_again(node: str, repository: Path) -> None:
    assert watched(node, repository, [at(3), 404]) == {"pauses": [1000], "shown": [3, None], "said": []}
