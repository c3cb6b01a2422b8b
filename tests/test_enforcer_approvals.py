"""Requests that wait for one or two people: who may agree, how often, until when, and what the chain says of it."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, RAILS, Rig
from gatewatch.daemon.audit import entry_document
from gatewatch.daemon.enforcer import callers, signatures
from gatewatch.daemon.enforcer.authority import Authority
from gatewatch.daemon.enforcer.callers import Caller
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.rails import parse
from lab.lab import HOSTS, Lab
from test_enforcer_users import Clock

ALICE, BOB, CAROL = 61_301, 61_302, 61_303
GROUP = [0]
ATTACKER = HOSTS["attacker"].v4
SEED = bytes(range(32))
BLOCK = {"request": "block", "address": ATTACKER, "ttl_s": 600, "reason": "a burst"}
USER = {"request": "block_user", "user": "alice", "kind": "subject", "ttl_s": 600, "reason": "her token"}
KILL = {"request": "kill", "endpoints": ["models"], "reason": "weights are leaving", "probe": 0}
SIGNERS = RAILS + (
    f'[[signer]]\nname = "carol"\npublic_key = "{signatures.public_key(SEED)}"\n'
    f'[[signer]]\nname = "bob"\npublic_key = "{signatures.public_key(bytes(32))}"\nuid = {BOB}\n'
)
ALL = 'two_people = ["release", "unblock", "unblock_user", "kill", "block", "block_user"]\n' + RAILS


@pytest.fixture
def rig(bare: Lab, request: pytest.FixtureRequest) -> Iterator[Rig]:
    marker = request.node.get_closest_marker("rails")
    with Rig(bare, marker.args[0] if marker else RAILS) as rig:
        yield rig


def grant(name: str) -> dict[str, str]:
    return {"request": "grant", "id": name}


def entries(rig: Rig, *kinds: str) -> list[dict[str, Any]]:
    return [e for e in rig.journal() if e["do"] in kinds]


@pytest.mark.lab
def test_what_one_person_has_to_agree_to_waits_and_is_done_once_granted(rig: Rig) -> None:
    ask = {**BLOCK, "approval": 1, "hits": "3 of 12 clients", "incident": "i1", "playbook": "burst"}
    filed, again = rig.ask_as(ANALYSER_UID, ask, {**ask, "reason": "still", "hits": "4 of 12 clients"})
    name = filed["pending"]
    assert (filed["needs"], again["pending"]) == (1, name)
    assert 800 < filed["expires_s"] <= 900
    assert list(rig.enforcer().blocks()) == []
    (waiting,) = rig.enforcer().approvals()
    assert {k: v for k, v in waiting.items() if k not in ("since_ns", "expires_s")} == {
        "id": name, "request": "block", "address": ATTACKER, "ttl_s": 600, "reason": "a burst", "needs": 1,
        "hits": "3 of 12 clients", "incident": "i1", "playbook": "burst", "by": "analyser", "granted": [],
    }  # fmt: skip
    refused, denied = rig.ask_as(ANALYSER_UID, grant(name), {"request": "deny", "id": name})
    assert (refused["rail"], denied["rail"]) == ("two_people", "two_people")
    (done,) = rig.ask_as(ALICE, grant(name), groups=GROUP)
    assert done["address"] == ATTACKER
    (block,) = rig.enforcer().blocks()
    assert (block["owner"], block["by"]) == ("analyser", f"analyser, granted by uid {ALICE}")
    (entry,) = entries(rig, "block")
    assert (entry["approval"], entry["incident"]) == (name, "i1")
    (taken_back,) = rig.ask_as(ANALYSER_UID, {"request": "unblock", "address": ATTACKER, "reason": "over"})
    assert taken_back["unblocked"], "it may take back what it asked for"
    (late,) = rig.ask_as(BOB, grant(name), groups=GROUP)
    assert late["rail"] == "approval"


@pytest.mark.lab
def test_two_different_people_have_to_agree_where_two_are_asked_for(rig: Rig) -> None:
    (filed,) = rig.ask_as(ANALYSER_UID, {**USER, "approval": 2})
    name = filed["pending"]
    first, twice = rig.ask_as(ALICE, grant(name), grant(name), groups=GROUP)
    assert (first["pending"], first["needs"]) == (name, 1)
    assert (twice["rail"], "another person" in twice["refused"]) == ("two_people", True)
    rig.stop()
    rig.start()
    (waiting,) = rig.enforcer().approvals()
    assert (waiting["needs"], waiting["granted"]) == (2, [f"uid {ALICE}"])
    (still,) = rig.ask_as(ALICE, grant(name), groups=GROUP)
    assert still["rail"] == "two_people", "a restart forgets no one"
    (done,) = rig.ask_as(BOB, grant(name), groups=GROUP)
    assert (done["user"], done["kind"]) == ("alice", "subject")
    assert [e["do"] for e in entries(rig, "ask", "agree", "grant", "block_user")] == [
        "ask", "agree", "grant", "block_user",
    ]  # fmt: skip
    (user,) = rig.enforcer().users()
    assert (user["owner"], user["by"]) == ("analyser", f"analyser, granted by uid {ALICE} and uid {BOB}")


@pytest.mark.lab
def test_what_is_granted_is_noted_though_it_was_in_force_already(rig: Rig) -> None:
    filed = rig.ask_as(ANALYSER_UID, {**BLOCK, "approval": 1}, {**USER, "approval": 1}, KILL)
    rig.enforcer().block(ATTACKER, ttl_s=900, reason="by a person meanwhile")
    rig.enforcer().block_user("alice", kind="subject", ttl_s=900, reason="by a person meanwhile")
    rig.enforcer().kill(["models"], "by a person meanwhile")
    done = rig.ask_as(ALICE, *(grant(a["pending"]) for a in filed), groups=GROUP)
    assert [bool(a["already"]) for a in done] == [True] * 3
    assert [e["approval"] for e in entries(rig, "block", "block_user", "kill") if "approval" in e] == [
        a["pending"] for a in filed
    ]
    (block,), (user,) = rig.enforcer().blocks(), rig.enforcer().users()
    assert {(b["owner"], b["ttl_s"] > 800) for b in (block, user)} == {("operator", True)}, (
        "nothing is shortened"
    )


@pytest.mark.lab
def test_the_analyser_has_a_kill_filed_that_the_rails_do_not_grant_beforehand(rig: Rig) -> None:
    kills = [{**KILL, "endpoints": [name]} for name in ("automatic", "models", "spared", "nobody")]
    done, filed, spared, nobody = rig.ask_as(ANALYSER_UID, *kills)
    assert done["engaged"] == ["automatic"]
    assert (filed["needs"], spared["rail"], nobody["rail"]) == (1, "kill_switch", "endpoint")
    (asked,) = rig.ask_as(ANALYSER_UID, {**KILL, "endpoints": ["automatic"], "approval": 2})
    assert asked["needs"] == 2, "a playbook may ask for more than the rails"
    (receipt,) = rig.ask_as(ALICE, grant(filed["pending"]), groups=GROUP)
    assert receipt["engaged"] == ["models"] and receipt["proven"]
    assert receipt["by"] == f"analyser, granted by uid {ALICE}"
    assert entries(rig, "kill")[-1]["approval"] == filed["pending"]


@pytest.mark.lab
@pytest.mark.rails(ALL)
def test_where_the_rails_want_two_people_one_is_not_enough_whatever_was_asked_for(rig: Rig) -> None:
    (filed,) = rig.ask_as(ANALYSER_UID, {**KILL, "approval": 1})
    assert filed["needs"] == 2
    (first,) = rig.ask_as(ALICE, grant(filed["pending"]), groups=GROUP)
    assert first["needs"] == 1
    (second,) = rig.ask_as(BOB, grant(filed["pending"]), groups=GROUP)
    assert second["engaged"] == ["models"]


@pytest.mark.lab
@pytest.mark.rails(ALL)
def test_a_person_who_asks_is_one_of_two_for_addresses_and_users_and_cannot_import_around_it(
    rig: Rig,
) -> None:
    for ask in (BLOCK, USER):
        (asked,) = rig.ask_as(ALICE, ask, groups=GROUP)
        assert asked["needs"] == 1
        (done,) = rig.ask_as(BOB, {**ask, "reason": "so do I"}, groups=GROUP)
        assert done["ttl_s"] == 600
    for ask in (
        {"request": "unblock", "address": ATTACKER, "reason": "over"},
        {"request": "unblock_user", "user": "alice", "kind": "subject", "reason": "over"},
    ):
        (asked,) = rig.ask_as(ALICE, ask, groups=GROUP)
        (own,) = rig.ask_as(ALICE, grant(asked["pending"]), groups=GROUP)
        assert own["rail"] == "two_people"
        (done,) = rig.ask_as(CAROL, grant(asked["pending"]), groups=GROUP)
        assert done["unblocked"]
    (imported,) = rig.ask_as(
        ALICE, {"request": "import", "blocks": [["198.18.0.1", 60]], "reason": "x"}, groups=GROUP
    )
    assert imported["rail"] == "two_people"
    (alone,) = rig.ask_as(ALICE, {**BLOCK, "approval": 1}, groups=GROUP)
    assert alone["rail"] == "approval", "nobody lowers how many the rails want"


@pytest.mark.lab
def test_a_flood_of_the_analyser_leaves_room_for_people(rig: Rig) -> None:
    rig.stop()
    rig.rails.write_text(ALL)
    rig.start()
    asks = [{**BLOCK, "address": f"198.18.0.{n}", "approval": 1} for n in range(1, 60)]
    answers = rig.ask_as(ANALYSER_UID, *asks)
    assert sum(a["ok"] for a in answers) == 40
    assert {a["rail"] for a in answers if not a["ok"]} == {"most_waiting"}
    (again,) = rig.ask_as(ANALYSER_UID, asks[0])
    assert again["pending"] == answers[0]["pending"]
    people = [{**BLOCK, "address": f"198.18.1.{n}"} for n in range(1, 12)]
    theirs = rig.ask_as(ALICE, *people, groups=GROUP)
    assert [a["ok"] for a in theirs] == [True] * 10 + [False]
    assert len(list(rig.enforcer().approvals())) == 50
    assert len({a["id"] for a in rig.enforcer().approvals()}) == 50


@pytest.mark.lab
def test_a_grant_is_judged_by_the_rails_of_that_moment(rig: Rig) -> None:
    refused, filed = rig.ask_as(
        ANALYSER_UID, {**BLOCK, "address": HOSTS["management"].v4, "approval": 1}, {**BLOCK, "approval": 1}
    )
    assert refused["rail"] == "management", "nobody is asked for what will be refused"
    rig.stop()
    rig.rails.write_text(RAILS.replace("203.0.113.70/32", ATTACKER))
    rig.start()
    (answer,) = rig.ask_as(ALICE, grant(filed["pending"]), groups=GROUP)
    assert answer["rail"] == "never_block"
    assert list(rig.enforcer().blocks()) == list(rig.enforcer().approvals()) == []


@pytest.mark.lab
@pytest.mark.rails(SIGNERS)
def test_a_signed_grant_counts_its_signer_as_a_person(rig: Rig, tmp_path: Path) -> None:
    target = rig.lab.run_in("gateway", ["uname", "-n"]).stdout.strip()
    state = ["--state", str(rig.state)]

    def signed(signer: str, seed: bytes, *words: str) -> subprocess.CompletedProcess[str]:
        private, file = tmp_path / signer, tmp_path / "command.json"
        private.write_bytes(seed)
        made = rig.run(
            "signed", "make", *words, "--key", str(private), "--signer", signer, "--target", target
        )
        assert made.returncode == 0, made.stderr
        file.write_text(made.stdout)
        return rig.run("signed", "submit", str(file), *state)

    (filed,) = rig.ask_as(ANALYSER_UID, {**USER, "approval": 2})
    name = filed["pending"]
    first = signed("bob", bytes(32), "grant", name)
    assert f"waits as {name}" in first.stdout and "another person" in first.stdout, first.stderr
    (own,) = rig.ask_as(BOB, grant(name), groups=GROUP)
    assert own["rail"] == "two_people", "his signature and his account are one person"
    second = signed("carol", SEED, "grant", name)
    assert "subject:alice is blocked for 600 s" in second.stdout, second.stderr
    blocked = signed("carol", SEED, "block_user", "key:k-00", "--ttl", "10m", "--reason", "test")
    assert "key:k-00 is blocked for 600 s" in blocked.stdout, blocked.stderr
    taken_back = signed("carol", SEED, "unblock_user", "key:k-00", "--reason", "over")
    assert "key:k-00 is unblocked" in taken_back.stdout
    (more,) = rig.ask_as(ANALYSER_UID, {**USER, "user": "bob", "approval": 1})
    assert "nothing was done" in signed("carol", SEED, "deny", more["pending"]).stdout
    assert list(rig.enforcer().approvals()) == []


@pytest.mark.lab
def test_the_commands_show_what_will_happen_whom_it_hits_and_who_is_needed(rig: Rig) -> None:
    state = ["--state", str(rig.state)]
    ask = {
        **BLOCK,
        "approval": 2,
        "hits": "7 of 20 clients: 198.51.100.0/24",
        "incident": "i1",
        "playbook": "burst",
    }
    filed, kill = rig.ask_as(ANALYSER_UID, ask, KILL)
    rig.ask_as(ALICE, grant(filed["pending"]), groups=GROUP)
    shown = rig.run("approvals", "list", *state).stdout
    for part in (
        f"block {ATTACKER} for 600 s", "7 of 20 clients", "a burst (i1, burst)", "analyser",
        f"1 more (uid {ALICE} agreed)", "pull the kill switch of models", kill["pending"], "in 8",
    ):  # fmt: skip
        assert part in shown, part
    granted = rig.run("approvals", "grant", filed["pending"], *state)
    assert granted.stdout == f"granted {filed['pending']}: {ATTACKER} is blocked for 600 s\n", granted.stderr
    denied = rig.run("approvals", "deny", kill["pending"], *state)
    assert "nothing was done" in denied.stdout
    assert rig.run("approvals", "list", *state).stdout == "nothing waits for a person\n"


@pytest.mark.parametrize("lent_first", [True, False])
def test_by_the_account_of_another_nobody_agrees_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lent_first: bool
) -> None:
    logins = {11: ALICE, 12: ALICE, 13: CAROL, 14: ALICE, 15: BOB}
    monkeypatch.setattr(callers, "_login_of", lambda pid: logins[pid])
    journal = Journal(str(tmp_path), Clock())
    authority = Authority(journal, None, Clock())  # type: ignore[arg-type]
    authority.use(parse('management = ["192.0.2.1"]\ntwo_people = ["block_user"]'))
    alice, sudo = Caller("operator", ALICE, 11), Caller("operator", BOB, 12)  # sudo -u bob
    lent, root = Caller("operator", ALICE, 13), Caller("operator", 0, 14)  # carol runs what alice made setuid
    first, *others = (sudo, alice, root) if lent_first else (alice, sudo, lent, root)
    asked = authority.handle(USER, first)
    assert isinstance(asked, dict) and asked["needs"] == 1
    for other in others:
        refused = authority.handle(grant(asked["pending"]), other)
        assert isinstance(refused, dict) and refused.get("rail") == "two_people", refused
    assert journal.state.users == {}
    carol = Caller("operator", CAROL, 13)
    assert authority.handle(grant(asked["pending"]), carol)["ok"]  # type: ignore[index]
    assert list(journal.state.users) == ["subject:alice"]
    journal.close()


def test_what_nobody_answers_in_time_expires_and_is_noted(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(str(tmp_path), clock)
    authority = Authority(journal, None, clock)  # type: ignore[arg-type]
    authority.use(parse('management = ["192.0.2.1"]\ntwo_people = ["unblock_user"]'))
    analyser, alice, bob = Caller("analyser", 61_234, 0), Caller("operator", 1, 0), Caller("operator", 2, 0)

    def filed(user: str) -> str:
        answer = authority.handle({**USER, "user": user, "approval": 2}, analyser)
        assert isinstance(answer, dict)
        return str(answer["pending"])

    first = filed("one")
    authority.handle(grant(first), alice)
    clock.passes(899)
    assert authority.handle({"request": "approvals"}, bob)["approvals"][0]["expires_s"] == 1  # type: ignore[index]
    clock.passes(1)
    refused = authority.handle(grant(first), bob)
    assert isinstance(refused, dict)
    assert (refused["rail"], "has expired" in refused["refused"]) == ("approval", True)
    assert journal.state.users == {} and journal.state.approvals == {}
    second = filed("one")
    assert second != first
    clock.passes(900)
    assert authority.handle({"request": "approvals"}, bob)["approvals"] == []  # type: ignore[index]
    third = filed("two")
    clock.passes(2_000)
    filed("three")
    journal.close()
    again = Journal(str(tmp_path), clock)
    said = [(e["do"], e["id"]) for e, _ in again.remembered if e["do"] == "expired"]
    assert said == [("expired", first), ("expired", second), ("expired", third)]
    assert len(again.state.approvals) == 1
    again.close()


def test_the_documents_for_the_sinks_say_what_is_asked_for_and_of_whom() -> None:
    asked = {**USER, "approval": 2, "hits": "nobody else"}
    said = {
        "ask": {"id": "A7", "asked": asked, "by": "analyser", "needs": 2},
        "agree": {"id": "A7", "by": "uid 1"},
        "grant": {"id": "A7", "by": "uid 2"},
        "expired": {"id": "A7"},
        "block_user": {
            "user": "alice",
            "kind": "subject",
            "ttl_s": 600,
            "by": "x",
            "reason": "y",
            "approval": "A7",
        },
        "refused": {
            "asked": {"request": "block_user", "user": "root"},
            "by": "analyser",
            "rail": "never_block_users",
        },
    }
    documents = {do: entry_document({"do": do, **entry}, 7, "ab") for do, entry in said.items()}
    assert {do: document["title"] for do, document in documents.items()} == {
        "ask": "approval asked for: block_user subject:alice by analyser: her token",
        "agree": "approval agreed to by one person, needs another: A7 by uid 1",
        "grant": "approval granted: A7 by uid 2",
        "expired": "nobody answered in time, approval expired: A7",
        "block_user": "blocked subject:alice by x: y",
        "refused": "refused: block_user any:root by analyser (rail never_block_users)",
    }
    assert "hits: nobody else" in documents["ask"]["what"]
    assert "approval: A7" in documents["block_user"]["what"]
    assert documents["refused"]["priority"] == "high"


@pytest.fixture
def accounts() -> Iterator[list[str]]:
    """Two accounts of this machine, in the operators' group while the test runs."""
    made: list[str] = []
    try:
        for _ in range(2):
            name = f"gwtest{secrets.token_hex(4)}"
            subprocess.run(
                ["useradd", "--no-create-home", "--groups", grp.getgrgid(0).gr_name, name], check=True
            )
            made.append(name)
        yield made
    finally:
        for name in made:
            subprocess.run(["userdel", name], check=False, capture_output=True)


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.rails('two_people = ["release"]\n' + RAILS)
def test_a_release_by_two_real_accounts_and_all_of_it_in_the_chain(rig: Rig, accounts: list[str]) -> None:
    one, other = (pwd.getpwnam(name).pw_uid for name in accounts)
    groups = [os.getgrouplist(name, pwd.getpwnam(name).pw_gid) for name in accounts]
    release = {"request": "release", "endpoints": ["models"], "reason": "over"}
    (engaged,) = rig.ask_as(one, KILL, groups=groups[0])
    assert engaged["proven"], engaged
    (asked,) = rig.ask_as(one, release, groups=groups[0])
    (twice,) = rig.ask_as(one, grant(asked["pending"]), groups=groups[0])
    assert twice["rail"] == "two_people"
    assert rig.enforcer().status()["kills"]
    (done,) = rig.ask_as(other, grant(asked["pending"]), groups=groups[1])
    assert done["released"] == ["models"]
    said = [(e["do"], e["by"]) for e in entries(rig, "ask", "refused", "grant", "release")]
    assert said == [
        ("ask", f"uid {one}"), ("refused", f"uid {one}"), ("grant", f"uid {other}"),
        ("release", f"uid {one}, granted by uid {other}"),
    ]  # fmt: skip
    verified = rig.run("audit", "verify", "--state", str(rig.state))
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.rails('two_people = ["release"]\n' + RAILS)
def test_a_release_that_nobody_granted_in_time_is_refused_to_real_accounts(
    rig: Rig, accounts: list[str]
) -> None:
    one, other = (pwd.getpwnam(name).pw_uid for name in accounts)
    groups = [os.getgrouplist(name, pwd.getpwnam(name).pw_gid) for name in accounts]
    release = {"request": "release", "endpoints": ["models"], "reason": "over"}
    _, asked = rig.ask_as(one, KILL, release, groups=groups[0])
    rig.stop()
    rig.start(
        "unshare", "--time", "--boottime", "1000", "--fork", "--kill-child"
    )  # a quarter of an hour later
    (late,) = rig.ask_as(other, grant(asked["pending"]), groups=groups[1])
    assert late["rail"] == "approval"
    assert rig.enforcer().status()["kills"], "nothing was released"
    said = [(e["do"], e["id"]) for e in entries(rig, "ask", "expired", "grant", "release")]
    assert said == [("ask", asked["pending"]), ("expired", asked["pending"])]
    verified = rig.run("audit", "verify", "--state", str(rig.state))
    assert verified.returncode == 0, verified.stdout + verified.stderr
    rig.stop(signal.SIGKILL)  # unshare waits for its child, whatever else it is told
