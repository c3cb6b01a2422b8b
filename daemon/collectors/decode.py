"""Frames to columns: what the flow table and `parse` need of every packet, one row a frame.

Whatever the bytes are, nothing here raises because of them: a frame that contradicts itself is flagged
malformed, a frame that the capture cut short is flagged so, and layers are followed to a fixed depth. It must
never copy a payload nor touch a frame in Python.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..events import I64, U8, U16, U32
from . import decode_layers

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

TUNNEL: np.dtype[np.void] = np.dtype(
    [("source", "<u8", (2,)), ("destination", "<u8", (2,)), ("kind", "u1"), ("family", "u1")]
)
"""One outer internet header; `kind` is an index into TUNNEL_KINDS, 0 where the row is unused."""

TUNNEL_KINDS = ("", "ip", "gre", "erspan", "vxlan", "geneve", "teredo")
MOST_TUNNELS = 7

MALFORMED, FRAGMENT, TUNNELLED, CUT_SHORT, FIRST_FRAGMENT = 1, 2, 4, 8, 16
"""The bits of `flags`; FRAGMENT is any but the first."""

ARP = 255
"""The `protocol` of a row of family 0 that is ARP (IANA keeps 255 free); 0 for what is neither IP nor ARP."""

LINK_TYPES = frozenset({0, 1, 9, 12, 14, 50, 51, 101, 108, 113, 228, 229, 276})
"""The LINKTYPE_ numbers (tcpdump.org/linktypes.html) that `decode` knows; frames of others stay family 0."""


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
    link_type   LINKTYPE_ number of all frames, or uint16[n]
    tunnels     TUNNEL[n, MOST_TUNNELS] zeros, contiguous, to be filled with the outer headers; or None

    `weight` is 1 in every row; whoever samples sets it, as whoever knows of a tag that the card took off sets
    `vlan`. `payload` also counts what follows the eight bytes of an ICMP header. Raises ValueError where columns
    differ in length or a frame lies outside of the buffer: these are the caller's errors, not the sender's.
    """
    n = len(starts)
    flat = buffer.reshape(-1)
    links = np.full(n, link_type, np.uint16) if isinstance(link_type, int) else link_type
    if not len(captured) == len(wire) == len(time_ns) == len(links) == n:
        raise ValueError("the columns of frames differ in length")
    starts = np.ascontiguousarray(starts, np.int64)
    captured = np.ascontiguousarray(captured, np.uint32)
    rows = np.empty(n, PACKET)
    if n == 0:
        return rows
    if int(starts.min()) < 0 or int((starts + captured).max()) > len(flat):
        raise ValueError("a frame lies outside of the buffer")
    if tunnels is not None and (tunnels.shape != (n, MOST_TUNNELS) or not tunnels.flags.c_contiguous):
        raise ValueError("tunnels has another shape than frames")
    rows["time_ns"] = time_ns
    rows["frame"] = np.arange(first_frame, first_frame + n) if first_frame else 0
    rows["length"] = wire
    rows["weight"] = 1
    decode_layers.run(
        flat.data,
        starts.data,
        captured.data,
        np.ascontiguousarray(wire, np.uint32).data,
        np.ascontiguousarray(links, np.uint16).data,
        rows,
        None if tunnels is None else tunnels.reshape(-1),
        MOST_TUNNELS,
    )
    return rows
