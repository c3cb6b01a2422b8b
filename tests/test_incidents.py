"""Incidents: what joins, what does not, and what a reader sees."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from gatewatch.daemon.incidents import (
    RANKS,
    TITLES,
    Correlator,
    Incident,
    network_text,
    priority_of,
    rank,
    sort_key,
)
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


def account(kind: str, user: str = "ada", at_ns: int = HOUR, *sources: str, **more: Any) -> Finding:
    """A finding about a user's account."""
    values: dict[str, Any] = {
        "id": finding_id(kind, user, at_ns, *sources),
        "entity_type": "user",
        "entity": user,
        "users": (user,),
        "sources": sources,
        "blockable": (),
    }
    return finding(kind=kind, at_ns=at_ns, **(values | more))


def site(at_ns: int = HOUR, **more: Any) -> Finding:
    values = {"entity_type": "site", "entity": "site", "id": finding_id("stuffing", "site", at_ns)}
    return finding("198.51.100.1", "credential_stuffing", at_ns, **(values | more))


def incidents_of(*findings: Finding) -> list[set[str]]:
    """Which kinds, with their entities, make up each incident."""
    correlator = Correlator()
    for one in findings:
        correlator.apply([one])
    return [{f"{f.kind} {f.entity}" for f in i.findings.values()} for i in correlator.open_incidents]


S1, S2, S3 = "203.0.113.7", "198.51.100.9", "192.0.2.3"


@pytest.mark.parametrize(
    "findings",
    [
        (finding(S1), account("account_compromise", "ada", 2 * HOUR, S1)),
        (account("distributed_brute_force"), account("account_compromise", "ada", 2 * HOUR, S1)),
        (
            site(),
            account("account_compromise", "ada", 2 * HOUR, S1, part_of=("credential_stuffing",)),
            account("account_compromise", "bob", 3 * HOUR, S2, part_of=("credential_stuffing",)),
        ),
        (
            account("account_compromise", "ada", HOUR, S1),
            account("new_access", "ada", HOUR, S1),
            account("impossible_travel", "ada", 2 * HOUR, S2, S1),
        ),
        (account("new_access", "ada", HOUR, S1), account("account_compromise", "ada", 2 * HOUR, S1)),
        (account("mfa_fatigue", "ada", HOUR, S1), account("account_compromise", "ada", 2 * HOUR, S1)),
        (account("mfa_fatigue", "ada", HOUR, S1), account("new_access", "ada", 2 * HOUR, S2)),
        (account("mfa_fatigue", "ada", HOUR, S1, trigger_source=S1), finding(S1, at_ns=2 * HOUR)),
        (finding(S1), account("mfa_fatigue", "ada", 2 * HOUR, S1, trigger_source=S1)),
        (account("distributed_brute_force"), account("mfa_fatigue", "ada", 2 * HOUR, S1)),
        (account("distributed_brute_force"), account("distributed_brute_force", at_ns=2 * HOUR)),
        (finding("2001:db8:1::/48"), finding("2001:db8:1:7::/64", at_ns=2 * HOUR)),
        (finding("2001:db8:1:7::/64"), finding("2001:db8:1::/48", at_ns=2 * HOUR)),
        (finding("2001:db8:1::/48"), account("account_compromise", "ada", 2 * HOUR, "2001:db8:1:7::/64")),
        (finding("203.0.113.0/24"), finding(S1, at_ns=2 * HOUR)),
        (finding(S1), finding(S1, "port_scan", 2 * HOUR)),
    ],
    ids=lambda findings: " + ".join(f.kind for f in findings),
)
def test_findings_of_one_campaign_are_one_incident(findings: tuple[Finding, ...]) -> None:
    assert len(incidents_of(*findings)) == 1


