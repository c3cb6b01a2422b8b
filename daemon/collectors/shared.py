"""The ring of PACKET rows in shared memory by which the capture process hands columns to the analyser.

One process pushes, one pulls; neither ever waits for the other. What does not fit is counted and lost, never
written over rows that were not pulled. The puller trusts nothing that it reads here: the capture process
handles hostile bytes, so positions are checked and rows are copied before anybody looks at them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..errors import GatewatchError, InputError, PrivilegeError
from .decode import PACKET

MAGIC = int.from_bytes(b"GWPKRNG1", "little")
VERSION = 1
DEFAULT_CAPACITY = 1 << 15
_ROWS_AT = 4096

COUNTERS = ("frames", "passed", "sampled", "dropped_kernel", "dropped_ring", "heartbeat_ns")
"""uint64 each: frames decoded; of these passed by rule, and drawn; lost for want of a slot in the kernel's ring,
and for want of room in this one; when the capture process last looked (CLOCK_MONOTONIC)."""

_HEADER = np.dtype(
    {
        # Each side's position has a cache line of its own.
        "names": ["magic", "version", "row_bytes", "capacity", "head", "tail", "failure", *COUNTERS],
        "formats": ["<u8", "<u4", "<u4", "<u8", "<u8", "<u8", "S256", *["<u8"] * len(COUNTERS)],
        "offsets": [0, 8, 12, 16, 64, 128, 1024, *range(192, 192 + 8 * len(COUNTERS), 8)],
        "itemsize": _ROWS_AT,
    }
)
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FENCE = threading.Lock()
_FAMILY = np.isin(np.arange(256), (0, 4, 6))


def order_memory() -> None:
    """A full barrier, for memory that others write to: a lock's release, then its acquisition, which no processor
    reorders (C11, 5.1.2.4)."""
    with _FENCE:
        pass
    with _FENCE:
        pass


class SharedRing:
    """A ring of rows in a memfd; positions count rows from the beginning and never wrap (64 bits)."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self.descriptor = descriptor
        self.capacity = capacity
        self._memory = mmap.mmap(descriptor, _ROWS_AT + capacity * PACKET.itemsize)
        self._header = np.frombuffer(self._memory, _HEADER, 1)[0]
        # Rows as bytes: NumPy copies records field by field, and bytes at once.
        self._rows = np.frombuffer(self._memory, np.uint8, offset=_ROWS_AT).reshape(capacity, PACKET.itemsize)
        self._mine = 0  # this side's position, which the other's writing cannot change

    @classmethod
    def create(cls, capacity: int = DEFAULT_CAPACITY) -> Self:
        """An empty ring for `capacity` rows (a power of two) in memory that can no longer change its size."""
        if capacity < 1 or capacity & (capacity - 1):
            raise ValueError(f"capacity {capacity} is no power of two")
        descriptor = os.memfd_create("gatewatch-packets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, _ROWS_AT + capacity * PACKET.itemsize)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        ring = cls(descriptor, capacity)
        ring._header["version"], ring._header["row_bytes"] = VERSION, PACKET.itemsize
        ring._header["capacity"], ring._header["magic"] = capacity, MAGIC
        return ring

    @classmethod
    def attach(cls, descriptor: int) -> Self:
        """The ring that another process created.

        Raises InputError where it is none, is of another version, or could still change its size under us
        (which would end this process by SIGBUS).
        """
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        except OSError:
            sealed = 0
        size = os.fstat(descriptor).st_size
        if sealed & _SEALS != _SEALS or size < _ROWS_AT:
            raise InputError("the shared packet ring is not sealed memory of a fixed size")
        magic, version, row_bytes, capacity = struct.unpack("<QIIQ", os.pread(descriptor, 24, 0))
        if (magic, version, row_bytes) != (MAGIC, VERSION, PACKET.itemsize):
            raise InputError(
                "the shared packet ring is of another version",
                remedy="restart the service, so that both match",
            )
        if not capacity or capacity & (capacity - 1) or size != _ROWS_AT + capacity * PACKET.itemsize:
            raise InputError(f"the shared packet ring has {size} bytes, which do not fit {capacity} rows")
        ring = cls(descriptor, capacity)
        ring._mine = int(ring._header["tail"])
        return ring

    def push(self, rows: NDArray[np.void]) -> int:
        """Append what there is room for; the rest is counted in `dropped_ring`. Returns how many went in."""
        used = self._mine - int(self._header["tail"])
        room = self.capacity - used if 0 <= used <= self.capacity else 0
        count = min(len(rows), room)
        at = self._mine & (self.capacity - 1)
        first = min(count, self.capacity - at)
        said = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), PACKET.itemsize)
        self._rows[at : at + first] = said[:first]
        self._rows[: count - first] = said[first:count]
        order_memory()
        self._mine += count
        self._header["head"] = self._mine
        self._header["dropped_ring"] += np.uint64(len(rows) - count)
        return count

    def pull(self, limit: int = DEFAULT_CAPACITY) -> NDArray[np.void]:
        """The oldest rows, at most `limit`, as a copy.

        Raises InputError where the pusher's position is impossible: nothing of the ring is to be believed then.
        """
        waiting = int(self._header["head"]) - self._mine
        if not 0 <= waiting <= self.capacity:
            raise InputError("the shared packet ring was corrupted by the capture process")
        order_memory()
        count = min(waiting, limit)
        at = self._mine & (self.capacity - 1)
        first = min(count, self.capacity - at)
        said = np.concatenate([self._rows[at : at + first], self._rows[: count - first]])
        order_memory()
        self._mine += count
        self._header["tail"] = self._mine
        rows: NDArray[np.void] = said.view(PACKET).reshape(count)
        return rows

    def count(self, **counters: int) -> None:
        """Set counters; only the pushing side does."""
        for name, value in counters.items():
            self._header[name] = value

    def counters(self) -> dict[str, int]:
        """What the pushing side counted, by the names of COUNTERS."""
        return {name: int(self._header[name]) for name in COUNTERS}

    def fail(self, why: str) -> None:
        """Leave word of what ends the pushing side; it has no other voice."""
        self._header["failure"] = why.encode("ascii", "backslashreplace")

    def failure(self) -> str:
        """What the pushing side left word of, with every control character made harmless; else empty."""
        text = bytes(self._header["failure"]).decode("ascii", "backslashreplace")
        return "".join(letter if letter.isprintable() else "?" for letter in text)

    def close(self) -> None:
        del self._rows, self._header
        self._memory.close()
        os.close(self.descriptor)


