"""Tells which captured frames the kernel's filter passed by rule and which it drew at random.

The filter (`bpf.packet_filter`) cannot mark a frame. Its rules are followed again here, over all frames at
once, so that a drawn frame gets the weight of those that it stands for. The two must say the same of every
frame; the tests compare them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..events import I64, U8, U32, Bool
from .bpf import IPV6_EXTENSIONS, SESSION_STARTS, TLS_START

_STARTS = np.array([int.from_bytes(start, "big") for start in SESSION_STARTS], np.uint32)
_EXTENSION = np.isin(np.arange(256), IPV6_EXTENSIONS)
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58


def passes_by_rule(buffer: U8, starts: I64, captured: U32, wire: U32) -> Bool:
    """bool[n]: which frames a rule passes; the others were drawn.

    buffer    uint8[m] or uint8[slots, width], contiguous, as of `Frames`
    starts    int64[n]: where the IP header of each is
    captured  uint32[n]: bytes that are there; a frame cut short of what a rule reads is not passed by it
    wire      uint32[n]: bytes of each packet
    """
    flat = buffer.reshape(-1)
    ip = _bytes(flat, starts, 10)
    is6 = ip[:, 0] >> 4 == 6
    header = np.where(is6, 40, (ip[:, 0] & 15) * 4)
    protocol = np.where(is6, ip[:, 6], ip[:, 9])
    fragment = ~is6 & (ip[:, 6] & 0x1F | ip[:, 7] != 0)
    passed: Bool = fragment | (is6 & _EXTENSION[protocol]) | (protocol == np.where(is6, _ICMPV6, _ICMP))
    tcp = np.flatnonzero((protocol == _TCP) & ~passed)
    if len(tcp):
        passed[tcp] = _tcp_passes(flat, starts[tcp], header[tcp], captured[tcp])
    udp = np.flatnonzero((protocol == _UDP) & ~passed)
    if len(udp):
        passed[udp] = _udp_passes(flat, starts[udp], header[udp], wire[udp])
    return passed


def _tcp_passes(flat: U8, starts: I64, header: I64, captured: U32) -> Bool:
    """bool[n]: SYN, FIN, RST, or a payload that begins a session."""
    tcp = _bytes(flat, starts + header, 14)
    payload = header + (tcp[:, 12] >> 2 & 0x3C)
    word = _bytes(flat, starts + payload, 4).view(">u4")  # uint32[n, 1]
    begins = (word == _STARTS).any(axis=1) | (word[:, 0] >> 16 == TLS_START)
    passes: Bool = (tcp[:, 13] & 0x07 != 0) | (begins & (captured >= payload + 4))
    return passes


def _udp_passes(flat: U8, starts: I64, header: I64, wire: U32) -> Bool:
    """bool[n]: all but QUIC's packets with a short header."""
    udp = _bytes(flat, starts + header, 9)
    ports = udp[:, :4].copy().view(">u2")  # uint16[n, 2]
    quic = (ports == 443).any(axis=1) & (ports != 53).all(axis=1)
    short_header = (wire >= header + 9) & (udp[:, 8] & 0x80 == 0)
    passes: Bool = ~(quic & short_header)
    return passes


def _bytes(flat: U8, starts: I64, count: int) -> U8:
    """uint8[n, count]: so many bytes from each start; near the buffer's end others, which no frame is judged by.

    All runs of `count` bytes are seen as one column of opaque items, so that each is copied at once.
    """
    last = len(flat) - count
    runs: NDArray[np.void] = np.ndarray((last + 1,), f"V{count}", flat, strides=(1,))
    return runs[np.minimum(starts, last)].view(np.uint8).reshape(len(starts), count)
