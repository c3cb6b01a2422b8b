"""Who lately succeeded: kept over a restart, and pushed out by no flood of new names."""

from __future__ import annotations

from typing import Any

import pytest
from gatewatch.daemon import recovery
from gatewatch.daemon.store import Store
from gatewatch.daemon.successes import Successes
from gatewatch.playbooks.breaker import Breaker

HOUR_NS = 3600 * 10**9
NOW_NS = 1_700_000_000 * 10**9


class Detection:
    def load(self, state: Any) -> None:
        raise ValueError("another version")


def known(names: list[str], first_ns: int, last_ns: int) -> list[list[Any]]:
    return [[name, first_ns, last_ns] for name in names]


def settled(*names: str, most: int = 16) -> Successes:
    made = Successes(most=most)
    made.load({"clients": known(list(names), NOW_NS - 5 * HOUR_NS, NOW_NS), "users": []})
    return made


def test_a_restart_keeps_them_even_where_the_detectors_start_afresh(tmp_path: Any) -> None:
    store = Store.open(tmp_path / "gatewatch.db")
    state = {"detection": {}, "feeds": {}, "successes": settled("198.51.100.1").save()}
    with store.transaction():
        store.save_snapshot(state, {}, NOW_NS)
    after = Successes()
    assert not recovery.remember(store, Detection(), {}, after, print)  # type: ignore[arg-type]
    assert after.clients(NOW_NS) == {"198.51.100.1": NOW_NS - 5 * HOUR_NS}


def test_a_state_of_another_shape_costs_memory_only(tmp_path: Any) -> None:
    store = Store.open(tmp_path / "gatewatch.db")
    with store.transaction():
        store.save_snapshot({"detection": {}, "feeds": {}, "successes": {"clients": [[1]]}}, {}, NOW_NS)
    said: list[str] = []
    recovery.remember(store, Detection(), {}, Successes(), said.append)  # type: ignore[arg-type]
    assert "who lately succeeded is not known any more" in said[0]


def test_a_flood_of_new_names_pushes_out_none_that_is_settled() -> None:
    made = settled("198.51.100.1", most=16)
    kept = made.save()
    kept["clients"] += known([f"203.0.113.{n}" for n in range(200)], NOW_NS, NOW_NS)
    made.load(kept)
    assert "198.51.100.1" in made.clients(NOW_NS)
    assert len(made.clients(NOW_NS)) == 9


def test_a_flood_of_new_names_does_not_make_the_share_large_enough_for_the_settled() -> None:
    good = {f"198.51.100.{n}": NOW_NS - 5 * HOUR_NS for n in range(10)}
    flood = {f"203.0.113.{n}": NOW_NS - 60 for n in range(200)}
    made = Breaker(clients=good | flood, share=0.2, spared=1, now_ns=NOW_NS)
    for n in range(2):
        judged = made.source(f"198.51.100.{n}", NOW_NS)
        assert not judged.over
        made.take(judged)
    assert (
        "3 of 10 clients that lately succeeded, the first time over an hour ago"
        in made.source("198.51.100.2", NOW_NS).over
    )


@pytest.mark.parametrize("target", ["2001:db8::/64", "2001:db8::5", "2001:db8::/48"])
def test_a_client_is_a_64_of_ipv6_however_it_is_blocked(target: str) -> None:
    made = Breaker(clients={"2001:db8::/64": 1}, share=0.01, spared=0)
    assert made.source(target, 2).names == ("2001:db8::/64",)


def test_more_than_are_named_count_for_the_blocks_that_follow() -> None:
    clients = {f"198.51.{block}.{n}": 1 for block in (99, 100, 101, 102) for n in range(100)}
    made = Breaker(clients=clients, share=0.3, spared=1)
    first = made.source("198.51.99.0/24", 2)
    assert (first.number, len(first.names), first.over) == (100, 32, "")
    made.take(first)
    assert made.source("198.51.100.0/24", 2).over
