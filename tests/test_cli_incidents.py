"""`gatewatch incidents`: the order of the list, what `show` explains, and closing as benign."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.benign import BenignList
from gatewatch.daemon.cli import main
from gatewatch.daemon.cli.incidents import explained, timeline
from gatewatch.daemon.incidents import Correlator
from gatewatch.daemon.masking import Mask
from gatewatch.daemon.store import Store
from gatewatch.detectors.finding import Finding, finding_id

NOW_NS = time.time_ns() // 10**9 * 10**9
SECOND = 10**9
SOURCE = "203.0.113.7"


def finding(kind: str, source: str, ago_s: int, **more: Any) -> Finding:
    at_ns = NOW_NS - ago_s * SECOND
    values: dict[str, Any] = {
        "id": finding_id(kind, source, at_ns),
        "detector": kind,
        "kind": kind,
        "entity_type": "source",
        "entity": source,
        "time_ns": at_ns,
        "start_ns": at_ns - 60 * SECOND,
        "end_ns": at_ns + 60 * SECOND,
        "severity": 50,
        "confidence": 0.9,
        "sources": (source,),
        "targets": ("sshd@gateway",),
        "figures": {"attempts": 12},
        "threshold": "10 failed attempts in 300 s",
        "baseline": "nobody has logged in from this source before",
        "techniques": ("T1110.001",),
    }
    return Finding(**(values | more))


GUESSED = finding(
    "brute_force", SOURCE, 900, users=("ada", "Geheim#12"), samples=("Invalid user Geheim#12 from x",)
)
TAKEN = finding(
    "account_compromise", SOURCE, 300, entity_type="user", entity="ada", users=("ada",), severity=95,
    end_ns=NOW_NS - 300 * SECOND, techniques=("T1078", "T1110"), figures={"successes": 1},
)  # fmt: skip
OTHERS = (
    finding("port_scan", "198.51.100.1", 10, severity=60),
    finding("brute_force", "198.51.100.2", 20, severity=80),
    finding("brute_force", "198.51.100.3", 2000, users=("root",)),
)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    store = Store.open(tmp_path / "analyser" / "gatewatch.db")
    correlator = Correlator()
    correlator.mask = Mask(store.hash_key())
    correlator.apply([GUESSED, TAKEN, *OTHERS])
    with store.transaction():
        for incident in correlator.open_incidents:
            store.save_incident(
                incident.document(), incident.state(), incident.start_ns, incident.end_ns, NOW_NS
            )
    store.close()
    return tmp_path


def listed(state: Path, capsys: Any) -> list[dict[str, Any]]:
    assert main(["incidents", "list", "--json", "--state", str(state)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_list_begins_with_what_to_look_at_first(state: Path, capsys: Any) -> None:
    found = listed(state, capsys)
    assert [i["rank"] for i in found] == [1, 2, 3, 4]
    assert [i["kind"] for i in found] == ["account_compromise", "brute_force", "brute_force", "port_scan"]
    assert found[1]["users"] == ["root"]


def test_an_incident_is_explained_from_the_first_event_to_what_was_done(state: Path, capsys: Any) -> None:
    [first, *_] = listed(state, capsys)
    first["actions"] = [
        {"time": first["end"], "action": "block_source", "target": SOURCE, "ttl_s": 3600, "state": "would",
         "why": "observe mode: nothing is done", "playbook": "guessing"}
    ]  # fmt: skip
    text = "\n".join(explained(first))
    assert "rank 1 of 4 (compromise), critical since " in text
    assert "raised at: 10 failed attempts in 300 s" in text
    assert "usual: nobody has logged in from this source before" in text
    assert "T1110.001 Brute Force: Password Guessing" in text
    assert "T1078 Valid Accounts" in text
    assert "would have been done, observe mode: nothing is done (playbook guessing)" in text
    assert [what.partition(":")[0] for _, what in timeline(first)] == [
        "the first event that belongs to it",
        "brute_force",
        "brute_force",
        "account_compromise",
        f"block_source {SOURCE} for 1h",
    ]
    times = [time for time, _ in timeline(first)]
    assert times == sorted(times)
    assert any(f"login of ada from {SOURCE}" in what for _, what in timeline(first))
    assert any("last event so far, 12 attempts" in what for _, what in timeline(first))


def test_an_incident_says_what_waits_for_a_person_and_what_can_be_taken_back(
    state: Path, capsys: Any
) -> None:
    [first, *_] = listed(state, capsys)
    common = {"time": first["end"], "ttl_s": 3600, "playbook": "p", "incident": first["id"]}
    asks = {"action": "block_source", "target": SOURCE, "state": "waiting", "why": "asks a person", "id": "1"}
    done = {"action": "block_user", "target": "account:ada", "state": "done", "why": "refused", "id": "2"}
    first["actions"] = [
        common | asks | {"approval": "A12", "hits": ["198.51.100.1", "198.51.100.2"]},
        common | done | {"until": "2200-01-01T00:00:00.5Z"},
        common | done | {"id": "3", "until": "2020-01-01T00:00:00Z"},
        common | asks | {"id": "4", "where": "gateway", "why": "until the wire proves it"},
    ]
    lines = [line.strip() for line in explained(first)]
    assert (
        "next: gatewatch approvals grant A12 (or deny A12): block_source 203.0.113.7 waits for a person"
        in lines
    )
    assert [line for line in lines if "actions undo" in line] == [
        "to take it back: gatewatch actions undo 2 (block_user account:ada)"
    ]
    assert any("; would hit 198.51.100.1, 198.51.100.2, who lately succeeded" in line for line in lines)
    assert any("block_user account:ada for 1h (until 2200-01-01T00:00:00Z): done" in line for line in lines)
    assert any(f"block_source {SOURCE} at the gateway alone for 1h: waits, until" in line for line in lines)


def test_a_typed_password_is_shown_to_none_but_who_asks_for_it(state: Path, capsys: Any) -> None:
    [first, *_] = listed(state, capsys)
    assert "Geheim" not in json.dumps(first)
    assert main(["incidents", "show", first["id"], "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert "Geheim" not in said
    assert "[masked:" in said
    assert main(["incidents", "show", first["id"], "--unmask", "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert "| Invalid user Geheim#12 from x" in said
    assert "[masked" not in said


def test_exceptions_are_listed_with_their_scope_and_end(state: Path, capsys: Any) -> None:
    store = Store.open(state / "analyser" / "gatewatch.db")
    correlator = Correlator()
    [change] = correlator.apply([GUESSED])
    made = BenignList().closing(change.incident, NOW_NS, 86_400, "eve", "a job of ours")
    made += BenignList().closing(change.incident, NOW_NS - 90 * 86_400 * SECOND, 86_400, "eve", "long ago")
    with store.transaction():
        for exception in made:
            store.save_exception(exception.state())
    store.close()
    assert main(["incidents", "exceptions", "--json", "--state", str(state)]) == 0
    [one] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (one["kind"], one["entity"], one["state"], one["by"]) == ("brute_force", SOURCE, "in force", "eve")
    assert one["users"][0] == "ada"
    assert "Geheim" not in json.dumps(one)
    assert main(["incidents", "exceptions", "--all", "--state", str(state)]) == 0
    assert "expired" in capsys.readouterr().out
    assert main(["incidents", "exceptions", "--remove", "zzz", "--state", str(state)]) == 1
    assert "no exception zzz is in force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--for", "7d"], "--benign as well"),
        (["--benign"], "needs a reason"),
        (["--benign", "--note", "ours", "--for", "soon"], "no duration"),
    ],
)
def test_a_careless_close_is_refused(state: Path, capsys: Any, options: list[str], said: str) -> None:
    [first, *_] = listed(state, capsys)
    assert main(["incidents", "close", first["id"], *options, "--state", str(state)]) == 2
    assert said in capsys.readouterr().err


def test_a_store_from_before_there_were_exceptions_has_none(state: Path, capsys: Any) -> None:
    store = Store.open(state / "analyser" / "gatewatch.db")
    store._db.execute("DROP TABLE exceptions")
    store.close()
    assert main(["incidents", "exceptions", "--state", str(state)]) == 0
    assert "no exceptions in force" in capsys.readouterr().out
