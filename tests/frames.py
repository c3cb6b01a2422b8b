"""Frames, captures and packet rows that tests build byte by byte, and the loops of the package uncompiled."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gatewatch.daemon.collectors import decode as decoding
from numpy.typing import NDArray


def uncompiled(module: ModuleType) -> ModuleType:
    """The same module from its source: slower, and every index is checked. It is not entered in sys.modules."""
    name = module.__name__.rpartition(".")[2]
    path = Path(decoding.__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"{name}_uncompiled", path)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


def ethernet(payload: bytes, kind: int = 0x0800, vlans: Sequence[int] = ()) -> bytes:
    tags = b"".join(struct.pack("!HH", 0x8100, vlan) for vlan in vlans)
    return b"\x02\0\0\0\0\1\x02\0\0\0\0\2" + tags + struct.pack("!H", kind) + payload


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    total: int | None = None,
) -> bytes:
    """`fragment` is the whole field: flags and offset in units of eight bytes."""
    header = 20 + len(options)
    length = header + len(payload) if total is None else total
    head = struct.pack("!BBHHHBBH", 0x40 | header // 4, 0, length, 1, fragment, 64, protocol, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + options + payload


def ipv6(
    source: str, destination: str, following: int, payload: bytes, *, length: int | None = None
) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload) if length is None else length, following, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + payload


def tcp(
    source: int,
    destination: int,
    flags: int,
    payload: bytes = b"",
    *,
    sequence: int = 0,
    acknowledgement: int = 0,
    offset: int = 5,
) -> bytes:
    numbers = (source, destination, sequence, acknowledgement, offset << 4, flags, 65535, 0, 0)
    return struct.pack("!HHIIBBHHH", *numbers) + payload


def udp(source: int, destination: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    return (
        struct.pack("!HHHH", source, destination, 8 + len(payload) if length is None else length, 0) + payload
    )


def decode_one(
    frame: bytes, link_type: int = 1, wire: int | None = None, tunnels: NDArray[Any] | None = None
) -> NDArray[np.void]:
    """The single row that `decode` makes of a frame."""
    return decoding.decode(
        np.frombuffer(frame, np.uint8),
        np.zeros(1, np.int64),
        np.array([len(frame)], np.uint32),
        np.array([len(frame) if wire is None else wire], np.uint32),
        np.array([1], np.int64),
        1,
        link_type,
        tunnels,
    )


def pcap(
    frames: Sequence[bytes],
    *,
    order: str = "<",
    magic: int = 0xA1B2C3D4,
    link_type: int = 1,
    fraction: int = 500_000,
    extra: bytes = b"",
) -> bytes:
    """A capture with one frame a second. `extra` follows each record's header, as in Kuznetsov's variant."""
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)]
    for second, frame in enumerate(frames):
        parts.append(struct.pack(f"{order}IIII", second, fraction, len(frame), len(frame)) + extra + frame)
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A pcapng block, padded."""
    body += bytes(-len(body) % 4)
    total = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + total + body + total


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link_type: int = 1, order: str = "<", options: Sequence[tuple[int, bytes]] = ()) -> bytes:
    body = struct.pack(f"{order}HHI", link_type, 0, 0)
    for code, value in options:
        body += struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)
    return block(1, body + bytes(4), order)


def enhanced(frame: bytes, ticks: int, number: int = 0, order: str = "<") -> bytes:
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return block(6, head + frame, order)
