"""A login to an account while many sources guess it, or the whole site: whose it is said to be, and whose not."""

from __future__ import annotations

from typing import Any

import pytest
from gatewatch.daemon.events import NS_PER_S
from gatewatch.daemon.incidents import priority_of
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.registry import login_detectors
from test_detector_credential_stuffing import PEOPLE, site, stuffing
from test_detector_distributed_brute_force import DAY, HOUR, guesses
from test_detectors_login import KEY, START, Event, batch_of, fail, kinds, login, numbered, only, run

KIND = "account_compromise"
HOME, NEVER_SEEN = "192.0.2.7", "203.0.113.200"


def at_home(user: str = "ann", source: str = HOME, days: int = 8) -> list[Event]:
    """A user who logs in twice a day from one place, by password."""
    return [
        login(-day * DAY + hour * HOUR, source=source, user=user, method="password")
        for day in range(1, days + 1)
        for hour in (8, 13)
    ]


def enters(at: float = 2000, source: str = NEVER_SEEN, user: str = "ann", **more: Any) -> Event:
    return login(at, source=source, user=user, **{"method": "password", **more})


def guessed(*more: Event, before: list[Event] | None = None, **options: Any) -> dict[str, Finding]:
    """Forty strangers guess her account within forty minutes, beside what is given."""
    return run([*(at_home() if before is None else before), *guesses(40, **options), *more])


def silent(found: dict[str, Finding]) -> bool:
    return KIND not in kinds(found)


def test_a_login_by_password_from_a_network_never_seen_is_raised_on_that_very_event() -> None:
    finding = only(guessed(enters()), KIND)
    assert finding.time_ns == (START + 2000) * NS_PER_S
    assert (finding.entity_type, finding.entity, finding.users) == ("user", "ann", ("ann",))
    assert finding.sources == (NEVER_SEEN,)
    assert "while strangers guess the account" in finding.threshold
    assert finding.severity >= 90 and finding.confidence > 0.8
    assert finding.blockable == ()  # anybody can have an account guessed while its user travels
    assert finding.figures["successes"] == 1
    assert 30 <= int(finding.figures["failures_before"]) <= 40
    assert finding.figures["failures_of_user"] == 0
    assert finding.techniques == ("T1078", "T1110")


def test_it_says_of_which_attack_it_is_part() -> None:
    assert only(guessed(enters()), KIND).part_of == ("distributed_brute_force",)
    source = [fail(n, source=NEVER_SEEN, user="ann") for n in range(12)]
    assert only(run([*source, enters(20)]), KIND).part_of == ()


def test_it_names_that_login_and_no_other() -> None:
    rows = numbered([*at_home(), *guesses(40), enters()])
    (line,) = [row["line"] for row in rows if row.get("source") == NEVER_SEEN]
    assert only(guessed(enters()), KIND).lines == (line,)


@pytest.mark.parametrize("method", ["keyboard-interactive/pam", "password", ""])
def test_what_a_guesser_may_have_used_is_raised(method: str) -> None:
    assert not silent(guessed(enters(method=method)))


def test_a_login_by_key_is_none() -> None:
    assert silent(guessed(enters(method="publickey")))


def test_a_login_from_a_private_network_is_none() -> None:
    assert silent(guessed(enters(source="10.4.4.4")))


@pytest.mark.parametrize("source", [HOME, "192.0.2.99", "192.0.77.99"], ids=["address", "neighbour", "range"])
def test_a_login_from_where_the_user_usually_is_is_none(source: str) -> None:
    assert silent(guessed(enters(source=source)))


def test_a_login_from_a_range_of_the_user_since_this_morning_is_none() -> None:
    """It is not usual at the site yet, but it was settled for her an hour after she first came from there."""
    there = [enters(-4 * HOUR, "198.18.5.5"), enters(-2 * HOUR, "198.18.5.5")]
    assert silent(guessed(enters(source="198.18.99.99"), before=[*at_home(), *there]))
    assert not silent(guessed(enters(source="198.19.99.99"), before=[*at_home(), *there]))


def test_a_login_from_a_range_that_is_usual_at_the_site_is_none() -> None:
    colleagues = [e for n in range(6) for e in at_home(f"p{n}", f"203.0.114.{n + 1}", 3)]
    assert silent(guessed(enters(), before=[*at_home(), *colleagues]))


def test_a_login_from_where_two_others_log_in_is_none() -> None:
    others = [e for n in range(2) for e in at_home(f"p{n}", NEVER_SEEN, 1)]
    assert silent(guessed(enters(), before=[*at_home(), *others]))


def test_a_login_of_a_user_never_seen_before_is_none() -> None:
    """A new account is guessed like any other, and its user's first login is from somewhere new."""
    assert silent(guessed(enters(), before=[]))


def test_a_user_who_is_everywhere_is_not_accused() -> None:
    """Every second login from a network never seen: one more says nothing."""
    roams = [
        login(
            -8 * DAY + n * 4 * HOUR,
            source=f"{101 + n}.9.9.9" if n % 2 else HOME,
            user="ann",
            method="password",
        )
        for n in range(40)
    ]
    strangers = guesses(60, gap=20)
    assert silent(run([*roams, *strangers, enters(1300)]))
    assert not silent(run([*at_home(), *strangers, enters(1300)]))


