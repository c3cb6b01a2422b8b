"""The kernel's receive ring of a packet socket, seen as a two-dimensional array of bytes.

Frames stay where the kernel wrote them and are decoded there. A ring never sends, and is bound only after its
filter is in place, so that no frame reaches it unfiltered.

The socket is cooked (SOCK_DGRAM): each frame begins at its network header whatever the link is (Ethernet, a
tunnel, WireGuard, loopback), always at the same offset of its slot. Constants and layouts: linux/if_packet.h,
Documentation/networking/packet_mmap.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, PrivilegeError
from ..events import I64, U8, U16, U32, Bool
from . import bpf
from .shared import order_memory

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, PACKET_FANOUT = 1, 5, 6, 10, 18
PACKET_MR_PROMISC, PACKET_FANOUT_HASH, TPACKET_V2 = 1, 0, 1
SO_ATTACH_FILTER, SO_LOCK_FILTER = 26, 44
ETH_P_ALL = 0x0003

TP_STATUS_KERNEL, TP_STATUS_USER, TP_STATUS_VLAN_VALID = 0, 1, 16

NETWORK_AT = 80
"""Where the network header lies in a slot: TPACKET2_HDRLEN (52) and 16 bytes, aligned to 16."""

ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h: the links whose header has 14 bytes
ETHERNET_HEADER = 14
LINKTYPE_RAW = 101
"""How frames of a ring are to be decoded: they begin with an IP header."""

DEFAULT_SNAPLEN = 432  # with NETWORK_AT, a slot of 512 bytes
DEFAULT_FRAMES = 8192

_libc = ctypes.CDLL(None, use_errno=True)


class Frames(NamedTuple):
    """Frames that wait in a ring, valid until they are released; the first six as `decode` takes them."""

    buffer: U8  # uint8[slots, width]: the whole ring
    starts: I64  # int64[n]: where the IP header of each frame is, in the flattened buffer
    captured: U32  # uint32[n]: bytes of it that are there
    wire: U32  # uint32[n]: bytes of the packet, from its IP header
    time_ns: I64  # int64[n]
    vlan: U16  # uint16[n]: the innermost VLAN id, 0 where there is none
    link_header: U32  # uint32[n]: bytes of link header and tags that came before the IP header on the wire


def _slot_layout(width: int) -> np.dtype[np.void]:
    """`struct tpacket2_hdr` and, behind it, `struct sockaddr_ll`, once every `width` bytes."""
    fields = {
        "status": ("=u4", 0), "wire": ("=u4", 4), "captured": ("=u4", 8), "s": ("=u4", 16), "ns": ("=u4", 20),
        "tci": ("=u2", 24), "protocol": (">u2", 34), "hatype": ("=u2", 40),
        "halves": ("(3,)>u2", NETWORK_AT), "fifth": ("u1", NETWORK_AT + 4),
    }  # fmt: skip
    formats, offsets = zip(*fields.values(), strict=True)
    return np.dtype(
        {"names": list(fields), "formats": list(formats), "offsets": list(offsets), "itemsize": width}
    )


class PacketRing:
    """A receive ring on one interface, or on all.

    interface   its name; None for all of the network namespace
    frames      slots, rounded up to a power of two
    snaplen     most bytes copied of a packet, from its IP header; rounded up to what fills the slot
    one_in      of what no rule of the filter passes, one packet in this many is taken
    fanout      number of a PACKET_FANOUT group, by which several rings share an interface's flows
    promiscuous also take what is addressed to other machines (a mirror port), on a named interface

    Raises InputError for an interface that does not exist, and where the kernel refuses the ring;
    PrivilegeError without CAP_NET_RAW.
    """

    def __init__(
        self,
        interface: str | None,
        *,
        frames: int = DEFAULT_FRAMES,
        snaplen: int = DEFAULT_SNAPLEN,
        one_in: int = 64,
        fanout: int | None = None,
        promiscuous: bool = False,
    ) -> None:
        width = 1 << (NETWORK_AT + snaplen - 1).bit_length()
        block = max(width, 1 << 16)
        frames = max(1 << (frames - 1).bit_length(), block // width)
        if not 176 <= width - NETWORK_AT <= 0xFFFF or frames * width > 1 << 31:
            raise InputError(f"a ring of {frames} frames with {snaplen} bytes of each cannot be made")
        self.interface = interface
        self.one_in = one_in
        self.packets = 0  # that passed the filter since the ring was opened, lost ones included
        self.dropped = 0  # that found no free slot
        self._head = 0
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        except PermissionError:
            raise PrivilegeError(
                "packets cannot be captured without CAP_NET_RAW",
                remedy="start as root, or give the unit AmbientCapabilities=CAP_NET_RAW",
            ) from None
        try:
            index = _index_of(interface)
            _attach(self._socket, bpf.packet_filter(width - NETWORK_AT, one_in))
            self._socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
            request = struct.pack("=4I", block, frames * width // block, width, frames)
            self._socket.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            self._memory = mmap.mmap(self._socket.fileno(), frames * width)
            _bind(self._socket, index)
            if fanout is not None:
                self._socket.setsockopt(SOL_PACKET, PACKET_FANOUT, fanout & 0xFFFF | PACKET_FANOUT_HASH << 16)
            if promiscuous and index:
                membership = struct.pack("=iHH8s", index, PACKET_MR_PROMISC, 0, b"")
                self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
        except OSError as refused:
            self._socket.close()
            raise InputError(
                f"interface {interface or '(all)'}: the kernel refused the packet ring: {refused.strerror}",
                remedy="check that memory suffices, or name fewer interfaces",
            ) from refused
        except InputError:
            self._socket.close()
            raise
        self.buffer: U8 = np.frombuffer(self._memory, np.uint8).reshape(frames, width)
        self._slots: NDArray[np.void] = np.frombuffer(self._memory, _slot_layout(width))
        self._starts: I64 = np.arange(frames, dtype=np.int64) * width + NETWORK_AT
        self._status: U32 = self._slots["status"]
        self._wire: U32 = self._slots["wire"]
        self._captured: U32 = self._slots["captured"]
        self._seconds: U32 = self._slots["s"]
        self._ns: U32 = self._slots["ns"]
        self._hatype: U16 = self._slots["hatype"]
        self._protocol: U16 = self._slots["protocol"]

    def fileno(self) -> int:
        """The packet socket, readable when frames wait."""
        return self._socket.fileno()

    def take(self, limit: int) -> Frames:
        """The frames that wait, in the order of their arrival, at most `limit` and not past the ring's end.

        They stay the caller's until `release`.
        """
        rows = slice(self._head, self._head + limit)
        status = self._status[rows]
        waiting = status & TP_STATUS_USER != 0
        count = len(waiting) if waiting.all() else int(waiting.argmin())
        rows = slice(self._head, self._head + count)
        status = status[:count]
        order_memory()
        starts = self._starts[rows].copy()
        wire = self._wire[rows].copy()
        captured = self._captured[rows].copy()
        time_ns = self._seconds[rows].astype(np.int64) * 1_000_000_000 + self._ns[rows]
        hatype, protocol = self._hatype[rows], self._protocol[rows]
        has_header = (hatype == ARPHRD_ETHER) | (hatype == ARPHRD_LOOPBACK)
        link_header = has_header.astype(np.uint32) * np.uint32(ETHERNET_HEADER)
        vlan = np.zeros(count, np.uint16)
        stripped = status & TP_STATUS_VLAN_VALID != 0
        had_tag = stripped | (protocol == 0x8100) | (protocol == 0x88A8)
        if had_tag.any():
            slots = self._slots[rows]
            vlan[stripped] = slots["tci"][stripped] & 0x0FFF
            link_header[stripped] += 4
            tagged = had_tag & _tagged(slots, wire)
            starts[tagged] += 4
            wire[tagged] -= 4
            captured[tagged] -= 4
            link_header[tagged] += 4
            vlan[tagged] = slots["halves"][tagged, 0] & 0x0FFF
        return Frames(self.buffer, starts, captured, wire, time_ns, vlan, link_header)

    def release(self, count: int) -> None:
        """Give the first `count` frames taken back to the kernel."""
        order_memory()
        self._status[self._head : self._head + count] = TP_STATUS_KERNEL
        self._head = (self._head + count) % len(self._status)

    def read_statistics(self) -> None:
        """Bring `packets` and `dropped` up to date; the kernel's own counters start again at each reading."""
        packets, dropped = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self.packets += packets
        self.dropped += dropped

    def clear_error(self) -> None:
        """Take note that the interface went down (poll says POLLERR). Should it come up again, the ring goes on
        by itself."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def gone(self) -> bool:
        """Whether the interface was removed; one that comes back under the same name is another."""
        return self.interface is not None and _bound_to(self._socket) < 0

    def close(self) -> None:
        """Let go of the socket; the memory goes with the last array that looks at it."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tagged(slots: NDArray[np.void], wire: U32) -> Bool:
    """Which frames have a VLAN tag before their IP header: the inner of two, when the driver took the outer.

    Asked of frames that had a tag at all. Since Linux 6.10 the protocol that the kernel tells is the one inside
    the tags, so the bytes decide: the slot begins with the last four of a tag, and read as an IP header its length
    contradicts the frame's.
    """
    half = slots["halves"].astype(np.uint32)
    inside = slots["fifth"] >> 4
    is_tag = ((half[:, 1] == 0x0800) & (inside == 4)) | ((half[:, 1] == 0x86DD) & (inside == 6))
    outside = half[:, 0] >> 12
    is_ip = ((outside == 4) & (half[:, 1] == wire)) | ((outside == 6) & (half[:, 2] + 40 == wire))
    tagged: Bool = is_tag & ~is_ip & (slots["captured"] >= 24)
    return tagged


