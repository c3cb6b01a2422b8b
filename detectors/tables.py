"""The bounded tables of the detectors: what the loops of `sketches.py` keep, as classes that can be saved.

A table is set-associative and never grows: a newcomer in a full bucket replaces the weakest entry of its
bucket. Every `update` takes columns and returns, for each event, the value just after that event, so any
division into batches gives the same values.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..daemon.events import I64, U8, U64, Bool
from . import sketches

NS_PER_DAY = 86_400_000_000_000
_WAYS = 8
_NO_SPREAD: I64 = np.zeros(0, np.int64)


class Table:
    """`capacity` entries (rounded up to a power of two, at least 8) of `columns` int64 numbers each.

    The first two columns are every kernel's: strength and time of the newest event. `grace_ns` is how much
    longer an entry is kept for each unit of strength (64 at most).
    """

    def __init__(self, capacity: int, columns: int, grace_ns: int) -> None:
        self.capacity = max(_WAYS, 1 << (capacity - 1).bit_length())
        self.keys: I64 = np.zeros(self.capacity, np.int64)
        self.rows: I64 = np.zeros((self.capacity, columns), np.int64)
        self.grace_ns = grace_ns
        self._buckets = np.uint64(self.capacity // _WAYS - 1)

    def home(self, keys: U64) -> I64:
        """Where the bucket of each key begins."""
        homes: I64 = ((keys & self._buckets) * np.uint64(_WAYS)).astype(np.int64)
        return homes

    def row(self, key: U64) -> list[int] | None:
        """What is held of one key, as it was left; None where it is not there. Changes nothing."""
        home = int((key & self._buckets) * np.uint64(_WAYS))
        for at in range(home, home + _WAYS):
            if key and self.keys[at] == key.view(np.int64):
                found: list[int] = self.rows[at].tolist()
                return found
        return None

    def save(self) -> dict[str, Any]:
        used = np.flatnonzero(self.keys)
        return {"capacity": self.capacity, "at": used, "keys": self.keys[used], "rows": self.rows[used]}

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the saved table had another size."""
        if state["capacity"] != self.capacity or state["rows"].shape[1:] != self.rows.shape[1:]:
            raise ValueError("the saved table has another size: it is of another version or other options")
        self.keys[:] = 0
        self.rows[:] = 0
        self.keys[state["at"]] = state["keys"]
        self.rows[state["at"]] = state["rows"]


class Door:
    """Where keys wait that have been seen once: as many as `capacity`, the oldest goes. 0 = there is no door.

    What comes only once, as a flood of invented sources does, so takes nobody's place in a table.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        size = max(_WAYS, 1 << (capacity - 1).bit_length()) if capacity else 0
        self.keys: I64 = np.zeros(size, np.int64)
        self.rows: I64 = np.zeros((size, columns), np.int64)

    def save(self) -> dict[str, Any]:
        used = np.flatnonzero(self.keys)
        return {"capacity": len(self.keys), "at": used, "keys": self.keys[used], "rows": self.rows[used]}

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the saved door had another size."""
        if state["capacity"] != len(self.keys):
            raise ValueError("the saved door has another size: it is of another version or other options")
        self.keys, self.rows = np.zeros_like(self.keys), np.zeros_like(self.rows)
        self.keys[state["at"]] = state["keys"]
        self.rows[state["at"]] = state["rows"]


