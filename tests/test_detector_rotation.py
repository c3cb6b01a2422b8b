"""Guessing that changes address inside a /48 or a /24: who is accused, when, with what evidence, and who is not."""

from __future__ import annotations

import pytest
from gatewatch.daemon.events import NS_PER_S, Provenance
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.registry import login_detectors
from test_detectors_login import KEY, START, Event, batch_of, fail, kinds, login, numbered, only, run

SITE = "2001:db8:1"
DAY = 86400


def six(at: float, member: int, user: str = "root", **more: object) -> Event:
    return fail(at, source=f"{SITE}:{member:x}::{int(at) & 0xFFFF:x}", user=user, **more)


def four(at: float, member: int, user: str = "root", **more: object) -> Event:
    return fail(at, source=f"192.0.2.{member}", user=user, **more)


def at_home(people: int, start: float = -DAY) -> list[Event]:
    """People who log in from the network, each from a /64 of his own, as phones do."""
    return [
        login(start + n, source=f"{SITE}:{0x8000 + n:x}::1", user=f"p{n}", method="publickey")
        for n in range(people)
    ]


def rotation(found: dict[str, Finding]) -> Finding:
    (finding,) = [f for f in found.values() if f.detector == "rotation"]
    return finding


def silent(found: dict[str, Finding]) -> bool:
    return not [f for f in found.values() if f.detector == "rotation"]


def test_the_tenth_64_of_a_48_raises_brute_force() -> None:
    assert run(six(60 * n, n) for n in range(9)) == {}
    finding = only(run(six(60 * n, n) for n in range(10)), "brute_force")
    assert finding.entity == f"{SITE}::/48"
    assert finding.time_ns == (START + 540) * NS_PER_S
    assert finding.start_ns == START * NS_PER_S
    assert finding.sources == tuple(f"{SITE}:{n:x}::/64" if n else f"{SITE}::/64" for n in range(10))
    assert finding.users == ("root",)
    assert finding.figures["distinct_sources"] == 10
    assert finding.figures["attempts"] == 10
    assert finding.lines == tuple(range(1, 11))
    assert finding.techniques == ("T1110.001",)
    assert finding.threshold == "failures from 10 members of one network in 3600 s, few from each"
    assert finding.baseline == "nobody has logged in from this network before"


def test_a_member_an_hour_is_found_within_the_day() -> None:
    assert run(six(5400 * n, n) for n in range(14)) == {}
    finding = rotation(run(six(5400 * n, n) for n in range(16)))
    assert (finding.figures["window_s"], finding.figures["threshold"]) == (DAY, 15)


def test_a_campaign_names_thirty_two_members_and_counts_all() -> None:
    finding = rotation(run(six(10 * n, n, user=f"u{n % 12}") for n in range(300)))
    assert len(finding.sources) == 32
    assert 250 < int(finding.figures["distinct_sources"]) < 350
    assert finding.figures["attempts"] == 300
    assert finding.figures["distinct_users"] == 12
    assert finding.techniques == ("T1110.003",)


