"""Which sources completed handshakes with us lately, and logged in: what corroboration asks.

Memory is bounded: of so many sources the latest few of each; the source that was silent longest makes
room. A connection counts once, however often its flow is told of.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np

from .collectors.parsers.scan import keyed_hash
from .corroboration import MOST_REMEMBERED, SSHD_NAMES, Seen
from .events import (
    I64,
    U64,
    AuthBatch,
    Direction,
    FlowBatch,
    FlowState,
    Outcome,
    Provenance,
    address_columns,
)

MOST_HANDSHAKES = 65_536
"""Of how many sources handshakes are remembered, and of as many networks around them."""

TICK_BITS = 14
"""Times are kept in units of 2**14 ns, so that a port fits beside one in 64 bits until the year 2116."""
LOW_BITS = 16
LOW = (1 << LOW_BITS) - 1
MINUTE_TICKS = 60_000_000_000 >> TICK_BITS
LENGTHS = {4: (32, 24), 6: (64, 48)}
"""What is judged as one source, and the network around it that a detector may name instead."""
KEPT = ("handshakes", "logins", "failures")
PARTS_OF_SSHD = (*(name.encode() for name in SSHD_NAMES), b"pam_duo", b"login_duo")
FAILURES = (Outcome.FAILURE, Outcome.INVALID_USER, Outcome.PAM_FAILURE, Outcome.FACTOR_DENIED)


class Handshakes:
    """What was seen of each source; see the module.

    What a log says is kept apart from what the wire showed: lines about invented sources push no handshake out.

    Parameters: `hash_key` (of the texts in a batch); `sources` (how many are remembered).
    """

    def __init__(self, hash_key: bytes, sources: int = MOST_HANDSHAKES) -> None:
        self._sshd = np.array([keyed_hash(name, hash_key) for name in PARTS_OF_SSHD], np.uint64)
        self._last: tuple[OrderedDict[int, int], OrderedDict[int, int]] = (OrderedDict(), OrderedDict())
        self._sources = sources
        self._memories = {name: (_Memory(sources), _Memory(sources)) for name in KEPT}

    def flows(self, batch: FlowBatch) -> None:
        """Remembers the handshakes that flows to us completed. What came through a tunnel is none: whoever reaches the
        tunnel's end can have made up both sides.
        """
        inward = (batch.direction == Direction.INGRESS) | (batch.direction == Direction.LOCAL)
        inward &= batch.provenance >= Provenance.KERNEL
        rows = np.flatnonzero((batch.state == FlowState.ESTABLISHED) & inward)
        if not len(rows):
            return
        # The time of its first packet is the same in every row of a flow.
        made = _packed(batch.first_ns[rows], batch.destination_port[rows].astype(np.int64))
        family, address = batch.family[rows], batch.source.take(rows, axis=0)
        self._remember("handshakes", family, address, made)
        for of, (high, low), time_ns in zip(
            family.tolist(), address.tolist(), batch.time_ns[rows].tolist(), strict=True
        ):
            for last, length in zip(self._last, LENGTHS[of], strict=True):
                key = _key(of, high, low, length)
                last[key] = time_ns
                last.move_to_end(key)
        for last in self._last:
            while len(last) > self._sources:
                last.popitem(last=False)

    def lines(self, batch: AuthBatch) -> None:
        """Remembers what a log says of sshd: who logged in, and how often a login failed."""
        of_sshd = (batch.client_family != 0) & np.isin(batch.service, self._sshd)
        rows = np.flatnonzero(of_sshd & (batch.outcome == Outcome.SUCCESS))
        if len(rows):
            # Two that are told of in the same second are two; one line that is read again is one.
            made = _packed(batch.time_ns[rows], batch.line[rows] & LOW)
            self._remember("logins", batch.client_family[rows], batch.client.take(rows, axis=0), made)
        rows = np.flatnonzero(of_sshd & np.isin(batch.outcome, FAILURES))
        if not len(rows):
            return
        columns = np.column_stack((batch.client_family[rows].astype(np.uint64), batch.client[rows]))
        sources, at = np.unique(columns, axis=0, return_inverse=True)
        counts = np.bincount(at.reshape(-1), batch.count[rows]).astype(np.int64)
        latest = np.zeros(len(sources), np.int64)
        np.maximum.at(latest, at.reshape(-1), batch.time_ns[rows])
        made = _packed(latest, np.clip(counts, 1, LOW))
        self._remember("failures", sources[:, 0], sources[:, 1:], made, within=MINUTE_TICKS)

    def _remember(self, what: str, family: Any, address: U64, made: U64, within: int = 0) -> None:
        judged, around = self._memories[what]
        for of, (high, low), value in zip(family.tolist(), address.tolist(), made.tolist(), strict=True):
            narrow, wide = LENGTHS[of]
            judged.add(_key(of, high, low, narrow), value, within)
            around.add(_key(of, high, low, wide), value, within)

    def last_ns(self, source: str) -> int:
        """When a connection of this source was last seen to stand, 0 where never."""
        key, wide = _place(source)
        return self._last[wide].get(key, 0)

    def seen(self, source: str) -> Seen:
        """What is remembered of a source: an address, an IPv6 /64, or the network around it (/24, /48)."""
        key, wide = _place(source)
        made, logins, failures = (self._memories[name][wide].of(key) for name in KEPT)
        return Seen(
            [(_time(v), v & LOW) for v in made],
            [_time(v) for v in logins],
            [(_time(v), v & LOW) for v in failures],
        )

    def save(self) -> dict[str, Any]:
        return {
            "last": [
                {"keys": _keys(o), "times": np.fromiter(o.values(), np.int64, len(o))} for o in self._last
            ],
            **{name: [memory.save() for memory in pair] for name, pair in self._memories.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError where the state is of another shape."""
        judged, around = (
            OrderedDict(zip(saved["keys"].tolist(), saved["times"].tolist(), strict=True))
            for saved in state["last"]
        )
        self._last = judged, around
        for name, pair in self._memories.items():
            for memory, saved in zip(pair, state[name], strict=True):
                memory.load(saved)


