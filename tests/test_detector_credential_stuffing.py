"""Stuffing of a whole site by many sources: when it is raised, who takes part, and whose success it may have been."""

from __future__ import annotations

from typing import Any

import pytest
from gatewatch.daemon.events import NS_PER_S, Outcome
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.registry import SOURCE_DETECTORS, LoginDetection, login_detectors
from test_detector_distributed_brute_force import DAY, HOUR, stranger
from test_detectors_login import KEY, START, Event, batch_of, fail, kinds, login, numbered, run

KIND = "credential_stuffing"
HOTEL = "192.0.2.77"
PEOPLE = 60


def site(days: int = 4, until: float = 0) -> list[Event]:
    """People who log in four times a day from the office, until then; one in ten mistypes before."""
    events = []
    for day in range(days):
        for person in range(PEOPLE):
            for hour in (0, 3, 5, 8):
                at = until - (day + 1) * DAY + 8 * HOUR + hour * HOUR + 37 * person
                if (person + day + hour) % 10 == 0:
                    events.append(fail(at - 6, source="198.51.100.7", user=f"p{person}"))
                events.append(login(at, source="198.51.100.7", user=f"p{person}"))
    return events


def stuffing(count: int, gap: float = 5, start: float = 0, first: int = 0, **more: Any) -> list[Event]:
    """One try from each of so many strangers, over the people of the site in turn."""
    return [
        fail(start + gap * n, source=stranger(first + n), user=f"p{n % PEOPLE}", **more) for n in range(count)
    ]


def stuffed(found: dict[str, Finding]) -> Finding:
    (finding,) = [f for f in found.values() if f.kind == KIND]
    return finding


def silent(found: dict[str, Finding]) -> bool:
    return KIND not in kinds(found)


def test_six_hundred_strangers_with_one_try_each_are_raised_within_thirty() -> None:
    found = run([*site(), *stuffing(600)])
    assert kinds(found) == [KIND]
    finding = stuffed(found)
    assert (finding.entity_type, finding.entity) == ("site", "site")
    assert finding.time_ns <= (START + 30 * 5) * NS_PER_S
    assert finding.end_ns == (START + 599 * 5) * NS_PER_S
    assert finding.targets == ("sshd@gateway1",)
    assert finding.techniques == ("T1110.004",)
    assert finding.blockable == ()
    assert 0 < float(finding.figures["usual_in_100"]) < 3


def test_those_who_take_part_are_named_and_counted() -> None:
    finding = stuffed(run([*site(), *stuffing(600)]))
    assert len(finding.sources) == 32
    assert set(finding.sources) <= {stranger(n) for n in range(40)}
    assert set(finding.users) <= {f"p{n}" for n in range(PEOPLE)} and len(finding.users) == 32
    assert 500 < int(finding.figures["distinct_sources"]) < 720
    assert 50 < int(finding.figures["distinct_users"]) < 72
    assert 570 < int(finding.figures["attempts"]) <= 600


def test_a_site_that_nobody_attacks_raises_nothing() -> None:
    assert run(site(10)) == {}


def test_strangers_who_mistype_now_and_then_raise_nothing() -> None:
    """Four people a day are somewhere new and mistype before they get in."""
    away = [
        e
        for n in range(40)
        for e in (
            fail(-10 * DAY + n * 6 * HOUR, source=stranger(n), user=f"p{n}"),
            login(-10 * DAY + n * 6 * HOUR + 9, source=stranger(n), user=f"p{n}"),
        )
    ]
    assert silent(run([*site(10), *away]))


def test_one_account_alone_raises_nothing() -> None:
    one = [fail(5 * n, source=stranger(n), user="p3") for n in range(600)]
    assert kinds(run([*site(), *one])) == ["distributed_brute_force"]


def test_two_accounts_alone_raise_nothing() -> None:
    two = [fail(5 * n, source=stranger(n), user=f"p{n % 2}") for n in range(600)]
    assert silent(run([*site(), *two]))