def test_moving_on_before_the_tenth_try_is_no_shelter() -> None:
    found = run(six(20 * n, n // 9) for n in range(100))
    assert rotation(found).time_ns == (START + 20 * 81) * NS_PER_S


def test_one_member_that_goes_on_is_its_own_finding_alone() -> None:
    found = run(fail(n, source=f"{SITE}:7::{n:x}") for n in range(200))
    assert [f.entity for f in found.values()] == [f"{SITE}:7::/64"]


def test_a_few_members_that_go_on_are_no_rotation() -> None:
    assert silent(run(six(5 * n, n % 9) for n in range(900)))


def test_an_address_in_a_24_for_each_try_is_found_at_the_fifteenth() -> None:
    assert run(four(60 * n, n + 1) for n in range(14)) == {}
    finding = rotation(run(four(60 * n, n + 1) for n in range(15)))
    assert finding.entity == "192.0.2.0/24"
    assert finding.sources == tuple(f"192.0.2.{n + 1}" for n in range(15))
    assert finding.time_ns == (START + 14 * 60) * NS_PER_S


def test_strangers_who_rent_addresses_of_one_24_are_no_campaign() -> None:
    """Thirty customers of a hosting provider in a day, one to four guesses each."""
    events = [four(2800 * n + 7 * t, n + 1, user=f"u{n}") for n in range(30) for t in range(1 + n % 4)]
    assert silent(run(events))


def test_strangers_who_rent_a_64_each_are_no_campaign() -> None:
    events = [six(9000 * n + 7 * t, n, user=f"u{n}") for n in range(9) for t in range(1 + n % 4)]
    assert silent(run(events))


def test_a_scattered_internet_is_no_network() -> None:
    events = [fail(10 * n, source=f"198.51.{n}.9") for n in range(100)]
    events += [fail(10 * n + 1, source=f"2001:db8:{n:x}:1::1") for n in range(100)]
    assert run(events) == {}


def test_phones_of_a_carrier_whose_owners_mistype_are_nobody() -> None:
    """Each connection has another /64; every third login is mistyped first; some give up."""
    events = at_home(40)
    for n in range(400):
        at, user, source = 200 * n, f"p{n % 40}", f"{SITE}:{n:x}::1"
        if n % 3 == 0:
            events += [fail(at, source=source, user=user), fail(at + 6, source=source, user=user)]
        if n % 12:
            events.append(login(at + 12, source=source, user=user))
    assert run(events) == {}


def test_new_people_behind_a_carrier_who_get_in_after_a_mistake_are_nobody() -> None:
    events = []
    for n in range(60):
        source = f"{SITE}:{n:x}::1"
        events += [fail(30 * n, source=source, user=f"p{n}"), login(30 * n + 9, source=source, user=f"p{n}")]
    assert run(events) == {}


def test_jobs_of_an_office_whose_password_was_changed_are_nobody() -> None:
    """Each VLAN has a /64 and a job that had logged in before; for an hour all of them fail."""
    sources = [f"{SITE}:{n:x}::9" for n in range(40)]
    events = [login(60 * n - DAY, source=s, user=f"job{n}") for n, s in enumerate(sources)]
    events += [fail(900 * t + n, source=s, user=f"job{n}") for t in range(4) for n, s in enumerate(sources)]
    assert silent(run(events))


def test_a_guesser_among_people_is_found_at_the_twentieth_member() -> None:
    attack = [six(60 * n, n) for n in range(20)]
    assert run([*at_home(3), *attack[:19]]) == {}
    finding = rotation(run([*at_home(3), *attack]))
    assert finding.figures["credit_users"] == 3
    assert finding.baseline == "3 users have logged in from this network before"
    assert finding.confidence < 0.9
    assert finding.blockable == ()


def test_who_is_at_home_in_the_network_is_not_named_among_the_guesser_s_addresses() -> None:
    typist = [fail(700, source=f"{SITE}:9999::1", user="p1"), login(709, source=f"{SITE}:9999::1", user="p1")]
    finding = rotation(run([*at_home(3), *(six(60 * n, n) for n in range(60)), *typist]))
    assert f"{SITE}:9999::/64" not in finding.sources


def test_the_network_may_be_blocked_where_nobody_has_logged_in_and_every_client_is_its_own_peer() -> None:
    attack = [six(60 * n, n) for n in range(20)]
    assert rotation(run(attack)).blockable == (f"{SITE}::/48",)
    assert rotation(run([*attack, six(1300, 99, peer="10.0.0.1")])).blockable == ()
    assert rotation(run([*attack, six(1300, 99, provenance=Provenance.NETWORK)])).blockable == ()


def test_a_login_from_the_network_takes_it_off_the_list_of_what_may_be_blocked() -> None:
    hit = login(1300, source=f"{SITE}:aaaa::1", user="ann")
    later = [six(4000 + 60 * n, n) for n in range(100)]
    assert rotation(run([*(six(60 * n, n) for n in range(20)), hit, *later])).blockable == ()


def test_machines_of_a_private_network_are_no_guesser_s_addresses() -> None:
    assert silent(run(fail(n, source=f"10.30.1.{n}", user="job") for n in range(200)))
    assert silent(run(fail(n, source=f"fd00:1:2:{n:x}::1", user="job") for n in range(200)))


def test_requests_that_name_nobody_guess_nothing() -> None:
    assert silent(run(four(n, n + 1, user="", status=401, service="nginx") for n in range(100)))


def test_a_campaign_ends_after_a_quiet_day() -> None:
    events = [six(60 * n, n) for n in range(10)] + [six(2 * DAY + 60 * n, n) for n in range(10)]
    assert kinds(run(events)) == ["brute_force", "brute_force"]


def followed(events: list[Event]) -> list[bool]:
    """Of each row, whether the detector says that it belongs to a campaign."""
    detection = login_detectors({}, KEY)
    attempts = detection._stage.update(batch_of(numbered(events)))
    serial = detection._detectors["rotation"].follow(attempts)[0].serial
    return (serial > 0).tolist()


@pytest.mark.parametrize(
    ("member", "user", "told"),
    [("2001:db8:1:fff::1", "never tried", True), ("192.0.2.99", "never tried", False), ("192.0.2.99", "root", True)],
)  # fmt: skip
def test_a_login_from_the_network_is_told_of_the_campaign(member: str, user: str, told: bool) -> None:
    """In a /24 others may have nothing to do with it: there only the login of a user who was guessed."""
    attack = four if "." in member else six
    events = [attack(60 * n, n + 1) for n in range(20)] + [login(1300, source=member, user=user)]
    assert followed(events)[-1] is told


def test_a_login_by_a_key_is_no_guess() -> None:
    events = [
        *(six(60 * n, n) for n in range(20)),
        login(1300, source=f"{SITE}:fff::1", user="ci", method="publickey"),
    ]
    assert followed(events)[-1] is False


def test_who_logged_in_from_the_network_before_is_not_told() -> None:
    events = [*at_home(1, -9999), *(six(60 * n, n) for n in range(30))]
    events.append(login(2000, source=f"{SITE}:ffff::1", user="p0"))
    assert followed(events)[-1] is False


def test_options_move_the_thresholds() -> None:
    detection = login_detectors({"rotation": {"networks": 4, "addresses": 5}}, KEY)
    assert rotation(run([six(n, n) for n in range(4)], detection=detection)).figures["threshold"] == 4
    detection = login_detectors({"rotation": {"networks": 4, "addresses": 5}}, KEY)
    assert rotation(run([four(n, n) for n in range(5)], detection=detection)).figures["threshold"] == 5