class _Memory:
    """The latest values of each key, in the order in which they came; the key silent longest makes room."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[int, array[int]] = OrderedDict()

    def add(self, key: int, value: int, within: int = 0) -> None:
        """One more value, unless it is there or is older than the oldest of so many.

        `within`: ticks within which the last value takes in the low bits of this one, as a count, instead.
        """
        values = self._values.get(key)
        if values is None:
            self._values[key] = array("Q", (value,))
            if len(self._values) > self._capacity:
                self._values.popitem(last=False)
            return
        self._values.move_to_end(key)
        last = values[-1]
        if within and (value >> LOW_BITS) < (last >> LOW_BITS) + within:
            values[-1] = last & ~LOW | min((last & LOW) + (value & LOW), LOW)
        elif value != last and value not in values:
            if len(values) == MOST_REMEMBERED:
                if value < values[0]:
                    return
                del values[0]
            values.append(value)

    def of(self, key: int) -> list[int]:
        values = self._values.get(key)
        return [] if values is None else values.tolist()

    def save(self) -> dict[str, Any]:
        """Keys from the one silent longest, and of each only what there is."""
        each = self._values.values()
        return {
            "keys": _keys(self._values),
            "counts": np.fromiter(map(len, each), np.uint8, len(each)),
            "values": np.frombuffer(b"".join(map(array.tobytes, each)), np.uint64).copy(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        keys, counts = state["keys"].tolist(), state["counts"].tolist()
        flat = np.asarray(state["values"], np.uint64).tobytes()
        if len(counts) != len(keys) or 8 * sum(counts) != len(flat):
            raise ValueError("what was remembered of handshakes is of another shape")
        if not all(1 <= count <= MOST_REMEMBERED for count in counts):
            raise ValueError("of a source, more handshakes were remembered than are now, or none")
        self._values = OrderedDict()
        ends = [8 * end for end in accumulate(counts)]
        for key, start, end in list(zip(keys, [0, *ends], ends, strict=False))[-self._capacity :]:
            self._values[key] = array("Q", flat[start:end])


def _keys(of: OrderedDict[int, Any]) -> U64:
    keys: U64 = np.fromiter(of, np.uint64, len(of))
    return keys


def _place(source: str) -> tuple[int, int]:
    """The key of a source, and whether (1) it is that of a network around what is judged, or not (0)."""
    address, _, length = source.partition("/")
    family, high, low = address_columns(address)
    lengths = LENGTHS.get(family, LENGTHS[4])
    wide = int(length.isdecimal() and int(length) < lengths[0])
    return _key(family, high, low, lengths[wide]), wide


def _key(family: int, high: int, low: int, length: int) -> int:
    """What names a network in one of the memories; IPv4 stands in ffff::/16, from where nobody can come (RFC 4291)."""
    if family == 4:
        return 0xFFFF << 48 | low >> (32 - length)
    return high >> (64 - length)


def _packed(times: I64, ports: I64) -> U64:
    ticks = np.clip(times, 0, None).astype(np.uint64) >> np.uint64(TICK_BITS)
    packed: U64 = (ticks << np.uint64(LOW_BITS)) | ports.astype(np.uint64)
    return packed


def _time(value: int) -> int:
    """The end of the unit that the time lay in: nothing is made older than it was."""
    return ((value >> LOW_BITS) + 1) << TICK_BITS
