# SPDX-License-Identifier: Apache-2.0
"""Routes: their JSON, its errors, and look-ups by name."""

from __future__ import annotations

from typing import Any

import pytest

from lib.routes import MODES, Routes


def test_routes_are_read_and_written_and_null_is_the_version_itself() -> None:
    routes = Routes.parse({"interactive": {"liver": 1}, "semantic": {"Left kidney": None, "liver": 2}}, 3)
    assert routes.to_json() == {"semantic": {"Left kidney": 3, "liver": 2}, "interactive": {"liver": 1}}
    assert Routes.parse(routes.to_json(), 3) == routes
    assert routes.version_for("semantic", "left  KIDNEY") == 3
    assert routes.version_for("in_context", "liver") is None and routes.version_for("semantic", "spleen") is None
    assert (routes.numbers(), routes.names("semantic"), routes.names("in_context")) == (
        (1, 2, 3), ("Left kidney", "liver"), (),
    )  # fmt: skip
    assert routes.structures() == ("Left kidney", "liver")
    assert routes.without(["LIVER"]).to_json() == {"semantic": {"Left kidney": 3}}
    with pytest.raises(ValueError, match="mode 'scribbles' has no routes; expected one of semantic, in_context"):
        routes.version_for("scribbles", "liver")


def test_without_routes_everything_is_shipped() -> None:
    for routes in (Routes(), Routes.parse({}, 1), Routes.parse({mode: {} for mode in MODES}, 1)):
        assert routes == Routes() and routes.to_json() == {} and routes.numbers() == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"routes are \[\]; expected an object"),
        ({"clicks": {}}, "routes name the mode 'clicks'; expected one of semantic, in_context, interactive"),
        ({"semantic": ["liver"]}, r"routes of semantic are \['liver'\]; expected an object"),
        ({"semantic": {"liver": 0}}, "routes of semantic send 'liver' to version 0; expected 1 to 3"),
        ({"semantic": {"liver": 4}}, "routes of semantic send 'liver' to version 4; expected 1 to 3"),
        ({"semantic": {"liver": True}}, "routes of semantic send 'liver' to version True; expected 1 to 3"),
        ({"semantic": {"liver": "2"}}, "routes of semantic send 'liver' to version '2'; expected 1 to 3"),
        ({"semantic": {"liver": 1, "Liver": 2}}, "routes of semantic name the structure 'liver' twice"),
    ],
)
def test_other_json_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Routes.parse(content, 3)