class WindowCounter:
    """For each key the sum of weights within each of several sliding windows.

    Parameters: `capacity` (keys); `scales`: (cell_ns, cells) each, from the shortest window to the longest; `door`
    (keys that wait for a second event). A window spans between `cells - 1` and `cells` cells, on a fixed grid of
    event time.
    """

    def __init__(self, capacity: int, scales: tuple[tuple[int, int], ...], door: int = 0) -> None:
        self._door = Door(door, 1)
        self._scales = np.array(scales, np.int64)
        longest = max(cell * cells for cell, cells in scales)
        columns = 2 + sum(3 + cells for _, cells in scales)
        self._table = Table(capacity, columns, longest // 64)

    def update(self, keys: U64, time_ns: I64, weights: I64) -> I64:
        """The sums `int64[n, scales]` just after each event.

        Weight 0 only asks; a negative weight takes back from the newest cells, and never below nothing.
        """
        return self._update(keys, time_ns, weights, _NO_SPREAD)

    def update_spread(self, keys: U64, time_ns: I64, weights: I64) -> tuple[I64, I64]:
        """The same, and for each event of weight above 0 how many cells of the longest window are not empty."""
        spread: I64 = np.zeros(len(keys), np.int64)
        return self._update(keys, time_ns, weights, spread), spread

    def _update(self, keys: U64, time_ns: I64, weights: I64, spread: I64) -> I64:
        counts: I64 = np.zeros((len(keys), len(self._scales)), np.int64)
        table = self._table
        sketches.count_windows(
            table.home(keys), keys.view(np.int64), time_ns, weights, self._scales, table.grace_ns,
            table.keys, table.rows, counts, spread, self._door.keys, self._door.rows,
        )  # fmt: skip
        return counts

    def sums(self, key: U64, now_ns: int) -> list[int]:
        """What `update` would give for an event of weight 0 at that time, without noting that there was one."""
        row = self._table.row(key)
        if row is None:
            return [0] * len(self._scales)
        now = max(now_ns, row[1])
        found, first = [], 2 + 3 * len(self._scales)
        for number, (cell_ns, cells) in enumerate(self._scales.tolist()):
            start, place, total = row[2 + 3 * number : 5 + 3 * number]
            gone = min(now // cell_ns - start // cell_ns, cells)
            found.append(total - sum(row[first + (place + 1 + step) % cells] for step in range(gone)))
            first += cells
        return found

    def save(self) -> dict[str, Any]:
        return self._table.save() | {"door": self._door.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state)
        self._door.load(state["door"])


class DistinctCounter:
    """For each key how many distinct items were seen within each of several windows; saturates at `items`.

    Parameters: `capacity` (keys); `items` (most items held for a key; beyond, the one held longest goes);
    `windows_ns` (shortest first); `few`: an item that came more often than this is not counted (0 = no such
    limit). Items added as lesser count in the first window only; those added against are taken off the
    others, and stay so until added plainly. `alike`: count also, for each event, the items whose last 16
    bits are those of its item. `door`: keys that wait for a second event.
    """

    ADD, ADD_LESSER, ADD_AGAINST, ADD_UNLESS_AGAINST, REMOVE, ASK = 1, 2, 3, 4, -1, 0

    def __init__(
        self,
        capacity: int,
        items: int,
        windows_ns: tuple[int, ...],
        few: int = 0,
        alike: bool = False,
        door: int = 0,
    ) -> None:
        self._door = Door(door, 3)
        self._windows = np.array(windows_ns, np.int64)
        self._few = few or 1 << 60
        self._alike = int(alike)
        self._table = Table(capacity, 4 + 3 * items, windows_ns[-1] // 64)

    def update(self, keys: U64, items: U64, time_ns: I64, change: Any) -> I64:
        """The numbers `int64[n, windows + 1]` just after each event; `change` (int8[n]) says what it does.

        The column after the windows is how many items stand against within the first. Where `alike`, a column for
        each window follows: the same numbers, of items alike this event's.
        """
        counts: I64 = np.zeros((len(keys), (1 + self._alike) * len(self._windows) + 1), np.int64)
        table = self._table
        sketches.count_distinct(
            table.home(keys), keys.view(np.int64), items.view(np.int64), time_ns, change, self._windows,
            self._few, self._alike, table.grace_ns, table.keys, table.rows, counts,
            self._door.keys, self._door.rows,
        )  # fmt: skip
        return counts

    def counts(self, key: U64, now_ns: int) -> tuple[list[int], dict[int, list[int]]]:
        """The numbers for each window that `update` would give for an event that only asks at that time, without
        noting that there was one; and the same for each group of items alike, by their last 16 bits.
        """
        windows: list[int] = self._windows.tolist()
        total, row = [0] * len(windows), self._table.row(key)
        groups: dict[int, list[int]] = {}
        if row is None:
            return total, groups
        now, most = max(now_ns, row[1]), (len(row) - 4) // 3
        for at in range(4, 4 + row[2]):
            item, age, mark = row[at], now - row[at + most], row[at + 2 * most]
            if mark & 2:
                change = [-(age < window) for window in windows]
            elif mark >> 2 > self._few:
                continue
            else:
                # A lesser one counts in the first window only.
                change = [int(age < window and (n == 0 or not mark & 1)) for n, window in enumerate(windows)]
            group = groups.setdefault(item & 0xFFFF, [0] * len(windows))
            for counted in (total, group):
                counted[:] = [a + b for a, b in zip(counted, change, strict=True)]
        return total, groups

    def save(self) -> dict[str, Any]:
        return self._table.save() | {"door": self._door.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state)
        self._door.load(state["door"])


class Sessions:
    """How many attempts each line of a log adds, where one attempt writes several lines.

    For each session (`AuthBatch.session`) attempts = max(failures, PAM's failures, 1 after an invalid user),
    and a line weighs what it adds to that. A key that was offered and refused weighs nothing, since a client
    offers all it has; the session weighs 1 when it ends with nothing but refused keys. Lines without a session
    stand each for itself. A session ends after `idle_ns` without lines.

    A denied second factor is an attempt as PAM's failures are, of which it is said beside that it was one. sshd
    asks PAM in a process of its own (OpenSSH, auth-pam.c: `sshpam_init_ctx()`), so what a module and what sshd
    write of the same prompt can be of two sessions: they are joined by the user, within `join_ns`.

    Parameters: `capacity` (sessions), `prompts` (users with a denied second factor).
    """

    def __init__(
        self,
        capacity: int = 16384,
        idle_ns: int = 600 * 10**9,
        prompts: int = 4096,
        join_ns: int = 30 * 10**9,
    ) -> None:
        self._idle_ns, self._join_ns = idle_ns, join_ns
        self._table = Table(capacity, 11, idle_ns)
        self._prompts = Table(prompts, 5, 0)
        self._prompted: I64 = np.zeros(1, np.int64)

    def update(
        self, sessions: U64, time_ns: I64, kinds: U8, attempts: I64, placed: U8, users: U64
    ) -> tuple[I64, U64, I64]:
        """(weight `int64[n]`, user `uint64[n]`: that of the line, else the last one of its session, denied second
        factors `int64[n]` that the weight stands for: never more than it).

        `kinds` are `Outcome`s and `REFUSED_KEY`; `placed` is 1 where the line has a client's address: lines
        without one weigh nothing, and what they tell is given to the next line of the session that has one.
        """
        out: I64 = np.zeros((len(sessions), 3), np.int64)
        table, prompts = self._table, self._prompts
        sketches.weigh_lines(
            table.home(sessions), sessions.view(np.int64), time_ns, kinds, attempts, placed, users.view(np.int64),
            self._idle_ns, self._join_ns, table.keys, table.rows, prompts.keys, prompts.rows, self._prompted,
            np.zeros(2, np.int64), out,
        )  # fmt: skip
        weights, users, denied = np.ascontiguousarray(out.T)
        return weights, users.view(np.uint64), denied

    def save(self) -> dict[str, Any]:
        return {**self._table.save(), "prompts": self._prompts.save(), "prompted": self._prompted.copy()}

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state)
        self._prompts.load(state["prompts"])
        self._prompted[:] = state["prompted"]


REFUSED_KEY = 32
"""What `Sessions` takes beside the `Outcome`s: a public key was offered and refused."""


class History:
    """Who has succeeded from where: what makes a typist's failure different from a guesser's.

    The failures of a user from a source where that user has succeeded before weigh nothing until there are
    `tolerance` of them without a success; then they weigh all at once. Failures of anybody else weigh at once, and
    are taken back by the success that follows, where they are fewer than `tolerance`. Failures are forgotten
    after `patience_ns`, successes after `memory_ns` without another. A success gives its source credit from
    the next cell of `settle_ns` on, or at once where three users succeed within one: an attacker's first hit
    buys nothing. A request without a name that was refused, and answered by a success within `challenge_ns`, is
    a client that waits to be asked: each success takes one back.
    """

    def __init__(
        self,
        capacity: int = 65536,
        tolerance: int = 10,
        patience_ns: int = NS_PER_DAY,
        settle_ns: int = 3600 * 10**9,
        challenge_ns: int = 10 * 10**9,
        memory_ns: int = 30 * NS_PER_DAY,
    ) -> None:
        self._options = (tolerance, patience_ns, settle_ns, challenge_ns, memory_ns)
        self._pairs = Table(capacity, 6, memory_ns // 64)
        self._sources = Table(capacity, 5, memory_ns // 64)

    def update(self, pairs: U64, nameless: U64, sources: U64, time_ns: I64, weights: I64, success: U8) -> I64:
        """`int64[n, 4]`: what the event weighs now (below 0: takes back), and, as they were before the event:
        failures of the pair since its last success, time of its first success (0 = none), users of credit.
        """
        out: I64 = np.zeros((len(pairs), 4), np.int64)
        sketches.recall_history(
            self._pairs.home(pairs), pairs.view(np.int64), self._pairs.home(nameless), nameless.view(np.int64),
            self._sources.home(sources), sources.view(np.int64),
            time_ns, weights, success, *self._options, self._pairs.keys, self._pairs.rows,
            self._sources.keys, self._sources.rows, out,
        )  # fmt: skip
        return out

    def credit(self, source: U64, now_ns: int) -> int:
        """How many users give this source credit at that time. Changes nothing."""
        row = self._sources.row(source)
        _, _, settle_ns, _, memory_ns = self._options
        if row is None or now_ns - row[1] > memory_ns:
            return 0
        _, last, settled, fresh, cell = row
        if max(now_ns, last) // settle_ns > cell:
            return settled + fresh
        return settled + (fresh if fresh >= 3 else 0)

    @property
    def tolerance(self) -> int:
        """Failures in a row of a user who had succeeded from there, from which on they weigh."""
        return self._options[0]

    def save(self) -> dict[str, Any]:
        return {"pairs": self._pairs.save(), "sources": self._sources.save()}

    def load(self, state: dict[str, Any]) -> None:
        self._pairs.load(state["pairs"])
        self._sources.load(state["sources"])


class Rhythm:
    """Whether the failures of a source are those of one job: one user, at a fixed period, with a key, for nobody.

    Failures within `bout_ns` of the first of them are one bout. Bouts keep a period when their distance is a
    multiple of the first one to within `slack_ns` and a 64th of it, in four of five cases and three times at
    least, with at most `most` failures in the bout before, and then silence for a third of the distance; where most do
    not, the period is learned anew. Forgotten after `idle_ns` without failures.
    """

    ONE_USER, PERIODIC, KEY_ALONE, NOBODY = 1, 2, 4, 8

    def __init__(
        self,
        capacity: int = 32768,
        bout_ns: int = 50 * 10**9,
        slack_ns: int = 5 * 10**9,
        idle_ns: int = 2 * NS_PER_DAY,
        most: int = 6,
    ) -> None:
        self._options = (bout_ns, slack_ns, idle_ns, most)
        self._table = Table(capacity, 11, idle_ns // 64)

    def update(self, sources: U64, users: U64, time_ns: I64, weights: I64, by_key: Bool, absent: Bool) -> U8:
        """For each event the bits that hold of its source's failures, this one included; weight 0 only asks.

        `by_key`: a refused key was all there was. `absent`: the account does not exist.
        """
        out: U8 = np.zeros(len(sources), np.uint8)
        table = self._table
        sketches.note_rhythm(
            table.home(sources), sources.view(np.int64), users.view(np.int64), time_ns, weights,
            by_key.view(np.uint8), absent.view(np.uint8), *self._options, table.grace_ns,
            table.keys, table.rows, out,
        )  # fmt: skip
        return out

    def save(self) -> dict[str, Any]:
        return self._table.save()

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state)


class Rates:
    """For each key how much comes in a cell of time on average, over the latest `memory` cells or so.

    The mean is exact over the first `memory` cells and moves by one part in `memory` with each one after. Once a
    third of them are known, what is over four times the mean (and 16) counts as that.
    """

    MEMORY: ClassVar[int] = 72

    def __init__(self, capacity: int, cell_ns: int = 3600 * 10**9, memory: int = MEMORY) -> None:
        self._cell_ns, self._memory = cell_ns, memory
        self._table = Table(capacity, 6, cell_ns * memory // 64)

    def update(self, keys: U64, time_ns: I64, weights: I64) -> I64:
        """`int64[n, 2]`: the mean of the whole cells before the event's, in 1/1024, and how many they are.

        Weight 0 only asks.
        """
        out: I64 = np.zeros((len(keys), 2), np.int64)
        table = self._table
        sketches.learn_rates(
            table.home(keys), keys.view(np.int64), time_ns, weights, self._cell_ns, self._memory,
            table.grace_ns, table.keys, table.rows, out,
        )  # fmt: skip
        return out

    def save(self) -> dict[str, Any]:
        return self._table.save()

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state)


class FlowGrowth:
    """What each row of a flow adds to what its rows before have told: a flow appears again as it changes."""

    def __init__(self, capacity: int = 65536) -> None:
        self._table = Table(capacity, 4, 0)

    def update(self, flows: U64, time_ns: I64, bytes_out: I64, bytes_in: I64) -> I64:
        """`int64[n, 3]`: bytes out and bytes in added, and 1 for the first row of a flow."""
        out: I64 = np.zeros((len(flows), 3), np.int64)
        table = self._table
        sketches.grow_flows(
            table.home(flows), flows.view(np.int64), time_ns, bytes_out, bytes_in, table.grace_ns,
            table.keys, table.rows, out,
        )  # fmt: skip
        return out

    def save(self) -> dict[str, Any]:
        return self._table.save()

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state)
