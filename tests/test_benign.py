"""Exceptions: what a finding must be to be covered by one, and what never is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from gatewatch.daemon.benign import Benign, BenignList
from gatewatch.daemon.incidents import Correlator
from gatewatch.daemon.masking import Mask
from gatewatch.detectors.finding import Finding, finding_id

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR


def finding(kind: str = "brute_force", at_ns: int = HOUR, **more: Any) -> Finding:
    source = more.pop("source", "203.0.113.7")
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
        "users": ("ada",),
        "targets": ("sshd@gateway",),
        "figures": {"attempts": 10},
    }
    return Finding(**(values | more))


def account(kind: str, user: str = "ada", at_ns: int = HOUR, **more: Any) -> Finding:
    values = {"entity_type": "user", "entity": user, "users": (user,), "id": finding_id(kind, user, at_ns)}
    return finding(kind, at_ns, **(values | more))


def closed(*findings: Finding, lasting_s: int = 30 * 86_400) -> tuple[Correlator, BenignList]:
    """What follows after the incident of these was closed as benign, two hours later."""
    correlator, benign = Correlator(), BenignList()
    correlator.benign = benign
    correlator.apply(findings)
    for incident in correlator.open_incidents:
        benign.add(benign.closing(incident, 2 * HOUR, lasting_s, "eve", "ours"))
        correlator.set_closed(incident.id, True)
    return correlator, benign


def test_the_same_again_makes_no_incident_and_is_counted_once() -> None:
    correlator, benign = closed(finding())
    again = finding(at_ns=3 * DAY)
    assert correlator.apply([again]) == []
    assert correlator.apply([dataclasses.replace(again, end_ns=3 * DAY + HOUR)]) == []
    [changed] = benign.changed()
    assert (changed.suppressed, changed.last_ns) == (1, 3 * DAY + HOUR)
    benign.saved()
    assert benign.changed() == []


@pytest.mark.parametrize(
    "other",
    [
        finding(at_ns=3 * DAY, source="203.0.113.8"),
        finding("password_spray", at_ns=3 * DAY),
        finding(at_ns=3 * DAY, detector="another"),
        finding(at_ns=3 * DAY, users=("ada", "bob")),
        finding(at_ns=3 * DAY, users=()),
        finding(at_ns=3 * DAY, figures={"distinct_users": 40}),
        finding(at_ns=40 * DAY),
        account("account_compromise", at_ns=3 * DAY),
        account("new_access", at_ns=3 * DAY),
    ],
    ids=[
        "source",
        "kind",
        "detector",
        "users",
        "unknown users",
        "more users",
        "later",
        "compromise",
        "access",
    ],
)
def test_what_was_not_called_benign_is_an_incident(other: Finding) -> None:
    correlator, _ = closed(finding())
    [change] = correlator.apply([other])
    assert change.new


def test_an_exception_for_a_compromise_is_for_that_user_from_that_source() -> None:
    correlator, _ = closed(finding(), account("account_compromise"))
    assert correlator.apply([account("account_compromise", at_ns=3 * DAY)]) == []
    other = account("account_compromise", at_ns=3 * DAY, sources=("198.51.100.1",))
    assert correlator.apply([other])[0].new
    assert correlator.apply([account("account_compromise", "bob", at_ns=3 * DAY)])[0].new


def test_the_same_campaign_that_outgrows_what_was_called_benign_is_a_new_incident() -> None:
    first = finding()
    correlator, _ = closed(first)
    assert correlator.apply([dataclasses.replace(first, figures={"attempts": 400})]) == []
    grown = dataclasses.replace(first, users=("ada", "bob", "root"))
    [change] = correlator.apply([grown])
    assert change.new
    assert not change.incident.closed
    [again] = correlator.apply([dataclasses.replace(grown, end_ns=3 * HOUR)])
    assert again.incident is change.incident


def test_a_campaign_that_never_pauses_is_an_incident_again_when_the_exception_ends() -> None:
    first = finding()
    correlator, _ = closed(first, lasting_s=86_400)
    assert correlator.apply([dataclasses.replace(first, end_ns=DAY)]) == []
    [change] = correlator.apply([dataclasses.replace(first, end_ns=2 * DAY)])
    assert change.new


def test_one_that_is_removed_covers_nothing_more() -> None:
    correlator, benign = closed(finding())
    [made] = benign.closing(correlator.open_incidents[0], 0, 1, "", "")  # the same scope, another time
    assert benign.removing(made.id, 3 * HOUR, "eve") is None
    [known] = benign._all.values()
    removed = benign.removing(known.id, 3 * HOUR, "eve")
    assert removed is not None
    benign.add([removed])
    assert benign.removing(known.id, 4 * HOUR, "eve") is None
    assert correlator.apply([finding(at_ns=3 * DAY)])[0].new


def test_one_survives_being_saved_as_json() -> None:
    correlator, benign = closed(finding(), account("account_compromise"))
    correlator.apply([finding(at_ns=3 * DAY)])
    states = json.loads(json.dumps([e.state() for e in benign._all.values()]))
    again = BenignList(map(Benign.from_state, states))
    assert [e.state() for e in again._all.values()] == [e.state() for e in benign._all.values()]
    assert again.covers(finding(at_ns=4 * DAY), None)
    assert again.made_from(correlator.open_incidents[0].id)


@pytest.mark.parametrize("state", [{}, {"users": 7}, {"users": [], "sources": None, "seen": [], "id": 1}])
def test_a_state_of_another_version_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Benign.from_state(state)


def test_names_that_look_like_passwords_are_masked_in_it() -> None:
    _, benign = closed(account("new_access", "Geheim#12"))
    [made] = benign._all.values()
    said = json.dumps(made.document(Mask(b"k"), 0))
    assert "Geheim" not in said
    assert made.document(Mask(b"k"), 0)["state"] == "in force"
    assert made.document(Mask(b"k"), 60 * DAY)["state"] == "expired"


def test_what_ended_long_ago_is_forgotten() -> None:
    correlator, benign = closed(finding())
    benign.forget(30 * DAY)
    assert len(benign) == 1
    benign.forget(90 * DAY)
    assert len(benign) == 0
    assert not benign.made_from(correlator.open_incidents[0].id)