@pytest.mark.parametrize(
    "findings",
    [
        (finding(S1, users=("root",)), finding(S2, users=("root",), at_ns=2 * HOUR)),
        (
            finding(S1, users=("root",)),
            account("account_compromise", "root", 2 * HOUR, S1),
            finding(S2, users=("root",), at_ns=3 * HOUR),
        ),
        (account("distributed_brute_force", "root"), finding(S1, users=("root",), at_ns=2 * HOUR)),
        (account("distributed_brute_force"), account("new_access", "ada", 2 * HOUR, S1)),
        (finding(S1), account("new_access", "ada", 2 * HOUR, S1)),
        (account("new_access", "ada", HOUR, S1), account("new_access", "bob", 2 * HOUR, S1)),
        (account("new_access", "ada", HOUR, S1), account("new_access", "ada", 2 * HOUR, S2)),
        (account("mfa_fatigue", "ada", HOUR, S1), account("mfa_fatigue", "bob", 2 * HOUR, S1)),
        (account("mfa_fatigue", "ada", HOUR, S1), finding(S1, at_ns=2 * HOUR)),
        (site(), account("distributed_brute_force", at_ns=2 * HOUR)),
        (site(), account("account_compromise", "ada", 2 * HOUR, S1)),
        (finding(S1), finding("203.0.113.0/24", at_ns=2 * HOUR)),
        (finding("2001:db8:1:7::/64"), finding("2001:db8:1:8::/64", at_ns=2 * HOUR)),
        (account("distributed_brute_force", "a"), account("distributed_brute_force", "a b", 2 * HOUR)),
    ],
    ids=lambda findings: " + ".join(f.kind for f in findings),
)
def test_a_popular_name_or_a_shared_source_joins_nothing_else(findings: tuple[Finding, ...]) -> None:
    assert len(incidents_of(*findings)) == 2


def test_a_compromise_does_not_take_a_source_from_the_incident_that_has_it() -> None:
    """A user under a distributed attack is taken over from an office in which somebody else guesses."""
    found = incidents_of(
        account("distributed_brute_force"),
        finding(S1, at_ns=2 * HOUR),
        account("account_compromise", "ada", 3 * HOUR, S1, part_of=("distributed_brute_force",)),
        finding(S1, "port_scan", 4 * HOUR),
    )
    assert sorted(map(sorted, found)) == [
        ["account_compromise ada", "distributed_brute_force ada"],
        [f"brute_force {S1}", f"port_scan {S1}"],
    ]


KINDS = (
    "brute_force",
    "distributed_brute_force",
    "account_compromise",
    "new_access",
    "mfa_fatigue",
    "stuffing",
)


def same(one: Finding, other: Finding) -> bool:
    return (one.kind, one.entity) == (other.kind, other.entity)


def grown_form(one: Finding, until_ns: int) -> Finding:
    more = one.kind in ("credential_stuffing", "distributed_brute_force")
    return dataclasses.replace(
        one,
        figures={"attempts": 40 + one.time_ns % 100},
        end_ns=min(one.end_ns + 30 * HOUR, until_ns - 1),
        severity=min(100, one.severity + 20),
        sources=(*one.sources, S3) if more else one.sources,
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(1, 3), st.sampled_from("ab"), st.integers(1, 300)),
        max_size=40,
    ),
    st.lists(st.integers(1, 12), min_size=1, max_size=40),
)
def test_incidents_of_many_kinds_do_not_depend_on_how_findings_are_handed_over(
    raised: list[tuple[str, int, str, int]], sizes: list[int]
) -> None:
    """Each finding grows after it was raised, until the next of its kind about the same is; of a batch only the
    last form of each is seen.
    """
    last: dict[str, Finding] = {}
    for kind, n, user, at in sorted(raised, key=lambda r: r[3]):
        at_ns = at * HOUR // 5
        if kind == "brute_force":
            one = finding(f"203.0.113.{n}", at_ns=at_ns)
        elif kind == "stuffing":
            one = site(at_ns)
        else:
            one = account(kind, user, at_ns, f"203.0.113.{n}")
        last[one.id] = one
    findings = list(last.values())
    follower = {
        n: next((m for m in range(n + 1, len(findings)) if same(findings[n], findings[m])), None)
        for n in range(len(findings))
    }
    grown = [
        grown_form(f, findings[m].time_ns if (m := follower[n]) else 2**62) for n, f in enumerate(findings)
    ]
    whole, parts = Correlator(), Correlator()
    whole.apply(grown)
    at, turn = 0, 0
    while at < len(findings):
        end = at + sizes[turn % len(sizes)]
        final = [n for n in range(min(end, len(findings))) if (m := follower[n]) is not None and m < end]
        parts.apply([grown[n] if n in final else findings[n] for n in range(min(end, len(findings)))])
        at, turn = end, turn + 1
    parts.apply(grown)
    documents = [
        sorted(json.dumps({**i.document(), "revision": 0}) for i in c.open_incidents) for c in (whole, parts)
    ]
    assert documents[0] == documents[1]


