"""Distributed guessing of one account: many sources, few tries each, so that no source stands out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, NS_PER_S, U64, Bool
from ..campaigns import ASK, Campaigns, Followed, Record
from ..finding import EntityType, Finding, Kind, finding_id
from ..standing import Standing
from ..tables import NS_PER_DAY, DistinctCounter, Rates, WindowCounter
from .attempts import Attempts
from .evidence import goes_on, shortest_over, spread
from .participants import Participants

_MOST_ALLOWED = 10
_LEARNT_NS = 6 * 3600 * NS_PER_S
_FEW_ACCOUNTS, _MOST_ACCOUNTS = 32, 256


class DistributedBruteForce:
    """One account guessed from many networks (ATT&CK T1110.001): distinct strangers who have failed for it.

    A stranger is an IPv4 /24 or an IPv6 /48 from which nobody has logged in lately, and this user never; it counts
    with at most `tries` failures, beyond which it is a matter for brute force. An account is raised at the
    `sources`-th stranger within an hour, or the `slow_sources`-th within a day; for each network
    that was new for its user, the first among them, it takes one more, up to ten, and while the whole site is tried,
    twice what each other account has. Accounts that do not exist are not raised: nobody can get
    in. A name that strangers guess everywhere (`guessed_names`) is raised only when within an hour there are
    `sources` more than twice what is usual for it and six times its square root (a Poisson deviation), once
    there have been logins for six hours.

    Parameters: `sources` (int, 10), `slow_sources` (int, 15), `tries` (int, 9), `accounts` (int, 4096: the most
    that are remembered at once).
    """

    name: ClassVar[str] = "distributed_brute_force"
    kinds: ClassVar[tuple[Kind, ...]] = ("distributed_brute_force",)
    partition_key: ClassVar[EntityType] = "user"

    def __init__(
        self, sources: int = 10, slow_sources: int = 15, tries: int = 9, accounts: int = 4096
    ) -> None:
        self._windows_s = (3600, 86400)
        self._look_back_ns = np.array(self._windows_s, np.int64) * NS_PER_S
        self._limits = (sources, max(sources, slow_sources))
        self._counter = DistinctCounter(
            accounts, 2 * self._limits[1] + 96, tuple(s * NS_PER_S for s in self._windows_s), tries
        )
        self._rates = Rates(accounts)
        self._participants = Participants(tries=tries)
        windows_ns = tuple(int(s) * NS_PER_S for s in self._windows_s)
        self._tries_at_site = WindowCounter(1, tuple((ns // 12, 13) for ns in windows_ns))
        self._accounts_at_site = DistinctCounter(1, _MOST_ACCOUNTS, windows_ns)
        self._others: I64 = np.zeros(2, np.int64)
        self._campaigns = Campaigns(NS_PER_DAY, capacity=accounts, records=1024)

    def follow(self, attempts: Attempts) -> tuple[Followed, list[Finding]]:
        """What each attempt belongs to, by its user, and the findings."""
        stranger = attempts.stranger
        first = self._participants.update(attempts, stranger)
        rows = np.flatnonzero(stranger | (attempts.success & (attempts.user != 0)))
        stranger, user, time_ns = stranger[rows], attempts.user[rows], attempts.time_ns[rows]
        change = np.where(stranger, DistinctCounter.ADD, DistinctCounter.ASK).astype(np.int8)
        counts = self._counter.update(user, attempts.wider[rows], time_ns, change)[:, :2]
        rates = self._rates.update(user, time_ns, stranger.astype(np.int64))
        limits = self._limits_of(attempts, rows, counts, rates)
        scale, over = shortest_over(counts, limits)
        names, spans = attempts.packed_sources(rows)
        followed = self._campaigns.update(
            user,
            time_ns,
            over & stranger,
            np.where(stranger, attempts.marked[rows], ASK),
            attempts.source[rows],
            spans,
            names,
            time_ns - self._look_back_ns[scale],
        )

        def story_of(at: int) -> dict[str, Any]:
            row, limit = int(rows[at]), int(limits[scale[at]][at])
            return self._story(attempts, row, self._windows_s[scale[at]], limit, rates[at].tolist())

        def news_of(at: int) -> dict[str, Any]:
            return {"number": first + int(rows[at]), "user": user[at]}

        found = [
            self._finding(*grown, attempts) for grown in self._campaigns.grown(followed, story_of, news_of)
        ]
        return spread(replace(followed, live=goes_on(counts, limits)), rows, len(attempts.row)), found

    def _limits_of(self, attempts: Attempts, rows: I64, counts: I64, rates: I64) -> list[I64]:
        """For each window a column of how many strangers it takes."""
        allowed = np.minimum(attempts.recalled.strayed[rows], _MOST_ALLOWED)
        others = self._of_others(attempts, rows, counts)
        popular, mean = attempts.popular[rows], rates[:, 0] / 1024
        usual = np.ceil(2 * mean + 6 * np.sqrt(mean + 1)).astype(np.int64)
        never = np.int64(1 << 40)
        site_ns = attempts.recalled.site_first_ns[rows]
        learnt: Bool = (site_ns > 0) & (attempts.time_ns[rows] - site_ns >= _LEARNT_NS)
        hour = self._limits[0] + np.where(popular, np.where(learnt, usual, never), allowed + others[:, 0])
        return [hour, np.where(popular, never, self._limits[1] + allowed + others[:, 1])]

    def _of_others(self, attempts: Attempts, rows: I64, counts: I64) -> I64:
        """Twice what strangers try at each other account in these windows: the share of an attack on all of them.

        It is reckoned at each failure that is aimed at somebody, and holds until the next.
        """
        aimed = np.flatnonzero(attempts.stranger[rows] & ~attempts.popular[rows])
        site, time_ns = np.ones(len(aimed), np.uint64), attempts.time_ns[rows[aimed]]
        once = (attempts.pending[rows[aimed]] == 0).astype(np.int64)
        tries = self._tries_at_site.update(site, time_ns, once)
        change = np.full(len(aimed), DistinctCounter.ADD, np.int8)
        accounts = self._accounts_at_site.update(site, attempts.user[rows[aimed]], time_ns, change)[:, :2]
        others = 2 * np.maximum(tries - counts[aimed], 0) // np.maximum(accounts - 1, _FEW_ACCOUNTS)
        values = np.concatenate((self._others[None], others))
        self._others = values[-1].copy()
        latest = np.zeros(len(rows), np.int64)
        latest[aimed] = 1
        made: I64 = values[np.cumsum(latest)]
        return made

    def _story(
        self, attempts: Attempts, at: int, window_s: int, limit: int, rate: list[int]
    ) -> dict[str, Any]:
        user, logins = attempts.user_of(at), int(attempts.logins[at])
        usual = f"{rate[0] / 1024:.1f} failures of strangers an hour are usual for this account"
        known = f"has logged in {logins} times from elsewhere" if logins else "has not been seen to log in"
        return attempts.story_of(at, self.name) | {
            "id": finding_id(self.name, user, int(attempts.time_ns[at]), int(attempts.line[at])),
            "entity": user,
            "limit": limit,
            "window_s": window_s,
            "logins": logins,
            "threshold": f"failures from {limit} networks in {window_s} s, few from each",
            "baseline": f"{user} {known}; {usual if attempts.popular[at] else 'not a name that is guessed everywhere'}",
        }

    def _finding(self, record: Record, story: dict[str, Any], attempts: Attempts) -> Finding:
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="distributed_brute_force",
            entity_type="user",
            entity=story["entity"],
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=60 + 5 * (story["logins"] > 0),
            confidence=0.9,
            sources=self._participants.named(attempts, record.items, story["number"], story["user"]),
            users=(story["entity"],),
            targets=story["targets"],
            figures={
                "attempts": record.attempts,
                "distinct_sources": record.distinct,
                "threshold": story["limit"],
                "window_s": story["window_s"],
                "logins_of_user": story["logins"],
            },
            threshold=story["threshold"],
            baseline=story["baseline"],
            techniques=("T1110.001",),
            lines=record.lines,
            samples=story["samples"],
            provenance=record.provenance,
            trigger_line=record.trigger_line,
        )

    def standing(self, source: U64, credit: int, now_ns: int) -> list[Standing]:
        """Nothing: no source is judged here, but an account."""
        return []

    def update(self, attempts: Attempts) -> list[Finding]:
        return self.follow(attempts)[1]

    def save(self) -> dict[str, Any]:
        return {
            "counter": self._counter.save(),
            "rates": self._rates.save(),
            "participants": self._participants.save(),
            "tries_at_site": self._tries_at_site.save(),
            "accounts_at_site": self._accounts_at_site.save(),
            "others": self._others.copy(),
            "campaigns": self._campaigns.save(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._counter.load(state["counter"])
        self._rates.load(state["rates"])
        self._participants.load(state["participants"])
        self._tries_at_site.load(state["tries_at_site"])
        self._accounts_at_site.load(state["accounts_at_site"])
        self._others = state["others"].copy()
        self._campaigns.load(state["campaigns"])
