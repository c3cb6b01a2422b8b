"""Who takes part in an attack of many sources, and who of them turns out to be a user who mistyped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...daemon.events import I64, Bool
from .attempts import Attempts

_SETTLED_NS = 2 * 3600 * 10**9  # more than it takes a success to give its source credit


class Participants:
    """Sources that failed as strangers, whom each tried first, and which of them turned out to be no attacker's:
    from which somebody has logged in since, or has failed for one user more than `tries` times, as people do, or
    in the way of a job.

    Both are bounded to `capacity`; the oldest goes. An event's number counts all attempts ever seen, so that what
    is asked of one does not depend on how events were divided into batches.
    """

    def __init__(self, capacity: int = 8192, tries: int = 4) -> None:
        self._capacity, self._tries = capacity, tries
        self._seen = 0
        self._suspects: OrderedDict[int, tuple[int, int]] = (
            OrderedDict()
        )  # the user and the number of the event
        self._let_off: OrderedDict[int, int] = OrderedDict()

    def update(self, attempts: Attempts, strangers: Bool, nameless: Bool | None = None) -> int:
        """Takes a batch, of which `strangers` (`bool[n]`) failed as such, and `nameless` for accounts that do not
        exist, which may have been a slip; gives the number of its first event.
        """
        first, self._seen = self._seen, self._seen + len(attempts.row)
        source, user = attempts.source.view(np.int64), attempts.user.view(np.int64)
        suspects = strangers if nameless is None else strangers | nameless
        rows = np.flatnonzero(suspects)
        # Where users have logged in for hours, nobody can have been a stranger.
        lately = attempts.time_ns - attempts.first_success_ns < _SETTLED_NS
        new = (attempts.first_success_ns == 0) | lately
        came = np.flatnonzero((attempts.success & new) | (attempts.job & ~suspects))
        known = np.fromiter(self._suspects, np.int64, len(self._suspects) if len(came) else 0)
        came = came[np.isin(source[came], np.concatenate((known, source[rows])))]
        insists = suspects & (attempts.pending + attempts.failures > self._tries)
        told = np.sort(np.concatenate((rows, came)))
        fails = (suspects & ~insists)[told].tolist()
        whom = np.where(strangers, user, 0)[told].tolist()
        for at, key, failed, name in zip(told.tolist(), source[told].tolist(), fails, whom, strict=True):
            if failed:
                if key not in self._suspects:
                    _put(self._suspects, key, (name, first + at), self._capacity)
            elif key in self._suspects:
                _put(self._let_off, key, first + at, self._capacity)
        return first

    def suspected(self, source: Any, user: Any, number: int) -> bool:
        """Whether this source had first failed for an account of another user before that event."""
        whom, when = self._suspects.get(int(source.view(np.int64)), (0, number))
        another = whom not in (0, int(user.view(np.int64)))
        return another and when < number and not self.let_off(source, number)

    def let_off(self, source: Any, number: int) -> bool:
        """Whether somebody had logged in from there (a key, `numpy.uint64`) before the event of that number."""
        return self._let_off.get(int(source.view(np.int64)), number) < number

    def named(
        self, attempts: Attempts, packed: Iterable[bytes], number: int, user: Any = None
    ) -> tuple[str, ...]:
        """The networks of `Attempts.packed_sources`, in their order, less those let off before that event.

        Of those who guess the account of one `user` (its key), less those who had begun with another: they take
        part in something wider. All are named where nobody else would be.
        """
        keys = {name: attempts.source_key(name) for name in packed if name}
        here = [name for name, key in keys.items() if not self.let_off(key, number)]
        only = [name for name in here if user is not None and not self.suspected(keys[name], user, number)]
        return tuple(map(attempts.source_text, only or here))

    def save(self) -> dict[str, Any]:
        return {
            "seen": self._seen,
            "suspects": np.array([(k, *v) for k, v in self._suspects.items()], np.int64).reshape(-1, 3),
            "let_off": np.array(list(self._let_off.items()), np.int64).reshape(-1, 2),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]
        suspects: I64 = state["suspects"]
        self._suspects = OrderedDict((key, (user, number)) for key, user, number in suspects.tolist())
        pairs: I64 = state["let_off"]
        self._let_off = OrderedDict(pairs.tolist())


def _put(held: OrderedDict[int, Any], key: int, value: Any, capacity: int) -> None:
    if key not in held:
        held[key] = value
        if len(held) > capacity:
            held.popitem(last=False)
