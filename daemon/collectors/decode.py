"""Frames to columns: what the flow table and `parse` need of every packet, one row a frame.

Whatever the bytes are, nothing here raises because of them: a frame that contradicts itself is flagged
malformed, a frame that the capture cut short is flagged so, and layers are followed to a fixed depth. It must
never copy a payload nor touch a frame in Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..events import I64, U8, U16, U32

PACKET: np.dtype[np.void] = np.dtype(
    [
        ("time_ns", "<i8"),
        ("frame", "<i8"),
        ("source", "<u8", (2,)),
        ("destination", "<u8", (2,)),
        ("sequence", "<u4"),
        ("acknowledgement", "<u4"),
        ("payload", "<u4"),  # bytes of TCP or UDP payload by the headers' lengths, not by what was captured
        ("length", "<u4"),  # of the frame on the wire
        ("weight", "<u4"),  # 1, or N where the packet stands for N sampled ones
        ("payload_at", "<u4"),  # offset of the payload within the captured frame; 0 where there is none
        ("source_port", "<u2"),
        ("destination_port", "<u2"),
        ("vlan", "<u2"),  # the innermost VLAN id, 0 where there is none
        ("family", "u1"),
        ("protocol", "u1"),
        ("tcp_flags", "u1"),
        ("flags", "u1"),
    ]
)

MALFORMED, FRAGMENT, TUNNELLED, CUT_SHORT, FIRST_FRAGMENT = 1, 2, 4, 8, 16
"""The bits of `flags`; FRAGMENT is any but the first."""

ARP = 255
"""The `protocol` of a row of family 0 that is ARP (255 is reserved by IANA); 0 for what is neither IP nor ARP."""


def decode(
    buffer: U8,
    starts: I64,
    captured: U32,
    wire: U32,
    time_ns: I64,
    first_frame: int,
    link_type: int | U16,
    tunnels: NDArray[np.void] | None = None,
) -> NDArray[np.void]:
    """One row of PACKET for each frame.

    buffer      uint8[m], contiguous; or uint8[slots, width], contiguous, as a ring is
    starts      int64[n], where each frame starts in the (flattened) buffer
    captured    uint32[n], bytes of each frame that the buffer holds
    wire        uint32[n], bytes of each frame on the wire
    time_ns     int64[n]
    first_frame number of the first frame; the others follow. 0 for a live capture: all are 0
    link_type   LINKTYPE_* of all frames, or uint16[n]
    tunnels     TUNNEL[n, MOST_TUNNELS] zeros, to be filled with the outer addresses; or None

    `weight` is 1 in every row; whoever samples sets it. Raises ValueError where columns differ in length or a
    frame lies outside of the buffer: these are the caller's errors, not the sender's.
    """
    raise NotImplementedError