def test_one_network_alone_raises_nothing() -> None:
    one = [fail(10 * n, source=f"203.0.113.{1 + n % 250}", user=f"p{n % PEOPLE}") for n in range(300)]
    assert silent(run([*site(), *one]))
    six = [fail(10 * n, source=f"2001:db8:9:{n:x}::1", user=f"p{n % PEOPLE}") for n in range(300)]
    assert silent(run([*site(), *six]))


def test_an_account_and_a_network_count_three_times_an_hour() -> None:
    """Four accounts from many networks, or many accounts from four networks, are enough; two are not."""
    for many, enough in ((2, False), (4, True)):
        of_accounts = [fail(3 * n, source=stranger(n), user=f"p{n % many}") for n in range(400)]
        of_networks = [
            fail(3 * n, source=f"203.0.{n % many}.{1 + n // 4}", user=f"p{n % PEOPLE}") for n in range(400)
        ]
        assert silent(run([*site(), *of_accounts])) is not enough
        assert silent(run([*site(), *of_networks])) is not enough


def test_failures_for_accounts_that_do_not_exist_raise_nothing() -> None:
    nobody = [
        fail(5 * n, source=stranger(n), user=f"nobody{n}", outcome=Outcome.INVALID_USER) for n in range(600)
    ]
    assert silent(run([*site(), *nobody]))


def test_who_tries_accounts_that_do_not_exist_takes_part_all_the_same() -> None:
    nobody = [
        fail(5 * n + 2, source=stranger(900 + n), user=f"nobody{n}", outcome=Outcome.INVALID_USER)
        for n in range(100)
    ]
    finding = stuffed(run([*site(), *stuffing(100), *nobody]))
    assert 160 < int(finding.figures["distinct_sources"]) < 240
    assert {stranger(900 + n) for n in range(12)} & set(finding.sources)
    assert any(user.startswith("nobody") for user in finding.users)


def test_names_that_strangers_try_everywhere_are_none_of_the_site() -> None:
    names = ["root", "admin", "test", "ubuntu", "oracle", "git"]
    noise = [fail(20 * n, source=stranger(n), user=names[n % 6]) for n in range(900)]
    assert silent(run([*site(), *noise]))


def hotel(*times: float, user: str = "p7") -> list[Event]:
    return [fail(at, source=HOTEL, user=user) for at in times]


def test_a_typist_who_gets_in_from_a_hotel_during_it_is_not_named() -> None:
    attack = [*site(), *stuffing(600)]
    assert HOTEL in stuffed(run([*attack, *hotel(12)])).sources
    typist = stuffed(run([*attack, *hotel(12), login(33, source=HOTEL, user="p7")]))
    assert HOTEL not in typist.sources
    assert len(typist.sources) == 31


def test_who_fails_for_one_user_again_and_again_during_it_is_not_named() -> None:
    attack = [*site(), *stuffing(600)]
    assert HOTEL in stuffed(run([*attack, *hotel(12, 20, 28)])).sources
    assert HOTEL not in stuffed(run([*attack, *hotel(12, 20, 28, 36, 44)])).sources


def test_the_jobs_and_the_people_of_the_site_are_not_named() -> None:
    during = [
        e for n in range(20) for e in (fail(40 * n, "198.51.100.7", f"p{n}"), fail(40 * n, "10.1.1.9", "p9"))
    ]
    assert set(stuffed(run([*site(), *stuffing(600), *during])).sources) <= {stranger(n) for n in range(600)}


def test_a_second_attack_is_a_finding_of_its_own() -> None:
    found = run([*site(), *stuffing(100), *site(3, 5 * DAY), *stuffing(100, start=5 * DAY, first=700)])
    both = sorted((f for f in found.values() if f.kind == KIND), key=lambda f: f.time_ns)
    assert len(both) == 2
    assert set(both[1].sources) <= {stranger(700 + n) for n in range(100)}
    assert both[0].end_ns < (START + DAY) * NS_PER_S < both[1].start_ns


def test_its_excess_is_an_option() -> None:
    events = [*site(), *stuffing(40)]
    assert not silent(run(events, detection=login_detectors({KIND: {"excess": 20}}, KEY)))
    assert silent(run(events, detection=login_detectors({KIND: {"excess": 60}}, KEY)))


