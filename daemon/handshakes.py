"""Which sources completed handshakes with us lately, and logged in: what corroboration asks.

Memory is bounded: of so many sources the latest few of each, in arrays; the source that was silent longest makes
room. A connection counts once, however often its flow is told of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from .corroboration import MOST_REMEMBERED, Seen
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
"""Of how many sources handshakes are remembered, and of how many networks that are wider."""

TICK_BITS = 14
"""Times are kept in units of 2**14 ns, so that a port fits beside one in 64 bits until the year 2116."""
PORT_BITS = 16
HANDSHAKE, LOGIN = 0, 1
LENGTHS = {4: (32, 24), 6: (64, 48)}
"""What is judged as one source, and the network around it that a detector may name instead."""


class Handshakes:
    """What was seen of each source; see the module.

    Parameters: `sources`, how many are remembered.
    """

    def __init__(self, sources: int = MOST_HANDSHAKES) -> None:
        self._memories = (_Memory(sources), _Memory(sources))

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
        self._remember(
            HANDSHAKE, batch.family[rows], batch.source.take(rows, axis=0), batch.time_ns[rows], made
        )

    def logins(self, batch: AuthBatch) -> None:
        """Remembers logins that no gateway's request stands for."""
        rows = np.flatnonzero((batch.outcome == Outcome.SUCCESS) & (batch.status == 0))
        rows = rows[batch.client_family[rows] != 0]
        if len(rows):
            times = batch.time_ns[rows]
            # Two that are told of in the same second are two.
            made = _packed(times, batch.line[rows] & ((1 << PORT_BITS) - 1))
            self._remember(LOGIN, batch.client_family[rows], batch.client.take(rows, axis=0), times, made)

    def _remember(self, what: int, family: Any, address: U64, times: I64, made: U64) -> None:
        for of, (high, low), time_ns, value in zip(
            family.tolist(), address.tolist(), times.tolist(), made.tolist(), strict=True
        ):
            for memory, length in zip(self._memories, LENGTHS[of], strict=True):
                memory.add(what, _key(of, high, low, length), time_ns, value)

    def last_ns(self, source: str) -> int:
        """When a connection of this source was last seen to stand, 0 where never."""
        memory, key = self._place(source)
        return memory.last_ns(key)

    def seen(self, source: str) -> Seen:
        """What is remembered of a source: an address, an IPv6 /64, or the network around it (/24, /48)."""
        memory, key = self._place(source)
        handshakes, logins = memory.of(key)
        return Seen([(_time(v), v & ((1 << PORT_BITS) - 1)) for v in handshakes], [_time(v) for v in logins])

    def _place(self, source: str) -> tuple[_Memory, tuple[int, int]]:
        address, _, length = source.partition("/")
        family, high, low = address_columns(address)
        narrow, wide = LENGTHS.get(family, LENGTHS[4])
        if length.isdecimal() and int(length) < narrow:
            return self._memories[1], _key(family, high, low, wide)
        return self._memories[0], _key(family, high, low, narrow)

    def save(self) -> dict[str, Any]:
        return {"judged": self._memories[0].save(), "around": self._memories[1].save()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError where the state is of another shape; nothing is then remembered."""
        for memory, name in zip(self._memories, ("judged", "around"), strict=True):
            memory.load(state[name])


class _Memory:
    """The latest values of each key, in slots that the key silent longest gives up."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._clear()

    def _clear(self) -> None:
        self._slots: OrderedDict[tuple[int, int], int] = OrderedDict()
        # Pages that are never touched take no memory.
        self._values = np.zeros((self._capacity, 2, MOST_REMEMBERED), np.uint64)
        self._last = np.zeros(self._capacity, np.int64)

    def add(self, what: int, key: tuple[int, int], time_ns: int, value: int) -> None:
        slot = self._slots.get(key)
        if slot is None:
            slot = len(self._slots)
            if slot >= self._capacity:
                slot = self._slots.popitem(last=False)[1]
                self._values[slot] = 0
                self._last[slot] = 0
            self._slots[key] = slot
        else:
            self._slots.move_to_end(key)
        if what == HANDSHAKE and time_ns > self._last[slot]:
            self._last[slot] = time_ns
        values = self._values[slot, what]
        known = values.tolist()
        oldest = min(known)
        if value > oldest and value not in known:
            values[known.index(oldest)] = value

    def of(self, key: tuple[int, int]) -> tuple[list[int], list[int]]:
        slot = self._slots.get(key)
        if slot is None:
            return [], []
        handshakes, logins = self._values[slot].tolist()
        return [v for v in handshakes if v], [v for v in logins if v]

    def last_ns(self, key: tuple[int, int]) -> int:
        slot = self._slots.get(key)
        return 0 if slot is None else int(self._last[slot])

    def save(self) -> dict[str, Any]:
        """Keys from the one silent longest, and of each only what there is."""
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        values = self._values[slots]
        present = values != 0
        return {
            "families": np.fromiter((k[0] for k in self._slots), np.uint8, len(slots)),
            "keys": np.fromiter((k[1] for k in self._slots), np.uint64, len(slots)),
            "last": self._last[slots],
            "counts": present.sum(axis=2).astype(np.uint8),
            "values": values[present],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        families, keys = state["families"].tolist(), state["keys"].tolist()
        counts, n = np.asarray(state["counts"], np.int64), min(len(keys), self._capacity)
        flat = np.asarray(state["values"], np.uint64)
        if counts.shape != (len(keys), 2) or len(families) != len(keys) or counts.sum() != len(flat):
            raise ValueError("what was remembered of handshakes is of another shape")
        if n and counts.max() > MOST_REMEMBERED:
            raise ValueError("more handshakes of a source were remembered than now are")
        places = np.arange(MOST_REMEMBERED) < counts[:, :, None]
        values = np.zeros(places.shape, np.uint64)
        values[places] = flat
        self._clear()
        if n:
            pairs = zip(families[-n:], keys[-n:], strict=True)
            self._slots.update((pair, slot) for slot, pair in enumerate(pairs))
            self._values[:n], self._last[:n] = values[-n:], np.asarray(state["last"], np.int64)[-n:]


def _key(family: int, high: int, low: int, length: int) -> tuple[int, int]:
    return family, low >> (32 - length) if family == 4 else high >> (64 - length)


def _packed(times: I64, ports: I64) -> U64:
    ticks = np.clip(times, 0, None).astype(np.uint64) >> np.uint64(TICK_BITS)
    packed: U64 = (ticks << np.uint64(PORT_BITS)) | ports.astype(np.uint64)
    return packed


def _time(value: int) -> int:
    """The end of the unit that the time lay in: nothing is made older than it was."""
    return ((value >> PORT_BITS) + 1) << TICK_BITS
