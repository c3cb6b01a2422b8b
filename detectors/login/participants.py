"""Who takes part in an attack of many sources, and who of them turns out to be a user who mistyped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...daemon.events import I64, Bool
from .attempts import Attempts


class Participants:
    """Sources that failed as strangers, and those of them from which somebody has logged in since.

    Both are bounded to `capacity`; the oldest goes. An event's number counts all attempts ever seen, so that what
    is asked of one does not depend on how events were divided into batches.
    """

    def __init__(self, capacity: int = 8192) -> None:
        self._capacity = capacity
        self._seen = 0
        self._suspects: dict[int, None] = {}
        self._let_off: dict[int, int] = {}

    def update(self, attempts: Attempts, suspects: Bool) -> int:
        """Takes a batch, of which `suspects` (`bool[n]`) failed as strangers; gives the number of its first event."""
        first, self._seen = self._seen, self._seen + len(attempts.row)
        source = attempts.source.view(np.int64)
        known = np.fromiter(self._suspects, np.int64, len(self._suspects))
        rows = np.flatnonzero(suspects)
        came = np.flatnonzero(attempts.success)
        came = came[np.isin(source[came], np.concatenate((known, source[rows])))]
        for at in np.sort(np.concatenate((rows, came))).tolist():
            key = int(source[at])
            if suspects[at]:
                _put(self._suspects, key, None, self._capacity)
            elif key in self._suspects:
                _put(self._let_off, key, first + at, self._capacity)
        return first

    def let_off(self, source: Any, number: int) -> bool:
        """Whether somebody had logged in from there (a key, `numpy.uint64`) before the event of that number."""
        return self._let_off.get(int(source.view(np.int64)), number) < number

    def named(self, attempts: Attempts, packed: Iterable[bytes], number: int) -> tuple[str, ...]:
        """The networks of `Attempts.packed_sources`, in their order, less those let off before that event."""
        return tuple(
            attempts.source_text(name)
            for name in packed
            if name and not self.let_off(attempts.source_key(name), number)
        )

    def save(self) -> dict[str, Any]:
        return {
            "seen": self._seen,
            "suspects": np.fromiter(self._suspects, np.int64, len(self._suspects)),
            "let_off": np.array(list(self._let_off.items()), np.int64).reshape(-1, 2),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._seen = state["seen"]
        self._suspects = dict.fromkeys(state["suspects"].tolist())
        pairs: I64 = state["let_off"]
        self._let_off = dict(pairs.tolist())


def _put(held: dict[int, Any], key: int, value: Any, capacity: int) -> None:
    if key not in held:
        held[key] = value
        if len(held) > capacity:
            del held[next(iter(held))]
