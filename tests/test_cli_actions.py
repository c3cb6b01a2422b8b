"""`actions list`, `actions undo` and `status --since`: the books as a person reads them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.cli import main
from gatewatch.daemon.events import NS_PER_S, rfc3339
from gatewatch.daemon.store import Store
from test_playbook_library import stored

NOW_NS = time.time_ns()
GOOD, ATTACKER = "198.51.100.9", "203.0.113.7"
HOUR = 3600
Said = pytest.CaptureFixture[str]


def action(number: int, age_s: int, **more: Any) -> dict[str, Any]:
    values = {
        "id": f"a{number}", "incident": "ab01", "playbook": "login-burst", "action": "block_source",
        "target": ATTACKER, "state": "would", "why": "observe mode: nothing is done", "reason": "guessing",
        "time_ns": NOW_NS - age_s * NS_PER_S, "ttl_s": HOUR, "detail": {},
    }  # fmt: skip
    return values | more


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of a week in observe mode."""
    store = Store.open(tmp_path / "analyser" / "gatewatch.db")
    store.put("health", {"mode": "observe"})
    for number, kind in enumerate(("beacon", "exfiltration")):
        document = json.loads(stored(kind, 75)) | {"id": f"ab0{number}", "priority": "high"}
        store.save_incident(document, {}, NOW_NS, NOW_NS, NOW_NS)
    for made in (
        action(1, 9 * 86_400),
        action(2, 3 * 86_400),
        action(3, 2 * HOUR, target=GOOD, detail={"hits": [GOOD]}),
        action(
            4, 60, action="block_user", target="account:bob", detail={"hits": ["bob"], "hooks": {"idp": ""}}
        ),
        action(5, 50, target="192.0.2.1", state="skipped", why="not blockable: \x1b]0;own\x07"),
        action(
            6, 40, action="kill_switch", target="all", state="waiting", ttl_s=0, detail={"approval": "A12"}
        ),
    ):
        store.save_action(made)
    store.close()
    return tmp_path


def rows(capsys: Said, *arguments: str) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_actions_are_listed_with_whom_they_hit_and_until_when(state: Path, capsys: Said) -> None:
    found = rows(capsys, "actions", "list", "--state", str(state))
    assert [a["id"] for a in found] == ["a3", "a4", "a6"]
    block, user, kill = found
    assert block["hits"] == [GOOD]
    assert block["until"] == rfc3339(NOW_NS - HOUR * NS_PER_S)
    assert user["hooks"] == {"idp": ""}
    assert (kill["approval"], kill.get("until")) == ("A12", None)


def test_how_far_back_and_what_was_not_done_can_be_asked(state: Path, capsys: Said) -> None:
    week = rows(capsys, "actions", "list", "--since", "7d", "--skipped", "--state", str(state))
    assert [a["id"] for a in week] == ["a2", "a3", "a4", "a5", "a6"]
    assert main(["actions", "list", "--since", "7d", "--skipped", "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert "not blockable" in said
    assert all(c.isprintable() or c == "\n" for c in said)
    assert main(["actions", "list", "--since", "1s", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "no action in the last 1s\n"
    assert main(["actions", "list", "--since", "week", "--state", str(state)]) == 2
    assert "--since week: 'week' is no duration" in capsys.readouterr().err


def test_undo_needs_the_analyser_and_says_so(state: Path, capsys: Said) -> None:
    assert main(["actions", "undo", "a3", "--state", str(state)]) == 1
    assert capsys.readouterr().err.startswith("gatewatch: ")


def test_a_week_of_observing_says_what_would_have_been_done_and_whom_it_would_have_hit(
    state: Path, capsys: Said
) -> None:
    assert main(["status", "--since", "7d", "--state", str(state)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["the last 7d, observe mode", "incidents  2 high"]
    assert "  block_source       2 would have been done, on 2 different targets" in said
    assert any(line.startswith("  kill_switch        1 waited for a person") for line in said)
    assert "hit        2 clients or users that had lately succeeded:" in said
    [hit] = [line for line in said if line.startswith(f"  {GOOD}: block_source {GOOD} at ")]
    assert hit.endswith("would have been done (login-burst, incident ab01)")


def test_a_period_as_json_has_every_hit(state: Path, capsys: Said) -> None:
    [period] = rows(capsys, "status", "--since", "7d", "--state", str(state))
    assert period["mode"] == "observe"
    assert period["incidents"] == {"high": 2}
    assert period["actions"]["block_source"] == {"would": 2}
    assert [hit["name"] for hit in period["hits"]] == [GOOD, "bob"]
    assert period["hits"][0]["actions"][0]["until"] == rfc3339(NOW_NS - HOUR * NS_PER_S)


def test_a_quiet_period_says_that_nothing_would_have_been_done(tmp_path: Path, capsys: Said) -> None:
    Store.open(tmp_path / "analyser" / "gatewatch.db").close()
    assert main(["status", "--since", "24h", "--state", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "nothing was done, and nothing would have been" in said
    assert "hit        0 clients" in said
