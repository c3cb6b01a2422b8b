"""Stored captures: pcap and pcapng, plain or gzip, as batches of PACKET columns.

What is whole is delivered, and where a file ends or breaks inside a record `truncated` says so. It must never
copy a frame on the way to the columns, and raises nothing but InputError because of a file.

Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, tcpdump.org/linktypes.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..events import I64, U8, U16, U32, U64
from . import capture_records as records
from .capture_window import GZIP_MAGIC, MOST_RECORD, Window
from .decode import LINK_TYPES, MOST_TUNNELS, TUNNEL, decode

PCAP_MAGICS = {
    b"\xd4\xc3\xb2\xa1": (False, 1000, 16),
    b"\xa1\xb2\xc3\xd4": (True, 1000, 16),
    b"\x4d\x3c\xb2\xa1": (False, 1, 16),
    b"\xa1\xb2\x3c\x4d": (True, 1, 16),
    b"\x34\xcd\xb2\xa1": (False, 1000, 24),
    b"\xa1\xb2\xcd\x34": (True, 1000, 24),
}
"""First bytes of a pcap: (big-endian, nanoseconds in a tick, bytes of a record's header, which A. Kuznetsov's
variant made longer)."""

PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
MOST_INTERFACES = 1 << 16
MOST_DESCRIPTION = 1 << 20
REMEDY = "check how the file was copied, or capture again"


def is_capture(sample: bytes) -> bool:
    """Whether a file that begins with `sample` (4 bytes do) is a capture, or is compressed and may hold one."""
    return sample[:4] in PCAP_MAGICS or sample[:4] == PCAPNG_MAGIC or _gzip_of_capture(sample)


def _gzip_of_capture(sample: bytes) -> bool:
    import zlib

    if sample[:2] != GZIP_MAGIC:
        return False
    try:
        first = zlib.decompressobj(31).decompress(sample, 4)
    except zlib.error:
        return False
    return first in PCAP_MAGICS or first == PCAPNG_MAGIC


@dataclass(frozen=True, slots=True)
class CaptureBatch:
    """Frames in the order of the file. `packets[i]` was made of `buffer[starts[i]:starts[i] + captured[i]]`."""

    packets: NDArray[np.void]  # PACKET[n]
    buffer: U8
    starts: I64
    captured: U32
    tunnels: NDArray[np.void] | None  # TUNNEL[n, MOST_TUNNELS] where it was asked for

    def frame_bytes(self, row: int) -> memoryview:
        """The captured bytes of one frame, without copying them."""
        start = int(self.starts[row])
        return self.buffer.data[start : start + int(self.captured[row])]


@dataclass(slots=True)
class _Columns:
    """What is gathered of one batch before it is decoded."""

    starts: I64
    captured: U32
    wire: U32
    time_ns: I64
    links: U16
    ticks: U64
    interfaces: U32

    @classmethod
    def blank(cls, n: int) -> Self:
        return cls(
            np.empty(n, np.int64), np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.int64),
            np.empty(n, np.uint16), np.empty(n, np.uint64), np.empty(n, np.uint32),
        )  # fmt: skip


class Capture:
    """A capture file, opened and its header checked.

    path       the file
    truncated  after iteration: what is wrong with the end, where something is; None for a whole file
    bytes_total, bytes_done  of the file as it lies on disk, for whoever shows progress

    Raises InputError, which names file and offset, where the file is none, where its header is cut short, or for
    a link type that `decode` does not know (for pcapng: at the first frame of such an interface).
    """

    truncated: str | None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.truncated = None
        self._window = Window(path)
        self._at = 0
        self._frame = 1
        self._format: _Pcap | _PcapNg
        try:
            magic = self._window.data[:4].tobytes()
            if magic in PCAP_MAGICS:
                self._format = _Pcap(path, self._window, *PCAP_MAGICS[magic])
                self._at = 24
            elif magic == PCAPNG_MAGIC:
                self._format = _PcapNg(path, self._window)
            else:
                problem = f": {self._window.problem}" if self._window.problem else ""
                raise InputError(
                    f"{path}: offset 0: neither pcap nor pcapng{problem}",
                    remedy="name a capture, or give --format",
                )
        except InputError:
            self._window.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._window.close()

    @property
    def bytes_total(self) -> int:
        return self._window.bytes_total

    @property
    def bytes_done(self) -> int:
        return self._window.done(self._at)

    def batches(self, size: int = 65536, *, tunnels: bool = False) -> Iterator[CaptureBatch]:
        """Batches of at most `size` frames, fewer where the window that the file is read through holds fewer."""
        while True:
            columns = _Columns.blank(size)
            filled, self._at, state = self._format.read(self._window, self._at, columns)
            if filled:
                yield self._decode(columns, filled, tunnels)
            if state == records.FULL:
                continue
            if state == records.MORE:
                needed, said = self._format.needs(self._window, self._at)
                if needed <= MOST_RECORD and self._more():
                    continue
                left = len(self._window.data) - self._at
                if left or self._window.problem:
                    self.truncated = f"offset {self._window.base + self._at}: {said}, {left} are left"
                    if self._window.problem:
                        self.truncated += f"; {self._window.problem}"
            else:
                self.truncated = f"offset {self._window.base + self._at}: {self._format.problem}"
            return

    def _more(self) -> bool:
        if not self._window.more(self._at):
            return False
        self._at = 0
        return True

    def _decode(self, columns: _Columns, n: int, with_tunnels: bool) -> CaptureBatch:
        data = self._window.data
        tunnels = np.zeros((n, MOST_TUNNELS), TUNNEL) if with_tunnels else None
        starts, captured = columns.starts[:n], columns.captured[:n]
        packets = decode(
            data,
            starts,
            captured,
            columns.wire[:n],
            columns.time_ns[:n],
            self._frame,
            columns.links[:n],
            tunnels,
        )
        self._frame += n
        return CaptureBatch(packets, data, starts, captured, tunnels)


def parse_rows(path: Path | Capture) -> Iterator[dict[str, Any]]:
    """One frame of a capture a dictionary, in the order of the file; a key is absent where a frame has none of it.

    Keys: frame (from 1), time (RFC 3339 with nanoseconds), length (bytes on the wire), source, destination,
    source_port, destination_port, protocol, vlan, tunnel (a list of the outer headers, outermost first, each
    with kind, source and destination), server_name, query, ja4, malformed (true). Raises InputError as Capture
    does; whoever wants to read `truncated` afterwards gives an open Capture.
    """
    from .capture_rows import rows_of

    if isinstance(path, Capture):
        yield from rows_of(path)
        return
    with Capture(path) as capture:
        yield from rows_of(capture)


class _Pcap:
    """The file header, and records all alike."""

    problem = ""

    def __init__(self, path: Path, window: Window, big: bool, tick_ns: int, header: int) -> None:
        if len(window.data) < 24:
            raise InputError(
                f"{path}: offset 0: the pcap header needs 24 bytes, {len(window.data)} are there",
                remedy=REMEDY,
            )
        self._big, self._tick_ns, self._header = big, tick_ns, header
        # the upper bits tell of frame check sequences
        self._link = int.from_bytes(window.data[20:24].tobytes(), "big" if big else "little") & 0xFFFF
        if self._link not in LINK_TYPES:
            raise _unknown_link(path, 20, self._link)

    def read(self, window: Window, at: int, columns: _Columns) -> tuple[int, int, int]:
        data = window.data
        filled, at, state = records.walk_pcap(
            data.data, at, len(data), self._big, self._header, self._tick_ns,
            columns.starts.data, columns.captured.data, columns.wire.data,
            columns.time_ns.data, 0,
        )  # fmt: skip
        columns.links[:filled] = self._link
        return filled, at, state

    def needs(self, window: Window, at: int) -> tuple[int, str]:
        """Bytes that the record at `at` needs, and that in words."""
        head = window.data[at : at + self._header].tobytes()
        if len(head) < self._header:
            return self._header, f"a record header needs {self._header} bytes"
        size = int.from_bytes(head[8:12], "big" if self._big else "little")
        return self._header + size, f"record says {self._header + size} bytes"


@dataclass(frozen=True, slots=True)
class _Interface:
    """What an interface description block says (pcapng, section 4.2)."""

    offset: int
    link: int
    snap_length: int
    resolution: int  # if_tsresol as it stands in the file
    shift_ns: int

    def time_ns(self, ticks: U64) -> I64:
        """Nanoseconds of ticks; what does not fit in 64 bits wraps."""
        power = self.resolution & 0x7F
        if self.resolution & 0x80:
            seconds = ticks >> np.uint64(min(power, 63))
            rest = ticks & np.uint64((1 << min(power, 63)) - 1)
            if power > 30:  # so that the product below fits
                rest, power = rest >> np.uint64(min(power, 63) - 30), 30
            time = seconds * np.uint64(1_000_000_000) + (
                (rest * np.uint64(1_000_000_000)) >> np.uint64(power)
            )
        elif power <= 9:
            time = ticks * np.uint64(10 ** (9 - power))
        else:
            time = ticks // np.uint64(10 ** min(power - 9, 19))
        return time.astype(np.int64) + np.int64(self.shift_ns)


class _PcapNg:
    """Sections of blocks; a section has its own byte order and interfaces."""

    def __init__(self, path: Path, window: Window) -> None:
        self._path = path
        self._big = False
        self._interfaces: list[_Interface] = []
        self.problem = ""
        needed, _ = self.needs(window, 0)
        problem = (
            self._section(window.data[:28].tobytes())
            if len(window.data) >= 28
            else "the section is cut short"
        )
        if problem or needed > len(window.data):
            raise InputError(
                f"{path}: offset 0: {problem or 'the section header is cut short'}", remedy=REMEDY
            )

    def needs(self, window: Window, at: int) -> tuple[int, str]:
        head = window.data[at : at + 12].tobytes()
        if len(head) < 12:
            return 12, "a block needs 12 bytes"
        if head[:4] == PCAPNG_MAGIC:
            size = int.from_bytes(head[4:8], "big" if head[8:12] == b"\x1a\x2b\x3c\x4d" else "little")
        else:
            size = int.from_bytes(head[4:8], "big" if self._big else "little")
        return size, f"block says {size} bytes"

    def read(self, window: Window, at: int, columns: _Columns) -> tuple[int, int, int]:
        data, filled, state = window.data, 0, records.OTHER
        while state == records.OTHER:
            before = filled
            snap_length = self._interfaces[0].snap_length if self._interfaces else 0
            filled, at, state = records.walk_pcapng(
                data.data, at, len(data), self._big, snap_length, len(self._interfaces),
                columns.starts.data, columns.captured.data, columns.wire.data,
                columns.ticks.data, columns.interfaces.data, before,
            )  # fmt: skip
            if filled > before:
                self._times(columns, before, filled)
            if state == records.BROKEN:
                self.problem = (
                    "the packet block contradicts itself, or names an interface that was not described"
                )
            elif state == records.OTHER:
                size, _ = self.needs(window, at)
                if size > len(data) - at:
                    return filled, at, records.MORE
                self.problem = self._block(data[at : at + size], window.base + at)
                if self.problem:
                    return filled, at, records.BROKEN
                at += size
        return filled, at, state

    def _times(self, columns: _Columns, start: int, end: int) -> None:
        """Fills times and link types of rows `start` to `end`."""
        which = columns.interfaces[start:end]
        ticks = columns.ticks[start:end]
        for number in np.unique(which).tolist():
            interface = self._interfaces[number]
            if interface.link not in LINK_TYPES:
                raise _unknown_link(self._path, interface.offset, interface.link, number)
            mask = which == number
            columns.time_ns[start:end][mask] = interface.time_ns(ticks[mask])
            columns.links[start:end][mask] = interface.link

    def _block(self, block: U8, offset: int) -> str:
        """Takes in a block that holds no frame; returns what is wrong with it, or nothing."""
        kind = block[:4].tobytes()
        if len(block) < 12 or len(block) % 4:
            return "the block contradicts itself"
        described = int.from_bytes(kind, "big" if self._big else "little") == 1
        if kind != PCAPNG_MAGIC and not described:
            return "" if block[4:8].tobytes() == block[-4:].tobytes() else "the block contradicts itself"
        if len(block) > MOST_DESCRIPTION:
            return f"a description of {len(block)} bytes"
        return self._description(block.tobytes(), offset) if described else self._section(block.tobytes())

    def _section(self, block: bytes) -> str:
        order = block[8:12]
        if order not in (b"\x1a\x2b\x3c\x4d", b"\x4d\x3c\x2b\x1a"):
            return "the section header has no byte-order magic"
        big = order == b"\x1a\x2b\x3c\x4d"
        size = int.from_bytes(block[4:8], "big" if big else "little")
        if size < 28 or size % 4:
            return f"the section header says {size} bytes"
        version = int.from_bytes(block[12:14], "big" if big else "little")
        if version != 1:
            return f"version {version} of pcapng is not known"
        self._big = big
        self._interfaces = []
        return ""

    def _description(self, block: bytes, offset: int) -> str:
        order: str = "big" if self._big else "little"
        if len(block) < 20 or len(self._interfaces) >= MOST_INTERFACES:
            return "the interface description is cut short" if len(block) < 20 else "too many interfaces"

        def number(at: int, size: int) -> int:
            return int.from_bytes(block[at : at + size], order)  # type: ignore[arg-type]

        resolution, shift, at = 6, 0, 16
        while at + 4 <= len(block) - 4:
            code, size = number(at, 2), number(at + 2, 2)
            if code == 0 or at + 4 + size > len(block) - 4:
                break
            if code == 9 and size == 1:
                resolution = block[at + 4]
            elif code == 14 and size == 8:
                shift = int.from_bytes(block[at + 4 : at + 12], order, signed=True)  # type: ignore[arg-type]
            at += 4 + (size + 3) // 4 * 4
        shift_ns = (shift * 1_000_000_000 + (1 << 63)) % (1 << 64) - (1 << 63)
        self._interfaces.append(_Interface(offset, number(8, 2), number(12, 4), resolution, shift_ns))
        return ""


def _unknown_link(path: Path, offset: int, link: int, interface: int | None = None) -> InputError:
    where = "" if interface is None else f" of interface {interface}"
    return InputError(
        f"{path}: offset {offset}: link type {link}{where} is not known",
        remedy="capture on an Ethernet or IP interface, or convert the file with editcap -T",
    )
