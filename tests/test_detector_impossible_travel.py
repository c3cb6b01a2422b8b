"""Impossible travel: between which places, how fast, and whose two places are nobody's concern."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from gatewatch.daemon.incidents import priority_of
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.login.impossible_travel import great_circle_km
from gatewatch.detectors.profiles import Place, packed
from gatewatch.detectors.registry import login_detectors
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_detectors_login import KEY, Event, batch_of, login, numbered

MINUTE, HOUR, DAY = 60, 3600, 86_400

PLACES = {
    "berlin": (52.52, 13.40),
    "hamburg": (53.55, 9.99),
    "madrid": (40.42, -3.70),
    "new york": (40.71, -74.01),
    "hanoi": (21.03, 105.85),
    "suva": (-18.14, 178.44),
    "apia": (-13.83, -171.77),
}
SOURCES = {
    "91.33": ("berlin", 64501),
    "93.40": ("hamburg", 64501),
    "95.7": ("hamburg", 64520),
    "185.7": ("madrid", 64502),
    "44.1": ("new york", 64503),
    "14.160": ("hanoi", 64504),
    "103.9": ("hanoi", 64505),
    "113.1": ("hanoi", 64506),
    "118.2": ("hanoi", 64507),
    "202.1": ("suva", 64508),
    "203.2": ("apia", 64509),
    "44.9": ("new york", 64501),
    "2a0a:1": ("hanoi", 64510),
}
HOME = "91.33.0.1"


class Database:
    """Places by the first two numbers of an address."""

    def __init__(self, accuracy: int = 20) -> None:
        self.accuracy = accuracy

    def columns(self, address, family):  # type: ignore[no-untyped-def]
        import numpy as np

        places = np.zeros((len(address), 4), np.int64)
        systems = np.zeros(len(address), np.int64)
        for at, ((high, low), six) in enumerate(zip(address.tolist(), (family == 6).tolist(), strict=True)):
            prefix = f"{high >> 48:x}:{high >> 32 & 0xFFFF:x}" if six else f"{low >> 24}.{low >> 16 & 255}"
            if prefix in SOURCES:
                name, systems[at] = SOURCES[prefix]
                latitude, longitude = PLACES[name]
                network = high if six else low
                where = packed(round(latitude * 1e4), round(longitude * 1e4))
                places[at] = where, self.accuracy, network, 6 if six else 4
        return np.zeros(len(address), np.int64), systems, places


def days_at(source: str, user: str = "ann", days: int = 3) -> list[Event]:
    return [login(day * DAY + hour * HOUR, source, user) for day in range(days) for hour in (9, 12, 15)]


def found(events: Iterable[Event], database: Database | None = None, size: int = 10**9) -> list[Finding]:
    detection, last = login_detectors({}, KEY, database or Database()), {}
    rows = numbered(events)
    for start in range(0, len(rows), size):
        for finding in detection.update(batch_of(rows[start : start + size])):
            last[finding.id] = finding
    return [f for f in last.values() if f.kind == "impossible_travel"]


def priority(findings: list[Finding]) -> list[str]:
    return [priority_of(f.severity, f.confidence) for f in findings]


def test_home_and_another_continent_within_the_hour_is_medium_on_the_very_event() -> None:
    (finding,) = found([*days_at(HOME), login(2 * DAY + 16 * HOUR, "14.160.1.1", "ann")])
    assert priority([finding]) == ["medium"]
    assert (finding.entity_type, finding.entity) == ("user", "ann")
    assert finding.sources == finding.blockable == ("14.160.1.1",)
    assert finding.time_ns == (1_700_000_000 + 2 * DAY + 16 * HOUR) * 10**9
    assert finding.figures["distance"] == "8288 km"
    assert finding.figures["time"] == "60 min"
    assert finding.techniques == ("T1078",)
    assert finding.threshold == "farther than 1000 km/h reach, and at least 500 km"


def test_an_airliner_is_no_finding() -> None:
    flight = login(2 * DAY + 15 * HOUR + 8.4 * HOUR, "14.160.1.1", "ann")
    assert found([*days_at(HOME), flight]) == []
    assert len(found([*days_at(HOME), {**flight, "at": flight["at"] - 0.2 * HOUR}])) == 1


def test_less_than_five_hundred_kilometres_is_never_a_finding() -> None:
    assert found([*days_at(HOME), login(2 * DAY + 15 * HOUR + 1, "93.40.1.1", "ann")]) == []


def test_places_that_are_not_exact_are_given_the_benefit() -> None:
    events = [*days_at(HOME), login(2 * DAY + 15 * HOUR + 30 * MINUTE, "185.7.1.1", "ann")]
    assert len(found(events, Database(50))) == 1
    assert found(events, Database(700)) == []


def test_the_date_line_is_no_distance() -> None:
    assert found([*days_at("202.1.1.1"), login(2 * DAY + 17 * HOUR, "203.2.1.1", "ann")]) == []


def test_offices_and_vpn_exits_of_the_site_are_no_finding() -> None:
    colleagues = [event for n in range(5) for event in days_at("44.1.0.1", f"user{n}")]
    assert found([*days_at(HOME), *colleagues, login(2 * DAY + 15.5 * HOUR, "44.1.0.1", "ann")]) == []


def test_a_phone_of_the_users_own_provider_is_no_finding() -> None:
    assert found([*days_at(HOME), login(2 * DAY + 15.5 * HOUR, "44.9.0.1", "ann")]) == []


def test_whoever_stays_is_told_once() -> None:
    both = [login(2 * DAY + (15.2 + n / 10) * HOUR, ("14.160.1.1", HOME)[n % 2], "ann") for n in range(9)]
    (finding,) = found([*days_at(HOME), *both])
    assert finding.sources == ("14.160.1.1",)
    assert finding.figures["jumps"] == 9


def test_the_stranger_is_named_where_the_user_comes_after() -> None:
    def night(hours: float) -> list[Event]:
        return [
            *days_at(HOME),
            login(3 * DAY + 4 * HOUR, "2a0a:1:2:3::9", "ann"),
            login(3 * DAY + 4 * HOUR + hours * HOUR, HOME, "ann"),
        ]

    (finding,) = found(night(0.9))
    assert finding.sources == ("2a0a:1:2:3::/64",)
    assert finding.blockable == ()
    assert found(night(1.5)) == []


def test_a_user_of_a_vpn_is_low_from_the_fourth_exit_on() -> None:
    exits = ("14.160.1.1", "103.9.1.1", "113.1.1.1", "118.2.1.1")
    events = days_at(HOME)
    for n, source in enumerate(exits):
        events += [
            login((3 + 2 * n) * DAY, HOME, "ann"),
            login((3 + 2 * n) * DAY + 10 * MINUTE, source, "ann"),
        ]
    findings = sorted(found(events), key=lambda f: f.time_ns)
    assert priority(findings) == ["medium"] * 3 + ["low"]
    assert "a VPN looks like this" in findings[3].baseline
    assert findings[3].blockable == ()


def test_an_unknown_place_between_two_is_passed_over() -> None:
    unplaced = login(2 * DAY + 15.2 * HOUR, "10.0.0.1", "ann")
    assert len(found([*days_at(HOME), unplaced, login(2 * DAY + 15.4 * HOUR, "14.160.1.1", "ann")])) == 1


def test_a_stranger_in_between_accuses_no_new_network_of_the_user() -> None:
    stranger = login(2 * DAY + 15.5 * HOUR, "14.160.1.1", "ann")
    phone = login(2 * DAY + 16 * HOUR, "95.7.1.1", "ann")
    (finding,) = found([*days_at(HOME), stranger, phone])
    assert finding.sources == ("14.160.1.1",)


def test_an_account_whose_first_two_logins_are_far_apart_is_raised() -> None:
    assert len(found([login(0, HOME, "new"), login(HOUR, "14.160.1.1", "new")])) == 1


def test_a_failure_travels_nowhere() -> None:
    failed = {**login(2 * DAY + 15.2 * HOUR, "14.160.1.1", "ann"), "outcome": 2}
    assert found([*days_at(HOME), failed]) == []


def test_without_a_database_nothing_is_said() -> None:
    detection = login_detectors({}, KEY)
    events = numbered([*days_at(HOME), login(2 * DAY + 15.5 * HOUR, "14.160.1.1", "ann")])
    assert [f for f in detection.update(batch_of(events)) if f.kind == "impossible_travel"] == []


@pytest.mark.parametrize(
    ("first", "second", "km"),
    [
        ("berlin", "hanoi", 8328),
        ("berlin", "berlin", 0),
        ("suva", "apia", 1140),
        ("new york", "madrid", 5768),
    ],
)
def test_distances_are_those_of_great_circles(first: str, second: str, km: int) -> None:
    latitude, longitude = (round(x * 1e4) for x in PLACES[first])
    place = Place(latitude, longitude, 0, 0, 4, 1, 0)
    measured = great_circle_km(place, *(round(x * 1e4) for x in PLACES[second]))
    assert measured == pytest.approx(km, rel=0.01, abs=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 60, 1800, 4000, 9000, 50_000]),
            st.sampled_from([f"{p}.1.{n}" for p in ("91.33", "44.1", "14.160", "202.1") for n in (1, 2)]),
            st.sampled_from(["ann", "bob"]),
        ),
        min_size=4,
        max_size=40,
    ),
    st.integers(1, 9),
    st.integers(0, 40),
)
def test_findings_depend_neither_on_batches_nor_on_a_restart(
    drawn: list[tuple[int, str, str]], size: int, stop: int
) -> None:
    at, events = 0, []
    for gap, source, user in drawn:
        at += gap
        events.append(login(at, source, user))
    rows = numbered(events)
    straight = {f.id: f for f in login_detectors({}, KEY, Database()).update(batch_of(rows))}
    detection, last = login_detectors({}, KEY, Database()), {}
    for start in range(0, len(rows), size):
        if start >= stop:
            resumed = login_detectors({}, KEY, Database())
            resumed.load(detection.save())
            detection = resumed
        for finding in detection.update(batch_of(rows[start : start + size])):
            last[finding.id] = finding
    assert last == straight


def test_its_state_is_bounded_whoever_travels() -> None:
    detection = login_detectors({"impossible_travel": {"users": 64}}, KEY, Database())
    events = [
        login(n * MINUTE, ("91.33", "14.160")[n % 2] + f".{n % 250}.1", f"user{n // 2}") for n in range(6000)
    ]
    detection.update(batch_of(numbered(events)))
    saved = detection.save()["impossible_travel"]
    assert len(saved["journeys"]["table"]["at"]) <= 64
    assert len(saved["journeys"]["at"]) <= 16
    assert len(saved["strangers"]["at"]) <= 64
