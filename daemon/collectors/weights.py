"""Tells which captured frames the kernel's filter passed by rule and which it drew at random.

The filter (`bpf.packet_filter`) cannot mark a frame. Its rules are followed again here, over all frames at
once, so that a drawn frame gets the weight of those that it stands for. The two must say the same of every
frame; the tests compare them.
"""

from __future__ import annotations

import numpy as np

from ..events import I64, U8, U32, Bool
from .bpf import IPV6_EXTENSIONS, SESSION_STARTS, TLS_START

_STARTS = np.array([int.from_bytes(start, "big") for start in SESSION_STARTS], np.int64)
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
    last = len(flat) - 1
    have = captured.astype(np.int64)
    length = wire.astype(np.int64)

    def byte(rows: I64, at: I64 | int) -> I64:
        there: I64 = flat[np.minimum(starts[rows] + at, last)].astype(np.int64)
        return there

    def half(rows: I64, at: I64 | int) -> I64:
        return byte(rows, at) << 8 | byte(rows, at + 1)

    every = np.arange(len(starts))
    first = byte(every, 0)
    is6 = first >> 4 == 6
    header = np.where(is6, 40, (first & 15) * 4)
    protocol = np.where(is6, byte(every, 6), byte(every, 9))
    fragment = ~is6 & (half(every, 6) & 0x1FFF != 0)
    extended = is6 & _EXTENSION[protocol]
    passed: Bool = fragment | extended | (protocol == np.where(is6, _ICMPV6, _ICMP))

    udp = np.flatnonzero((protocol == _UDP) & ~passed)
    if len(udp):
        at = header[udp]
        source, destination = half(udp, at), half(udp, at + 2)
        quic = (source != 53) & (destination != 53) & ((source == 443) | (destination == 443))
        short_header = (length[udp] >= at + 9) & (byte(udp, at + 8) & 0x80 == 0)
        passed[udp] = ~(quic & short_header)

    tcp = np.flatnonzero((protocol == _TCP) & ~passed)
    if len(tcp):
        at = header[tcp]
        signals = byte(tcp, at + 13) & 0x07 != 0
        payload = at + (byte(tcp, at + 12) >> 2 & 0x3C)
        word = half(tcp, payload) << 16 | half(tcp, payload + 2)
        begins = np.isin(word, _STARTS) | (word >> 16 == TLS_START)
        passed[tcp] = signals | (begins & (have[tcp] >= payload + 4))
    return passed