def said(events: list[Event], *size: int) -> list[tuple[bool, bool]]:
    """Of each row, in the order of time: whether it is of the attack, and whether that is said of a success."""
    detection = login_detectors({}, KEY)
    found: list[tuple[bool, bool]] = []
    rows = numbered(events)
    for start in range(0, len(rows), *(size or (len(rows),))):
        part = rows[start : start + size[0]] if size else rows
        attempts = _with_convicted(detection, part)
        followed = detection._detectors[KIND].follow(attempts)[0]
        found += zip((followed.serial > 0).tolist(), followed.live.tolist(), strict=True)
    return found


def _with_convicted(detection: LoginDetection, rows: list[Event]) -> Any:
    attempts = detection._stage.update(batch_of(rows))
    serials = [detection._detectors[name].follow(attempts)[0].serial for name in SOURCE_DETECTORS]
    return attempts.with_convicted(sum(serials) > 0)


def test_a_success_of_a_participant_who_had_tried_another_account_is_said_to_be_of_it() -> None:
    hit = login(601, source=stranger(20), user="p50")
    assert said([*site(), *stuffing(120), hit])[-1] == (True, True)


@pytest.mark.parametrize("size", [1, 13])
def test_a_success_is_judged_alike_however_events_come(size: int) -> None:
    events = [*site(2), *stuffing(120), login(601, source=stranger(20), user="p50")]
    assert said(events, size) == said(events)


def test_a_success_of_who_had_tried_that_account_alone_is_of_nobody() -> None:
    """A new user, at the first login: that is what a typist in a hotel does."""
    attack = [*site(), *stuffing(120)]
    typist = [fail(590, source=HOTEL, user="new"), login(601, source=HOTEL, user="new")]
    assert said([*attack, *typist])[-1] == (False, False)


def test_a_success_after_a_slip_of_the_name_is_of_nobody() -> None:
    slip = [
        fail(590, source=HOTEL, user="nwe", outcome=Outcome.INVALID_USER),
        login(601, source=HOTEL, user="new"),
    ]
    assert said([*site(), *stuffing(120), *slip])[-1] == (False, False)


def test_a_second_success_from_a_participant_is_of_nobody() -> None:
    """From where somebody gets in, others may: whoever was taken is told of by the first."""
    hits = [login(601, source=stranger(20), user="new"), login(640, source=stranger(20), user="newer")]
    assert said([*site(), *stuffing(120), *hits])[-2:] == [(True, True), (False, False)]


def test_a_known_user_from_elsewhere_is_told_of_while_it_is_intense() -> None:
    elsewhere = login(601, source=HOTEL, user="p50")
    assert said([*site(), *stuffing(120), elsewhere])[-1] == (True, True)
    assert said([*site(), *stuffing(120), login(601, source=HOTEL, user="new")])[-1] == (False, False)
    assert said([*site(), *stuffing(120), login(601, source="198.51.100.9", user="p50")])[-1] == (
        False,
        False,
    )


def test_a_known_user_from_elsewhere_is_of_nobody_once_it_is_over() -> None:
    later = [*site(), *stuffing(120), *site(2, 3 * DAY)]
    assert said([*later, login(3 * DAY, source=HOTEL, user="p50")])[-1] == (False, False)


def mixed() -> list[Event]:
    nobody = [
        fail(5 * n + 2, source=stranger(900 + n), user=f"nobody{n}", outcome=Outcome.INVALID_USER)
        for n in range(40)
    ]
    typist = [*hotel(12, 20), login(33, source=HOTEL, user="p7")]
    return [*site(2), *stuffing(150), *nobody, *typist, *stuffing(60, start=9000, gap=200, first=500)]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_do_not_matter(size: int) -> None:
    whole = run(mixed())
    assert KIND in kinds(whole)
    assert run(mixed(), size) == whole


@pytest.mark.parametrize("middle", [300, 525, 560, 640, 720])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(middle: int) -> None:
    rows = numbered(mixed())
    straight, resumed = login_detectors({}, KEY), login_detectors({}, KEY)
    straight.update(batch_of(rows[:middle]))
    resumed.load(straight.save())
    rest = batch_of(rows[middle:])
    found = straight.update(rest)
    assert found and resumed.update(rest) == found
