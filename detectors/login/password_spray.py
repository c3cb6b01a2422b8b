"""Password spraying: one source that tries many users, few times each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, NS_PER_S, U64
from ..campaigns import Campaigns, Followed, Record
from ..finding import EntityType, Finding, Kind
from ..standing import Standing, counted
from ..tables import NS_PER_DAY, DistinctCounter
from .attempts import Attempts
from .evidence import DOOR, goes_on, shortest_over, source_finding

_MOST_ALLOWED = 48


class PasswordSpray:
    """Password spraying (ATT&CK T1110.003): distinct users for whom a source has failed, and not succeeded since.

    A source is raised at the `users`-th user with at most `tries` failures within an hour or a day. Where
    users have logged in from it before, it takes `credit_users` more (and one more for each eight users beyond
    ten, up to 48), and those who have count within ten minutes only: an office whose people mistype sprays
    nobody, and an attacker among them does.

    Parameters: `users` (int, 8), `tries` (int, 3), `credit_users` (int, 8), `sources` (int, 8192).
    """

    name: ClassVar[str] = "password_spray"
    kinds: ClassVar[tuple[Kind, ...]] = ("password_spray",)
    partition_key: ClassVar[EntityType] = "source"

    def __init__(self, users: int = 8, tries: int = 3, credit_users: int = 8, sources: int = 8192) -> None:
        self._windows_s = (600, 3600, 86400)
        self._look_back_ns = np.array(self._windows_s, np.int64) * NS_PER_S
        self._users, self._tries, self._credit_users = users, tries, credit_users
        self._counter = DistinctCounter(
            sources,
            users + credit_users + _MOST_ALLOWED,
            tuple(s * NS_PER_S for s in self._windows_s),
            tries,
            door=DOOR // 8,
        )
        self._campaigns = Campaigns(NS_PER_DAY, capacity=sources, any_blockable=True, door=DOOR // 8)

    def follow(self, attempts: Attempts) -> tuple[Followed, list[Finding]]:
        """What each attempt belongs to (successes are told the campaign that is open), and the findings."""
        credit = attempts.credit
        change = np.where(
            attempts.success,
            DistinctCounter.REMOVE,
            np.where(attempts.first_success_ns > 0, DistinctCounter.ADD_LESSER, DistinctCounter.ADD),
        )
        change = np.where(attempts.user == 0, DistinctCounter.ASK, change).astype(np.int8)
        counts = self._counter.update(attempts.source, attempts.user, attempts.time_ns, change)
        limit = self._users + self._allowance(credit)
        limits = [limit] * len(self._windows_s)
        scale, over = shortest_over(counts, limits)
        # A success has just taken its user off.
        live = goes_on(counts[:, : len(limits)] + attempts.success[:, None], limits)
        followed = self._campaigns.update(
            attempts.source,
            attempts.time_ns,
            over,
            attempts.marked,
            attempts.user,
            attempts.spans,
            attempts.batch.text,
            attempts.time_ns - self._look_back_ns[scale],
            kept=credit,
        )

        def story_of(at: int) -> dict[str, Any]:
            window_s, users = self._windows_s[scale[at]], int(limit[at])
            return {
                **attempts.story_of(at, self.name),
                "limit": users,
                "window_s": window_s,
                "threshold": f"failures for {users} users in {window_s} s, few for each",
            }

        return replace(followed, live=live), [
            self._finding(*grown) for grown in self._campaigns.grown(followed, story_of, attempts.news())
        ]

    def _allowance(self, credit: I64) -> I64:
        more: I64 = (credit > 0) * (self._credit_users + np.clip((credit - 10) // 8, 0, _MOST_ALLOWED))
        return more

    def standing(self, source: U64, credit: int, now_ns: int) -> list[Standing]:
        """How near the source is to being raised."""
        raised = self._campaigns.attempts(source, now_ns)
        if raised is not None:
            text = f"raised, with {raised} failed attempts"
            return [Standing(self.name, text, figure=raised, unit="failed attempts")]
        allowance = int(self._allowance(np.array([credit]))[0])
        users, _ = self._counter.counts(source, now_ns)
        more = f" ({allowance} more for its credit)" if allowance else ""
        figures = ((s, n, self._users + allowance) for s, n in zip(self._windows_s, users, strict=True))
        unit = f"users with 1 to {self._tries} failures and no success since"
        return counted(self.name, unit, figures, more)

    def update(self, attempts: Attempts) -> list[Finding]:
        return self.follow(attempts)[1]

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        return source_finding(
            self.name,
            "password_spray",
            record,
            story,
            severity=60 + 10 * (record.distinct >= 100),
            technique="T1110.003",
        )

    def save(self) -> dict[str, Any]:
        return {"counter": self._counter.save(), "campaigns": self._campaigns.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._counter.load(state["counter"])
        self._campaigns.load(state["campaigns"])