_GREETING = struct.Struct("<8sII")
_GREETING_MAGIC = b"GWPACKET"
_FAILURES: tuple[type[GatewatchError], ...] = (GatewatchError, InputError, PrivilegeError)
MOST_FAILURE_TEXT = 1000


def send_ring(handover: socket.socket, ring: SharedRing, notify: int) -> None:
    """Hand the ring and the eventfd `notify` to the analyser, over a Unix socket (SCM_RIGHTS, unix(7))."""
    socket.send_fds(handover, [_GREETING.pack(_GREETING_MAGIC, VERSION, 0)], [ring.descriptor, notify])


def send_failure(handover: socket.socket, failure: GatewatchError) -> None:
    """Tell the analyser why there will be no ring, so that it can say so."""
    kind = _FAILURES.index(type(failure)) if type(failure) in _FAILURES else 0
    text = f"{failure.message}\0{failure.remedy}".encode()[:MOST_FAILURE_TEXT]
    handover.sendall(_GREETING.pack(_GREETING_MAGIC, VERSION, kind + 1) + text)


class PacketSource:
    """The analyser's end: readable (by asyncio's `add_reader`, too) when there may be rows to pull.

    Waits for the capture process's greeting on `handover`, and owns the socket from then on: closing it ends
    the capture process. Raises what kept that process from capturing (InputError, PrivilegeError).
    """

    def __init__(self, handover: socket.socket, *, timeout_s: float = 10.0) -> None:
        self._handover = handover
        handover.settimeout(timeout_s)
        try:
            message, descriptors, _, _ = socket.recv_fds(handover, _GREETING.size + MOST_FAILURE_TEXT, 2)
        except TimeoutError:
            raise InputError(
                "the capture process did not begin", remedy="see its messages in the journal"
            ) from None
        try:
            if len(message) < _GREETING.size or not message.startswith(_GREETING_MAGIC):
                raise InputError("the capture process ended before it began")
            _, version, failed = _GREETING.unpack_from(message)
            if failed:
                text, _, remedy = message[_GREETING.size :].decode("utf-8", "replace").partition("\0")
                raise _FAILURES[(failed - 1) % len(_FAILURES)](text, remedy=remedy)
            if version != VERSION or len(descriptors) != 2:
                raise InputError(f"the capture process speaks version {version}, not {VERSION}")
            self._ring = SharedRing.attach(descriptors[0])
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        self._notify = descriptors[1]
        os.set_blocking(self._notify, False)
        handover.setblocking(False)

    def fileno(self) -> int:
        return self._notify

    def pull(self, limit: int = DEFAULT_CAPACITY) -> NDArray[np.void]:
        """The rows that wait, at most `limit`, as a copy; none where there are none. Never waits."""
        try:
            os.eventfd_read(self._notify)
        except BlockingIOError:
            pass
        rows = self._ring.pull(limit)
        if len(rows) == limit:
            os.eventfd_write(self._notify, 1)  # there may be more: stay readable
        possible = _FAMILY[rows["family"]] & (rows["weight"] != 0)
        return rows if possible.all() else rows[possible]

    def counters(self) -> dict[str, int]:
        return self._ring.counters()

    def alive(self) -> bool:
        """Whether the capture process still holds its end."""
        try:
            return bool(self._handover.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def failure(self) -> str:
        """Why the capture process ended, where it could say so."""
        return self._ring.failure()

    def silent_s(self) -> float:
        """Seconds since the capture process last looked at its rings (it does every second)."""
        return (time.monotonic_ns() - self._ring.counters()["heartbeat_ns"]) / 1e9

    def close(self) -> None:
        self._handover.close()
        self._ring.close()
        os.close(self._notify)
