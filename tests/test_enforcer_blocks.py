"""The enforcer, a real one with real packets: what is blocked, who may block, and what survives."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator

import pytest
from enforcer_rig import ANALYSER_UID, OTHER, RAILS, Rig, flows, stopped
from gatewatch.daemon.errors import RefusedError
from lab import published
from lab.lab import HOSTS, Lab, wait_for

pytestmark = pytest.mark.lab

ATTACKER, CLIENT = HOSTS["attacker"], HOSTS["client"]


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare) as rig:
        yield rig


@pytest.mark.parametrize(
    ("source", "blocked"),
    [
        (ATTACKER.v4, ATTACKER.v4),
        (ATTACKER.v4, "203.0.113.0/24"),
        (ATTACKER.v6, ATTACKER.v6),
        (ATTACKER.v6, "2001:db8:0:5::/64"),
        (ATTACKER.v4, f"::ffff:{ATTACKER.v4}"),
    ],
)
def test_a_block_cuts_what_is_established_and_lets_nothing_new_in(
    rig: Rig, source: str, blocked: str
) -> None:
    with rig.serving(OTHER), rig.connect(OTHER, source) as connection:
        assert flows(connection)
        answer = rig.enforcer().block(blocked, ttl_s=600, reason="test")
        assert answer["cut"] == 1
        assert not answer["already"]
        assert stopped(connection)
        assert rig.unreachable(OTHER, source)
        assert rig.reaches(OTHER, CLIENT.v4)
        rig.enforcer().unblock(blocked, "test")
        assert rig.reaches(OTHER, source)


def test_what_is_never_blocked_passes_through_a_wider_block(rig: Rig) -> None:
    with rig.serving(OTHER):
        rig.enforcer().block("203.0.113.0/24", ttl_s=600, reason="test")
        assert rig.unreachable(OTHER, "203.0.113.69")
        assert rig.reaches(OTHER, "203.0.113.70")


def test_a_block_ends_by_itself(rig: Rig) -> None:
    with rig.serving(OTHER):
        rig.enforcer().block(ATTACKER.v4, ttl_s=2, reason="test")
        assert rig.unreachable(OTHER, ATTACKER.v4)
        wait_for("the end of the block", lambda: rig.reaches(OTHER, ATTACKER.v4, 0.3))
        assert not rig.enforcer().check(ATTACKER.v4)["blocked"]
        assert list(rig.enforcer().blocks()) == []


def test_blocking_again_extends_and_never_shortens(rig: Rig) -> None:
    enforcer = rig.enforcer()
    enforcer.block(ATTACKER.v4, ttl_s=100, reason="first")
    longer = enforcer.block(ATTACKER.v4, ttl_s=1000, reason="second")
    assert longer["already"]
    assert longer["ttl_s"] == 1000
    shorter = enforcer.block(ATTACKER.v4, ttl_s=10, reason="third")
    assert shorter["already"]
    assert shorter["ttl_s"] > 990
    assert [b["reason"] for b in enforcer.blocks()] == ["second"]
    assert "timeout 16m40s" in rig.nft("list set inet gatewatch block4_32")


@pytest.mark.parametrize(
    ("address", "rail"),
    [
        (HOSTS["management"].v4, "management"),
        ("203.0.113.70", "never_block"),
        (HOSTS["balancer"].v4, "proxies"),
        (HOSTS["gateway"].v4, "own_address"),
        (HOSTS["gateway"].v4_router, "gateway"),
        (HOSTS["gateway"].v6_router, "gateway"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("fe80::1", "link_local"),
        ("224.0.0.1", "multicast"),
        ("0.0.0.0", "unspecified"),
        ("203.0.0.0/16", "smallest_prefix_ipv4"),
        ("2001:db8::/32", "smallest_prefix_ipv6"),
        ("203.0.113.64/26", "prefixes"),
        ("203.0.113.66/24", "address"),
        ("attacker.example", "address"),
    ],
)
def test_a_rail_refuses_an_operator_as_well(rig: Rig, address: str, rail: str) -> None:
    with pytest.raises(RefusedError) as refused:
        rig.enforcer().block(address, ttl_s=60, reason="test")
    assert refused.value.rail == rail
    assert rig.enforcer().check("203.0.113.66")["blocked"] == []
    assert rig.journal()[-1]["rail"] == rail


def test_a_block_lasts_no_longer_than_the_rails_allow(rig: Rig) -> None:
    with pytest.raises(RefusedError) as refused:
        rig.enforcer().block(ATTACKER.v4, ttl_s=3601, reason="test")
    assert refused.value.rail == "longest_ttl_s"
    assert rig.enforcer().block(ATTACKER.v4, reason="test")["ttl_s"] == 3600


def test_no_more_blocks_than_the_rails_allow_are_in_force(rig: Rig) -> None:
    enforcer = rig.enforcer()
    for n in range(50):
        enforcer.block(f"198.18.0.{n}", ttl_s=600, reason="test")
    with pytest.raises(RefusedError) as refused:
        enforcer.block("198.18.1.1", ttl_s=600, reason="test")
    assert refused.value.rail == "most_blocks"
    assert enforcer.block("198.18.0.1", ttl_s=700, reason="again")["already"]


def test_without_a_management_network_nothing_is_blocked(bare: Lab) -> None:
    with Rig(bare, "[limits]\nmost_blocks = 10\n") as rig, pytest.raises(RefusedError) as refused:
        rig.enforcer().block(ATTACKER.v4, ttl_s=60, reason="test")
    assert refused.value.rail == "management"


def test_the_analyser_may_block_for_a_time_and_take_back_its_own(rig: Rig) -> None:
    rig.enforcer().block("198.18.0.1", ttl_s=60, reason="by a person")
    block = {"request": "block", "address": ATTACKER.v4, "reason": "test"}
    answers = rig.ask_as(
        ANALYSER_UID,
        block,
        {**block, "ttl_s": 600, "incident": "i1", "playbook": "p1"},
        {"request": "block", "address": "198.18.0.1", "ttl_s": 600, "reason": "test"},
        {"request": "unblock", "address": "198.18.0.1", "reason": "test"},
        {"request": "unblock", "address": ATTACKER.v4, "reason": "test"},
        {"request": "kill", "endpoints": ["models"], "reason": "test"},
        {"request": "kill", "endpoints": ["automatic"], "reason": "test"},
        {"request": "release", "endpoints": [], "reason": "test"},
        {"request": "drill_start", "endpoints": [], "seconds": 1},
    )
    assert [a.get("rail", "ok") for a in answers] == [
        "ttl", "ok", "ok", "owner", "ok", "ok", "ok", "release", "drill",
    ]  # fmt: skip
    assert (answers[5]["needs"], "engaged" in answers[5]) == (1, False), "a person has to agree"
    assert [(b["address"], b["owner"]) for b in rig.enforcer().blocks()] == [("198.18.0.1", "operator")]


def test_the_analyser_blocks_no_more_a_minute_than_the_rails_allow(rig: Rig) -> None:
    asked = [
        {"request": "block", "address": f"198.18.0.{n}", "ttl_s": 60, "reason": "test"} for n in range(22)
    ]
    answers = rig.ask_as(ANALYSER_UID, *asked)
    assert [a["ok"] for a in answers] == [True] * 20 + [False] * 2
    assert answers[-1]["rail"] == "most_new_per_minute"
    assert rig.enforcer().block("198.18.0.21", ttl_s=60, reason="a person has no such limit")["ok"]


def test_what_the_analyser_blocked_is_cut_soon_after_the_answer(rig: Rig) -> None:
    with rig.serving(OTHER), rig.connect(OTHER, ATTACKER.v4):
        rig.ask_as(ANALYSER_UID, {"request": "block", "address": ATTACKER.v4, "ttl_s": 60, "reason": "test"})

        def gone() -> bool:
            return ATTACKER.v4 not in rig.lab.run_in("gateway", ["ss", "-Htn", "state", "established"]).stdout

        wait_for("the end of the connection", gone)


def test_whoever_is_neither_operator_nor_analyser_is_sent_away(rig: Rig) -> None:
    (answer,) = rig.ask_as(65_534, {"request": "status"})
    assert answer["rail"] == "authority"


def test_a_member_of_the_operators_group_is_an_operator(rig: Rig) -> None:
    (answer,) = rig.ask_as(65_534, {"request": "status"}, groups=[0])
    assert answer["ok"]


def test_the_analyser_is_no_operator_though_it_be_in_their_group(rig: Rig) -> None:
    (answer,) = rig.ask_as(ANALYSER_UID, {"request": "release", "reason": "test"}, groups=[0])
    assert answer["rail"] == "release"


def test_malformed_and_huge_messages_are_refused_and_the_connection_goes_on(rig: Rig) -> None:
    answers = rig.ask_as(
        ANALYSER_UID,
        b"\xff\x00",
        b"[" * 60_000,
        b'{"request": "block"' + b" " * 70_000 + b"}",
        {"request": "format"},
        {"request": "block", "address": 7, "ttl_s": 60, "reason": "test"},
        {"request": "block", "address": "198.18.0.1", "ttl_s": True, "reason": "test"},
        {"request": "block", "address": "198.18.0.1", "ttl_s": -1, "reason": "test"},
        {"request": "block", "address": "198.18.0.1", "ttl_s": 60, "reason": "x\ny"},
        {"request": "block", "address": "198.18.0.1", "ttl_s": 60, "reason": "test", "also": 1},
        {"request": "kill", "endpoints": "models", "reason": "test"},
        {"request": "status"},
    )
    assert [a.get("rail", "ok") for a in answers] == ["protocol"] * 10 + ["ok"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_blocks_stand_while_the_enforcer_is_away_and_come_back_with_it(rig: Rig, how: signal.Signals) -> None:
    with rig.serving(OTHER):
        rig.enforcer().block(ATTACKER.v4, ttl_s=600, reason="test")
        rig.enforcer().block("2001:db8:0:5::/64", ttl_s=600, reason="test")
        rig.stop(how)
        assert rig.unreachable(OTHER, ATTACKER.v4)
        rig.nft("flush ruleset")  # as after a reboot
        assert rig.reaches(OTHER, ATTACKER.v4)
        rig.start()
        assert rig.unreachable(OTHER, ATTACKER.v4)
        assert rig.unreachable(OTHER, ATTACKER.v6)
        assert {b["reason"] for b in rig.enforcer().blocks()} == {"test"}


@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        "delete table inet gatewatch",
        "flush set inet gatewatch block4_32",
        "flush chain inet gatewatch from_source",
        f"insert rule inet gatewatch from_source ip saddr {ATTACKER.v4} accept",
        f"add element inet gatewatch never4 {{ {ATTACKER.v4} }}",
    ],
)
def test_what_others_change_in_our_table_is_mended(rig: Rig, change: str) -> None:
    with rig.serving(OTHER):
        rig.enforcer().block(ATTACKER.v4, ttl_s=600, reason="test")
        rig.nft(change)
        wait_for("the block", lambda: rig.unreachable(OTHER, ATTACKER.v4))
        assert rig.reaches(OTHER, CLIENT.v4)


def test_tables_of_others_are_left_alone(rig: Rig) -> None:
    rig.nft("add table inet theirs; add chain inet theirs c; add rule inet theirs c counter accept")
    before = rig.nft("list table inet theirs")
    rig.enforcer().block(ATTACKER.v4, ttl_s=600, reason="test")
    rig.nft("flush table inet gatewatch")
    rig.stop(signal.SIGKILL)
    rig.start()
    assert rig.nft("list table inet theirs") == before


def test_new_rails_hold_after_a_hang_up_and_wrong_ones_change_nothing(rig: Rig) -> None:
    def refused(address: str) -> str:
        return str(rig.enforcer().check(address).get("rail", ""))

    assert rig.process is not None
    rig.rails.write_text(RAILS.replace("203.0.113.70/32", "203.0.113.71/32"))
    rig.process.send_signal(signal.SIGHUP)
    wait_for("the new rails", lambda: refused("203.0.113.71") == "never_block")
    assert refused("203.0.113.70") == ""
    rig.rails.write_text("nonsense")
    rig.process.send_signal(signal.SIGHUP)
    said = rig.output
    wait_for("the complaint", lambda: f"rails {rig.rails}" in said.read_text())
    assert refused("203.0.113.71") == "never_block"


def test_a_second_enforcer_does_not_start_beside_the_first(rig: Rig) -> None:
    words = ["--state", str(rig.state), "--rails", str(rig.rails), "--analyser-uid", str(ANALYSER_UID)]
    second = rig.lab.run_in(
        "gateway", [sys.executable, "-m", "gatewatch.daemon.enforcer", *words], check=False
    )
    assert second.returncode == 1
    assert "held by another process" in second.stderr
    assert rig.enforcer().status()["ok"]


def test_the_list_comes_in_pages_and_in_order(bare: Lab) -> None:
    with Rig(bare, 'management = ["192.0.2.130/32"]') as rig:
        enforcer = rig.enforcer()
        wanted = [f"198.18.{n >> 8}.{n & 255}" for n in range(400)]
        for address in wanted:
            enforcer.block(address, ttl_s=600, reason="test")
        assert [b["address"] for b in enforcer.blocks()] == wanted


@pytest.mark.parametrize("source", [HOSTS["attacker"].v4, HOSTS["attacker"].v6])
def test_a_server_behind_the_gateway_hears_that_its_blocked_client_is_gone(rig: Rig, source: str) -> None:
    server = published.V6 if ":" in source else published.V4
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with published.Published(rig.lab):
        with rig.lab.inside(published.HOST):
            listener = socket.create_server((server, 9001), family=family)
        rig.lab.run_in("router", ["ip", "route", "replace", f"{server}", "via", gateway_of(source)])
        with rig.lab.inside("attacker"):
            client = socket.create_connection((server, 9001), 5, source_address=(source, 0))
        served, _ = listener.accept()
        with listener, client, served:
            served.sendall(b"x")
            assert client.recv(1) == b"x"
            rig.enforcer().block(source, ttl_s=60, reason="test")

            def reset() -> bool:
                try:
                    served.sendall(b"y")
                except ConnectionError:
                    return True
                return False

            wait_for("the reset", reset)
            client.settimeout(0.7)
            with pytest.raises(TimeoutError):
                client.recv(1)


def gateway_of(source: str) -> str:
    return HOSTS["gateway"].v6 if ":" in source else HOSTS["gateway"].v4
