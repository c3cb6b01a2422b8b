"""Who succeeded of late: the clients and users that a block must not hit in numbers, for the circuit breaker.

It holds MOST of each with the first and the last time of success; what is older than the window counts no more. Of
IPv6 a /64 is one client: whoever has one has as many addresses as he likes. A flood of new names pushes out none that
succeeded over an hour or longer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from .events import NS_PER_S, AuthBatch, Outcome, address_text

MOST = 16_384
WINDOW_S = 86_400
SETTLED_S = 3600
"""Whoever succeeded over so long a time is pushed out only by others who did, and counts among them on his own."""

Times = OrderedDict[str, tuple[int, int]]


class _Names:
    """At most `most` names: half of them settled, half of them new; the one that is silent longest makes room."""

    def __init__(self, window_ns: int, most: int) -> None:
        self._window_ns = window_ns
        self._most = most // 2
        self._settled: Times = OrderedDict()
        self._new: Times = OrderedDict()

    def note(self, name: str, first_ns: int, last_ns: int) -> None:
        former = self._settled.pop(name, None) or self._new.pop(name, None)
        if former is not None and former[1] >= first_ns - self._window_ns:
            first_ns, last_ns = min(former[0], first_ns), max(former[1], last_ns)
        times = self._settled if last_ns - first_ns >= SETTLED_S * NS_PER_S else self._new
        times[name] = first_ns, last_ns
        if len(times) > self._most:
            times.popitem(last=False)

    def within(self, now_ns: int) -> dict[str, int]:
        since_ns = now_ns - self._window_ns
        both = (self._settled, self._new)
        return {name: first for times in both for name, (first, last) in times.items() if last >= since_ns}

    def save(self) -> list[list[Any]]:
        return [[name, *span] for times in (self._settled, self._new) for name, span in times.items()]

    def load(self, saved: list[list[Any]]) -> None:
        self._settled.clear()
        self._new.clear()
        for name, first, last in saved:
            self.note(str(name), int(first), int(last))


class Successes:
    """Clients (an IPv4 address, an IPv6 /64) and users (`key:ID` for API keys, else the name alone)."""

    def __init__(self, window_s: int = WINDOW_S, most: int = MOST) -> None:
        self._clients = _Names(window_s * NS_PER_S, most)
        self._users = _Names(window_s * NS_PER_S, most)

    def note(self, batch: AuthBatch) -> None:
        """The successes in a batch."""
        rows = np.flatnonzero(batch.outcome == Outcome.SUCCESS)
        if not len(rows):
            return
        times = batch.time_ns[rows]
        addresses = np.column_stack([batch.client[rows], batch.client_family[rows].astype(np.uint64)])
        for (high, low, family), first, last in _spans(addresses, times):
            if family == 4:
                self._clients.note(address_text(family, high, low), first, last)
            elif family:
                self._clients.note(f"{address_text(family, high, 0)}/64", first, last)
        keyed = (batch.key[rows] != 0) & (batch.status[rows] != 0)
        names = np.where(keyed, batch.key[rows], batch.user[rows])
        at = np.unique(names, return_index=True)[1].tolist()
        for index, ((name,), first, last) in zip(at, _spans(names[:, None], times), strict=True):
            if name:
                row = int(rows[index])
                text = f"key:{batch.text_of(row, 'key')}" if keyed[index] else batch.text_of(row, "user")
                self._users.note(text, first, last)

    def clients(self, now_ns: int) -> dict[str, int]:
        """Who succeeded within the window -> when first."""
        return self._clients.within(now_ns)

    def users(self, now_ns: int) -> dict[str, int]:
        return self._users.within(now_ns)

    def save(self) -> dict[str, Any]:
        return {"clients": self._clients.save(), "users": self._users.save()}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `save` gave. Raises KeyError, TypeError, ValueError where it is of another shape."""
        self._clients.load(state["clients"])
        self._users.load(state["users"])


def _spans(rows: np.ndarray[Any, Any], times: np.ndarray[Any, Any]) -> list[tuple[list[int], int, int]]:
    """Each different row with its first and last time."""
    different, inverse = np.unique(rows, axis=0, return_inverse=True)
    first = np.full(len(different), np.iinfo(np.int64).max)
    last = np.full(len(different), np.iinfo(np.int64).min)
    np.minimum.at(first, inverse.ravel(), times)
    np.maximum.at(last, inverse.ravel(), times)
    return list(zip(different.tolist(), first.tolist(), last.tolist(), strict=True))
