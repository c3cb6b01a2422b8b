"""New access: what is raised, at which weight, and the travellers, roamers, jobs and new networks that are not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.events import I64, NS_PER_S, U8, U64
from gatewatch.daemon.incidents import priority_of
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.profiles import packed
from gatewatch.detectors.registry import LoginDetection, login_detectors
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_detectors_login import KEY, Event, batch_of, login, numbered

HOUR, DAY = 3600, 86_400
MIDNIGHT = -1_700_000_000 % DAY - DAY
"""`at` of a midnight (UTC) before the START of the other tests."""
HOME, OFFICE, CAFE, ABROAD, ATTACKER = "91.33.0.1", "217.86.0.1", "109.40.7.7", "42.24.0.9", "141.98.1.1"
COUNTRIES = {91: ("DE", 1), 217: ("DE", 2), 109: ("DE", 3), 42: ("GB", 4), 141: ("VN", 5), 143: ("VN", 6)}


class Places:
    """A database by the first number of an IPv4 address."""

    def columns(self, address: U64, family: U8) -> tuple[I64, I64, I64]:
        found = [COUNTRIES.get(int(low) >> 24) for low in address[:, 1]]
        country = np.array([ord(f[0][0]) << 8 | ord(f[0][1]) if f else 0 for f in found], np.int64)
        places = np.zeros((len(found), 4), np.int64)
        for at, f in enumerate(found):
            if f:
                places[at] = packed(500_000 + 20_000 * f[1], 100_000), 50, int(address[at, 1]), 4
        return country, np.array([64500 + f[1] if f else 0 for f in found], np.int64), places


def when(day: int, hour: float) -> float:
    return MIDNIGHT + day * DAY + hour * HOUR


def site(days: int = 3, people: int = 30, method: str = "publickey", user: str = "ann") -> list[Event]:
    """Working days of `user` and others, from office and home."""
    events = []
    for day in range(days):
        for n in range(people):
            name = user if n == 0 else f"user{n}"
            for k, hour in enumerate((8.5, 10, 11.5, 14, 16.5)):
                source = OFFICE if n % 2 == 0 else f"91.33.0.{n}"
                events.append(login(when(day, hour) + n * 7 + k, source, name, method=method))
            if n % 3 == 0:
                events.append(login(when(day, 21) + n * 7, f"91.33.0.{n + 1}", name, method=method))
    return events


def found(events: Iterable[Event], *, places: bool = True, size: int = 10**9) -> list[Finding]:
    """What the detector raised last."""
    detection = login_detectors({}, KEY, Places() if places else None)
    rows, last = numbered(events), {}
    for start in range(0, len(rows), size):
        for finding in detection.update(batch_of(rows[start : start + size])):
            last[finding.id] = finding
    return [f for f in last.values() if f.kind == "new_access"]


def priority(findings: list[Finding]) -> list[str]:
    return [priority_of(f.severity, f.confidence) for f in findings]


def test_at_night_from_where_nobody_works_is_medium_on_that_very_event() -> None:
    at = when(3, 2.5)
    (finding,) = found([*site(), login(at, ATTACKER, "ann", method="publickey")])
    assert priority([finding]) == ["medium"]
    assert (finding.entity_type, finding.entity) == ("user", "ann")
    assert finding.time_ns == int((1_700_000_000 + at) * NS_PER_S)
    assert finding.sources == (ATTACKER,)
    assert finding.users == ("ann",)
    assert finding.targets == ("sshd@gateway1",)
    assert finding.techniques == ("T1078",)
    assert finding.blockable == (ATTACKER,)
    assert finding.figures["successes"] == 1
    assert finding.figures["new"] == (
        "network; range, for everybody here; country VN, for everybody here; AS64505, for everybody here; hour 02 UTC"
    )
    assert finding.baseline.startswith("18 logins of this user since 2023-11-1")


def test_without_a_database_the_range_stands_for_the_country() -> None:
    (finding,) = found([*site(), login(when(3, 2.5), ATTACKER, "ann", method="publickey")], places=False)
    assert priority([finding]) == ["medium"]
    assert finding.figures["new"] == "network; range, for everybody here; hour 02 UTC"


@pytest.mark.parametrize("places", [True, False])
def test_a_travellers_hotel_is_one_low_finding_and_nothing_blockable(places: bool) -> None:
    stay = [
        login(when(day, hour), ABROAD, "ann", method="publickey")
        for day in (3, 4)
        for hour in (9, 9.5, 12, 15)
    ]
    findings = found([*site(), *stay], places=places)
    assert priority(findings) == ["low"]
    assert findings[0].figures["successes"] == 2
    assert findings[0].blockable == ()


def test_a_travellers_return_home_is_nothing() -> None:
    stay = [login(when(day, hour), ABROAD, "ann", method="publickey") for day in (3, 4) for hour in (9, 15)]
    back = [login(when(5, hour), HOME, "ann", method="publickey") for hour in (2, 9, 20)]
    assert len(found([*site(), *stay, *back])) == 1


@pytest.mark.parametrize("places", [True, False])
def test_a_password_where_a_key_is_usual_is_medium(places: bool) -> None:
    (finding,) = found([*site(), login(when(3, 11), ATTACKER, "ann", method="password")], places=places)
    assert priority([finding]) == ["medium"]
    assert "method password" in str(finding.figures["new"])


def test_a_password_from_a_new_network_of_a_known_range_is_low() -> None:
    assert priority(found([*site(), login(when(3, 11), "91.33.77.1", "ann", method="password")])) == ["low"]


def test_a_password_from_the_office_or_by_whoever_uses_them_is_nothing() -> None:
    assert found([*site(), login(when(3, 11), OFFICE, "ann", method="password")]) == []
    assert found([*site(method="password"), login(when(3, 11), "91.33.77.1", "ann", method="password")]) == []


def test_a_key_where_there_was_never_one_is_medium() -> None:
    planted = login(when(3, 11), ATTACKER, "ann", method="publickey")
    assert priority(found([*site(method="password"), planted])) == ["medium"]
    usual = login(when(3, 11), ATTACKER, "ann", method="password")
    assert priority(found([*site(method="password"), usual])) == ["low"]


def test_a_new_network_of_a_known_provider_is_nothing_at_any_hour() -> None:
    night = [login(when(3, hour), "91.33.200.9", "ann", method="publickey") for hour in (2, 3, 4)]
    assert found([*site(), *night]) == []


def test_a_night_at_home_is_nothing() -> None:
    assert found([*site(), login(when(3, 3), "91.33.0.1", "ann", method="publickey")]) == []


def test_new_users_and_users_of_few_logins_are_not_judged() -> None:
    assert found([*site(), login(when(3, 2), ATTACKER, "new", method="password")]) == []
    few = [login(when(1, h), OFFICE, "new", method="publickey") for h in (9, 10, 11)]
    assert found([*site(), *few, login(when(3, 2), ATTACKER, "new", method="password")]) == []
    fresh = [login(when(3, h), OFFICE, "new", method="publickey") for h in (9, 10, 11, 12)]
    assert found([*site(), *fresh, login(when(3, 15), ATTACKER, "new", method="password")]) == []


def test_nobody_is_judged_on_the_sites_first_day() -> None:
    assert found([*site(days=1), login(when(1, 3), ATTACKER, "ann", method="password")]) == []
    assert len(found([*site(days=1), login(when(1, 11), ATTACKER, "ann", method="password")])) == 1


def test_a_runner_with_a_new_cloud_address_each_time_is_at_most_one_low_finding() -> None:
    runs = [
        login(when(0, 0.7 * n), f"154.7.{n % 250}.{n * 13 % 250}", "ci", method="publickey")
        for n in range(200)
    ]
    assert len(found([*site(days=6), *runs])) == 0
    other = [login(when(6, 3 + n), f"155.7.{n}.9", "ci", method="publickey") for n in range(5)]
    assert priority(found([*site(days=6), *runs, *other])) == ["low"]


def test_a_user_who_changes_ranges_all_the_time_is_soon_left_alone() -> None:
    runs = [login(when(0, n), f"{20 + n}.7.1.1", "ci", method="publickey") for n in range(100)]
    assert len(found([*site(days=5), *runs], places=False)) <= 4


def test_two_stolen_passwords_from_one_range_do_not_vouch_for_a_third() -> None:
    thefts = [
        login(when(3, 1.5) + 60 * n, f"141.98.{n}.1", f"user{n}", method="publickey") for n in range(1, 20)
    ]
    assert priority(found([*site(), *thefts], places=False)) == ["medium"] * 19


def test_an_api_key_from_a_strange_network_is_judged_as_a_user() -> None:
    def request(at: float, source: str) -> Event:
        return login(at, source, user="", key="key-7", status=200, method="")

    events = [request(when(day, hour), "91.33.3.3") for day in range(3) for hour in (9, 10, 12, 15)]
    (finding,) = found([*site(), *events, request(when(3, 2), ATTACKER)])
    assert finding.entity == "key-7"
    assert priority([finding]) == ["medium"]


ROWS: list[Event] = [
    *site(people=12),
    *(login(when(3, h), ATTACKER, "ann", method="password") for h in (2, 2.2, 2.4)),
    *(login(when(3, h), ABROAD, "user3", method="publickey") for h in (9, 9.3, 15)),
    *(login(when(3, h), f"91.33.{80 + h}.8", "user6", method="password") for h in (9, 10, 15)),
]


@settings(max_examples=10, deadline=None)
@given(st.integers(5, 200), st.integers(0, 200))
def test_findings_depend_neither_on_batches_nor_on_a_restart(size: int, stop: int) -> None:
    rows = numbered(ROWS)
    straight: dict[str, Finding] = {}
    for finding in login_detectors({}, KEY, Places()).update(batch_of(rows)):
        straight[finding.id] = finding
    assert len(straight) == 5
    detection, last = login_detectors({}, KEY, Places()), {}
    for start in range(0, len(rows), size):
        if start >= stop:
            resumed: LoginDetection = login_detectors({}, KEY, Places())
            resumed.load(detection.save())
            detection, stop = resumed, 10**9
        for finding in detection.update(batch_of(rows[start : start + size])):
            last[finding.id] = finding
    assert last == straight


def test_its_state_is_bounded_whoever_logs_in() -> None:
    detection = login_detectors({"new_access": {"users": 64}}, KEY)
    detection.update(batch_of(numbered(site())))
    events: list[Any] = [
        login(when(3, 2) + n, f"{20 + n % 100}.{n % 200}.1.{n % 250}", f"user{n % 29 + 1}", method="password")
        for n in range(3000)
    ]
    detection.update(batch_of(numbered(events)))
    saved = detection.save()["new_access"]["campaigns"]
    assert len(saved["table"]["at"]) <= 64
    assert len(saved["at"]) <= 16
