"""Blocked users, and addresses that the gateway alone refuses: what is asked, what is refused, and what survives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, OTHER, RAILS, Rig
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.protocol import principal
from gatewatch.daemon.enforcer.state import NS_PER_S, Moment
from gatewatch.daemon.errors import RefusedError
from lab.lab import HOSTS, Lab

ATTACKER = HOSTS["attacker"].v4
USER = {"request": "block_user", "ttl_s": 600, "reason": "test"}
UNUSER = {"request": "unblock_user", "reason": "test"}
OF_USERS = RAILS.replace(
    "[limits]", 'never_block_users = ["breakglass", "key:k-0011223344556677"]\n[limits]\nmost_users = 5'
)


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare, OF_USERS) as rig:
        yield rig


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.moment = Moment(10**18, 10**12, "one")

    def __call__(self) -> Moment:
        return self.moment

    def passes(self, seconds: int) -> None:
        gone = seconds * NS_PER_S
        self.moment = self.moment._replace(
            wall_ns=self.moment.wall_ns + gone, boot_ns=self.moment.boot_ns + gone
        )


def block_user(journal: Journal, user: str, ttl_s: int = 600, kind: str = "any", **more: Any) -> None:
    journal.append(
        "block_user", user=user, kind=kind, ttl_s=ttl_s, owner="operator", by="uid 0", reason="test", **more
    )


@pytest.mark.lab
def test_a_user_is_blocked_checked_listed_and_unblocked_by_name_and_kind(rig: Rig) -> None:
    enforcer = rig.enforcer()
    answer = enforcer.block_user("alice: at home", kind="subject", ttl_s=600, reason="her token leaked")
    assert {k: answer[k] for k in ("user", "kind", "ttl_s", "already")} == {
        "user": "alice: at home", "kind": "subject", "ttl_s": 600, "already": False,
    }  # fmt: skip
    assert enforcer.block_user("alice: at home", kind="subject", ttl_s=60, reason="again")["already"]
    enforcer.block_user("alice: at home", ttl_s=60, reason="whatever bears that name")
    listed = [(u["kind"], u["user"], u["by"], u["reason"]) for u in enforcer.users()]
    assert listed == [
        ("subject", "alice: at home", "uid 0", "her token leaked"),
        ("any", "alice: at home", "uid 0", "whatever bears that name"),
    ]
    checked = enforcer.check_user("alice: at home", kind="subject")
    assert [b["kind"] for b in checked["blocked"]] == ["subject", "any"]
    assert [b["kind"] for b in enforcer.check_user("alice: at home", kind="key")["blocked"]] == ["any"]
    assert enforcer.check_user("Alice: at home")["blocked"] == [], "case matters"
    taken_back = enforcer.unblock_user("alice: at home", "over", kind="subject")
    assert (taken_back["unblocked"], taken_back["covered_by"]) == (True, ["any:alice: at home"])
    assert not enforcer.unblock_user("alice: at home", "over", kind="subject")["unblocked"]
    assert enforcer.unblock_user("alice: at home", "over")["covered_by"] == []
    assert list(enforcer.users()) == []


@pytest.mark.lab
def test_rails_keep_users_from_being_blocked(rig: Rig) -> None:
    enforcer = rig.enforcer()
    never = [
        ("root", "any"), ("root", "account"), ("breakglass", "subject"), ("breakglass", "any"),
        ("k-0011223344556677", "key"), ("k-0011223344556677", "any"),
    ]  # fmt: skip
    for user, kind in never:
        with pytest.raises(RefusedError, match="never blocked") as refused:
            enforcer.block_user(user, kind=kind, ttl_s=60, reason="test")
        assert refused.value.rail == "never_block_users"
        assert enforcer.check_user(user, kind=kind)["rail"] == "never_block_users"
    enforcer.block_user("root", kind="subject", ttl_s=60, reason="no account of this machine")
    enforcer.block_user("k-0011223344556677", kind="subject", ttl_s=60, reason="no key")
    with pytest.raises(RefusedError, match="longer than"):
        enforcer.block_user("bob", ttl_s=3601, reason="test")
    for n in range(3):
        enforcer.block_user(f"bob{n}", ttl_s=60, reason="test")
    with pytest.raises(RefusedError, match="5 users are blocked"):
        enforcer.block_user("bob3", ttl_s=60, reason="test")
    assert enforcer.block_user("bob0", ttl_s=90, reason="a known one lasts longer")["ttl_s"] == 90
    assert enforcer.status()["users"] == 5


@pytest.mark.lab
@pytest.mark.parametrize("name", ["", "x" * 257, "two\nlines", "\u202e", "\ud800", 7])
def test_no_user_has_a_malformed_name(rig: Rig, name: object) -> None:
    (answer,) = rig.ask_as(0, {**USER, "user": name})
    assert answer["rail"] == "protocol"
    (wrong,) = rig.ask_as(0, {**USER, "user": "alice", "kind": "person"})
    assert "field kind: one of account, key" in wrong["refused"]


@pytest.mark.lab
def test_the_analyser_blocks_users_for_a_time_and_takes_back_its_own(rig: Rig) -> None:
    rig.enforcer().block_user("eve", ttl_s=600, reason="by a person")
    answers = rig.ask_as(
        ANALYSER_UID,
        {"request": "block_user", "user": "mallory", "reason": "for ever"},
        {**USER, "user": "mallory", "kind": "key", "incident": "i1", "playbook": "p1"},
        {**USER, "user": "mallory", "kind": "key", "ttl_s": 5},
        {**USER, "user": "eve", "ttl_s": 900},
        {**UNUSER, "user": "eve"},
        {**UNUSER, "user": "mallory", "kind": "key"},
    )
    assert [a.get("rail", "ok") for a in answers] == ["ttl", "ok", "ok", "ok", "owner", "ok"]
    assert answers[2]["already"] and answers[2]["ttl_s"] > 500, "it never shortens"
    assert {u["user"]: u["owner"] for u in rig.enforcer().users()} == {"eve": "operator"}


@pytest.mark.lab
def test_addresses_and_users_count_into_one_measure_of_a_minute(rig: Rig) -> None:
    blocks = [
        {"request": "block", "address": f"198.18.0.{n}", "ttl_s": 60, "reason": "test"} for n in range(1, 17)
    ]
    users = [{**USER, "user": f"u{n}"} for n in range(5)]
    answers = rig.ask_as(ANALYSER_UID, *blocks, *users)
    assert [a.get("rail") for a in answers if not a["ok"]] == ["most_new_per_minute"]


@pytest.mark.lab
def test_the_analyser_leaves_people_room_to_block(rig: Rig) -> None:
    rig.stop()
    limits = "most_blocks = 100\nmost_users = 100\nmost_new_per_minute = 1000\n"
    rig.rails.write_text(
        RAILS.split("most_blocks")[0] + limits + "[[endpoint]]" + RAILS.split("[[endpoint]]", 1)[1]
    )
    rig.start()
    asks: list[dict[str, Any]] = []
    for n in range(101):
        asks.append({**USER, "user": f"u{n}"})
        asks.append({"request": "block", "address": f"198.18.0.{n}", "ttl_s": 600, "reason": "test"})
    answers = rig.ask_as(ANALYSER_UID, *asks)
    assert [a["ok"] for a in answers] == [True] * 198 + [False] * 4
    assert {a["rail"] for a in answers[198:]} == {"most_blocks", "most_users"}
    people = rig.enforcer()
    people.block("198.19.0.1", ttl_s=600, reason="test")
    people.block_user("eve", ttl_s=600, reason="test")
    with pytest.raises(RefusedError, match="100 users are blocked"):
        people.block_user("mallory", ttl_s=600, reason="test")


@pytest.mark.lab
def test_what_is_blocked_survives_a_restart_and_ends_by_itself(rig: Rig) -> None:
    rig.enforcer().block_user("alice", kind="account", ttl_s=600, reason="test")
    rig.enforcer().block_user("bob", ttl_s=1, reason="test")
    rig.stop()
    rig.start()
    (alice,) = [u for u in rig.enforcer().users() if u["user"] == "alice"]
    assert 500 < alice["ttl_s"] <= 600
    from lab.lab import wait_for

    wait_for("the end", lambda: not rig.enforcer().check_user("bob")["blocked"])
    assert [u["user"] for u in rig.enforcer().users()] == ["alice"]


@pytest.mark.lab
def test_a_block_at_the_gateway_alone_is_not_in_the_kernel_until_it_is_widened(rig: Rig) -> None:
    enforcer = rig.enforcer()
    answer = enforcer.block(ATTACKER, ttl_s=600, reason="behind a proxy", where="gateway")
    assert answer["cut"] == 0
    with rig.serving(OTHER):
        assert rig.reaches(OTHER, ATTACKER)
        assert ATTACKER not in rig.nft("list ruleset")
        assert [b["where"] for b in enforcer.check(ATTACKER)["blocked"]] == ["gateway"]
        rig.nft("flush ruleset")  # and healed
        enforcer.block("198.18.0.9", ttl_s=60, reason="the table is there again")
        assert ATTACKER not in rig.nft("list ruleset")
        rig.stop()
        rig.start()
        assert ATTACKER not in rig.nft("list ruleset")
        assert rig.reaches(OTHER, ATTACKER)
        widened = rig.enforcer().block(ATTACKER, ttl_s=60, reason="everywhere")
        assert widened["already"] and widened["ttl_s"] > 500
        assert rig.unreachable(OTHER, ATTACKER)
        again = rig.enforcer().block(ATTACKER, ttl_s=900, reason="longer", where="gateway")
        assert again["ttl_s"] == 900
        assert rig.unreachable(OTHER, ATTACKER), "it never narrows"
        assert [b["where"] for b in rig.enforcer().blocks() if b["address"] == ATTACKER] == [""]
        rig.enforcer().unblock(ATTACKER, "over")
        assert rig.reaches(OTHER, ATTACKER)


@pytest.mark.lab
def test_an_import_widens_what_the_gateway_alone_refused_and_shortens_nothing(rig: Rig) -> None:
    rig.enforcer().block("198.18.0.1", ttl_s=600, reason="behind a proxy", where="gateway")
    assert rig.enforcer().import_blocks([("198.18.0.1", 60)], "from elsewhere")["imported"] == 1
    (block,) = rig.enforcer().blocks()
    assert block["where"] == "" and block["ttl_s"] > 500
    assert "198.18.0.1 timeout" in rig.nft("list set inet gatewatch block4_32")


@pytest.mark.lab
def test_the_commands_block_list_and_unblock_users(rig: Rig) -> None:
    state = ["--state", str(rig.state)]
    blocked = rig.run("block", "user", "alice", "--reason", "test", *state)
    assert "any:alice is blocked for 3600 s (whatever bears that name" in blocked.stdout, blocked.stderr
    assert "logins to this machine" in blocked.stdout and "requests at the gateway" in blocked.stdout
    key = rig.run("block", "user", "key:k-00", "--ttl", "10m", "--reason", "test", *state)
    assert "key:k-00 is blocked for 600 s (the API key); refused are requests at the gateway" in key.stdout
    rig.run("block", "ip", "198.18.0.1", "--where", "gateway", "--reason", "test", *state)
    rows = [json.loads(line) for line in rig.run("blocks", "list", "--json", *state).stdout.splitlines()]
    assert [(r.get("address"), r.get("where"), r.get("kind"), r.get("user")) for r in rows] == [
        ("198.18.0.1", "gateway", None, None), (None, None, "any", "alice"), (None, None, "key", "k-00"),
    ]  # fmt: skip
    table = rig.run("blocks", "list", *state).stdout
    assert "key:k-00" in table and "198.18.0.1" in table
    done = rig.run("unblock", "user", "key:k-00", "--reason", "over", *state)
    assert done.stdout == "key:k-00 is unblocked\n"
    wrong = rig.run("block", "user", "account:", "--reason", "test", *state)
    assert wrong.returncode == 2
    assert "1 to 256" in wrong.stderr
    root = rig.run("block", "user", "account:root", "--reason", "test", *state)
    assert root.returncode == 1
    assert "never blocked" in root.stderr


def test_the_last_account_that_can_become_root_is_not_blocked(tmp_path: Path) -> None:
    from collections import deque

    from gatewatch.daemon.enforcer.callers import Caller
    from gatewatch.daemon.enforcer.rails import Refusal
    from gatewatch.daemon.enforcer.users import Users

    clock = Clock()
    journal = Journal(str(tmp_path), clock)
    can = {"alice", "bob"}
    users = Users(journal, clock, deque(), deque(), lambda operators: can)
    root = Caller("operator", 0, 0)

    def block(user: str, kind: str = "any") -> str:
        answer = users.block_user({**USER, "user": user, "kind": kind}, root)
        return answer.rail if isinstance(answer, Refusal) else "ok"

    assert block("alice", "subject") == "ok"
    assert block("bob", "account") == "ok", "alice is left"
    assert (block("alice"), block("alice", "account")) == ("last_admin", "last_admin")
    assert block("carol", "account") == "ok", "who is no administrator"
    clock.passes(601)
    assert block("alice") == "ok", "bob's block has ended"
    assert block("bob", "account") == "last_admin"
    can.clear()
    assert block("dave", "account") == "ok", "nobody can become root anyway"
    journal.close()


@pytest.mark.parametrize("text", ["alice", "key:k-00", "any:a:b c", "person:alice", "a:"])
def test_a_principal_is_read_as_a_person_writes_it(text: str) -> None:
    kind, name = principal(text)
    assert f"{kind}:{name}" == text or (kind, name) == ("any", text)
    assert principal(f"{kind}:{name}") == (kind, name)


def test_users_and_places_come_through_rotation_and_restart(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(str(tmp_path), clock)
    for n in range(1_200):
        block_user(journal, f"u{n}", kind="key")
    block_user(journal, "gone", ttl_s=1)
    journal.append(
        "block", address="198.18.0.1", ttl_s=60, owner="operator", by="x", reason="x", where="gateway"
    )
    journal.append("unblock_user", user="u7", kind="key", by="x", reason="x")
    clock.passes(2)
    journal._begin_anew(f"journal-{journal.sequence}", "")
    before = {whom: left for whom, left, *_ in journal.state.users_said()}
    journal.close()
    again = Journal(str(tmp_path), clock)
    assert again.note == ""
    assert {whom: left for whom, left, *_ in again.state.users_said()} == before
    assert len(before) == 1_199 and set(before.values()) == {598 * NS_PER_S}
    assert "key:u7" not in before and "any:gone" not in before
    assert again.state.blocks["198.18.0.1"].where == "gateway"
    again.close()


def test_from_what_comes_after_a_break_of_the_chain_no_user_is_unblocked(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(str(tmp_path), clock)
    block_user(journal, "eve")
    block_user(journal, "mallory")
    journal.append("unblock_user", user="eve", kind="any", by="x", reason="x")
    journal.close()
    path = tmp_path / "journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"test"', b'"best"') + lines[2])
    again = Journal(str(tmp_path), clock)
    assert "broken" in again.note
    assert again.state.users.keys() == {"any:eve", "any:mallory"}
    again.close()


@pytest.mark.parametrize("ttl_s", [0, 10, 3600])
def test_what_comes_after_a_break_of_the_chain_neither_shortens_nor_narrows_a_block(
    tmp_path: Path, ttl_s: int
) -> None:
    clock = Clock()
    journal = Journal(str(tmp_path), clock)
    journal.append("block", address="198.18.0.1", ttl_s=600, owner="operator", by="x", reason="x")
    block_user(journal, "mallory")
    journal.close()
    said = {**clock().fields(), "ttl_s": ttl_s, "owner": "analyser", "by": "x", "reason": "forged"}
    forged: list[dict[str, Any]] = [
        {"do": "block", "address": "198.18.0.1", "where": "gateway", **said},
        {"do": "import", "blocks": [["198.18.0.1", ttl_s]], "where": "gateway", **said},
        {"do": "block_user", "kind": "any", "user": "mallory", **said},
    ]
    rest = [ttl_s * NS_PER_S, ttl_s, 1, "analyser", "x", "forged", "", "", "gateway"]
    forged.append(
        {"do": "restore", "blocks": [["198.18.0.1", *rest]], "users": [["any:mallory", *rest]], **said}
    )
    with (tmp_path / "journal").open("ab") as file:
        for entry in forged:
            file.write(json.dumps({"seq": 9, **entry, "hash": "0" * 64}).encode() + b"\n")
    again = Journal(str(tmp_path), clock)
    assert "broken" in again.note
    for block in (again.state.blocks["198.18.0.1"], again.state.users["any:mallory"]):
        assert again.state.remaining_s(block, clock()) == max(600, ttl_s)
        assert (block.owner, block.where) == ("operator", "")
    again.close()


def test_a_damaged_entry_blocks_nobody_who_cannot_be_named(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(str(tmp_path), clock)
    block_user(journal, "eve")
    journal.close()
    path = tmp_path / "journal"
    with path.open("ab") as file:
        for kind, user, ttl_s in (("person", "x", 60), ("any", "two\nlines", 60), ("any", "x", 10**12)):
            entry = {
                "seq": 9, "wall": 1, "boot": 1, "boot_id": "one", "do": "block_user", "kind": kind, "user": user,
                "ttl_s": ttl_s, "owner": "operator", "by": "x", "reason": "x",
            }  # fmt: skip
            file.write(json.dumps(entry).encode() + b"\n")
    again = Journal(str(tmp_path), clock)
    assert again.state.users.keys() == {"any:eve"}
    again.close()
