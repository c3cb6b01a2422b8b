"""`status` and `incidents show`: what a person reads, and the exit codes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.cli import main
from gatewatch.daemon.cli.incidents import NEXT, explained, ranges
from gatewatch.daemon.cli.output import seconds
from gatewatch.daemon.cli.status import as_text
from gatewatch.daemon.incidents import TITLES, Correlator
from gatewatch.daemon.store import Store
from gatewatch.detectors.finding import Finding

HOSTILE = "\x1b]0;own\x07\u202eroot; rm -rf /"
NOW_NS = time.time_ns()


def stored(state: Path, count: int = 1) -> Store:
    """A store with so many open incidents whose attacker chose a hostile name."""
    store = Store.open(state / "analyser" / "gatewatch.db")
    correlator = Correlator()
    for n in range(count):
        source = f"203.0.113.{n}"
        finding = Finding(
            f"{n:016x}", "brute_force", "brute_force", "source", source, NOW_NS, NOW_NS - 5, NOW_NS, 50, 0.9,
            (source,), (HOSTILE,), ("sshd@gateway",), {"attempts": 10}, "10 in 300 s", "none", ("T1110",),
            (1, 2, 3, 9), (f"Failed password for {HOSTILE}",), 1, (source,),
        )  # fmt: skip
        incident = correlator.apply([finding])[0].incident
        store.save_incident(incident.document(), incident.state(), NOW_NS - 5, NOW_NS, NOW_NS)
    return store


def health(**more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "time": "2026-11-24T08:00:05Z",
        "started": "2026-11-24T07:00:00Z",
        "mode": "enforce",
        "logs": [
            {"path": "/a", "format": "sshd", "lines": 1200, "unparsed": 3, "last": None, "problem": ""},
            {"path": "/b", "format": None, "lines": 0, "unparsed": 0, "last": None, "problem": "off: none"},
        ],
        "packets": None,
        "flows": 0,
        "packets_seen": 0,
        "sinks": {"alerts": 0, "siem": 1500},
        "problems": {"siem": "connection refused"},
        "faults": 2,
        "trouble": "not saved: the disk is full",
    }
    return values | more


def response(**more: Any) -> dict[str, Any]:
    journal = {"sequence": 3, "head": "67", "intact": True, "note": ""}
    return {"kills": [], "differs": [], "break_glass": [], "blocks": 1234, "journal": journal} | more


def test_status_says_what_works_and_what_does_not() -> None:
    found = {
        "analyser": "running",
        "health": health(),
        "incidents": {"critical": 1, "low": 4},
        "enforcer": "running",
        "response": response(),
    }
    assert as_text(found) == [
        "analyser   running, enforce mode, since 2026-11-24T07:00:00Z",
        "  log      /a (sshd): 1,200 lines, 3 not understood",
        "  log      /b (format not seen yet): off: none",
        "  packets  off",
        "  store    not saved: the disk is full",
        "  faults   2 pieces of input were not judged; see the daemon's output",
        "  sink     alerts: all delivered",
        "  sink     siem: 1,500 alerts to deliver; connection refused",
        "incidents  open: 1 critical, 4 low",
        "enforcer   running, 1,234 blocks in force",
        "  kill switch  released",
    ]


def test_status_shows_an_engaged_kill_switch_and_a_damaged_journal() -> None:
    damaged = {"sequence": 3, "head": "67", "intact": False, "note": "line 7"}
    found = {
        "analyser": "running",
        "health": None,
        "incidents": {},
        "enforcer": "running",
        "response": response(
            kills=[{"endpoint": "chat"}],
            differs=["chat"],
            journal=damaged,
            waiting=3,
            users=2,
            deny_list="full",
        ),
    }
    text = "\n".join(as_text(found))
    assert "ENGAGED for chat" in text
    assert "the kernel differs from the journal" in text
    assert "damaged: line 7" in text
    assert "1,234 blocks in force and 2 of users" in text
    assert "3 wait for a person; see `gatewatch approvals list`" in text
    assert "deny list  cannot be written: full" in text


def test_status_of_a_daemon_that_is_down_is_what_it_said_last_and_exit_code_1(tmp_path: Path, capsys) -> None:
    store = stored(tmp_path, 3)
    store.put("health", health(mode="observe"))
    assert main(["status", "--state", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "analyser   does not answer" in said
    assert "what follows it said at 2026-11-24T08:00:05Z" in said
    assert "open: 3 medium" in said
    assert "enforcer   not running" in said


def test_an_incident_is_shown_without_what_its_attacker_wrote_reaching_the_terminal(
    tmp_path: Path, capsys
) -> None:
    stored(tmp_path)
    [listed] = Store.open_readonly(tmp_path / "analyser" / "gatewatch.db").incidents()
    assert main(["incidents", "show", listed["id"][:6], "--state", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in said)
    assert "MEDIUM  Password guessing from 203.0.113.0 at sshd@gateway" in said
    assert "lines or frames: 1-3, 9" in said
    assert "what to do: see that these users have strong passwords" in said
    assert "next: gatewatch explain 203.0.113.0" in said
    assert f"gatewatch incidents close {listed['id']}" in said
    assert main(["incidents", "show", "zzz", "--state", str(tmp_path)]) == 1
    assert main(["incidents", "list", "--status", "gone", "--state", str(tmp_path)]) == 2


def test_of_a_closed_incident_nothing_more_is_asked(tmp_path: Path) -> None:
    store = stored(tmp_path)
    [incident] = store.incidents()
    store.set_status(incident["id"], "closed", "ours")
    [incident] = store.incidents()
    text = explained(json.loads(json.dumps(incident)))
    assert "  note: ours" in text
    assert not any("close" in line and "gatewatch" in line for line in text)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([5], "5"), ([1, 2], "1-2"), ([1, 2, 3, 7, 9, 10], "1-3, 7, 9-10")]
)
def test_runs_of_lines_are_written_in_short(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_times_for_people_have_whole_seconds() -> None:
    assert seconds("2026-11-24T09:27:09.744703007Z") == "2026-11-24T09:27:09Z"
    assert seconds("2026-11-24T09:27:09Z") == "2026-11-24T09:27:09Z"


def test_every_kind_that_has_a_title_says_what_to_do() -> None:
    assert NEXT.keys() == TITLES.keys()


def test_an_action_is_shown_with_how_long_an_action_holds(tmp_path: Path) -> None:
    store = stored(tmp_path)
    [incident] = store.incidents()
    action = {"time": "2026-11-24T08:00:00.5Z", "action": "block_source", "target": "203.0.113.0"}
    action |= {"state": "done", "why": "dropped in the kernel", "playbook": "login-burst", "ttl_s": 5400}
    text = "\n".join(explained(incident | {"actions": [action]}))
    assert "block_source 203.0.113.0 for 90m: done, dropped in the kernel (playbook login-burst)" in text


def test_a_period_longer_than_time_itself_is_told_like_any_other(tmp_path: Path, capsys) -> None:
    stored(tmp_path)
    state = ["--state", str(tmp_path)]
    assert main(["status", "--since", "999999999d", "--json", *state]) == 0
    assert sum(json.loads(capsys.readouterr().out)["incidents"].values()) == 1
    assert main(["actions", "list", "--since", "999999999d", *state]) == 0
    assert main(["status", "--since", "yesterday", *state]) != 0
