"""The flow table: packets in, what became of each connection out.

A flow gives a row when it is first seen, when its handshake completes, when it is refused, when it closes, and
when it has moved another 64 MiB or gone on for another minute; and once more, unchanged in state, where its slot
is taken or the replay ends and its last row no longer says all. It must never grow with the number of flows,
and what it gives must not depend on how the packets were divided into batches.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..events import U8, U64, Bool, Direction, FlowBatch, Provenance
from . import flows_table as table

NO_KEY = b"\0" * 16
COLUMNS = (
    "time_ns", "frame", "source", "destination", "sequence", "acknowledgement", "payload", "weight",
    "source_port", "destination_port", "family", "protocol", "tcp_flags", "flags",
)  # fmt: skip


class FlowTable:
    """A set-associative table of flows of fixed size.

    local      networks (CIDR) of the gateway and what stands behind it; without any, directions are unknown
    capacity   flows that are held at once, rounded up to a power of two; 168 bytes each, of which the system
               gives only what is touched
    idle_s     seconds after which a five-tuple that is no open TCP connection starts a new flow
    hash_key   16 bytes; a service gives its own, so that nobody can aim at a bucket. With the same key the same
               packets give the same rows and names

    A flow that finds the eight slots of its bucket full takes that of the one idle longest, where a completed
    handshake counts as a minute less. `skipped` counts the packets that made no part of a flow: neither IPv4 nor
    IPv6, malformed, later fragments, cut off before the ports.

    A TCP flow whose SYN was seen counts bytes by its sequence numbers, unwrapped to 64 bits: exact however few of
    the packets are seen, as long as two of a direction lie less than 2 GiB apart. Other flows count the payload
    that was seen times its weight. Acknowledgements count nothing: one end could credit the other with what that
    never sent. Rows of flows within a tunnel have the provenance NETWORK, as whoever reaches the tunnel's end can
    have made up both sides.
    """

    def __init__(
        self,
        local: Sequence[str] = (),
        capacity: int = 1 << 18,
        idle_s: float = 300.0,
        hash_key: bytes = NO_KEY,
    ) -> None:
        """Raises ValueError where a network is none, the key is not 16 bytes or the capacity not positive."""
        if len(hash_key) != 16 or capacity < 1 or idle_s < 0:
            raise ValueError("a flow table needs a key of 16 bytes, a capacity and an idle time")
        self._local = [ipaddress.ip_network(text) for text in local]
        self._capacity = max(8, 1 << (capacity - 1).bit_length())
        self._idle_ns = int(idle_s * 1e9)
        self._key = hash_key
        self.skipped = 0
        self._provenance = int(Provenance.KERNEL)
        self._clear()

    def _clear(self) -> None:
        self._tags = np.zeros(self._capacity, np.uint64)
        self._slots = np.zeros((self._capacity, table.WORDS), np.uint64)
        self._bind(-(1 << 62))

    def _bind(self, clock: int) -> None:
        k0, k1 = (int.from_bytes(self._key[i : i + 8], "little") for i in (0, 8))
        scratch = np.zeros(8, np.uint64)
        self._table = table.Table(
            self._tags.data, self._slots.reshape(-1).data, scratch.data, k0, k1, self._idle_ns, clock
        )

    @property
    def used(self) -> int:
        """How many flows are held."""
        return int(np.count_nonzero(self._tags))

    def update(self, packets: NDArray[Any], provenance: Provenance = Provenance.KERNEL) -> FlowBatch:
        """Takes in PACKET[n] in the order of capture; returns the rows that it gives, in order of time."""
        self._provenance = int(provenance)
        rows = np.empty((2 * len(packets), table.ROW_WORDS), np.uint64)
        columns: Any = packets
        if not table.COMPILED:
            columns = {name: packets[name].copy().data for name in COLUMNS}
        count, skipped = self._table.update(columns, rows.reshape(-1).data)
        self.skipped += skipped
        return self._batch(rows[:count])

    def finish(self) -> FlowBatch:
        """At the end of a replay: what the last rows did not say yet, oldest flow first; the table is then empty."""
        used = np.flatnonzero(self._tags)
        order = used[np.lexsort((self._slots[used, 17], self._slots[used, 5].astype(np.int64)))]
        rows = np.empty((len(order), table.ROW_WORDS), np.uint64)
        count = self._table.finish(order.astype(np.int64).data, rows.reshape(-1).data) if len(order) else 0
        self._clear()
        return self._batch(rows[:count])

    def save(self) -> dict[str, Any]:
        """The slots in use, as copies; `load` of a table with the same capacity and key takes them."""
        used = np.flatnonzero(self._tags)
        return {
            "capacity": self._capacity,
            "key": self._key,
            "clock": int(self._table.time()),
            "index": used.astype(np.int64),
            "tags": self._tags[used],
            "slots": self._slots[used],
            "skipped": self.skipped,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state is of another shape than this table; an empty table then goes on."""
        index = np.asarray(state["index"], np.int64)
        slots = np.asarray(state["slots"], np.uint64)
        self._clear()
        if (
            state["capacity"] != self._capacity
            or bytes(state["key"]) != self._key
            or slots.shape != (len(index), table.WORDS)
            or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < self._capacity)
        ):
            raise ValueError("the saved flows are those of another table")
        self._tags[index] = state["tags"]
        self._slots[index] = slots
        self.skipped = int(state["skipped"])
        self._bind(int(state["clock"]))

    def _batch(self, rows: U64) -> FlowBatch:
        packed = rows[:, 7]
        family = (packed >> np.uint64(8) & np.uint64(0xFF)).astype(np.uint8)
        source = np.ascontiguousarray(rows[:, 3:5])
        destination = np.ascontiguousarray(rows[:, 5:7])
        n = len(rows)
        return FlowBatch(
            time_ns=rows[:, 0].astype(np.int64),
            first_ns=rows[:, 1].astype(np.int64),
            last_ns=rows[:, 2].astype(np.int64),
            source=source,
            destination=destination,
            family=family,
            source_port=(packed >> np.uint64(48)).astype(np.uint16),
            destination_port=(packed >> np.uint64(32) & np.uint64(0xFFFF)).astype(np.uint16),
            protocol=(packed >> np.uint64(16) & np.uint64(0xFF)).astype(np.uint8),
            state=rows[:, 8].astype(np.uint8),
            direction=self._direction(source, destination, family),
            packets_out=rows[:, 9].astype(np.int64),
            packets_in=rows[:, 10].astype(np.int64),
            bytes_out=rows[:, 11].astype(np.int64),
            bytes_in=rows[:, 12].astype(np.int64),
            flow=rows[:, 13].copy(),
            frame=rows[:, 14].astype(np.int64),
            provenance=np.where(packed & np.uint64(1) != 0, int(Provenance.NETWORK), self._provenance).astype(
                np.uint8
            ),
            spans=np.full((n, 2, 2), -1, np.int32),
        )

    def _direction(self, source: U64, destination: U64, family: U8) -> U8:
        if not self._local:
            return np.zeros(len(family), np.uint8)
        from_local = self._is_local(source, family)
        to_local = self._is_local(destination, family)
        direction = np.full(len(family), int(Direction.UNKNOWN), np.uint8)
        direction[to_local & ~from_local] = Direction.INGRESS
        direction[from_local & ~to_local] = Direction.EGRESS
        direction[from_local & to_local] = Direction.LOCAL
        return direction

    def _is_local(self, address: U64, family: U8) -> Bool:
        inside = np.zeros(len(family), np.bool_)
        for network in self._local:
            first, mask = int(network.network_address), int(network.netmask)
            same = family == network.version
            if network.version == 6:
                same = same & ((address[:, 0] & np.uint64(mask >> 64)) == np.uint64(first >> 64))
            low = (1 << 64) - 1
            inside |= same & ((address[:, 1] & np.uint64(mask & low)) == np.uint64(first & low))
        return inside
