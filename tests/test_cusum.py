"""The cumulative sum over attempts: when it is an alarm, when that is over, and what it learns."""

from __future__ import annotations

from itertools import pairwise
from math import comb, exp, isclose, lgamma, sqrt
from typing import Any

import numpy as np
import pytest
from gatewatch.detectors.login.cusum import CHUNK, Cusum, Verdict, beta_binomial

LEAST = 8
RNG = np.random.default_rng


def fed(failed: Any, cusum: Cusum | None = None, judged: Any = None, size: int = 10**9) -> Verdict:
    """What is said of these attempts, a second apart, `size` at a time."""
    cusum, failed = cusum or Cusum(LEAST), np.asarray(failed, np.bool_)
    judged = np.ones(len(failed), np.bool_) if judged is None else judged
    times = 10**18 + np.arange(len(failed)) * 10**9
    said = [
        cusum.update(judged[at : at + size], failed[at : at + size], times[at : at + size])
        for at in range(0, len(failed), size)
    ]
    return Verdict(*(np.concatenate(columns) for columns in zip(*said, strict=True)))


def chunks(*failures: int) -> Any:
    """Chunks with so many failures each, spread over the chunk."""
    made = np.zeros((len(failures), CHUNK), np.bool_)
    for row, count in enumerate(failures):
        made[row, (np.arange(count) * CHUNK / max(count, 1)).astype(int)] = True
    return made.ravel()


def chance(rate: float, many: int, seed: int = 1) -> Any:
    return RNG(seed).random(many * CHUNK) < rate


@pytest.mark.parametrize(
    ("n", "alpha", "beta"), [(100, 2.0, 400.0), (100, 0.5, 1.5), (7, 3.0, 3.0), (1, 1.0, 1.0)]
)
def test_mean_and_variance_are_those_of_the_distribution_itself(n: int, alpha: float, beta: float) -> None:
    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    share = [
        comb(n, k) * exp(log_beta(k + alpha, n - k + beta) - log_beta(alpha, beta)) for k in range(n + 1)
    ]
    mean = sum(k * p for k, p in enumerate(share))
    variance = sum((k - mean) ** 2 * p for k, p in enumerate(share))
    assert isclose(sum(share), 1, rel_tol=1e-9)
    assert beta_binomial(n, alpha, beta) == pytest.approx((mean, variance), rel=1e-9)


def test_a_quiet_site_never_alarms() -> None:
    assert not fed(chance(0.003, 2000)).alarm.any()


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01])
def test_neither_does_a_site_with_fewer_mistakes_or_with_more(rate: float) -> None:
    assert not fed(chance(rate, 1000, 2)).alarm.any()


@pytest.mark.parametrize("rate", [0.003, 0.01])
def test_twice_as_many_failures_as_usual_are_an_alarm(rate: float) -> None:
    cusum = Cusum(LEAST)
    assert not fed(chance(rate, 1000), cusum).alarm.any()
    alarm = fed(chance(2 * rate, 200, 2), cusum).alarm
    assert CHUNK < np.argmax(alarm) < 100 * CHUNK


def test_the_alarm_is_at_the_earliest_failure_possible() -> None:
    mean, variance = beta_binomial(CHUNK, 2.0, 400.0)
    needed = max(LEAST, 10 * sqrt(variance)) + mean + sqrt(variance) / 2
    alarm = fed(np.ones(50, np.bool_)).alarm
    assert np.argmax(alarm) + 1 == int(needed) + 1 == 9
    assert alarm[8:].all()


def test_successes_raise_no_alarm_and_failures_while_it_lasts_do() -> None:
    failed = np.tile([True, False], 50)
    assert (fed(failed).alarm == failed & (np.arange(100) >= 16)).all()


def test_an_excess_below_the_smallest_that_is_asked_for_is_no_alarm() -> None:
    burst = np.ones(20, np.bool_)
    assert fed(burst, Cusum(12)).alarm.any() and not fed(burst, Cusum(25)).alarm.any()


def test_a_first_failure_now_and_then_adds_up_to_nothing() -> None:
    assert not fed(chunks(*[1, 0] * 300)).alarm.any()


def test_an_alarm_ends_when_it_is_quiet_and_the_next_one_is_an_episode_of_its_own() -> None:
    failures = [0] * 20 + [20] * 4 + [0] * 60 + [20] * 4 + [0] * 60
    verdict = fed(chunks(*failures))
    of_chunk = verdict.episode.reshape(-1, CHUNK)
    alarms = verdict.alarm.reshape(-1, CHUNK).any(axis=1)
    first, second = set(of_chunk[20:24].ravel().tolist()), set(of_chunk[84:88].ravel().tolist())
    assert len(first) == len(second) == 1 and first.isdisjoint(second)
    assert alarms.nonzero()[0].tolist() == [20, 21, 22, 23, 84, 85, 86, 87]
    assert (np.diff(verdict.episode) >= 0).all()


def test_since_when_it_rises_is_said_of_each_alarm() -> None:
    verdict = fed(chunks(*[0] * 20, *[20] * 4, *[0] * 60, *[20] * 4))
    for chunk in (20, 84):
        at = chunk * CHUNK + 50
        assert 10**18 + (chunk - 1) * CHUNK * 10**9 <= verdict.since_ns[at] <= 10**18 + at * 10**9


def test_an_alarm_that_ends_leaves_a_short_shadow_however_long_it_was() -> None:
    for length in (4, 400):
        verdict = fed(chunks(*[20] * length, *[0] * 60))
        changed = np.flatnonzero(verdict.episode[length * CHUNK :] != verdict.episode[length * CHUNK - 1])
        assert len(changed) and changed[0] < 40 * CHUNK


