"""Incidents: what joins, what does not, and what a reader sees."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from gatewatch.daemon.incidents import Correlator, Incident, network_text, priority_of
from gatewatch.detectors.finding import Finding, finding_id
from hypothesis import given
from hypothesis import strategies as st

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


def finding(
    source: str = "203.0.113.7", kind: str = "brute_force", at_ns: int = HOUR, **more: Any
) -> Finding:
    values: dict[str, Any] = {
        "id": finding_id(kind, source, at_ns),
        "detector": kind,
        "kind": kind,
        "entity_type": "source",
        "entity": source,
        "time_ns": at_ns,
        "start_ns": at_ns - 60 * SECOND,
        "end_ns": at_ns,
        "severity": 50,
        "confidence": 0.9,
        "sources": (source,),
        "targets": ("sshd@gateway",),
        "figures": {"attempts": 10},
        "blockable": (source,),
    }
    return Finding(**(values | more))


def test_a_scan_is_named_by_its_true_count_and_not_by_the_targets_that_are_listed() -> None:
    targets = tuple(f"192.0.2.2:{port}/tcp" for port in range(1, 33))
    scan = finding(kind="port_scan", targets=targets, figures={"distinct_targets": 400})
    [change] = Correlator().apply([scan])
    assert change.incident.title() == "Port scan from 203.0.113.7 at 400 ports of 192.0.2.2"
    sweep = finding(
        kind="host_sweep",
        targets=("192.0.2.1:22/tcp", "192.0.2.2:22/tcp"),
        figures={"distinct_targets": 90, "port": 22},
    )
    [change] = Correlator().apply([sweep])
    assert change.incident.title() == "Host sweep from 203.0.113.7 at port 22 of 90 addresses"


def test_findings_about_one_source_are_one_incident_named_by_the_gravest() -> None:
    correlator = Correlator()
    correlator.apply([finding()])
    [change] = correlator.apply(
        [finding(kind="account_compromise", at_ns=2 * HOUR, severity=95, users=("ada",))]
    )
    assert not change.new
    assert change.incident.lead.kind == "account_compromise"
    assert change.incident.document()["title"].startswith("Account compromised")
    assert len(correlator.open_incidents) == 1


def test_an_address_and_its_ipv6_network_are_one_source() -> None:
    correlator = Correlator()
    correlator.apply([finding("2001:db8::1")])
    [change] = correlator.apply([finding("2001:db8::/64", kind="password_spray", at_ns=HOUR + 5)])
    assert not change.new


def test_other_sources_and_outgoing_traffic_are_incidents_of_their_own() -> None:
    correlator = Correlator()
    ours = "192.0.2.1"
    egress = [
        finding(ours, "off_allowlist_egress", entity_type="destination", entity=f"198.51.100.{n}")
        for n in (1, 2)
    ]
    egress[1] = dataclasses.replace(egress[1], id="other")
    changes = correlator.apply([finding("203.0.113.7"), finding("203.0.113.8"), *egress])
    assert [c.new for c in changes] == [True] * 4


def test_a_source_that_comes_back_after_the_gap_is_a_new_incident() -> None:
    correlator = Correlator(gap_s=3600)
    correlator.apply([finding()])
    [change] = correlator.apply([finding(at_ns=3 * HOUR)])
    assert change.new
    assert len({i.id for i in correlator.open_incidents}) == 2


def test_a_finding_that_grows_is_told_again_only_when_its_evidence_grew_fourfold() -> None:
    correlator = Correlator()
    first = finding()
    told = [
        correlator.apply([dataclasses.replace(first, figures={"attempts": n})])[0].telling
        for n in (10, 11, 39, 40, 159, 160)
    ]
    assert told == [True, False, False, True, False, True]
    [incident] = correlator.open_incidents
    assert incident.revision == 3


def test_a_source_that_can_be_blocked_by_now_is_told() -> None:
    correlator = Correlator()
    first = finding(blockable=())
    assert correlator.apply([first])[0].telling
    assert correlator.apply([dataclasses.replace(first, blockable=("203.0.113.7",))])[0].telling


def test_an_endpoint_that_matters_more_raises_the_priority() -> None:
    plain, critical = Correlator(), Correlator(criticality_of=lambda targets: 1.25)
    priorities = [
        c.apply([finding(severity=70, confidence=0.8)])[0].incident.priority for c in (plain, critical)
    ]
    assert priorities == ["medium", "high"]


@pytest.mark.parametrize(
    ("severity", "confidence", "priority"),
    [(95, 0.95, "critical"), (70, 0.9, "high"), (50, 0.9, "medium"), (30, 0.7, "low"), (10, 0.5, "info")],
)
def test_priority_is_harm_times_certainty(severity: int, confidence: float, priority: str) -> None:
    assert priority_of(severity, confidence) == priority


def test_an_incident_survives_being_saved_as_json() -> None:
    correlator = Correlator()
    correlator.apply([finding(), finding(kind="port_scan", lines=(1, 2), samples=("\x1b[2J",))])
    [incident] = correlator.open_incidents
    again = Incident.from_state(json.loads(json.dumps(incident.state())))
    assert again.document() == incident.document()
    restored = Correlator()
    restored.restore([again])
    assert not restored.apply([finding()])[0].new


def test_what_is_held_in_memory_is_bounded() -> None:
    correlator = Correlator(most_open=10)
    correlator.apply([finding(f"203.0.113.{n}", at_ns=HOUR + n) for n in range(50)])
    ended = correlator.expire()
    assert len(correlator.open_incidents) == 10
    assert {i.findings[next(iter(i.findings))].entity for i in ended} == {f"203.0.113.{n}" for n in range(40)}


def test_an_incident_that_went_from_memory_goes_on_where_it_was() -> None:
    first = Correlator(most_open=0)
    grown = dataclasses.replace(finding(), figures={"attempts": 40})
    first.apply([finding()])
    [gone] = first.expire()
    second = Correlator(recall={gone.id: gone}.get)
    [change] = second.apply([grown])
    assert (change.incident.id, change.incident.revision, change.new) == (gone.id, 2, False)


def test_after_an_incident_was_closed_a_new_attack_is_a_new_incident() -> None:
    correlator = Correlator()
    [change] = correlator.apply([finding()])
    correlator.set_closed(change.incident.id, True)
    [same] = correlator.apply([dataclasses.replace(finding(), figures={"attempts": 40})])
    [other] = correlator.apply([finding(at_ns=2 * HOUR)])
    assert same.incident.id == change.incident.id
    assert other.new
    correlator.set_closed(change.incident.id, False)
    [again] = correlator.apply([finding(kind="port_scan", at_ns=3 * HOUR)])
    assert again.incident.id == change.incident.id


def test_a_telling_that_was_taken_back_is_told_later_with_the_same_revision() -> None:
    correlator = Correlator()
    [change] = correlator.apply([finding()])
    change.take_back()
    assert (change.incident.revision, correlator.tell(change.incident).telling) == (0, True)
    assert change.incident.revision == 1
    assert not correlator.tell(change.incident).telling


def test_findings_without_end_are_held_within_bounds() -> None:
    correlator = Correlator()
    for n in range(300):
        correlator.apply([finding(at_ns=HOUR + n)])
    [incident] = correlator.open_incidents
    assert len(incident.findings) == len(correlator._by_finding) == 64
    correlator.apply([finding(at_ns=HOUR)])
    assert correlator.open_incidents == [incident]


@given(st.text())
def test_network_text_takes_any_text(text: str) -> None:
    assert isinstance(network_text(text), str)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 400)), max_size=30),
    st.lists(st.integers(1, 10), min_size=1, max_size=30),
)
def test_incidents_do_not_depend_on_how_findings_are_handed_over(
    raised: list[tuple[int, int]], sizes: list[int]
) -> None:
    times = sorted(raised, key=lambda r: r[1])
    findings = [finding(f"203.0.113.{n}", at_ns=hours * HOUR // 10) for n, hours in times]
    whole, parts = Correlator(), Correlator()
    whole.apply(findings)
    rest = findings
    while rest:
        size = sizes.pop() if sizes else len(rest)
        parts.apply(rest[:size])
        rest = rest[size:]
    documents = [
        sorted(json.dumps({**i.document(), "revision": 0}) for i in c.open_incidents) for c in (whole, parts)
    ]
    assert documents[0] == documents[1]