def test_an_incident_with_too_many_findings_keeps_its_first_the_compromises_and_the_newest() -> None:
    correlator = Correlator()
    taken = account("account_compromise", "ada", 2 * HOUR, S1)
    correlator.apply([finding(S1), taken, *(finding(S1, at_ns=3 * HOUR + n) for n in range(200))])
    [incident] = correlator.open_incidents
    kept = sorted(f.time_ns for f in incident.findings.values())
    assert kept[:2] == [HOUR, 2 * HOUR]
    assert kept[-1] == 3 * HOUR + 199
    assert len(kept) == 64


def test_an_incident_of_many_sources_is_bounded_in_its_keys() -> None:
    correlator = Correlator()
    correlator.apply([site()])
    for n in range(5000):
        source = f"10.{n >> 8}.{n & 255}.1"
        correlator.apply(
            [account("account_compromise", f"u{n}", HOUR + n, source, part_of=("credential_stuffing",))]
        )
    [incident] = correlator.open_incidents
    assert len(incident.keys) == 4096
    assert len(incident.findings) == 64


def test_a_finding_that_is_not_the_first_goes_on_in_its_incident_when_memory_had_no_room() -> None:
    first = Correlator(most_open=0)
    scan = finding(kind="port_scan", at_ns=2 * HOUR)
    first.apply([finding(), scan])
    [gone] = first.expire()
    first.recall = {gone.id: gone}.get
    [change] = first.apply([dataclasses.replace(scan, figures={"attempts": 40})])
    assert (change.incident.id, change.new) == (gone.id, False)


def test_an_incident_that_comes_back_to_memory_takes_nothing_from_a_newer_one() -> None:
    correlator = Correlator(gap_s=3600)
    correlator.apply([finding()])
    [old] = correlator.open_incidents
    correlator.apply([finding(S2, at_ns=20 * HOUR)])
    assert correlator.expire() == [old]
    [new] = correlator.apply([finding(at_ns=20 * HOUR)])
    correlator.recall = {old.id: old}.get
    [grown] = correlator.apply([dataclasses.replace(finding(), end_ns=20 * HOUR)])
    [scan] = correlator.apply([finding(kind="port_scan", at_ns=20 * HOUR + 1)])
    assert (grown.incident, scan.incident) == (old, new.incident)


def test_a_campaign_that_follows_a_long_one_of_the_same_source_joins_it() -> None:
    correlator = Correlator()
    correlator.apply([finding(end_ns=80 * HOUR)])
    [next_] = correlator.apply([finding(at_ns=90 * HOUR)])
    assert not next_.new
    correlator = Correlator()
    correlator.apply([finding(end_ns=80 * HOUR)])
    [other] = correlator.apply([finding(kind="port_scan", at_ns=90 * HOUR)])
    assert other.new


TAKEN = account("account_compromise", "ada", HOUR, S1, severity=95)
PROMPTED = account("mfa_fatigue", "ada", HOUR, S1, severity=95, figures={"successes": 1})
AT_ROOT = finding(S1, users=("root",))
ROOTS_LOGIN = account("new_access", "root", HOUR, S1, severity=30)
ROOT_GUESSED = account("distributed_brute_force", "root", severity=30)
AT_MODEL = finding(S1, targets=("192.0.2.1:8000/tcp",))
SPRAY = finding(
    S1, "password_spray", users=("root", *(f"u{n}" for n in range(20))), figures={"distinct_users": 90}
)
GUESSING = finding(S1, severity=70)
STUFFING = site(severity=80)
TRAVEL = account("new_access", "ada", HOUR, S1, severity=30)
NOISE = finding(S1, severity=30, users=("root",))
SCAN = finding(S1, "port_scan", severity=60)
JOB = finding(S1, confidence=0.4)

IN_ORDER = [
    [TAKEN, PROMPTED],
    [AT_ROOT, ROOTS_LOGIN, ROOT_GUESSED, AT_MODEL],
    [SPRAY, GUESSING, STUFFING],
    [TRAVEL, NOISE, SCAN, JOB],
]


def incident(one: Finding) -> Incident:
    correlator = Correlator(criticality_of=lambda targets: 1.25 if any("8000" in t for t in targets) else 1.0)
    return correlator.apply([one])[0].incident


