"""What playbooks decide: never on a source that is not blockable, never twice, never too late, always with a why."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from gatewatch.daemon.events import Provenance, rfc3339
from gatewatch.playbooks.engine import (
    JOURNAL,
    MOST_TARGETS,
    Decision,
    DecisionContext,
    Engine,
    block_target,
    time_ns,
)
from gatewatch.playbooks.loader import load_playbooks
from gatewatch.playbooks.schema import PRIORITIES, Playbook, Prefix
from hypothesis import given, settings
from hypothesis import strategies as st

END_NS = 1_790_000_000_250_000_000
SOURCE = "203.0.113.7"


def playbook(**changed: Any) -> Playbook:
    return Playbook.model_validate({"name": "mine", "then": [{"action": "block_source"}]} | changed)


def incident(**changed: Any) -> dict[str, Any]:
    return {
        "id": "0123456789abcdef",
        "kind": "brute_force",
        "priority": "high",
        "severity": 70,
        "confidence": 0.95,
        "title": f"Password guessing from {SOURCE}",
        "start": rfc3339(END_NS - 60_000_000_000),
        "end": rfc3339(END_NS),
        "sources": [SOURCE],
        "users": ["root"],
        "targets": ["sshd"],
        "blockable": [SOURCE],
        "findings": [{"provenance": 2, "sources": [SOURCE], "blockable": [SOURCE]}],
        "status": "open",
    } | changed


def context(**changed: Any) -> DecisionContext:
    return DecisionContext(**({"now_ns": END_NS + 1_000_000_000, "mode": "enforce"} | changed))


def decide(
    book: Playbook | None = None, about: dict[str, Any] | None = None, **changed: Any
) -> list[Decision]:
    return Engine([book or playbook()]).decide(about or incident(), context(**changed))


def states(decisions: list[Decision]) -> list[str]:
    return [d.state for d in decisions]


def test_a_blockable_source_is_blocked_in_enforce_mode() -> None:
    (decision,) = decide()
    assert (decision.action, decision.target, decision.ttl_s, decision.state) == (
        "block_source",
        SOURCE,
        3600,
        "act",
    )
    assert decision.reason == f"Password guessing from {SOURCE} (incident 0123456789abcdef)"


def test_observe_mode_only_says_what_would_be_done() -> None:
    (decision,) = decide(mode="observe")
    assert decision.state == "would"
    assert "observe" in decision.why


def test_observe_mode_says_would_whatever_approval_is_asked_for() -> None:
    book = playbook(then=[{"action": "block_source", "approval": "two"}, {"action": "kill_switch"}])
    assert states(decide(book, mode="observe")) == ["would", "would"]


def test_a_source_that_is_not_blockable_is_never_blocked() -> None:
    (decision,) = decide(about=incident(blockable=[]))
    assert decision.state == "skip"
    assert "not blockable" in decision.why


@given(
    st.lists(st.ip_addresses().map(str), max_size=6),
    st.lists(st.ip_addresses().map(str), max_size=6),
    st.sampled_from([24, 32]),
    st.sampled_from([48, 64, 128]),
)
def test_whatever_is_blocked_holds_a_source_of_the_incident_that_is_blockable(
    sources: list[str], blockable: list[str], ipv4: int, ipv6: int
) -> None:
    book = playbook(then=[{"action": "block_source", "prefix": {"ipv4": ipv4, "ipv6": ipv6}}])
    both = set(sources) & set(blockable)
    for decision in decide(book, incident(sources=sources, blockable=blockable, findings=[])):
        if decision.state != "skip":
            network = ipaddress.ip_network(decision.target)
            assert any(ipaddress.ip_address(s) in network for s in both)


def test_approval_makes_a_block_wait() -> None:
    (decision,) = decide(playbook(then=[{"action": "block_source", "approval": "two"}]))
    assert (decision.state, decision.approval) == ("wait", "two")


def test_a_kill_switch_always_waits_for_people() -> None:
    (decision,) = decide(playbook(then=[{"action": "kill_switch", "endpoint": "chat"}]))
    assert (decision.state, decision.target, decision.approval) == ("wait", "chat", "one")


def test_nothing_is_done_about_what_is_too_old() -> None:
    book = playbook(then=[{"action": "block_source"}, {"action": "kill_switch"}, {"action": "notify"}])
    late = decide(book, now_ns=END_NS + 601_000_000_000)
    assert states(late) == ["skip", "skip", "act"]
    assert late[0].why == "its last event is 601 s old, more than 600 s"
    assert decide(now_ns=END_NS + 600_999_999_999)[0].state == "act"


def test_an_event_from_the_future_is_not_too_old() -> None:
    assert states(decide(now_ns=END_NS - 10**12)) == ["act"]


@pytest.mark.parametrize("end", [None, "", "yesterday", "2026-99-01T00:00:00Z", "2026-09-21T14:13:20.xZ", 5])
def test_an_incident_without_a_time_is_not_acted_upon(end: object) -> None:
    assert states(decide(about=incident(end=end))) == ["skip"]


def test_evidence_that_could_be_forged_waits_for_the_wire() -> None:
    forged = incident(findings=[{"provenance": 1, "blockable": [SOURCE]}])
    (decision,) = decide(about=forged, corroborated=lambda source, accused: False)
    assert (decision.state, decision.approval) == ("wait", "none")
    assert states(decide(about=forged, corroborated=lambda source, accused: source == SOURCE)) == ["act"]
    assert states(decide(corroborated=lambda source, accused: False)) == ["act"]


def test_the_provenance_of_another_source_proves_nothing() -> None:
    mixed = incident(
        findings=[{"provenance": 3, "blockable": ["192.0.2.1"]}, {"provenance": 1, "blockable": [SOURCE]}]
    )
    assert states(decide(about=mixed, corroborated=lambda source, accused: False)) == ["wait"]


def test_the_engine_knows_the_provenance_of_the_journal() -> None:
    assert Provenance.JOURNAL == JOURNAL


@pytest.mark.parametrize(
    ("earlier", "ttl_s"), [(0, 3600), (1, 7200), (3, 28_800), (5, 86_400), (10**9, 86_400)]
)
def test_repeated_offence_lengthens_the_block_up_to_its_cap(earlier: int, ttl_s: int) -> None:
    (decision,) = decide(earlier_blocks=lambda target: earlier)
    assert decision.ttl_s == ttl_s


def test_an_extreme_growth_neither_overflows_nor_hangs() -> None:
    book = playbook(then=[{"action": "block_source", "grow": 100, "longest": "36500d"}])
    (decision,) = decide(book, earlier_blocks=lambda target: 10**18)
    assert decision.ttl_s == 36_500 * 86_400


def test_a_playbook_for_repeaters_leaves_first_offenders_alone() -> None:
    book = playbook(when={"repeats": 2}, then=[{"action": "notify"}, {"action": "block_source"}])
    assert decide(book, earlier_blocks=lambda target: 1) == []
    assert states(decide(book, earlier_blocks=lambda target: 2)) == ["act", "act"]
    two = incident(sources=[SOURCE, "192.0.2.1"], blockable=[SOURCE, "192.0.2.1"])
    mixed = decide(book, two, earlier_blocks=lambda target: 2 if target == SOURCE else 0)
    assert [(d.target, d.state) for d in mixed] == [("sinks", "act"), (SOURCE, "act"), ("192.0.2.1", "skip")]


def test_a_source_that_is_blocked_long_enough_is_left_alone() -> None:
    (decision,) = decide(blocked=lambda target, ttl_s: ttl_s <= 3600)
    assert (decision.state, decision.why) == ("skip", "blocked already")


def test_the_cool_down_holds_for_one_action_on_one_target() -> None:
    now_ns = END_NS + 1_000_000_000
    last = {("mine", "block_source", SOURCE): now_ns - 299_000_000_000}

    def last_action(book: str, action: str, target: str) -> int | None:
        return last.get((book, action, target))

    (decision,) = decide(last_action=last_action)
    assert (decision.state, decision.why) == ("skip", "done 299 s ago; cool-down is 300 s")
    last[("mine", "block_source", SOURCE)] = now_ns - 300_000_000_000
    assert states(decide(last_action=last_action)) == ["act"]


def test_a_playbook_does_no_more_than_its_limit_a_minute() -> None:
    sources = [f"198.51.100.{i}" for i in range(10)]
    book = playbook(limits={"per_minute": 5})
    found = decide(book, incident(sources=sources, blockable=sources), acted_since=lambda name, since_ns: 2)
    assert states(found) == ["act"] * 3 + ["skip"] * 7
    assert "limit of 5 actions a minute" in found[-1].why


def test_an_incident_of_countless_sources_is_bounded() -> None:
    sources = [str(ipaddress.IPv4Address(0x0B000000 + i)) for i in range(MOST_TARGETS + 500)]
    found = decide(playbook(limits={"per_minute": 100_000}), incident(sources=sources, blockable=sources))
    assert len(found) == MOST_TARGETS + 1
    assert found[-1].state == "skip"


def test_sources_of_one_network_are_blocked_once() -> None:
    both = ["2001:db8::1", "2001:db8::2"]
    (decision,) = decide(about=incident(sources=both, blockable=both))
    assert decision.target == "2001:db8::/64"


@pytest.mark.parametrize(
    ("source", "prefix", "target"),
    [
        ("203.0.113.7", Prefix(), "203.0.113.7"),
        ("203.0.113.7", Prefix(ipv4=24), "203.0.113.0/24"),
        ("2001:db8::1", Prefix(), "2001:db8::/64"),
        ("2001:db8::1", Prefix(ipv6=128), "2001:db8::1"),
        ("2001:db8::/64", Prefix(), "2001:db8::/64"),
        ("2001:db8::/48", Prefix(), None),
        ("203.0.113.0/24", Prefix(), None),
        ("0.0.0.0/0", Prefix(ipv4=24), None),
        ("attacker", Prefix(), None),
    ],
)
def test_a_source_is_widened_to_the_prefix_and_never_narrowed(
    source: str, prefix: Prefix, target: str | None
) -> None:
    assert block_target(source, prefix) == target


def test_where_two_playbooks_block_the_same_source_the_longer_block_wins() -> None:
    short = playbook(name="a")
    long = playbook(name="b", then=[{"action": "block_source", "ttl": "24h"}])
    found = Engine([long, short]).decide(incident(), context())
    assert [(d.playbook, d.state) for d in found] == [("a", "skip"), ("b", "act")]
    assert found[0].why == "playbook b does it"


def test_a_closed_incident_gets_nothing_and_an_acknowledged_one_is_still_answered() -> None:
    assert decide(about=incident(status="closed")) == []
    assert states(decide(about=incident(status="acknowledged"))) == ["act"]


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ({"kinds": ["brute_force"]}, True),
        ({"kinds": ["port_scan"]}, False),
        ({"priority": "high"}, True),
        ({"priority": "low"}, True),
        ({"priority": "critical"}, False),
        ({"confidence": 0.95}, True),
        ({"confidence": 0.96}, False),
        ({"endpoints": ["sshd"]}, True),
        ({"endpoints": ["chat"]}, False),
    ],
)
def test_every_condition_must_hold(when: dict[str, Any], fits: bool) -> None:
    assert bool(decide(playbook(when=when))) is fits


def test_a_reason_is_short_and_free_of_control_characters() -> None:
    (decision,) = decide(about=incident(title="of \x1b]0;x\x07\u202eroot\n" + "a" * 10_000))
    assert len(decision.reason) <= 400
    assert decision.reason.isprintable()


def test_the_order_of_playbooks_does_not_matter() -> None:
    books = load_playbooks()
    for kind in ("brute_force", "account_compromise", "port_scan", "off_allowlist_egress"):
        about = incident(kind=kind)
        assert Engine(books).decide(about, context()) == Engine(reversed(books)).decide(about, context())


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("brute_force", ["block_source"]),
        ("password_spray", ["block_source"]),
        ("account_compromise", ["block_source", "block_user", "capture_evidence", "notify"]),
        ("credential_stuffing", ["notify", "capture_evidence"]),
        ("control_endpoint_access", ["block_source", "capture_evidence", "notify"]),
        ("off_allowlist_egress", ["notify", "capture_evidence"]),
        ("off_allowlist_ingress", ["notify"]),
        ("exfiltration", ["notify", "capture_evidence"]),
        ("syn_flood", ["notify", "capture_evidence"]),
        ("port_scan", ["block_source"]),
        ("host_sweep", ["block_source"]),
        ("anomaly", []),
    ],
)
def test_the_shipped_playbooks_answer_as_they_say(kind: str, done: list[str]) -> None:
    accused = ["account:root"] if kind == "account_compromise" else []
    proven = [{"provenance": 2, "sources": [SOURCE], "blockable": [SOURCE], "blockable_users": accused}]
    about = incident(kind=kind, blockable_users=accused, findings=proven)
    found = Engine(load_playbooks()).decide(about, context())
    assert [d.action for d in found if d.state == "act"] == done


@pytest.mark.parametrize("kind", ["brute_force", "account_compromise"])
def test_a_source_that_the_detectors_give_credit_is_left_to_people(kind: str) -> None:
    found = Engine(load_playbooks()).decide(
        incident(kind=kind, confidence=0.8 - 0.1 * (kind == "brute_force")), context()
    )
    assert [d.action for d in found if d.state == "act"] in ([], ["notify"])


def test_the_priorities_are_those_of_incidents() -> None:
    from gatewatch.daemon.incidents import PRIORITIES as known

    assert known == PRIORITIES


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_the_time_of_an_incident_is_read_to_the_nanosecond(moment_ns: int) -> None:
    assert time_ns(rfc3339(moment_ns)) == moment_ns


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(incident())), _JSON))
def test_an_incident_of_any_shape_never_makes_the_engine_raise(strange: dict[str, Any]) -> None:
    Engine(load_playbooks()).decide(incident() | strange, context())
    Engine(load_playbooks()).decide(strange, context())
