"""What `gatewatch parse` says of a capture: one dictionary a frame, for people and for comparison with others.

It makes Python objects of every frame, and so must never be on the path of detection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..events import address_text
from .capture import Capture, CaptureBatch
from .decode import ARP, FIRST_FRAGMENT, MALFORMED, TUNNEL_KINDS, TUNNELLED
from .dissect import DNS_PORTS, Hellos, query_name

PROTOCOLS = {
    1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 33: "dccp", 41: "ipv6", 47: "gre", 50: "esp", 51: "ah",
    58: "icmpv6", 59: "none", 88: "eigrp", 89: "ospf", 103: "pim", 112: "vrrp", 132: "sctp", 136: "udplite",
    0: "hopopt", 43: "ipv6-route", 44: "ipv6-frag", 60: "ipv6-opts", 115: "l2tp", 135: "mobility", 137: "mpls",
}  # fmt: skip
"""Names of IANA's protocol numbers in lower case; others are given as their number."""

_text = lru_cache(4096)(address_text)


@lru_cache(64)
def _second(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "1970-01-01T00:00:00"


@dataclass(frozen=True, slots=True)
class _Packet:
    """One row of PACKET as Python's own numbers: what of it is shown."""

    time_ns: int
    frame: int
    source: list[int]
    destination: list[int]
    sequence: int
    payload: int
    length: int
    payload_at: int
    source_port: int
    destination_port: int
    vlan: int
    family: int
    protocol: int
    flags: int


COLUMNS = tuple(_Packet.__slots__)


def rows_of(capture: Capture) -> Iterator[dict[str, Any]]:
    """See `capture.parse_rows`."""
    hellos = Hellos()
    for batch in capture.batches(8192, tunnels=True):
        named = _named(batch)
        columns = [batch.packets[name].tolist() for name in COLUMNS]
        for i, values in enumerate(zip(*columns, strict=True)):
            packet = _Packet(*values)
            row = _row(packet)
            if batch.tunnels is not None and packet.flags & TUNNELLED:
                row["tunnel"] = _outer(batch.tunnels[i])
            if named[i]:
                start = packet.payload_at
                _name(row, packet, batch.frame_bytes(i)[start : start + packet.payload], hellos)
            yield row


def _named(batch: CaptureBatch) -> list[bool]:
    """Which frames have a payload that may hold a name."""
    packets = batch.packets
    has = (packets["payload_at"] > 0) & (packets["flags"] & (MALFORMED | FIRST_FRAGMENT) == 0)
    dns = (packets["protocol"] == 17) & (
        np.isin(packets["destination_port"], list(DNS_PORTS))
        | np.isin(packets["source_port"], list(DNS_PORTS))
    )
    named: list[bool] = (has & ((packets["protocol"] == 6) | dns)).tolist()
    return named


def _row(packet: _Packet) -> dict[str, Any]:
    seconds, rest = divmod(packet.time_ns, 1_000_000_000)
    row: dict[str, Any] = {
        "frame": packet.frame,
        "time": f"{_second(seconds)}.{rest:09d}Z",
        "length": packet.length,
    }
    if packet.family:
        row["source"] = _text(packet.family, *packet.source)
        row["destination"] = _text(packet.family, *packet.destination)
        if packet.source_port or packet.destination_port:
            row["source_port"] = packet.source_port
            row["destination_port"] = packet.destination_port
        row["protocol"] = PROTOCOLS.get(packet.protocol, str(packet.protocol))
    elif packet.protocol == ARP:
        row["protocol"] = "arp"
    if packet.vlan:
        row["vlan"] = packet.vlan
    if packet.flags & MALFORMED:
        row["malformed"] = True
    return row


def _outer(tunnels: NDArray[np.void]) -> list[dict[str, str]]:
    """The outer headers of one frame, outermost first."""
    used = tunnels[: np.count_nonzero(tunnels["kind"])]
    return [
        {
            "kind": TUNNEL_KINDS[int(header["kind"])],
            "source": _text(int(header["family"]), *header["source"].tolist()),
            "destination": _text(int(header["family"]), *header["destination"].tolist()),
        }
        for header in used
    ]


def _name(row: dict[str, Any], packet: _Packet, payload: memoryview, hellos: Hellos) -> None:
    if packet.protocol == 6:
        stream = (*packet.source, packet.source_port, *packet.destination, packet.destination_port)
        hello = hellos.feed(stream, packet.sequence, payload)
        if hello is not None:
            row["ja4"] = hello.ja4
            if hello.server_name:
                row["server_name"] = hello.server_name
    else:
        query = query_name(payload)
        if query is not None:
            row["query"] = query
