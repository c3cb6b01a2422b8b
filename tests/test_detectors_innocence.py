"""Who is not accused: jobs that nobody looks after, and good users of an address that somebody attacks from."""

from __future__ import annotations

from typing import Any

import pytest
from gatewatch.daemon.events import Outcome
from gatewatch.daemon.incidents import priority_of
from gatewatch.detectors.finding import Finding
from test_detectors_login import Event, fail, kinds, login, only, run

HOUR, DAY = 3600, 86_400


def priority(finding: Finding) -> str:
    return priority_of(finding.severity, finding.confidence)


def job(period: float, count: int, **more: Any) -> list[Event]:
    """Failures at a fixed period, with the second or two that a busy machine adds."""
    return [fail(period * n + n * 7 % 3, **more) for n in range(count)]


def test_a_script_for_a_deleted_account_is_one_low_incident_and_never_a_block() -> None:
    script = job(1200, 300, source="91.33.4.5", user="partner-sftp", outcome=Outcome.INVALID_USER)
    finding = only(run(script), "brute_force")
    assert priority(finding) == "low"
    assert finding.blockable == ()
    assert "a job that nobody looks after" in finding.baseline


def test_a_job_inside_that_fails_at_a_fixed_period_is_low_whoever_it_is() -> None:
    finding = only(run(job(300, 60, source="10.20.9.9", user="rsync")), "brute_force")
    assert (priority(finding), finding.blockable) == ("low", ())


def test_guessing_at_a_fixed_period_from_outside_is_no_job() -> None:
    finding = only(run(job(180, 60, source="203.0.113.9", user="ann")), "brute_force")
    assert priority(finding) == "medium"
    assert finding.blockable == ("203.0.113.9",)


def test_guessing_a_popular_name_at_a_fixed_period_is_no_job_though_there_is_no_such_account() -> None:
    guessing = job(180, 120, source="203.0.113.9", user="admin", outcome=Outcome.INVALID_USER)
    assert priority(only(run(guessing), "brute_force")) == "medium"


def test_guessing_from_inside_without_a_period_is_no_job() -> None:
    times = [0, 170, 420, 480, 700, 1100, 1190, 1500, 1580, 2000, 2100, 2550, 2600, 3000]
    finding = only(run([fail(t, source="10.20.9.9", user="ann") for t in times]), "brute_force")
    assert priority(finding) == "medium"


def test_two_names_at_a_fixed_period_are_no_job() -> None:
    events = [e | {"user": f"u{n % 2}"} for n, e in enumerate(job(300, 60, source="10.20.9.9", user="x"))]
    assert priority(only(run(events), "brute_force")) == "medium"


def test_a_job_that_turns_to_guessing_is_raised_again_as_what_it_is() -> None:
    events = job(300, 40, source="10.20.9.9", user="rsync")
    guessing = [fail(13_000 + 3 * n, source="10.20.9.9", user=f"u{n}") for n in range(40)]
    assert priority(only(run([*events, *guessing]), "brute_force")) == "medium"


@pytest.mark.parametrize("known", [True, False], ids=["jobs with a past", "jobs seen for the first time"])
def test_the_day_on_which_a_password_rotates_accuses_no_job_of_the_fleet(known: bool) -> None:
    events: list[Event] = []
    for n in range(15):
        source = f"10.30.1.{10 + n}"
        if known:
            events += [login(300 * k + n, source=source, user="modelsync") for k in range(40)]
        events += [fail(20_000 + n + (60 + 2 * n) * k, source=source, user="modelsync") for k in range(40)]
        events += [login(20_000 + n + (60 + 2 * n) * 40, source=source, user="modelsync")]
    found = run(events)
    assert "account_compromise" not in kinds(found)
    assert {priority(f) for f in found.values()} <= {"low", "info"}
    assert all(f.blockable == () for f in found.values())


def office(days: int = 2, users: int = 12) -> list[Event]:
    return [
        login(day * DAY + 9 * HOUR + 60 * n, source="198.51.100.7", user=f"p{n}")
        for day in range(days)
        for n in range(users)
    ]


def test_an_address_from_which_several_users_log_in_is_named_and_not_blockable() -> None:
    at = 2 * DAY + 10 * HOUR
    found = run([*office(), *(fail(at + n, source="198.51.100.7", user="root") for n in range(60))])
    finding = only(found, "brute_force")
    assert priority(finding) == "medium"
    assert finding.blockable == ()


def test_colleagues_of_an_attacker_go_on_logging_in_and_mistyping() -> None:
    at = 2 * DAY + 10 * HOUR
    attack = [fail(at + 2 * n, source="198.51.100.7", user="root") for n in range(300)]
    others = [login(at + 31 * n, source="198.51.100.7", user=f"p{n}") for n in range(12)]
    visitor = [fail(at + 40 + 5 * n, source="198.51.100.7", user="visitor") for n in range(3)]
    visitor += [login(at + 60, source="198.51.100.7", user="visitor")]
    forgot = [fail(at + 100 + 9 * n, source="198.51.100.7", user="p4") for n in range(8)]
    forgot += [login(at + 200, source="198.51.100.7", user="p4")]
    assert kinds(run([*office(), *attack, *others, *visitor, *forgot])) == ["brute_force"]


def test_the_office_that_comes_in_hours_after_an_attack_from_its_address_is_not_accused() -> None:
    night = [fail(3 * HOUR + 2 * n, source="198.51.100.7", user="root") for n in range(160)]
    found = run([*night, fail(8 * HOUR, source="198.51.100.7", user="p0"), *office(1)])
    assert kinds(found) == ["brute_force"]


def test_who_is_guessed_from_inside_an_office_is_accused_on_the_event() -> None:
    at = 2 * DAY + 10 * HOUR
    attack = [fail(at + 2 * n, source="198.51.100.7", user="p3") for n in range(40)]
    found = run([*office(), *attack, login(at + 90, source="198.51.100.7", user="p3")])
    finding = only(found, "account_compromise")
    assert (finding.entity, finding.time_ns // 10**9 % DAY) == ("p3", (1_700_000_000 + at + 90) % DAY)
