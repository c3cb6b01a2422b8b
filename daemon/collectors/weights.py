# mypy: disable-error-code="untyped-decorator,valid-type,misc"
"""Tells which captured frames the kernel's filter passed by rule and which it drew at random.

The filter (`bpf.packet_filter`) cannot mark a frame. Its rules are followed again here, so that a drawn frame gets
the weight of those that it stands for. The two must say the same of every frame; the tests compare them. It reads
nothing past a frame's captured bytes. A compiled loop; the same file runs uncompiled.
"""

from __future__ import annotations

import cython
import numpy as np

from ..events import I64, U8, U32, Bool
from .bpf import IPV6_EXTENSIONS, SESSION_STARTS, TLS_START

_STARTS = np.array([int.from_bytes(start, "big") for start in SESSION_STARTS], np.uint32).data
_EXTENSION = np.isin(np.arange(256), IPV6_EXTENSIONS).astype(np.uint8).data
_TLS = cython.declare(cython.uint, TLS_START)


def passes_by_rule(buffer: U8, starts: I64, captured: U32, wire: U32) -> Bool:
    """bool[n]: which frames a rule passes; the others were drawn.

    buffer    uint8[m] or uint8[slots, width], contiguous, as of `Frames`
    starts    int64[n]: where the IP header of each is
    captured  uint32[n]: bytes that are there; a frame cut short of what a rule reads is not passed by it
    wire      uint32[n]: bytes of each packet

    Raises ValueError where columns differ in length or a frame lies outside of the buffer.
    """
    n = len(starts)
    passed = np.zeros(n, np.bool_)
    if not len(captured) == len(wire) == n:
        raise ValueError("the columns of frames differ in length")
    if n == 0:
        return passed
    if int(starts.min()) < 0 or int((starts + captured).max()) > buffer.size:
        raise ValueError("a frame lies outside of the buffer")
    _judge(
        buffer.reshape(-1).data,
        np.ascontiguousarray(starts, np.int64).data,
        np.ascontiguousarray(captured, np.uint32).data,
        np.ascontiguousarray(wire, np.uint32).data,
        _STARTS,
        _EXTENSION,
        passed.view(np.uint8).data,
    )
    return passed


@cython.cfunc
def _judge(
    data: cython.const[cython.uchar][::1],
    starts: cython.const[cython.longlong][::1],
    captured: cython.const[cython.uint][::1],
    wire: cython.const[cython.uint][::1],
    opens: cython.const[cython.uint][::1],
    extension: cython.const[cython.uchar][::1],
    passed: cython.uchar[::1],
) -> None:
    i: cython.Py_ssize_t
    for i in range(passed.shape[0]):
        passed[i] = _passes(data, starts[i], captured[i], wire[i], opens, extension)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _byte(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    have: cython.Py_ssize_t,
    at: cython.Py_ssize_t,
) -> cython.uint:
    """A byte of the frame, 0 past what was captured: what the kernel could not read there, it did not pass."""
    return data[start + at] if at < have else 0


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _half(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    have: cython.Py_ssize_t,
    at: cython.Py_ssize_t,
) -> cython.uint:
    return (_byte(data, start, have, at) << 8) | _byte(data, start, have, at + 1)


@cython.cfunc
@cython.exceptval(check=False)
def _passes(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    have: cython.Py_ssize_t,
    length: cython.Py_ssize_t,
    opens: cython.const[cython.uint][::1],
    extension: cython.const[cython.uchar][::1],
) -> cython.bint:
    header: cython.Py_ssize_t
    payload: cython.Py_ssize_t
    protocol: cython.uint
    word: cython.uint
    source: cython.uint
    destination: cython.uint
    i: cython.Py_ssize_t
    if _byte(data, start, have, 0) >> 4 == 6:
        header = 40
        protocol = _byte(data, start, have, 6)
        if protocol == 58 or extension[protocol]:
            return True
    else:
        header = (_byte(data, start, have, 0) & 15) * 4
        protocol = _byte(data, start, have, 9)
        if protocol == 1 or _half(data, start, have, 6) & 0x1FFF:
            return True
    if protocol == 17:
        source = _half(data, start, have, header)
        destination = _half(data, start, have, header + 2)
        if source == 53 or destination == 53 or not (source == 443 or destination == 443):
            return True
        return length < header + 9 or _byte(data, start, have, header + 8) & 0x80 != 0
    if protocol != 6:
        return False
    if _byte(data, start, have, header + 13) & 0x07:
        return True
    payload = header + (_byte(data, start, have, header + 12) >> 2 & 0x3C)
    if payload + 4 > have:
        return False
    word = (_half(data, start, have, payload) << 16) | _half(data, start, have, payload + 2)
    for i in range(opens.shape[0]):
        if word == opens[i]:
            return True
    return word >> 16 == _TLS
