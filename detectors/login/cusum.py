"""A beta-binomial CUSUM: whether strangers fail more often, of all attempts, than is usual.

After Javed and Paxson, "Detecting Stealthy, Distributed SSH Brute-Forcing" (CCS 2013): the number of failures
among n attempts in a row is beta-binomial, since users and hours differ; its mean and variance are learnt from
what came before, and a cumulative sum (Page 1954) finds a small, lasting rise that no window shows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...daemon.events import I64, Bool

CHUNK = 100
"""Attempts that are judged together."""
_DRIFT = 0.5  # deviations by which a chunk must exceed the mean to add to the sum
_LIMIT = 10.0  # deviations at which the sum is an alarm
_MOST = 3.0  # limits that the sum can reach, so that it comes back soon after an attack
_LASTING = 10  # chunks after which an alarm has a level of its own, or is over when they are quiet
_WAVE_DRIFT, _WAVE_LIMIT, _WAVE_MOST = (
    1.0,
    3.0,
    1.5,
)  # as above, over that level; the limit in the least excess of an alarm
_WAVE_MEMORY = 100
_INTENSE = 12  # failures in this chunk and the one before, from which on it is intense
_FRESH_NS = 4 * 3600 * 10**9
_MEMORY = 2000  # chunks over which mean and variance are learnt
_PRIOR = (2.0, 400.0, 50)  # alpha and beta before anything is learnt, and the chunks that they count for


def beta_binomial(n: int, alpha: float, beta: float) -> tuple[float, float]:
    """Mean and variance of the number of failures among n attempts."""
    both = alpha + beta
    return n * alpha / both, n * alpha * beta * (both + n) / (both * both * (both + 1))


class Verdict(NamedTuple):
    """What is said of each of n attempts, as columns."""

    alarm: Bool  # a failure that lifts the sum over its limit
    dense: Bool  # there are more failures just before than come by chance
    intense: Bool  # there are many, and the sum has not been high for long: an attack of an hour or some
    episode: I64  # a number that changes when an alarm is over, and when it begins or ends to be far worse
    since_ns: I64  # when the sum began to rise
    usual: NDArray[np.float64]  # failures expected among CHUNK attempts


@dataclass(slots=True)
class _State:
    """Of the chunk that is not full yet, of the one before, of the sum, and what is usual."""

    attempts: int
    failures: int
    before: int
    sum: float
    mean: float
    variance: float
    chunks: int
    alarmed: int  # chunks since the alarm; 0 = there is none
    quiet: int  # chunks in a row with no more than is usual
    level: float  # failures in a chunk of the alarm, on average
    wave_sum: float  # the cumulative sum over that level
    wave: bool  # an attack on top of the one that lasts
    episode: int
    since_ns: int
    alarm_ns: int  # when the alarm began


class Cusum:
    """Takes attempts in their order. `least`: the smallest excess, in failures, that is an alarm."""

    def __init__(self, least: int) -> None:
        self._least = least
        alpha, beta, chunks = _PRIOR
        mean, variance = beta_binomial(CHUNK, alpha, beta)
        self._state = _State(0, 0, 0, 0.0, mean, variance, chunks, 0, 0, 0.0, 0.0, False, 1, 0, 0)

    def update(self, judged: Bool, failed: Bool, time_ns: I64) -> Verdict:
        """`judged` (`bool[n]`) marks the attempts that count; `failed` those of them that are failures of strangers.

        The others are told how things stand when they come.
        """
        n, state = len(judged), self._state
        flags: Bool = np.zeros((3, n), np.bool_)
        numbers: I64 = np.zeros((2, n), np.int64)
        usual: NDArray[np.float64] = np.zeros(n)
        at, failures = np.flatnonzero(judged), np.cumsum(failed)
        start, done, before = 0, 0, 0
        while start < n:
            many = min(CHUNK - state.attempts, len(at) - done)
            stop = int(at[done + many - 1]) + 1 if state.attempts + many == CHUNK else n
            part = slice(start, stop)
            numbers[0, part], numbers[1, part] = state.episode, state.since_ns
            if state.attempts == 0 and state.sum == 0.0 and many > 0:
                # Not from one that does not count: it may have come in a batch before.
                began = int(at[done])
                state.since_ns = int(time_ns[began])
                numbers[1, began:stop] = state.since_ns
            usual[part] = state.mean
            now = state.failures + int(failures[stop - 1]) - before
            # Of most chunks there is nothing to say: not even all that they come to would be much.
            if state.before + now >= min(3 + 2 * state.mean, _INTENSE) or state.sum + now > self._alarming:
                within = state.failures - before + failures[part]
                lately = state.before + within
                flags[0, part] = failed[part] & (state.sum + within > self._alarming)
                flags[1, part] = lately >= 3 + 2 * state.mean
                if not state.alarmed and flags[0, part].any():
                    state.alarmed, state.level, state.wave_sum = 1, 0.0, 0.0
                    state.alarm_ns = int(time_ns[start + int(flags[0, part].argmax())])
                fresh = (state.alarmed == 0) | (time_ns[part] - state.alarm_ns <= _FRESH_NS)
                flags[2, part] = (lately >= _INTENSE) & (fresh | state.wave)
            state.failures, state.attempts, before = now, state.attempts + many, int(failures[stop - 1])
            start, done = stop, done + many
            if state.attempts == CHUNK:
                self._close_chunk()
        return Verdict(flags[0], flags[1], flags[2], numbers[0], numbers[1], usual)

    @property
    def _limit(self) -> float:
        return max(float(self._least), _LIMIT * math.sqrt(self._state.variance))

    @property
    def _alarming(self) -> float:
        return self._limit + self._state.mean + self._drift

    @property
    def _drift(self) -> float:
        return _DRIFT * math.sqrt(self._state.variance)

    def _close_chunk(self) -> None:
        state = self._state
        excess = state.failures - state.mean - self._drift
        state.quiet = state.quiet + 1 if excess <= 1 else 0
        state.sum = min(max(0.0, state.sum + excess), _MOST * self._limit)
        if state.alarmed:
            self._follow_alarm()
        else:
            state.chunks = min(state.chunks + 1, _MEMORY)
        self._learn()
        state.before, state.failures, state.attempts = state.failures, 0, 0

    def _follow_alarm(self) -> None:
        """An alarm ends with its sum, or when it has been quiet for long. One that has lasted and rises by as much
        again is another attack on top.
        """
        state = self._state
        if state.sum == 0.0 or state.quiet >= _LASTING:
            state.sum = 0.0
            state.alarmed, state.wave, state.episode = 0, False, state.episode + 1
            return
        state.alarmed += 1
        rise = state.failures - state.level
        if state.alarmed > _LASTING:
            limit = _WAVE_LIMIT * self._least
            state.wave_sum += rise - _WAVE_DRIFT * math.sqrt(1.5 * state.level)
            state.wave_sum = min(max(0.0, state.wave_sum), _WAVE_MOST * limit)
            if state.wave_sum == 0.0 if state.wave else state.wave_sum > limit:
                state.wave, state.episode = not state.wave, state.episode + 1
        # A lull and a wave do not change what its level is.
        if not state.wave and state.wave_sum < self._limit and state.failures * 4 >= state.level:
            state.level += rise / min(state.alarmed, _WAVE_MEMORY)

    def _learn(self) -> None:
        """Mean and variance by exponential forgetting (Welford), of what is not far off; never less than one failure
        in 2,000 attempts. Of an alarm only the mean, and slowly: what lasts for weeks is usual.
        """
        state = self._state
        failures = min(float(state.failures), state.mean + 2 + 4 * math.sqrt(state.variance))
        off, chunks = failures - state.mean, _MEMORY if state.alarmed else state.chunks
        state.mean = max(state.mean + off / chunks, CHUNK / 2000)
        if not state.alarmed:
            state.variance += (off * (failures - state.mean) - state.variance) / chunks
        state.variance = max(state.variance, state.mean * (1 - state.mean / CHUNK))

    def save(self) -> dict[str, Any]:
        return asdict(self._state)

    def load(self, state: dict[str, Any]) -> None:
        self._state = _State(**state)
