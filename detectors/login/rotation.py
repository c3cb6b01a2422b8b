"""Rotation: a guesser who changes address inside a network that is his, so that no source fails often."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import I64, NS_PER_S, U8, U64
from ..addressing import NetworkKeys, join_keys
from ..campaigns import ASK, Campaigns, Followed, Record
from ..finding import EntityType, Finding, Kind, finding_id
from ..profiles import PUBLICKEY
from ..standing import Standing
from ..tables import NS_PER_DAY, DistinctCounter, History
from .attempts import Attempts
from .evidence import goes_on, shortest_over, spread

_MOST_ALLOWED = 48
_WIDER = NetworkKeys(b"", 24, 48)
"""For the texts of networks; `Attempts.wider` has their keys."""
_MANY_USERS = 8
_FEW_MEMBERS = 3


class Rotation:
    """Guessing (ATT&CK T1110.001; T1110.003 for many users) from many members of one network, few tries each.

    A member is an IPv6 /64 of a /48, the most that one site is given (RFC 6177), or an address of an IPv4 /24. It
    counts with at most `tries` failures, as long as nobody has logged in from it; a failure of a user who has
    logged in from the network before does not count until there are ten in a row; nor do jobs, and the site's own
    private networks. A /48 is raised at the
    `networks`-th member within an hour or the `slow_networks`-th within a day. The customers of a /24 are
    strangers to each other, so it takes `addresses` within an hour or `slow_addresses` within a day. Where users have
    logged in from the network before, it takes `credit_members` more, and one more for each eight users beyond
    ten, up to 48.

    Parameters: `networks` (int, 10), `slow_networks` (int, 15), `addresses` (int, 15), `slow_addresses` (int, 40),
    `credit_members` (int, 10), `tries` (int, 9: one less than brute force), `capacity` (int, 4096: the most networks
    that are remembered at once).
    """

    name: ClassVar[str] = "rotation"
    kinds: ClassVar[tuple[Kind, ...]] = ("brute_force",)
    partition_key: ClassVar[EntityType] = "source"

    def __init__(
        self,
        networks: int = 10,
        slow_networks: int = 15,
        addresses: int = 15,
        slow_addresses: int = 40,
        credit_members: int = 10,
        tries: int = 9,
        capacity: int = 4096,
    ) -> None:
        self._windows_s = (3600, 86400)
        self._look_back_ns = np.array(self._windows_s, np.int64) * NS_PER_S
        self._limits6 = (networks, max(networks, slow_networks))
        self._limits4 = (addresses, max(addresses, slow_addresses))
        self._credit_members, self._tries = credit_members, tries
        self._counter = DistinctCounter(
            capacity,
            max(self._limits4[1], self._limits6[1]) + credit_members + _MOST_ALLOWED,
            tuple(s * NS_PER_S for s in self._windows_s),
            tries,
        )
        self._history = History(16384)
        self._campaigns = Campaigns(NS_PER_DAY, capacity=capacity, records=1024)
        self._users = Campaigns(NS_PER_DAY, capacity=capacity, records=1024, names=4096)

    def follow(self, attempts: Attempts) -> tuple[Followed, list[Finding]]:
        """What each attempt belongs to, and the findings.

        A success is told the campaign of its network unless it was by a key, its user was at home there before, or the
        network is a /24 where nobody has tried to be this user.
        """
        stranger = (attempts.credit == 0) & (attempts.first_success_ns == 0) & (attempts.user != 0)
        stranger &= ~attempts.private & ~attempts.job & (attempts.pending < self._tries)
        rows = np.flatnonzero(attempts.success | (stranger & (attempts.weight > 0)))
        key, time_ns, success = attempts.wider[rows], attempts.time_ns[rows], attempts.success[rows]
        family = attempts.batch.client_family[attempts.row[rows]]
        pair = np.where(attempts.user[rows] == 0, np.uint64(0), join_keys(key, attempts.user[rows]))
        weight, pending, first_ns, credit = self._history.update(
            pair, np.zeros_like(key), key, time_ns, attempts.failures[rows], success.view(np.uint8)
        ).T
        counted = ~success & (weight > 0)
        change = np.where(success, DistinctCounter.REMOVE, np.where(counted, DistinctCounter.ADD, 0))
        counts = self._counter.update(key, attempts.source[rows], time_ns, change.astype(np.int8))
        limits = self._limits(family, credit)
        scale, over = shortest_over(counts, limits)
        live = goes_on(counts[:, : len(limits)], limits)
        over &= counted
        names, spans = attempts.packed_sources(rows)
        marked = np.where(counted, attempts.marked[rows], ASK)
        since_ns = time_ns - self._look_back_ns[scale]
        followed = self._campaigns.update(
            key, time_ns, over, marked, attempts.source[rows], spans, names, since_ns, kept=credit.copy()
        )
        # Most networks that strangers fail from have one or two who do; what users they try need not be kept.
        tried = np.flatnonzero(counted & ((counts[:, -2] >= _FEW_MEMBERS) | (followed.serial > 0)))
        asked = rows[tried]
        named = self._users.update(
            key[tried], time_ns[tried], over[tried], marked[tried], attempts.user[asked], attempts.spans[asked],
            attempts.batch.text, since_ns[tried],
        )  # fmt: skip
        users: I64 = np.zeros(len(rows), np.int64)
        users[tried] = named.serial

        def story_of(at: int) -> dict[str, Any]:
            row, window_s, limit = int(rows[at]), self._windows_s[scale[at]], int(limits[scale[at]][at])
            address = attempts.batch.client[attempts.row[row]].tolist()
            entity = _WIDER.text(int(family[at]), *address)
            told = attempts.story_of(row, self.name)
            return {
                **told,
                "id": finding_id(self.name, entity, int(attempts.time_ns[row]), int(attempts.line[row])),
                "entity": entity,
                "family": int(family[at]),
                "credit": int(credit[at]),
                "users": int(users[at]),
                "limit": limit,
                "window_s": window_s,
                "threshold": f"failures from {limit} members of one network in {window_s} s, few from each",
                "baseline": _baseline(int(credit[at])),
            }

        found = [
            self._finding(record, story, attempts)
            for record, story in self._campaigns.grown(
                followed, story_of, lambda at: {"credit_now": int(credit[at])}
            )
        ]
        at_home = (first_ns > 0) & (first_ns < followed.start_ns)
        guessed = success & ~at_home & (attempts.method[rows] != PUBLICKEY) & ((family == 6) | (pending > 0))
        told = counted | guessed
        followed = replace(followed, serial=np.where(told, followed.serial, 0), live=live)
        return spread(followed, rows, len(attempts.row)), found

    def _limits(self, family: U8, credit: I64) -> list[I64]:
        """For each window a column of how many members it takes."""
        few = np.clip((credit - 10) // 8, 0, _MOST_ALLOWED)
        allowance = (credit > 0) * (self._credit_members + few)
        return [
            np.where(family == 6, limit6, limit4) + allowance
            for limit4, limit6 in zip(self._limits4, self._limits6, strict=True)
        ]

    def standing(self, source: U64, credit: int, now_ns: int) -> list[Standing]:
        """Nothing: no source is judged here by itself."""
        return []

    def update(self, attempts: Attempts) -> list[Finding]:
        return self.follow(attempts)[1]

    def _finding(self, record: Record, story: dict[str, Any], attempts: Attempts) -> Finding:
        entity, family = story["entity"], story["family"]
        credit = max(story["credit"], story["credit_now"])
        sources = tuple(attempts.source_text(name) for name in record.items if name)
        tried = self._users.record(story["users"])
        users, distinct_users = (tried.names, tried.distinct) if tried else ((), 0)
        return Finding(
            id=story["id"],
            detector=self.name,
            kind="brute_force",
            entity_type="source",
            entity=entity,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=60 + 10 * ((record.attempts >= 100) + (record.attempts >= 1000)),
            confidence=0.75 if credit else 0.9 if family == 6 else 0.8,
            sources=sources,
            users=users,
            targets=story["targets"],
            figures={
                "attempts": record.attempts,
                "distinct_sources": record.distinct,
                "distinct_users": distinct_users,
                "threshold": story["limit"],
                "window_s": story["window_s"],
                "credit_users": credit,
            },
            threshold=story["threshold"],
            baseline=story["baseline"],
            techniques=("T1110.003" if distinct_users >= _MANY_USERS else "T1110.001",),
            lines=record.lines,
            samples=story["samples"],
            provenance=record.provenance,
            trigger_line=record.trigger_line,
            # Who shares the network with the guesser is cut off with him: only where nobody is known to.
            blockable=(entity,) if record.blockable and not credit else (),
            refusable=(entity,) if record.refusable and not credit else (),
        )

    def save(self) -> dict[str, Any]:
        return {
            "counter": self._counter.save(),
            "history": self._history.save(),
            "campaigns": self._campaigns.save(),
            "users": self._users.save(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._counter.load(state["counter"])
        self._history.load(state["history"])
        self._campaigns.load(state["campaigns"])
        self._users.load(state["users"])


def _baseline(credit: int) -> str:
    """What is usual for a network, in words."""
    if not credit:
        return "nobody has logged in from this network before"
    return f"{credit} user{'s have' if credit > 1 else ' has'} logged in from this network before"
