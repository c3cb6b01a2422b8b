"""The circuit breaker counts whom blocks hit together, and lets through what hits nobody who succeeded."""

from __future__ import annotations

from typing import Any

from gatewatch.playbooks.breaker import Breaker
from gatewatch.playbooks.engine import Decision, Engine
from hypothesis import given
from hypothesis import strategies as st
from test_playbook_engine import END_NS, context, incident, playbook

START_NS = END_NS - 60_000_000_000
CLIENTS = {f"198.51.100.{n}": START_NS - 10**12 for n in range(1, 13)}


def breaker(**more: Any) -> Breaker:
    return Breaker(**({"clients": CLIENTS, "share": 0.2, "spared": 1} | more))


def decide(sources: list[str], made: Breaker, **more: Any) -> list[Decision]:
    finding = {"provenance": 2, "sources": sources, "blockable": sources}
    about = incident(sources=sources, blockable=sources, findings=[finding])
    return Engine([playbook()]).decide(about, context(breaker=made, **more))


def test_a_trickle_within_one_incident_stops_at_the_share() -> None:
    found = decide(list(CLIENTS)[:4], breaker())
    assert [d.state for d in found] == ["act", "act", "wait", "wait"]
    assert found[2].approval == "one"
    assert "3 of 12 clients" in found[2].why


def test_what_is_in_force_counts() -> None:
    blocked = set(list(CLIENTS)[:2])
    [stopped] = decide(["198.51.100.9"], breaker(denied_client=blocked.__contains__))
    assert stopped.state == "wait"


def test_who_never_succeeded_is_blocked_whatever_is_in_force() -> None:
    [decision] = decide(["203.0.113.7"], breaker(denied_client=lambda client: True))
    assert (decision.state, decision.hits) == ("act", ())


def test_a_source_whose_first_success_is_part_of_the_incident_is_no_good_client() -> None:
    own = {**CLIENTS, "203.0.113.7": START_NS + 1}
    [decision] = decide(["203.0.113.7"], breaker(clients=own, share=0.01, spared=0))
    assert (decision.state, decision.hits) == ("act", ())


def test_a_network_counts_all_that_it_holds() -> None:
    book = playbook(then=[{"action": "block_source", "prefix": {"ipv4": 24}}])
    about = incident(
        sources=["198.51.100.77"],
        blockable=["198.51.100.77"],
        findings=[{"provenance": 2, "blockable": ["198.51.100.77"]}],
    )
    [decision] = Engine([book]).decide(about, context(breaker=breaker()))
    assert (decision.state, len(decision.hits)) == ("wait", 12)


def test_on_a_small_site_one_may_always_be_hit() -> None:
    two = dict(list(CLIENTS.items())[:2])
    assert [d.state for d in decide(list(two), breaker(clients=two))] == ["act", "wait"]


def test_observe_mode_says_that_it_would_have_asked() -> None:
    found = decide(list(CLIENTS)[:4], breaker(), mode="observe")
    assert [d.state for d in found] == ["would"] * 4
    assert found[3].tripped
    assert found[3].why.startswith("asks first: circuit breaker")


def test_users_are_counted_like_clients() -> None:
    users = dict.fromkeys(("alice", "bob", "carol", "dave", "key:k-1"), START_NS - 1)
    made = breaker(users=users, clients={})
    assert made.user("account:alice", START_NS).names == ("alice",)
    made.take(made.user("account:alice", START_NS))
    assert made.user("account:bob", START_NS).over
    assert made.user("key:k-1", START_NS).names == ("key:k-1",)
    assert not made.user("account:mallory", START_NS).over


@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 60), max_size=60),
    st.floats(0.05, 1.0),
    st.integers(0, 3),
)
def test_whatever_comes_no_more_than_the_share_is_hit(
    good: int, order: list[int], share: float, spared: int
) -> None:
    clients = {f"198.51.100.{n}": 1 for n in range(good)}
    made = Breaker(clients=clients, share=share, spared=spared)
    hit: set[str] = set()
    for n in order:
        judged = made.source(f"198.51.100.{n}", 2)
        if not judged.over:
            made.take(judged)
            hit.update(judged.names)
    assert len(hit) <= max(spared, int(share * good))
