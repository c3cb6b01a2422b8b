"""Playbooks on a real gateway: what asks a person first, what observe mode writes down, and what is taken back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from lab.lab import HOSTS, PASSWORDS, Lab, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.lab

SOURCES = HOSTS["attacker"].more
ATTACKER = HOSTS["attacker"].v4

EAGER = """
name: login-burst
when: {kinds: [brute_force, password_spray, account_compromise]}
then:
  - {action: block_source, ttl: 1h}
"""


def own_playbooks(lab: Lab, **texts: str) -> dict[str, Any]:
    """A folder of playbooks instead of the shipped ones."""
    folder = lab.folder / "playbooks"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return {"directories": [str(folder)], "shipped": False}


def logged_in_before(lab: Lab, *sources: str) -> None:
    """Alice logs in from each, and the second is over: times in the log have no more digits."""
    for source in sources:
        assert lab.ssh("attacker", "alice", [PASSWORDS["alice"]], "hostname", source=source).stdout
    now = int(time.time())
    wait_for("the next second", lambda: time.time() >= now + 1)


def guess(lab: Lab, source: str) -> None:
    for _ in range(3):
        lab.fail(source, 5)


def action_on(watch: Gatewatch, target: str) -> dict[str, Any]:
    """The last action on a target that is no skip."""

    def found() -> dict[str, Any] | None:
        actions = watch.listing("actions", "list")
        return next((a for a in reversed(actions) if a["target"] == target), None)

    return wait_for(f"an action on {target}", found, 30, 0.3) or {}


def test_a_trickle_of_blocks_that_would_hit_a_third_of_the_good_clients_is_stopped(lab: Lab) -> None:
    good = SOURCES[:9]
    playbooks = own_playbooks(lab, eager=EAGER)
    with Gatewatch(lab, playbooks=playbooks, response={"breaker": {"share": 0.25, "spared": 1}}) as watch:
        logged_in_before(lab, *good)
        for source in good[:2]:
            guess(lab, source)
            watch.wait_for_block(source)
            assert action_on(watch, source)["hits"] == [source]
        guess(lab, good[2])
        stopped = action_on(watch, good[2])
        assert stopped["state"] == "waiting"
        assert "3 of 9 clients that lately succeeded (33%)" in stopped["why"]
        incident = watch.wait_for_incident("circuit_breaker")
        assert (incident["priority"], incident["targets"]) == ("critical", [good[2]])
        assert not watch.in_kernel(good[2])

        guess(lab, ATTACKER)  # who never succeeded: the breaker does not hold up the defence
        watch.wait_for_block(ATTACKER)

        (waiting,) = watch.listing("approvals", "list")
        assert (waiting["request"], waiting["address"], waiting["by"]) == ("block", good[2], "analyser")
        assert good[2] in waiting["hits"]
        watch.run("approvals", "grant", waiting["id"])
        watch.wait_for_block(good[2])
        wait_for("the books", lambda: action_on(watch, good[2])["state"] == "done")
        assert watch.run("audit", "verify").returncode == 0


def test_observe_mode_keeps_the_same_books_and_says_whom_it_would_have_hit(lab: Lab) -> None:
    good = SOURCES[0]
    with Gatewatch(lab, observe=True, playbooks=own_playbooks(lab, eager=EAGER)) as watch:
        logged_in_before(lab, good)
        guess(lab, good)
        guess(lab, ATTACKER)
        assert action_on(watch, ATTACKER)["state"] == "would"
        would = action_on(watch, good)
        assert (would["state"], would["hits"]) == ("would", [good])
        assert would["until"] > would["time"]
        assert watch.elements() == set()
        (period,) = watch.listing("status", "--since", "1h")
        assert period["actions"]["block_source"]["would"] == 2
        assert [hit["name"] for hit in period["hits"]] == [good]
        said = watch.run("status", "--since", "1h").stdout
        assert "1 clients or users that had lately succeeded" in said
        assert good in said


def test_what_a_playbook_did_is_taken_back_by_its_id(lab: Lab) -> None:
    with Gatewatch(lab, playbooks=own_playbooks(lab, eager=EAGER)) as watch:
        guess(lab, ATTACKER)
        watch.wait_for_block(ATTACKER)
        done = action_on(watch, ATTACKER)
        assert done["state"] == "done"
        watch.run("actions", "undo", done["id"])
        wait_for("the end of the block", lambda: not watch.in_kernel(ATTACKER))
        wait_for("the books", lambda: action_on(watch, ATTACKER)["state"] == "undone")
        again = watch.run("actions", "undo", done["id"], check=False)
        assert again.returncode == 1
        assert "nothing to take back" in again.stderr


def test_a_kill_that_a_playbook_asks_for_waits_for_a_person(lab: Lab) -> None:
    asks = """
name: asks
when: {kinds: [brute_force]}
then:
  - {action: kill_switch, endpoint: chat}
  - {action: capture_evidence}
"""
    with Gatewatch(lab, playbooks=own_playbooks(lab, asks=asks)) as watch:
        guess(lab, ATTACKER)
        waiting = action_on(watch, "chat")
        assert waiting["state"] == "waiting"
        (asked,) = watch.listing("approvals", "list")
        assert (asked["request"], asked["endpoints"]) == ("kill", ["chat"])
        watch.run("approvals", "deny", asked["id"])
        wait_for("the books", lambda: action_on(watch, "chat")["state"] == "refused")
        assert "denied by" in action_on(watch, "chat")["why"]
        (incident,) = watch.listing("incidents", "list")
        folder = Path(watch.state) / "analyser" / "evidence" / incident["id"]
        assert "Failed password for root" in (folder / "lines.txt").read_text()
        assert (folder / "SHA256SUMS").exists()