def _index_of(interface: str | None) -> int:
    if interface is None:
        return 0
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise InputError(f"no interface {interface!r}", remedy=f"name one of: {there}") from None


def _bind(packets: socket.socket, index: int) -> None:
    """Bind to an interface, or with 0 to all, for every protocol, by a `struct sockaddr_ll`: Python's own
    `bind` cannot name them all."""
    address = struct.pack("=HHiHBB8s", socket.AF_PACKET, socket.htons(ETH_P_ALL), index, 0, 0, 0, b"")
    if _libc.bind(packets.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _bound_to(packets: socket.socket) -> int:
    """The index of the interface; -1 when it is gone. By getsockname(2) alone: Python's method also asks for the
    interface's name, which the sandbox forbids."""
    address, size = ctypes.create_string_buffer(20), ctypes.c_uint32(20)
    if _libc.getsockname(packets.fileno(), address, ctypes.byref(size)) != 0:
        return -1
    index: int = struct.unpack_from("=HHi", address)[2]
    return index


def _attach(packets: socket.socket, program: list[bpf.Instruction]) -> None:
    """SO_ATTACH_FILTER with a `struct sock_fprog` (linux/filter.h), then locked against removal."""
    code = ctypes.create_string_buffer(bpf.machine_code(program))
    packets.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
    )
    packets.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