@pytest.mark.parametrize("first, second", list(itertools.combinations(range(4), 2)))
def test_compromise_comes_before_privileged_before_campaign_before_background(
    first: int, second: int
) -> None:
    assert len(RANKS) == 4
    for before, after in itertools.product(IN_ORDER[first], IN_ORDER[second]):
        assert rank(incident(before)) == first + 1
        assert rank(incident(after)) == second + 1
        assert sort_key(incident(before)) < sort_key(incident(after))


def test_within_a_rank_the_graver_comes_first_and_then_the_newest() -> None:
    high, new, old = (
        incident(f)
        for f in (finding(S1, severity=70), finding(S2, at_ns=3 * HOUR), finding(S3, at_ns=2 * HOUR))
    )
    assert sorted([old, new, high], key=sort_key) == [high, new, old]


def test_who_is_privileged_is_the_operators_to_say() -> None:
    correlator = Correlator(privileged=["ada"])
    [change] = correlator.apply([finding(users=("ada",))])
    assert (rank(change.incident), change.incident.document()["rank"]) == (2, 2)


def test_when_an_incident_was_raised_and_when_it_became_as_grave_as_it_is() -> None:
    correlator = Correlator()
    taken = account("account_compromise", "ada", 3 * HOUR, S1, severity=95)
    correlator.apply([finding(S1, severity=30), finding(S1, at_ns=2 * HOUR), taken])
    [made] = correlator.open_incidents
    document = made.document()
    assert document["raised"] == "1970-01-01T01:00:00Z"
    assert document["reached"] == {
        "info": "1970-01-01T01:00:00Z",
        "low": "1970-01-01T01:00:00Z",
        "medium": "1970-01-01T02:00:00Z",
        "high": "1970-01-01T03:00:00Z",
        "critical": "1970-01-01T03:00:00Z",
    }
    assert document["priority_since"] == document["reached"][document["priority"]]


def test_a_finding_that_became_graver_later_says_so() -> None:
    [change] = Correlator().apply([finding(graded_ns=4 * HOUR)])
    document = change.incident.document()
    assert (document["raised"], document["priority_since"]) == (
        "1970-01-01T01:00:00Z",
        "1970-01-01T04:00:00Z",
    )
    assert document["findings"][0]["graded"] == "1970-01-01T04:00:00Z"


def test_of_many_participants_the_document_says_how_many() -> None:
    listed = tuple(f"203.0.113.{n}" for n in range(32))
    many = site(sources=listed, figures={"distinct_sources": 600}, participants_digest="ab12")
    [change] = Correlator().apply([many])
    assert change.incident.document()["findings"][0]["participants"] == {"count": 600, "digest": "ab12"}
    [change] = Correlator().apply([site(sources=listed[:3], figures={"distinct_sources": 3})])
    assert "participants" not in change.incident.document()["findings"][0]


@pytest.mark.parametrize(
    ("one", "title"),
    [
        (
            account("distributed_brute_force", "ada", HOUR, S1, S2, S3, figures={"distinct_sources": 70}),
            f"Distributed guessing of one account: ada from {S3}, {S2} and 68 more at sshd@gateway",
        ),
        (
            site(figures={"distinct_users": 300, "distinct_sources": 600}),
            "Credential stuffing for 300 users from 198.51.100.1 and 599 more at sshd@gateway",
        ),
        (
            account("new_access", "ada", HOUR, S1),
            f"Login unlike earlier ones of ada from {S1} at sshd@gateway",
        ),
        (
            account("impossible_travel", "ada", HOUR, S1, S2),
            f"Impossible travel of ada from {S2}, {S1} at sshd@gateway",
        ),
        (
            account("mfa_fatigue", "ada", HOUR, S1),
            f"Second factor asked for again and again for ada from {S1} at sshd@gateway",
        ),
    ],
)
def test_a_title_says_who_what_from_where_and_at_what(one: Finding, title: str) -> None:
    [change] = Correlator().apply([one])
    assert change.incident.title() == title
    assert one.kind in TITLES


def test_a_state_of_the_version_before_is_taken() -> None:
    [change] = Correlator().apply([finding()])
    state = change.incident.state()
    del state["first"], state["factors"]
    for old in state["findings"]:
        for name in ("trigger_line", "trigger_source", "graded_ns", "part_of", "participants_digest"):
            del old[name]
    again = Incident.from_state(json.loads(json.dumps(state)))
    assert again.document() == change.incident.document()
    grown = Correlator()
    grown.restore([again])
    grown.apply([finding(at_ns=HOUR + n) for n in range(100)])
    assert len(again.findings) == 64
