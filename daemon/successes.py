"""Who succeeded of late: the clients and users that a block must not hit in numbers, for the circuit breaker.

It holds the last MOST of each with the first and the last time of success; what is older than the window counts no
more. Whoever can write to a log that others may write to can make names appear here: that makes the breaker ask
sooner or later than it should, and blocks nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from .events import NS_PER_S, AuthBatch, Outcome, address_text

MOST = 16_384
WINDOW_S = 86_400

Times = OrderedDict[str, tuple[int, int]]


class Successes:
    """Clients (addresses) and users (`key:ID` for API keys, else the name alone), the last to succeed at the end."""

    def __init__(self, window_s: int = WINDOW_S, most: int = MOST) -> None:
        self._window_ns = window_s * NS_PER_S
        self._most = most
        self._clients: Times = OrderedDict()
        self._users: Times = OrderedDict()

    def note(self, batch: AuthBatch) -> None:
        """The successes in a batch."""
        rows = np.flatnonzero(batch.outcome == Outcome.SUCCESS)
        if not len(rows):
            return
        times = batch.time_ns[rows]
        addresses = np.column_stack([batch.client[rows], batch.client_family[rows].astype(np.uint64)])
        for (high, low, family), first, last in _spans(addresses, times):
            if family:
                self._note(self._clients, address_text(family, high, low), first, last)
        keyed = (batch.key[rows] != 0) & (batch.status[rows] != 0)
        names = np.where(keyed, batch.key[rows], batch.user[rows])
        known, at = np.unique(names, return_index=True)
        for name, index in zip(known.tolist(), at.tolist(), strict=True):
            if name:
                mine, row = times[names == name], int(rows[index])
                text = f"key:{batch.text_of(row, 'key')}" if keyed[index] else batch.text_of(row, "user")
                self._note(self._users, text, int(mine.min()), int(mine.max()))

    def clients(self, now_ns: int) -> dict[str, int]:
        """Who succeeded within the window -> when first."""
        return self._within(self._clients, now_ns)

    def users(self, now_ns: int) -> dict[str, int]:
        return self._within(self._users, now_ns)

    def save(self) -> dict[str, Any]:
        return {"clients": _plain(self._clients), "users": _plain(self._users)}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `save` gave; what is of another shape is forgotten."""
        for times, name in ((self._clients, "clients"), (self._users, "users")):
            times.clear()
            for entry in state.get(name, ())[-self._most :]:
                text, first, last = entry
                times[str(text)] = int(first), int(last)

    def _note(self, times: Times, text: str, first_ns: int, last_ns: int) -> None:
        former = times.pop(text, None)
        if former is not None and former[1] >= first_ns - self._window_ns:
            first_ns, last_ns = min(former[0], first_ns), max(former[1], last_ns)
        times[text] = first_ns, last_ns
        if len(times) > self._most:
            times.popitem(last=False)

    def _within(self, times: Times, now_ns: int) -> dict[str, int]:
        since_ns = now_ns - self._window_ns
        return {text: first for text, (first, last) in times.items() if last >= since_ns}


def _spans(rows: np.ndarray[Any, Any], times: np.ndarray[Any, Any]) -> list[tuple[list[int], int, int]]:
    """Each different row with its first and last time."""
    different, inverse = np.unique(rows, axis=0, return_inverse=True)
    first = np.full(len(different), np.iinfo(np.int64).max)
    last = np.full(len(different), np.iinfo(np.int64).min)
    np.minimum.at(first, inverse.ravel(), times)
    np.maximum.at(last, inverse.ravel(), times)
    return list(zip(different.tolist(), first.tolist(), last.tolist(), strict=True))


def _plain(times: Times) -> list[list[Any]]:
    return [[text, first, last] for text, (first, last) in times.items()]