def test_a_wave_on_a_lasting_attack_is_an_episode_and_so_is_what_follows_it() -> None:
    verdict = fed(chunks(*[4] * 80, *[40] * 10, *[4] * 60))
    of_chunk = verdict.episode.reshape(-1, CHUNK)[:, -1]
    lasting, wave, after = of_chunk[79], of_chunk[89], of_chunk[-1]
    assert lasting < wave < after
    assert len(set(of_chunk[20:80].tolist())) == 1
    assert verdict.alarm.reshape(-1, CHUNK)[85].any()


def test_an_attack_that_lasts_evenly_is_one_episode() -> None:
    assert set(fed(chunks(*RNG(5).poisson(6, 400).tolist())).episode[2000:].tolist()) == {1}


def test_very_many_failures_are_intense_and_few_are_not() -> None:
    verdict = fed(chunks(2, 2, 30, 2, 2))
    intense = verdict.intense.reshape(-1, CHUNK)
    assert not intense[:2].any() and intense[2, -1] and intense[3, 0]
    assert not intense[4].any()


def test_an_attack_that_has_lasted_for_four_hours_is_intense_no_more_until_a_wave_comes() -> None:
    """An attempt a second: 144 chunks."""
    verdict = fed(chunks(*[8] * 200, *[60] * 10))
    intense = verdict.intense.reshape(-1, CHUNK).any(axis=1)
    assert intense[1:144].all() and not intense[146:200].any() and intense[205:].all()


def test_an_attack_on_a_small_site_is_intense_though_its_chunk_began_the_day_before() -> None:
    """Fifty logins in a day, then twenty failures within a minute."""
    failed = np.array([False] * 50 + [True] * 20)
    times = 10**18 + np.concatenate((np.arange(50) * 1800, 90_000 + np.arange(20) * 3)) * 10**9
    verdict = Cusum(LEAST).update(np.ones(70, np.bool_), failed, times)
    assert verdict.alarm.any() and verdict.intense.nonzero()[0].tolist() == list(range(61, 70))


def test_what_is_usual_is_learnt_and_during_an_alarm_only_very_slowly() -> None:
    cusum = Cusum(LEAST)
    before = fed(chance(0.02, 400), cusum).usual
    assert before[0] == pytest.approx(0.5, abs=0.01)
    assert before[-1] == pytest.approx(2.0, abs=0.4)
    attack = fed(chunks(*[30] * 50), cusum)
    assert attack.alarm[CHUNK - 1 :].any()
    assert 0 <= attack.usual[-1] - attack.usual[0] < 0.3


def test_one_wild_chunk_moves_what_is_usual_by_little() -> None:
    cusum = Cusum(10**6)
    before = fed(chance(0.02, 400), cusum).usual[-1]
    after = fed(chunks(100, 0), cusum).usual[-1]
    assert 0 < after - before < 0.05


def test_attempts_that_do_not_count_are_told_and_change_nothing() -> None:
    failed = chunks(*[20] * 3, *[0] * 40)
    straight = fed(failed)
    wide = np.repeat(failed, 3)
    judged = np.tile([False, True, False], len(failed))
    among = fed(wide & judged, judged=judged)
    assert (among.alarm[1::3] == straight.alarm).all()
    assert (among.dense[1::3] == straight.dense).all()
    assert (among.episode[1::3] == straight.episode).all()
    assert not among.alarm[~judged].any()


def story(seed: int) -> tuple[Any, Any]:
    """Quiet, a slow rise, a wave on it, quiet, a burst; a third of the attempts do not count."""
    rng = RNG(seed)
    rates = np.repeat([0.003, 0.05, 0.4, 0.05, 0.003, 0.3, 0.003], [3000, 4000, 1000, 4000, 6000, 500, 3000])
    judged = rng.random(len(rates)) < 0.67
    return judged & (rng.random(len(rates)) < rates), judged


@pytest.mark.parametrize("size", [1, 37, CHUNK, 101, 4096])
def test_any_division_gives_the_same_verdicts(size: int) -> None:
    failed, judged = story(6)
    whole = fed(failed, judged=judged)
    assert whole.alarm.any() and whole.episode[-1] > 2
    for one, other in zip(whole, fed(failed, judged=judged, size=size), strict=True):
        assert (one == other).all()


def test_divisions_at_random_give_the_same_verdicts() -> None:
    failed, judged = story(7)
    whole = fed(failed, judged=judged)
    cusum, times = Cusum(LEAST), 10**18 + np.arange(len(failed)) * 10**9
    cuts = [0, *np.sort(RNG(8).integers(0, len(failed), 60)).tolist(), len(failed)]
    for start, stop in pairwise(cuts):
        verdict = cusum.update(judged[start:stop], failed[start:stop], times[start:stop])
        for one, other in zip(whole, verdict, strict=True):
            assert (one[start:stop] == other).all()


def test_nothing_at_all_is_borne() -> None:
    assert len(fed(np.zeros(5, np.bool_), judged=np.zeros(5, np.bool_)).alarm) == 5
    none = np.zeros(0, np.bool_)
    assert len(Cusum(LEAST).update(none, none, np.zeros(0, np.int64)).alarm) == 0


@pytest.mark.parametrize("middle", [1, 3456, 7100, 8150, 14_000, 18_300])
def test_a_saved_sum_goes_on_as_if_nothing_had_happened(middle: int) -> None:
    failed, judged = story(9)
    times = 10**18 + np.arange(len(failed)) * 10**9
    straight, resumed = Cusum(LEAST), Cusum(LEAST)
    straight.update(judged[:middle], failed[:middle], times[:middle])
    resumed.load(straight.save())
    rest = (judged[middle:], failed[middle:], times[middle:])
    for one, other in zip(straight.update(*rest), resumed.update(*rest), strict=True):
        assert (one == other).all()
