"""What leaves an interface of the lab and when, and when the kernel's nftables ruleset changes.

Times are CLOCK_REALTIME in nanoseconds: of packets by the kernel; of transactions by a process of real-time
priority that waits for the kernel's notice, so they are some microseconds late and never early.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import Any, NamedTuple

from .lab import Lab

_ETH_P_ALL = 0x0003
_ATTACH_FILTER, _RCVBUFFORCE, _TIMESTAMPNS = 26, 33, 35  # asm-generic/socket.h
_SOL_PACKET, _STATISTICS = 263, 6  # linux/if_packet.h
_SNAP = 128
_BUFFER_BYTES = 1 << 27

_OUTGOING_TCP = [
    (0x30, 0, 0, 0xFFFFF004),  # ldb [SKF_AD_OFF + SKF_AD_PKTTYPE]
    (0x15, 0, 11, 4),  # PACKET_OUTGOING
    (0x28, 0, 0, 12),  # ldh EtherType
    (0x15, 0, 4, 0x0800),
    (0x30, 0, 0, 23),  # ldb protocol of IPv4
    (0x15, 0, 7, 6),
    (0x30, 0, 0, 47),  # ldb flags of TCP
    (0x05, 0, 0, 4),
    (0x15, 0, 4, 0x86DD),
    (0x30, 0, 0, 20),  # ldb next header of IPv6
    (0x15, 0, 2, 6),
    (0x30, 0, 0, 67),  # ldb flags of TCP
    (0x45, 0, 1, 0x02),  # SYN: a flood must not fill the buffer
    (0x06, 0, 0, 0),
    (0x06, 0, 0, _SNAP),
]
"""Classic BPF (linux/filter.h): TCP without SYN that leaves, over IPv4 or IPv6 without options."""


class Payload(NamedTuple):
    ns: int
    source: str
    port: int  # it came from
    data: int  # bytes


class Tap:
    """`with Tap(lab, "gateway", "eth0") as tap:` sees every TCP segment with data that leaves there."""

    def __init__(self, lab: Lab, host: str, interface: str) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in _OUTGOING_TCP))
        program = struct.pack("@HP", len(_OUTGOING_TCP), ctypes.addressof(code))  # sock_fprog
        with lab.inside(host):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setblocking(False)

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self) -> list[Payload]:
        """What left since the last call. Raises RuntimeError where the kernel had no room for all of it."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, ancillary, _, _ = self._socket.recvmsg(_SNAP, 64)
                payload = _payload(frame, ancillary)
                if payload is not None:
                    found.append(payload)
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        if lost:
            raise RuntimeError(f"the tap lost {lost} packets")
        return found


def _payload(frame: bytes, ancillary: list[tuple[int, int, bytes]]) -> Payload | None:
    """RFC 791, RFC 8200, RFC 9293; the lengths say how much data there is, whatever was captured of it."""
    if frame[12:14] == b"\x08\x00":
        tcp, end, source = 34, 14 + int.from_bytes(frame[16:18], "big"), frame[26:30]
    else:
        tcp, end, source = 54, 54 + int.from_bytes(frame[18:20], "big"), frame[22:38]
    data = end - tcp - (frame[tcp + 12] >> 4) * 4
    if data <= 0:
        return None
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    stamp = next(d for level, kind, d in ancillary if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMPNS))
    seconds, nanoseconds = struct.unpack("=qq", stamp[:16])
    port = int.from_bytes(frame[tcp : tcp + 2], "big")
    return Payload(seconds * 1_000_000_000 + nanoseconds, socket.inet_ntop(family, source), port, data)


class Transactions:
    """`with Transactions(lab, "gatewatch_kill") as transactions:` notes when the gateway's table is changed."""

    def __init__(self, lab: Lab, table: str) -> None:
        self._process: subprocess.Popen[Any] = lab.popen_in(
            "gateway", [sys.executable, "-I", "-c", _WATCH, table], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._descriptor = self._process.stdout.fileno()
        if os.read(self._descriptor, 6) != b"ready\n":
            raise RuntimeError("nftables' notices cannot be heard")
        os.set_blocking(self._descriptor, False)

    def __enter__(self) -> Transactions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def read(self) -> list[int]:
        """When the table was changed since the last call, in order."""
        try:
            return [int(line) for line in os.read(self._descriptor, 65_536).split()]
        except BlockingIOError:
            return []


# nf_tables.h: attribute 1 of every message is the table's name; NEWGEN (15) ends a transaction.
_WATCH = """
import contextlib, os, socket, struct, sys, time
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
s.bind((0, 1 << 6))
with contextlib.suppress(OSError):
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
os.write(1, b"ready\\n")
name, touched = sys.argv[1].encode() + b"\\0", False
while True:
    try:
        data = s.recv(1 << 18)
    except OSError:
        continue
    now, at = time.time_ns(), 0
    while at + 20 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind & 255 == 15:
            if touched:
                os.write(1, b"%d\\n" % now)
            touched = False
        else:
            size, attribute = struct.unpack_from("=HH", data, at + 20)
            touched |= attribute == 1 and data[at + 24 : at + 20 + size] == name
        at += (length + 3) & ~3
"""
