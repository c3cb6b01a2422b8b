"""Campaigns: from the event at which a threshold was crossed to the last one that belongs to it.

Holds for each key the trail of its latest events, so that a finding can cite what came before the crossing,
and for each open campaign a bounded record of its evidence. When more campaigns are open than there are
records, the oldest stops growing; its finding stands as last given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..daemon.events import I32, I64, U8, U64, Bool
from . import sketches
from .tables import Door, Table

_TRAIL = 24
_LINES = 12 + 16
_RECORD = _LINES + 32 + 32 + 1
_NAME = 64
_BITS = 512
_MOST_DISTINCT = 1 << 20
_NO_AMOUNTS: I64 = np.zeros((0, 2), np.int64)
_NOTHING: I64 = np.zeros(0, np.int64)
_MOST_LINE = (1 << 37) - 1
MOST_WEIGHT = (1 << 20) - 1

ASK = -1
FINAL, OPENED = 1, 2
"""Marks of a row: the last one of its campaign in this batch; the one that opened it."""


class Record(NamedTuple):
    """What is known of one campaign. `items` are the names of the first 32 distinct ones, as they came."""

    serial: int
    trigger_ns: int
    trigger_line: int
    start_ns: int
    end_ns: int
    attempts: int
    provenance: int
    blockable: bool
    refusable: bool  # not blockable, but would be if its client were the peer
    amounts: tuple[int, int]
    distinct: int  # exact up to 32, estimated beyond
    items: tuple[bytes, ...]  # the names of the first 32 distinct ones, in order of coming
    names: tuple[str, ...]  # the same as text, sorted; one that was too long to keep ends in an ellipsis
    lines: tuple[int, ...]


@dataclass(slots=True)
class _Read:
    """What has been read of a record."""

    serial: int
    lines: tuple[int, ...] = ()
    items: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Followed:
    """What `Campaigns.update` says of each event."""

    serial: I64  # the open campaign that the event belongs to, 0 = none
    start_ns: I64
    before_ns: I64  # the last event of that key before this one
    marks: I64  # FINAL and OPENED
    attempts: I64  # of the campaign, this event included
    kept: I64  # what `kept` was at the event that opened the campaign
    live: Bool  # whether the campaign goes on at this event, or its last events were somebody else's

    @classmethod
    def of(cls, columns: I64) -> Followed:
        """From `int64[6, n]`, the first six fields: live is what belongs to a campaign."""
        serial, start_ns, before_ns, marks_of, attempts, kept = columns
        return cls(serial, start_ns, before_ns, marks_of, attempts, kept, live=serial > 0)


def marks(
    lines: I64,
    provenance: NDArray[Any],
    blockable: NDArray[Any],
    weights: I64,
    refusable: NDArray[Any] | None = None,
) -> I64:
    """What the trail keeps of each event beside item and time, packed into one number.

    `refusable` holds where `blockable` does, and where it would but for a proxy between.
    """
    weight = np.clip(weights, 0, MOST_WEIGHT)
    packed: I64 = np.clip(lines, 0, _MOST_LINE) << 24
    packed |= provenance.astype(np.int64) << 21
    packed |= blockable.astype(np.int64) << 20
    if refusable is not None:
        packed |= refusable.astype(np.int64) << 61
    return packed | weight


class Campaigns:
    """Opens and grows campaigns; see the module.

    Parameters: `gap_ns` (a campaign ends after as long without events of its key); `capacity` (keys with a
    trail); `records` (campaigns that can grow at once); `names` (texts of items held); `any_blockable` (one
    blockable event makes the campaign blockable; else all must be); `door` (keys that wait for a second event).
    """

    def __init__(
        self,
        gap_ns: int,
        capacity: int = 16384,
        records: int = 4096,
        names: int = 16384,
        any_blockable: bool = False,
        door: int = 0,
    ) -> None:
        self._door = Door(door, 3)
        self._gap_ns = gap_ns
        self._any_blockable = int(any_blockable)
        self._table = Table(capacity, 4 + 3 * _TRAIL, max(1, gap_ns // 64))
        self._names = Table(names, 2, 0)
        self._name_text: U8 = np.zeros((self._names.capacity, _NAME), np.uint8)
        self._records: I64 = np.zeros((records, _RECORD), np.int64)
        self._record_names: U8 = np.zeros((records, 32, _NAME), np.uint8)
        self._newest: I64 = np.zeros(1, np.int64)
        self._stories: dict[int, dict[str, Any]] = {}
        self._read: dict[int, _Read] = {}

    def update(
        self,
        keys: U64,
        time_ns: I64,
        over: NDArray[Any],
        marked: I64,
        items: U64,
        spans: I32,
        text: bytes,
        since_ns: I64,
        amounts: I64 | None = None,
        kept: I64 | None = None,
    ) -> Followed:
        """Takes a batch of events; those whose `marked` is ASK only ask which campaign is open, and those without
        weight and item open one only where there is a trail.

        `over` (bool[n]): at or above the threshold. `items` and `spans` (`int32[n, 2]` into `text`): what the
        campaign counts distinct ones of, and their names. `since_ns`: how far back the trail belongs to a
        campaign that opens here. `amounts` (`int64[n, 2]`) are summed from the opening on; of
        `kept` (`int64[n]`) the opening event's is kept.
        """
        out: I64 = np.zeros((len(keys), 6), np.int64)
        table = self._table
        sketches.follow_campaigns(
            table.home(keys), keys.view(np.int64), time_ns, since_ns, over.view(np.uint8), marked,
            _NO_AMOUNTS if amounts is None else amounts, _NOTHING if kept is None else kept,
            items.view(np.int64), np.ascontiguousarray(spans), np.frombuffer(text or b"\0", np.uint8),
            self._gap_ns, self._any_blockable, table.grace_ns, table.keys, table.rows,
            self._records, self._record_names, self._newest, self._names.keys, self._names.rows, self._name_text,
            np.full(len(self._records), -1, np.int64), out, self._door.keys, self._door.rows,
        )  # fmt: skip
        return Followed.of(out.T)

    def grown(
        self,
        followed: Followed,
        story_of: Callable[[int], dict[str, Any]],
        news_of: Callable[[int], dict[str, Any]] = lambda row: {},
    ) -> Iterator[tuple[Record, dict[str, Any]]]:
        """Every campaign of the batch once, as its last event leaves it, with its story.

        `story_of(row)` says, of the event that opened a campaign, what is told whatever it grows to: text and
        numbers. It is asked at once, since the batch is gone later. `news_of(row)` says of its last event what
        is added to the story for this time alone.
        """
        rows = np.flatnonzero(followed.marks)
        for row, serial, mark in zip(
            rows.tolist(), followed.serial[rows].tolist(), followed.marks[rows].tolist(), strict=True
        ):
            if mark & OPENED:
                self._stories[serial] = story_of(row)
                while len(self._stories) > len(self._records):
                    del self._stories[next(iter(self._stories))]
            if mark & FINAL:
                record, story = self.record(serial), self._stories.get(serial)
                if record and story:
                    yield record, story | news_of(row)

    def record(self, serial: int) -> Record | None:
        """The record of a campaign, or None where a newer campaign has taken its place."""
        at = serial % len(self._records)
        row = self._records[at, :_LINES].tolist()
        if row[0] != serial or serial == 0:
            return None
        lines, count = row[6], row[7]
        if count < 32:
            distinct = count
        else:
            zeros = _BITS - sum(word.bit_count() for word in row[12:])
            # There cannot be more than there were attempts, unless these had no weight.
            distinct = max(32, min(round(_BITS * log(_BITS / max(1, zeros))), row[5] or _MOST_DISTINCT))
        # Lines and items are only ever added, so what was read before holds and only what is new is read.
        read = self._read.get(at)
        if read is None or read.serial != serial:
            read = self._read[at] = _Read(serial)
        if len(read.lines) != lines:
            read.lines = tuple(self._records[at, _LINES : _LINES + lines].tolist())
        if len(read.items) != count:
            added = _names(self._record_names[at, len(read.items) : count].tobytes())
            read.items += added
            read.names = tuple(sorted({*read.names, *(_text(name) for name in added if name)}))
        (
            _,
            trigger_ns,
            trigger_line,
            start_ns,
            end_ns,
            attempts,
            _,
            _,
            provenance,
            blockable,
            first,
            second,
        ) = row[:12]
        return Record(
            serial, trigger_ns, trigger_line, start_ns, end_ns, attempts, provenance, blockable & 1 != 0,
            blockable == 2, (first, second), distinct, read.items, read.names, read.lines,
        )  # fmt: skip

    def items(self, serial: int) -> tuple[int, ...]:
        """The items of a campaign's record, as they were given, in the order of `Record.items`."""
        row = self._records[serial % len(self._records)]
        return tuple(row[60 : 60 + row[7]].tolist()) if row[0] == serial else ()

    def attempts(self, key: U64, now_ns: int) -> int | None:
        """Attempts of the campaign of this key that is open at that time; None where none is. Changes nothing."""
        row = self._table.row(key)
        if row is None or row[2] == 0 or now_ns - row[1] > self._gap_ns:
            return None
        record = self._records[row[2] % len(self._records)]
        return int(record[5]) if record[0] == row[2] else row[3]  # of one pushed out, what its trail saw

    def save(self) -> dict[str, Any]:
        used = np.flatnonzero(self._records[:, 0])
        named = np.flatnonzero(self._names.keys)
        return {
            "table": self._table.save(),
            "door": self._door.save(),
            "names": self._names.save(),
            "name_text": self._name_text[named],
            "at": used,
            "records": self._records[used],
            "record_names": self._record_names[used],
            "newest": self._newest.copy(),
            "stories": [[serial, dict(story)] for serial, story in self._stories.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        self._table.load(state["table"])
        self._door.load(state["door"])
        self._read.clear()
        self._names.load(state["names"])
        self._name_text[np.flatnonzero(self._names.keys)] = state["name_text"]
        self._records[:] = 0
        self._records[state["at"]] = state["records"]
        self._record_names[state["at"]] = state["record_names"]
        self._newest[:] = state["newest"]
        # A snapshot gives tuples back as lists.
        self._stories = {
            serial: {name: tuple(told) if isinstance(told, list) else told for name, told in story.items()}
            for serial, story in state["stories"]
        }


def _names(held: bytes) -> tuple[bytes, ...]:
    """Each name is kept behind a byte that says its length."""
    return tuple(held[at + 1 : at + 1 + held[at]] for at in range(0, len(held), _NAME))


def _text(name: bytes) -> str:
    if len(name) < _NAME - 1:
        return name.decode("utf-8", "backslashreplace")
    return name[:-1].decode("utf-8", "backslashreplace") + "…"
