"""`gatewatch explain` and `blocks` against a real enforcer and a real store."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, Rig
from gatewatch.daemon.cli import main
from gatewatch.daemon.cli.explain import as_text, concerns, in_words, nearest, network_in, principals_of
from gatewatch.daemon.control import ask
from gatewatch.daemon.errors import GatewatchError
from gatewatch.daemon.store import Store
from lab.lab import HOSTS, Lab, unmet
from test_analyser import Running, append, until

INCIDENT = {
    "id": "0123456789abcdef",
    "kind": "brute_force",
    "priority": "high",
    "start": "2026-11-24T08:00:00Z",
    "end": "2026-11-24T08:01:00Z",
    "title": "Password guessing from 198.51.100.7",
    "sources": ["198.51.100.7", "2001:db8:9::/64"],
    "users": ["root"],
    "targets": ["sshd"],
    "blockable": ["198.51.100.7"],
    "findings": [],
}


def store_with_incident(state: Path) -> None:
    (state / "analyser").mkdir(parents=True, exist_ok=True)
    store = Store.open(state / "analyser" / "gatewatch.db")
    with store.transaction():
        store.save_incident(INCIDENT, {}, 1, 2, 3)
        action = {
            "id": "1", "incident": INCIDENT["id"], "playbook": "login-burst", "action": "block_source",
            "target": "198.51.100.7", "state": "would", "why": "observe mode", "reason": "guessing",
            "time_ns": 10**18, "ttl_s": 3600,
        }  # fmt: skip
        store.save_action(action)
    store.close()


def explained(subject: str, state: Path, capsys) -> dict[str, Any]:
    capsys.readouterr()
    main(["explain", subject, "--state", str(state), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_an_address_did_is_shown_though_no_enforcer_answers(tmp_path: Path, capsys) -> None:
    store_with_incident(tmp_path)
    found = explained("198.51.100.7", tmp_path, capsys)
    assert [i["id"] for i in found["incidents"]] == [INCIDENT["id"]]
    assert [a["state"] for a in found["actions"]] == ["would"]
    assert found["actions"][0]["time"] == "2001-09-09T01:46:40Z"
    assert [text.partition(":")[0] for text in found["unknown"]] == [
        "whether it is blocked",
        "which threshold keeps it free",
    ]
    assert (found["standing"], main(["explain", "198.51.100.7", "--state", str(tmp_path)])) == ([], 1)
    assert "not known: which threshold keeps it free" in capsys.readouterr().out
    assert explained("198.51.100.8", tmp_path, capsys)["incidents"] == []
    assert len(explained("2001:db8:9::5", tmp_path, capsys)["incidents"]) == 1


def test_a_user_is_explained_by_name(tmp_path: Path, capsys) -> None:
    store_with_incident(tmp_path)
    found = explained("root", tmp_path, capsys)
    assert (found["type"], len(found["incidents"]), found["blocked"]) == ("user", 1, None)
    assert [text.partition(":")[0] for text in found["unknown"]] == ["whether it is blocked"]
    assert main(["explain", "nobody", "--state", str(tmp_path)]) == 1  # there is no enforcer here
    said = capsys.readouterr().out
    assert "no incident names it" in said
    assert "not blocked" not in said
    assert explained("key:k-0123456789abcdef", tmp_path, capsys)["incidents"] == []


def test_a_user_is_found_by_what_accuses_it_of_compromise(tmp_path: Path, capsys) -> None:
    incident = {**INCIDENT, "users": [], "blockable_users": ["subject:ada"]}
    assert concerns(incident, "ada", None, principals_of("ada"))
    assert concerns(incident, "subject:ada", None, principals_of("subject:ada"))
    assert not concerns(incident, "key:ada", None, principals_of("key:ada"))
    assert main(["explain", " ", "--state", str(tmp_path)]) == 2
    assert "give an address, a network or a user" in capsys.readouterr().err


def test_targets_count_as_well_as_sources() -> None:
    egress = {"sources": ["192.0.2.1"], "targets": ["203.0.113.9"]}
    assert concerns(egress, "203.0.113.9", network_in("203.0.113.9"))
    assert not concerns(egress, "203.0.113.9", network_in("203.0.113.10"))
    assert not concerns({"sources": None}, "x", None)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "state", tmp_path / "auth.log")
    made.log.touch()
    made.start()
    yield made
    made.end(signal.SIGTERM)


def test_the_running_analyser_says_which_threshold_keeps_an_address_free(running: Running, capsys) -> None:
    moment = time.strftime("%b %e %H:%M:%S", time.localtime())
    line = f"{moment} gw sshd[{{}}]: Failed password for root from 203.0.113.7 port 4711 ssh2\n"
    append(running.log, "".join(line.format(n) for n in range(4)).encode(), 1)
    until(lambda: running.lines() == 4, "four lines taken")
    found = explained("203.0.113.7", running.state, capsys)
    guessing = [s for s in found["standing"] if s["detector"] == "brute_force"]
    assert [(s["scale"], s["figure"], s["threshold"]) for s in guessing] == [
        ("5m", 4, 10), ("1h", 4, 10), ("1d", 4, 10),
    ]  # fmt: skip
    assert guessing[0]["unit"] == "failed attempts"
    assert guessing[0]["text"] == "4 failed attempts in 5m, 10 are needed"
    assert {"mode", "packets", "compromise", "password_spray"} < {s["detector"] for s in found["standing"]}
    assert [text.partition(":")[0] for text in found["unknown"]] == ["whether it is blocked"]

    main(["explain", "203.0.113.7", "--state", str(running.state)])
    text = capsys.readouterr().out
    assert "    brute_force: 4 failed attempts in 5m, 10 are needed\n" in text
    assert text.count("brute_force") == 1
    assert "    mode: observe mode: nothing is blocked, whatever is found\n" in text

    # Asking left no trace: the tenth failure raises it, and no other.
    append(running.log, "".join(line.format(n) for n in range(4, 9)).encode(), 1)
    until(lambda: running.lines() == 9, "nine lines taken")
    assert explained("203.0.113.7", running.state, capsys)["incidents"] == []
    append(running.log, line.format(9).encode(), 1)
    until(lambda: explained("203.0.113.7", running.state, capsys)["incidents"], "an incident")
    assert "brute_force: raised, with 10 failed attempts" in "\n".join(
        as_text(explained("203.0.113.7", running.state, capsys))
    )


def test_a_network_that_is_not_judged_as_one_is_told_so(running: Running, capsys) -> None:
    found = explained("203.0.113.0/24", running.state, capsys)
    assert "by itself" in found["standing"][0]["text"]
    assert len(found["unknown"]) == 1
    assert "by itself" in "\n".join(as_text(found))


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"network": "203.0.113.0/24"},
        {"network": "root"},
        {"network": 7},
        {"network": ["203.0.113.7"]},
        {"network": "203.0.113.7" + "\ud800" * 100},
    ],
)
def test_a_request_that_names_no_address_harms_nothing(running: Running, request_: dict[str, Any]) -> None:
    with pytest.raises(GatewatchError):
        ask(running.commands, {"do": "standing", **request_})
    with pytest.raises(GatewatchError):
        ask(running.commands, {"do": "standing", "network": "203.0.113.7", "incidents": ["\ud800"]})
    for incidents in (None, 7, [7, None, {}, "", "%"], ["x"] * 5000):
        answer = ask(running.commands, {"do": "standing", "network": "203.0.113.7", "incidents": incidents})
        assert answer["standing"]


def test_of_several_scales_the_nearest_to_its_threshold_is_shown() -> None:
    item = {"detector": "a", "text": "", "scale": "", "figure": 3, "threshold": 10, "unit": "x"}
    far, near, other = item, item | {"figure": 4}, item | {"unit": "y", "figure": 1}
    words = item | {"figure": None, "threshold": None}
    assert nearest([far, near, other, words, words]) == [near, other, words, words]


def test_those_with_nothing_against_an_address_share_a_line() -> None:
    item = {"detector": "a", "text": "one of ten", "scale": "", "figure": 1, "threshold": 10, "unit": "x"}
    none, words = item | {"figure": 0}, item | {"detector": "", "figure": None, "threshold": None}
    said = in_words([item, none | {"detector": "b"}, none | {"detector": "c"}, words])
    assert said == ["a: one of ten", "one of ten", "b, c: nothing counts against it"]


@pytest.fixture
def rig() -> Iterator[Rig]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab(services=False) as lab, Rig(lab) as rig:
        yield rig


@pytest.mark.lab
def test_an_address_is_explained_with_its_block_and_the_rail_that_protects_it(rig: Rig, capsys) -> None:
    attacker = HOSTS["attacker"].v4
    store_with_incident(rig.state)
    words = ["--state", str(rig.state)]
    assert main(["block", "ip", attacker, "--ttl", "10m", "--reason", "a test", *words]) == 0
    found = explained(attacker, rig.state, capsys)
    (entry,) = found["blocked"]
    assert (entry["address"], entry["reason"], found["unknown"]) == (attacker, "a test", [])
    assert found["standing"] == []
    assert entry["until"] > entry["since"]
    assert found["kill_switch"] == []
    assert f"{attacker}: blocked until {entry['until']}" in as_text(found)[0]

    assert main(["explain", attacker, *words]) == 0
    assert f"gatewatch unblock ip {attacker}" in capsys.readouterr().out
    assert main(["unblock", "ip", attacker, "--reason", "a test", *words]) == 0
    assert explained(attacker, rig.state, capsys)["blocked"] == []

    management = explained(HOSTS["management"].v4, rig.state, capsys)
    assert management["would_refuse"]["rail"] == "management"
    assert explained("0.0.0.0/0", rig.state, capsys)["would_refuse"]["rail"]
    assert main(["explain", "10.9.9.9", *words]) == 1  # there is no analyser here
    assert "10.9.9.9: not blocked" in capsys.readouterr().out

    code, _ = rig.command("engage", "--endpoint", "models", "--reason", "a test")
    assert code == 0
    assert explained(attacker, rig.state, capsys)["kill_switch"] == ["models"]


@pytest.mark.lab
def test_a_user_is_explained_with_its_block_and_with_why_failures_alone_are_none(rig: Rig, capsys) -> None:
    store_with_incident(rig.state)
    words = ["--state", str(rig.state)]
    said = as_text(explained("root", rig.state, capsys))
    assert said[0] == "root: not blocked"
    assert "failures alone block no user" in said[1]
    assert any("a block would be refused" in line for line in said)
    assert main(["block", "user", "account:alice", "--ttl", "10m", "--reason", "a test", *words]) == 0
    for subject in ("alice", "account:alice"):
        found = explained(subject, rig.state, capsys)
        (entry,) = found["blocked"]
        assert (entry["kind"], entry["user"], found["unknown"]) == ("account", "alice", [])
        assert f"{subject}: blocked until {entry['until']} by account:alice" in as_text(found)[0]
        assert "gatewatch unblock user account:alice --reason TEXT" in as_text(found)[2]
    assert explained("key:alice", rig.state, capsys)["blocked"] == []
    assert main(["explain", "", *words]) == 2


def test_a_blocked_user_is_explained_by_name_and_by_kind(rig: Rig, capsys) -> None:
    words = ["--state", str(rig.state)]
    store_with_incident(rig.state)
    assert main(["block", "user", "account:ada", "--ttl", "10m", "--reason", "guessed", *words]) == 0
    assert main(["block", "user", "key:k-0011223344556677", "--reason", "leaked", *words]) == 0
    for name in ("ada", "account:ada"):
        capsys.readouterr()
        assert main(["explain", name, *words]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{name}: blocked until 2")
        assert "  because: guessed\n" in said
        assert "gatewatch unblock user account:ada --reason TEXT" in said
    assert "logins to this machine" in said
    (entry,) = explained("key:k-0011223344556677", rig.state, capsys)["blocked"]
    assert (entry["kind"], entry["reason"]) == ("key", "leaked")
    assert explained("subject:ada", rig.state, capsys)["blocked"] == []
    assert explained("root", rig.state, capsys)["would_refuse"]["rail"] == "never_block_users"


def test_what_is_no_address_cannot_be_blocked_as_one(tmp_path: Path, capsys) -> None:
    for command in ("block", "unblock"):
        assert main([command, "ip", "nonsense", "--reason", "x", "--state", str(tmp_path)]) == 2
        assert "write 203.0.113.7" in capsys.readouterr().err


@pytest.mark.lab
def test_what_waits_for_a_person_is_explained_with_whom_it_hits_and_how_to_grant_it(rig: Rig, capsys) -> None:
    attacker, words = HOSTS["attacker"].v4, ["--state", str(rig.state)]
    store_with_incident(rig.state)
    asked = {"reason": "guessing", "ttl_s": 3600, "approval": 1, "hits": "hits ada, who lately succeeded"}
    answer, user = rig.ask_as(
        ANALYSER_UID,
        {"request": "block", "address": attacker, **asked},
        {"request": "block_user", "user": "ada", "kind": "account", **asked},
    )
    (waits,) = explained(attacker, rig.state, capsys)["waiting"]
    assert (waits["id"], waits["if_granted"]) == (answer["pending"], f"block {attacker} for 3600 s")
    assert main(["explain", attacker, *words]) == 1  # there is no analyser here
    said = capsys.readouterr().out
    assert f"{attacker}: not blocked" in said
    assert f"waits for approval as {answer['pending']}" in said
    assert "hits ada, who lately succeeded" in said
    assert f"gatewatch approvals grant {answer['pending']}" in said
    assert [w["id"] for w in explained("ada", rig.state, capsys)["waiting"]] == [user["pending"]]
    assert explained("10.9.9.9", rig.state, capsys)["waiting"] == []
    assert main(["approvals", "grant", user["pending"], *words]) == 0
    found = explained("ada", rig.state, capsys)
    assert (len(found["blocked"]), found["waiting"]) == (1, [])


@pytest.mark.lab
def test_a_source_that_only_the_gateway_refuses_is_told_apart(rig: Rig, capsys) -> None:
    attacker, words = HOSTS["attacker"].v4, ["--state", str(rig.state)]
    store_with_incident(rig.state)
    assert main(["block", "ip", attacker, "--where", "gateway", "--reason", "a test", *words]) == 0
    capsys.readouterr()
    assert main(["explain", attacker, *words]) == 0
    said = capsys.readouterr().out
    assert f"{attacker}: refused at the gateway alone, not dropped by the kernel, until " in said


@pytest.mark.lab
def test_the_audit_log_is_verified_and_a_change_in_it_is_found(rig: Rig, capsys) -> None:
    words = ["--state", str(rig.state)]
    assert main(["block", "ip", HOSTS["attacker"].v4, "--reason", "a test", *words]) == 0
    assert main(["audit", "verify", *words]) == 0
    assert "intact" in capsys.readouterr().out
    journal = rig.state / "enforcer" / "journal"
    journal.write_bytes(journal.read_bytes().replace(b"a test", b"a tset"))
    assert main(["audit", "verify", *words]) == 1
    assert "the chain is broken" in capsys.readouterr().err
    assert main(["audit", "verify", "--json", *words]) == 1
    assert json.loads(capsys.readouterr().out)["intact"] is False


@pytest.mark.lab
def test_a_doubtful_name_is_blocked_with_a_word_about_it_and_an_api_key_never(rig: Rig, capsys) -> None:
    words = ["--ttl", "10m", "--reason", "a test", "--state", str(rig.state)]
    for name, doubt in (
        ("acount:alice", "'acount' is no kind of user"),
        ("account:not-here", "no such account here"),
    ):
        assert main(["block", "user", name, *words]) == 0
        assert doubt in capsys.readouterr().out
    assert main(["block", "user", "key:k-0123456789abcdef", *words]) == 0
    assert "mind" not in capsys.readouterr().out
    for name in ("key:sk-secret", "sk-secret"):
        assert main(["block", "user", name, *words]) == 2
        assert "looks like an API key" in capsys.readouterr().err
    assert b"sk-secret" not in (rig.state / "enforcer" / "journal").read_bytes()
    assert main(["status", "--state", str(rig.state)]) in (0, 1)
    assert "0 blocks in force and 3 of users" in capsys.readouterr().out
