"""Guessing of one account from many networks: when it is raised, whom it names, and what is no such attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.events import NS_PER_S, Outcome, Provenance
from gatewatch.detectors.finding import Finding
from gatewatch.detectors.registry import login_detectors
from gatewatch.detectors.tables import Rates
from test_detectors_login import KEY, START, Event, batch_of, fail, kinds, login, numbered, run

HOUR, DAY = 3600, 86_400
KIND = "distributed_brute_force"


def stranger(n: int, host: int = 7) -> str:
    """An address in a /16 of its own."""
    return f"{11 + n % 89}.{n % 251}.7.{host}"


def guesses(
    count: int, user: str = "ann", gap: float = 60, start: float = 0, first: int = 0, **more: Any
) -> list[Event]:
    """One try from each of so many strangers."""
    return [fail(start + gap * n, source=stranger(first + n), user=user, **more) for n in range(count)]


def distributed(found: dict[str, Finding]) -> Finding:
    (finding,) = [f for f in found.values() if f.kind == KIND]
    return finding


def silent(found: dict[str, Finding]) -> bool:
    return KIND not in kinds(found)


def test_the_tenth_stranger_within_an_hour_raises_it() -> None:
    assert run(guesses(9, gap=390)) == {}
    found = run(guesses(10, gap=390))
    assert kinds(found) == [KIND]
    finding = distributed(found)
    assert (finding.entity_type, finding.entity, finding.users) == ("user", "ann", ("ann",))
    assert finding.time_ns == (START + 9 * 390) * NS_PER_S
    assert finding.start_ns == START * NS_PER_S
    assert finding.sources == tuple(stranger(n) for n in range(10))
    assert finding.figures == {
        "attempts": 10,
        "distinct_sources": 10,
        "threshold": 10,
        "window_s": HOUR,
        "logins_of_user": 0,
    }
    assert finding.lines == tuple(range(1, 11))
    assert finding.samples == ("line 10",)
    assert finding.targets == ("sshd@gateway1",)
    assert finding.techniques == ("T1110.001",)
    assert finding.threshold == "failures from 10 networks in 3600 s, few from each"
    assert "has not been seen to log in" in finding.baseline
    assert finding.blockable == ()


def test_ten_strangers_in_more_than_an_hour_raise_nothing() -> None:
    assert run(guesses(10, gap=401)) == {}


def test_the_fifteenth_stranger_within_a_day_raises_it() -> None:
    assert silent(run(guesses(14, gap=5400)))
    finding = distributed(run(guesses(15, gap=5400)))
    assert finding.time_ns == (START + 14 * 5400) * NS_PER_S
    assert (finding.figures["window_s"], finding.figures["threshold"]) == (DAY, 15)
    assert finding.start_ns == START * NS_PER_S
    assert silent(run(guesses(15, gap=6200)))


def test_an_account_that_does_not_exist_is_guessed_in_vain() -> None:
    assert silent(run(guesses(40, user="nobody-here", outcome=Outcome.INVALID_USER)))


@pytest.mark.parametrize("network", ["10.7.{}.9", "192.168.{}.9", "172.16.{}.9", "fd00:1:{:x}::9"])
def test_machines_of_a_private_network_are_no_strangers(network: str) -> None:
    assert run(fail(60 * n, source=network.format(n), user="ann") for n in range(40)) == {}


def test_a_source_from_which_somebody_logs_in_is_no_stranger() -> None:
    others = [login(-2 * DAY + 60 * n, source=stranger(n), user=f"p{n}") for n in range(40)]
    assert run([*others, *guesses(40)]) == {}
    assert not silent(run([*others[:30], *guesses(40)]))


def test_a_neighbour_in_a_network_from_which_somebody_else_logs_in_is_a_stranger() -> None:
    others = [login(-2 * DAY + 60 * n, source=stranger(n, 99), user=f"p{n}") for n in range(10)]
    assert not silent(run([*others, *guesses(10)]))


def test_a_network_from_which_this_user_has_come_is_none_of_strangers() -> None:
    """Her provider gives her another address of the same /24: she takes one more than nine, not ten of eleven."""
    home = [login(-2 * DAY, source=stranger(500, 99), user="ann")]
    neighbour = fail(1, source=stranger(500), user="ann")
    assert run([*home, *guesses(10), neighbour]) == {}
    assert not silent(run([*home, *guesses(11)]))


def test_several_tries_from_one_network_are_one_stranger() -> None:
    again = [fail(60 * n + 9, source=stranger(n, 8), user="ann") for n in range(9)]
    assert silent(run([*guesses(9), *again]))
    finding = distributed(run([*guesses(10), *again]))
    assert finding.figures["attempts"] == 19
    assert finding.time_ns == (START + 540) * NS_PER_S


def test_a_network_that_goes_on_is_no_stranger_any_more() -> None:
    """Ten tries from each /24, from two addresses: more than are taken for one of many."""
    found = run(fail(30 * n, source=stranger(n // 10, 1 + n % 2), user="ann") for n in range(200))
    assert "distributed_brute_force" not in kinds(found)


def test_networks_of_ipv6_are_counted_by_their_48() -> None:
    of_one = [fail(20 * n, source=f"2a05:11:22:{n:x}::7", user="ann") for n in range(9)]
    assert silent(run(of_one))
    found = run(fail(60 * n, source=f"2a05:{n:x}:22:33::7", user="ann") for n in range(10))
    assert set(distributed(found).sources) == {
        f"2a05:{n:x}:22:33::/64" if n else "2a05:0:22:33::/64" for n in range(10)
    }


def test_a_source_under_conviction_is_no_stranger() -> None:
    bursts = [
        fail(-9000 + 300 * n + 2 * t, source=stranger(n), user="bob") for n in range(20) for t in range(12)
    ]
    found = run([*bursts, *guesses(20)])
    assert kinds(found).count("brute_force") == 20
    assert [f.entity for f in found.values() if f.kind == "distributed_brute_force"] == ["bob"]


def test_an_account_that_is_known_weighs_more() -> None:
    unknown, known = run(guesses(20)), run([login(-2 * DAY, source="198.51.100.7", user="ann"), *guesses(20)])
    assert distributed(known).severity > distributed(unknown).severity
    assert distributed(known).figures["logins_of_user"] == 1
    assert "ann has logged in 1 times from elsewhere" in distributed(known).baseline


def test_a_user_who_roams_is_allowed_as_many_networks_more_up_to_ten() -> None:
    def roams(networks: int) -> list[Event]:
        return [
            login(-3 * DAY + HOUR * n, source=f"198.51.{n}.7", user="ann")
            for n in range(networks)
            for _ in "ab"
        ]

    for networks, limit in ((4, 14), (10, 20), (30, 20)):
        assert silent(run([*roams(networks), *guesses(limit - 1)])), networks
        finding = distributed(run([*roams(networks), *guesses(limit)]))
        assert (finding.figures["threshold"], finding.figures["window_s"]) == (limit, HOUR)


def test_while_the_whole_site_is_tried_it_takes_more() -> None:
    """Forty accounts with four strangers each: what ann has is her share, until it is several times that."""
    wide = [e for k in range(40) for e in guesses(4, user=f"p{k}", gap=750, start=k, first=20 + 4 * k)]
    alone = [e for k in range(3) for e in guesses(4, user=f"p{k}", gap=750, start=k, first=20 + 4 * k)]
    few = guesses(12, start=2400, gap=20)
    assert not silent(run([*alone, *few]))
    assert silent(run([*wide, *few]))
    finding = distributed(run([*wide, *guesses(20, start=2400, gap=20)]))
    assert 14 <= int(finding.figures["threshold"]) <= 20


def test_once_the_rest_of_the_site_is_left_alone_it_takes_no_more() -> None:
    wide = [e for k in range(40) for e in guesses(4, user=f"p{k}", gap=750, start=k, first=20 + 4 * k)]
    finding = distributed(run([*wide, *guesses(10, start=3 * HOUR)]))
    assert finding.figures["threshold"] == 10


def people(hours: int) -> list[Event]:
    """Five who log in every six hours, for so long before anything else."""
    return [
        login(-at * HOUR + n, source="198.51.100.7", user=f"p{n}")
        for at in range(hours, -1, -6)
        for n in range(5)
    ]


def usual(hours: int, an_hour: int = 2, user: str = "admin") -> list[Event]:
    """So many strangers in each hour, and nobody from then on until the event that `guesses` begins with."""
    gap = HOUR // an_hour
    return guesses(an_hour * hours, user=user, gap=gap, start=-hours * HOUR - 800, first=300)


def test_a_name_that_strangers_try_everywhere_is_not_raised_before_there_were_logins_for_six_hours() -> None:
    many = guesses(80, user="admin", gap=20)
    assert silent(run(many))
    assert silent(run([*usual(24), *many]))
    assert silent(run([*people(4), *many]))
    assert not silent(run([*people(12), *many]))


def test_a_name_that_strangers_try_everywhere_is_raised_far_above_its_rate_alone() -> None:
    """Two an hour are usual: ten, and twice two and six roots of three more, are not by chance."""
    before = [*people(48), *usual(24)]
    assert silent(run([*before, *guesses(23, user="admin", gap=20)]))
    finding = distributed(run([*before, *guesses(40, user="admin", gap=20)]))
    assert (finding.figures["threshold"], finding.figures["window_s"]) == (10 + 15, HOUR)
    assert "2.0 failures of strangers an hour are usual" in finding.baseline
    assert silent(run([*people(96), *usual(72)]))


def test_a_name_that_is_tried_more_elsewhere_takes_more() -> None:
    """Ten an hour: twice ten and six roots of eleven, and ten."""
    before = [*people(48), *usual(24, 10)]
    assert silent(run([*before, *guesses(38, user="admin", gap=20)]))
    assert distributed(run([*before, *guesses(90, user="admin", gap=20)])).figures["threshold"] == 10 + 40


def test_the_day_says_nothing_of_a_name_that_strangers_try_everywhere() -> None:
    assert silent(run(guesses(60, user="root", gap=1400)))


def test_a_source_from_which_somebody_logs_in_later_is_not_named() -> None:
    typist = login(5 * 60 + 8, source=stranger(5), user="ann")
    finding = distributed(run([*guesses(20), typist]))
    assert stranger(5) not in finding.sources
    assert set(finding.sources) == {stranger(n) for n in range(20)} - {stranger(5)}
    assert finding.figures["distinct_sources"] == 20


def test_a_source_that_had_begun_with_another_account_is_not_named() -> None:
    elsewhere = guesses(3, user="bob", start=-200, gap=10)
    finding = distributed(run([*elsewhere, *guesses(20)]))
    assert finding.sources == tuple(stranger(n) for n in range(3, 20))


def test_all_are_named_where_all_had_begun_with_another_account() -> None:
    elsewhere = [e for k in range(3) for e in guesses(4, user=f"p{k}", start=-500 + k, gap=10, first=4 * k)]
    finding = distributed(run([*elsewhere, *guesses(12)]))
    assert finding.sources == tuple(stranger(n) for n in range(12))


def test_a_campaign_names_thirty_two_and_counts_all() -> None:
    finding = distributed(run(guesses(180, gap=20)))
    assert len(finding.sources) == 32
    assert 150 < int(finding.figures["distinct_sources"]) < 215
    assert finding.figures["attempts"] == 180


def test_two_accounts_are_two_findings() -> None:
    found = run([*guesses(12), *guesses(12, user="bob", first=40, start=1)])
    assert {f.entity for f in found.values() if f.kind == KIND} == {"ann", "bob"}


def test_a_finding_grows_and_keeps_its_id_and_a_quiet_day_ends_it() -> None:
    detection = login_detectors({}, KEY)
    rows = numbered([*guesses(30), *guesses(12, start=3 * DAY, first=60)])
    (first,) = detection.update(batch_of(rows[:12]))
    (grown,) = detection.update(batch_of(rows[12:30]))
    assert (grown.id, grown.figures["attempts"]) == (first.id, 30)
    assert grown.end_ns == (START + 29 * 60) * NS_PER_S
    (later,) = detection.update(batch_of(rows[30:]))
    assert later.id != first.id


def test_what_came_over_the_network_is_said_to_be_of_it() -> None:
    finding = distributed(run(guesses(12, provenance=Provenance.NETWORK)))
    assert (finding.provenance, finding.blockable) == (Provenance.NETWORK, ())


def mixed() -> list[Event]:
    """Every rule at once: a roaming user, a whole site, a popular name, a typist, an attack from another account."""
    wide = [e for k in range(20) for e in guesses(3, user=f"p{k}", gap=400, start=k, first=20 + 3 * k)]
    roams = [login(-2 * DAY + HOUR * n, source=f"198.51.{n}.7", user="ann") for n in range(3)]
    typist = login(900, source=stranger(5), user="ann")
    popular = [*people(24), *usual(15), *guesses(40, user="admin", gap=20, first=200)]
    return [*wide, *roams, typist, *popular, *guesses(30), *guesses(25, user="bob", first=5, start=7)]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_do_not_matter(size: int) -> None:
    whole = run(mixed())
    assert KIND in kinds(whole)
    assert run(mixed(), size) == whole


@pytest.mark.parametrize("middle", [40, 70, 110, 150])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(middle: int) -> None:
    rows = numbered(mixed())
    straight, resumed = login_detectors({}, KEY), login_detectors({}, KEY)
    straight.update(batch_of(rows[:middle]))
    resumed.load(straight.save())
    rest = batch_of(rows[middle:])
    found = straight.update(rest)
    assert found and resumed.update(rest) == found


def test_options_move_the_thresholds() -> None:
    options = {"distributed_brute_force": {"sources": 4, "slow_sources": 6}}
    assert distributed(run(guesses(4), detection=login_detectors(options, KEY))).figures["threshold"] == 4
    slow = run(guesses(6, gap=5400), detection=login_detectors(options, KEY))
    assert distributed(slow).figures["threshold"] == 6


CELL = HOUR * NS_PER_S


def rates_of(cells: list[int], per_cell: int = 1, key: int = 7, **more: Any) -> Any:
    """The mean and the cells known at each of events in these cells, one event `per_cell` times."""
    times = (
        np.array([c * CELL + 1 + k for c in cells for k in range(per_cell)], np.int64) + 10**18 // CELL * CELL
    )
    keys = np.full(len(times), key, np.uint64)
    return Rates(64, **more).update(keys, times, np.ones(len(times), np.int64))


def test_a_rate_is_the_mean_of_the_whole_cells_before() -> None:
    seen = rates_of([0, 0, 0, 1, 2, 4])
    assert seen[:, 1].tolist() == [0, 0, 0, 1, 2, 4]
    assert (seen[:, 0] / 1024).round(2).tolist() == [0, 0, 0, 3, 2, 1.25]


def test_a_rate_forgets_by_one_part_in_its_memory() -> None:
    seen = rates_of([*range(100), 160], per_cell=8, memory=24)
    assert seen[99 * 8].tolist() == [8 * 1024, 24]
    assert seen[-1, 0] / 1024 < 8 * (23 / 24) ** 59 + 0.1


def test_a_surge_does_not_become_the_rate() -> None:
    """Once a third of the memory is known, a cell far above the mean counts as four times that and sixteen."""
    surge = [9] * 5000
    seen = rates_of([*range(9), *surge, 10], memory=24)
    assert seen[-1, 0] / 1024 == pytest.approx((9 + 20) / 10, abs=0.01)


def test_asking_for_a_rate_changes_nothing() -> None:
    rates, key = Rates(64), np.array([7], np.uint64)
    ask, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    rates.update(key, np.array([10 * CELL]), one)
    assert rates.update(key, np.array([12 * CELL]), ask).tolist() == [[512, 2]]
    assert rates.update(np.array([8], np.uint64), np.array([12 * CELL]), ask).tolist() == [[0, 0]]
    assert rates.update(key, np.array([12 * CELL]), one).tolist() == [[512, 2]]


def test_rates_are_bounded_and_do_not_depend_on_batches_or_on_saving() -> None:
    rng = np.random.default_rng(3)
    keys = rng.integers(1, 40, 4000).astype(np.uint64)
    times = 10**18 + np.sort(rng.integers(0, 200, 4000)) * CELL // 2
    weights = rng.integers(0, 4, 4000)
    whole = Rates(16).update(keys, times, weights)
    parted, parts = Rates(16), []
    for start in range(0, 4000, 77):
        part = slice(start, start + 77)
        parts.append(parted.update(keys[part], times[part], weights[part]))
        again = Rates(16)
        again.load(parted.save())
        parted = again
    assert (np.concatenate(parts) == whole).all()
    assert len(parted.save()["keys"]) <= 16
