# mypy: disable-error-code="untyped-decorator,valid-type,misc"
"""The compiled loops that walk the records of a capture file: where each frame lies, how long it is, and when.

They stop at whatever is not a whole frame and say why; what to do about it is `capture`'s affair. They read
nothing past `limit`. The same file runs uncompiled.

Sources: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import cython

COMPILED: bool = cython.compiled

FULL = 0  # the columns are full
MORE = 1  # the record at `at` does not end before `limit`
OTHER = 2  # the block at `at` holds no frame
BROKEN = 3  # the block at `at` contradicts itself


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def u16(data: cython.const[cython.uchar][::1], at: cython.Py_ssize_t, big: cython.bint) -> cython.uint:
    first: cython.uint = data[at]
    second: cython.uint = data[at + 1]
    return (first << 8) | second if big else (second << 8) | first


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def u32(data: cython.const[cython.uchar][::1], at: cython.Py_ssize_t, big: cython.bint) -> cython.uint:
    first: cython.uint = u16(data, at, big)
    second: cython.uint = u16(data, at + 2, big)
    return (first << 16) | second if big else (second << 16) | first


def walk_pcap(
    data: cython.const[cython.uchar][::1],
    at: cython.Py_ssize_t,
    limit: cython.Py_ssize_t,
    big: cython.bint,
    header: cython.Py_ssize_t,
    tick_ns: cython.longlong,
    starts: cython.longlong[::1],
    captured: cython.uint[::1],
    wire: cython.uint[::1],
    time_ns: cython.longlong[::1],
    filled: cython.Py_ssize_t,
) -> tuple[int, int, int]:
    """Reads records of `header` bytes and their frames into the columns from row `filled` on.

    Returns (rows now filled, offset of the next record, FULL or MORE).
    """
    i: cython.Py_ssize_t = filled
    size: cython.Py_ssize_t
    seconds: cython.longlong
    fraction: cython.longlong
    while i < starts.shape[0]:
        if at + header > limit:
            return i, at, MORE
        size = u32(data, at + 8, big)
        if at + header + size > limit:
            return i, at, MORE
        seconds = u32(data, at, big)
        fraction = u32(data, at + 4, big)
        starts[i] = at + header
        captured[i] = cython.cast(cython.uint, size)
        wire[i] = u32(data, at + 12, big)
        time_ns[i] = seconds * 1000000000 + fraction * tick_ns
        at += header + size
        i += 1
    return i, at, FULL


def walk_pcapng(
    data: cython.const[cython.uchar][::1],
    at: cython.Py_ssize_t,
    limit: cython.Py_ssize_t,
    big: cython.bint,
    snap_length: cython.uint,
    described: cython.uint,
    starts: cython.longlong[::1],
    captured: cython.uint[::1],
    wire: cython.uint[::1],
    ticks: cython.ulonglong[::1],
    interfaces: cython.uint[::1],
    filled: cython.Py_ssize_t,
) -> tuple[int, int, int]:
    """Reads enhanced, simple and (obsolete) packet blocks into the columns from row `filled` on.

    `ticks` are in the interface's own unit; `snap_length` is that of the section's first interface, which a
    simple packet block leaves out; `described` is the number of the section's interfaces. Returns (rows now
    filled, offset of the next block, FULL, MORE, OTHER or BROKEN).
    """
    i: cython.Py_ssize_t = filled
    kind: cython.uint
    total: cython.Py_ssize_t
    size: cython.Py_ssize_t
    head: cython.Py_ssize_t
    high: cython.ulonglong
    while i < starts.shape[0]:
        if at + 12 > limit:
            return i, at, MORE
        kind = u32(data, at, big)
        if kind != 6 and kind != 3 and kind != 2:
            return i, at, OTHER
        total = u32(data, at + 4, big)
        head = 12 if kind == 3 else 28
        if total < head + 4 or total % 4 != 0:
            return i, at, BROKEN
        if at + total > limit:
            return i, at, MORE
        if kind == 3:
            wire[i] = u32(data, at + 8, big)
            size = total - 16
            if wire[i] < size:
                size = wire[i]
            if snap_length != 0 and snap_length < size:
                size = snap_length
            interfaces[i] = 0
            ticks[i] = 0
        else:
            interfaces[i] = u32(data, at + 8, big) if kind == 6 else u16(data, at + 8, big)
            high = u32(data, at + 12, big)
            ticks[i] = (high << 32) | u32(data, at + 16, big)
            size = u32(data, at + 20, big)
            wire[i] = u32(data, at + 24, big)
        if interfaces[i] >= described or head + size + 4 > total or u32(data, at + total - 4, big) != total:
            return i, at, BROKEN
        starts[i] = at + head
        captured[i] = cython.cast(cython.uint, size)
        at += total
        i += 1
    return i, at, FULL
