"""Brute force: one source that goes on failing, at several time scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, NS_PER_S, U64
from ..campaigns import Campaigns, Followed, Record
from ..finding import EntityType, Finding, Kind
from ..standing import Standing, counted
from ..tables import NS_PER_DAY, Rhythm, WindowCounter
from .attempts import Attempts
from .evidence import DOOR, SHARED, goes_on, shortest_over, source_finding

_UNIT = "failed attempts"
_CELLS = {300: 10, 3600: 12, 86400: 24}


class BruteForce:
    """Password guessing (ATT&CK T1110.001): failures of a source within sliding windows.

    A source is raised at its `failures`-th failed attempt within 5 minutes or an hour, or at its
    `slow_failures`-th within a day (for one user alone: in at least `hours` different hours, or thrice `failures`).
    Where users have logged in from it before, it takes `credit_failures` more,
    and one more for each user beyond ten, up to 100 (of a day and several users, three times as many); but
    `failures` + `credit_failures` for one user, without a success or a quiet day between, are enough anywhere.
    What a failure weighs is settled by `History`.

    Parameters: `failures` (int, 10), `slow_failures` (int, 10), `hours` (int, 6), `credit_failures` (int, 10),
    `sources` (int, 32768: the most that are remembered at once).
    """

    name: ClassVar[str] = "brute_force"
    kinds: ClassVar[tuple[Kind, ...]] = ("brute_force",)
    partition_key: ClassVar[EntityType] = "source"

    def __init__(
        self,
        failures: int = 10,
        slow_failures: int = 10,
        hours: int = 6,
        credit_failures: int = 10,
        sources: int = 32768,
    ) -> None:
        self._windows_s = (300, 3600, 86400)
        self._look_back_ns = np.array([11 * s * NS_PER_S // 10 for s in self._windows_s], np.int64)
        self._limits = (failures, failures, max(failures, slow_failures))
        self._credit_failures, self._stubborn = credit_failures, failures + credit_failures
        self._hours, self._often = hours, 3 * failures
        # One cell more than the window has: a window never looks back less far than it says.
        self._counter = WindowCounter(
            sources, tuple((s // _CELLS[s] * NS_PER_S, _CELLS[s] + 1) for s in self._windows_s), door=DOOR
        )
        self._campaigns = Campaigns(NS_PER_DAY, capacity=sources // 2, any_blockable=True, door=DOOR)

    def follow(self, attempts: Attempts) -> tuple[Followed, list[Finding]]:
        """What each attempt belongs to (successes are told the campaign that is open), and the findings."""
        credit = attempts.credit
        counts, hours = self._counter.update_spread(attempts.source, attempts.time_ns, attempts.weight)
        limits = self._limits_of(credit)
        # Who forgets a password fails often twice or three times a day; who guesses slowly, hour after hour.
        bursts = (attempts.rhythm & Rhythm.ONE_USER > 0) & (hours < self._hours)
        limits[-1] = np.where(bursts, np.maximum(limits[-1], self._often), limits[-1])
        scale, reached = shortest_over(counts, limits)
        # A success has just taken back what it answers.
        live = goes_on(counts - np.minimum(attempts.weight, 0)[:, None], limits)
        # The allowance is for many people's slips. Nobody slips so often with one name.
        stubborn = (credit > 0) & (attempts.pending + attempts.failures >= self._stubborn)
        insists = stubborn & ~reached & (attempts.failures > 0)
        scale[insists] = len(limits) - 1
        followed = self._campaigns.update(
            attempts.source,
            attempts.time_ns,
            reached | insists,
            attempts.marked,
            attempts.user,
            attempts.spans,
            attempts.batch.text,
            attempts.time_ns - self._look_back_ns[scale],
            kept=credit,
        )

        def story_of(at: int) -> dict[str, Any]:
            window_s = self._windows_s[scale[at]]
            limit = self._stubborn if insists[at] else int(limits[scale[at]][at])
            return {
                **attempts.story_of(at, self.name),
                "limit": limit,
                "window_s": window_s,
                "threshold": f"{limit} failed attempts in {window_s} s",
            }

        return replace(followed, live=live | (stubborn & (counts[:, 1] >= self._limits[0]))), [
            self._finding(*grown) for grown in self._campaigns.grown(followed, story_of, attempts.news())
        ]

    def _limits_of(self, credit: I64) -> list[I64]:
        """For each window a column of how many failures it takes."""
        more = (credit > 0) * (self._credit_failures + np.clip(credit - 10, 0, 100))
        limits = [limit + more for limit in self._limits]
        # A day of an office's slips is more than an hour's.
        limits[-1] = limits[-1] + 2 * more * (credit >= SHARED)
        return limits

    def standing(self, source: U64, credit: int, now_ns: int) -> list[Standing]:
        """How near the source is to being raised."""
        raised = self._campaigns.attempts(source, now_ns)
        if raised is not None:
            return [Standing(self.name, f"raised, with {raised} failed attempts", figure=raised, unit=_UNIT)]
        limits = [int(limit[0]) for limit in self._limits_of(np.array([credit]))]
        sums = self._counter.sums(source, now_ns)
        more = f" ({limits[0] - self._limits[0]} more for its credit)" if credit else ""
        return counted(self.name, _UNIT, zip(self._windows_s, sums, limits, strict=True), more)

    def update(self, attempts: Attempts) -> list[Finding]:
        return self.follow(attempts)[1]

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        return source_finding(
            self.name,
            "brute_force",
            record,
            story,
            severity=50 + 10 * ((record.attempts >= 100) + (record.attempts >= 1000)),
            technique="T1110.001",
        )

    def save(self) -> dict[str, Any]:
        return {"counter": self._counter.save(), "campaigns": self._campaigns.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._counter.load(state["counter"])
        self._campaigns.load(state["campaigns"])