def test_a_login_before_the_attack_or_long_after_is_none() -> None:
    assert silent(guessed(enters(-60)))
    assert silent(guessed(enters(30), first=0))
    assert silent(guessed(enters(2400 + 8 * HOUR)))


def test_a_login_an_hour_after_the_last_guess_is_raised() -> None:
    assert not silent(guessed(enters(2400 + 1500)))


def test_a_burst_is_over_an_hour_after_its_last_guess() -> None:
    assert silent(guessed(enters(2400 + 2 * HOUR)))


def test_slow_guessing_is_over_six_hours_after_its_last_guess() -> None:
    """Twenty strangers in fifteen hours."""
    for hours, over in ((3, False), (7, True)):
        entered = enters(19 * 2700 + hours * HOUR)
        assert silent(run([*at_home(), *guesses(20, gap=2700), entered])) is over


def test_a_login_to_another_account_is_none() -> None:
    assert silent(guessed(enters(user="bob"), before=[*at_home(), *at_home("bob", "192.0.2.8")]))


def test_a_traveller_who_mistypes_once_is_accused_all_the_same_and_the_finding_says_why() -> None:
    """It looks like a guesser who gets in; that strangers guess the account just then is what an analyst reads."""
    finding = only(guessed(fail(1990, source=NEVER_SEEN, user="ann"), enters()), KIND)
    assert finding.figures["failures_of_user"] == 1


def test_a_login_during_stuffing_from_who_had_tried_another_account_is_part_of_it() -> None:
    attack = stuffing(150)
    hit = login(700, source=attack[20]["source"], user="p50", method="password")
    finding = only(run([*site(), *attack, hit]), KIND)
    assert finding.part_of == ("credential_stuffing",)
    assert (finding.users, finding.sources) == (("p50",), (attack[20]["source"],))
    assert finding.time_ns == (START + 700) * NS_PER_S


def test_the_people_of_the_site_go_on_logging_in_during_stuffing() -> None:
    during = [login(300 + 5 * n, source="198.51.100.7", user=f"p{n}") for n in range(PEOPLE)]
    assert silent(run([*site(), *stuffing(300), *during]))


def test_a_new_user_who_mistypes_first_during_stuffing_is_not_accused() -> None:
    typist = [fail(590, source=NEVER_SEEN, user="new"), enters(601, user="new")]
    assert silent(run([*site(), *stuffing(300), *typist]))


def office(days: int = 3, people: int = 12) -> list[Event]:
    return [
        login(-day * DAY + 9 * HOUR + 60 * n, source="198.51.100.7", user=f"p{n}")
        for day in range(1, days + 1)
        for n in range(people)
    ]


def inside(first: int, last: int) -> list[Event]:
    """Somebody in the office guesses the password of a colleague, at two seconds a try."""
    return [fail(2 * n, source="198.51.100.7", user="p3") for n in range(first, last)]


def test_guessing_from_an_office_that_goes_on_after_the_login_takes_the_accusation_back() -> None:
    own = login(89, source="198.51.100.7", user="p3")
    taken = only(run([*office(), *inside(0, 45), own]), KIND)
    assert priority_of(taken.severity, taken.confidence) not in ("info", "low")
    few = only(run([*office(), *inside(0, 47), own]), KIND)
    assert few.confidence == taken.confidence
    back = only(run([*office(), *inside(0, 80), own]), KIND)
    assert back.id == taken.id
    assert priority_of(back.severity, back.confidence) in ("info", "low")
    assert "the guessing went on afterwards" in back.baseline


def test_a_guesser_who_goes_on_from_a_source_of_its_own_takes_nothing_back() -> None:
    hit = login(30, source=NEVER_SEEN, user="ann")
    again = [fail(2 * n, source=NEVER_SEEN, user="ann") for n in range(60)]
    assert only(run([*again, hit]), KIND).confidence > 0.9


def mixed() -> list[Event]:
    wide = [*site(2), *stuffing(150, start=5000), login(5700, source=stuffing(21)[20]["source"], user="p50")]
    home = [*at_home("p3", "198.51.100.7", 2), login(6000, source="198.51.100.7", user="p3")]
    attack = [{**e, "at": e["at"] + 5900} for e in inside(0, 90)]
    return [*wide, *at_home(), *guesses(40), enters(), *home, *attack]


@pytest.mark.parametrize("size", [1, 11, 120])
def test_batches_do_not_matter(size: int) -> None:
    whole = run(mixed())
    assert kinds(whole).count(KIND) >= 3
    assert run(mixed(), size) == whole


@pytest.mark.parametrize("middle", [500, 540, 620, 700])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(middle: int) -> None:
    rows = numbered(mixed())
    straight, resumed = login_detectors({}, KEY), login_detectors({}, KEY)
    straight.update(batch_of(rows[:middle]))
    resumed.load(straight.save())
    rest = batch_of(rows[middle:])
    found = straight.update(rest)
    assert found and resumed.update(rest) == found
