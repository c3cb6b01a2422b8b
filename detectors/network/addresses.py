"""Ends of flows for the network detectors: keys for state, and a fixed binary form that campaigns can keep."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...daemon.events import I32, U8, U16, U64, Bool, address_text

_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58, "sctp": 132}
_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_SIZE = 20


def protocol_number(name: str) -> int:
    """The IANA number of a protocol by name or digits. Raises ValueError."""
    if name.isdigit() and int(name) < 256:
        return int(name)
    try:
        return _PROTOCOLS[name.lower()]
    except KeyError:
        raise ValueError(f"{name!r} is no protocol; known are {', '.join(_PROTOCOLS)} and numbers") from None


def end_text(address: str, port: int, protocol: int) -> str:
    """`198.51.100.5:22/tcp`, `[2001:db8::1]:443/tcp`; without a port where the protocol has none."""
    name = _NAMES.get(protocol, str(protocol))
    if protocol not in (6, 17, 132):
        return f"{address}/{name}"
    return f"[{address}]:{port}/{name}" if ":" in address else f"{address}:{port}/{name}"


def on_link(address: U64, family: U8) -> Bool:
    """Which addresses are of a scope that no router passes on, as bool[n]: what keeps a link going (neighbour
    discovery, DHCP) speaks with them, and nothing leaves the site by them (RFC 3927, 5771, 4291, 919)."""
    high, low = address[:, 0], address[:, 1]
    four = (low >> np.uint64(16) == 0xA9FE) | (low >> np.uint64(8) == 0xE00000) | (low == 0xFFFF_FFFF)
    scope = (high >> np.uint64(48)) & np.uint64(0xFF0F)
    six = (high >> np.uint64(54) == 0x3FA) | (scope == 0xFF01) | (scope == 0xFF02)
    found: Bool = np.where(family == 6, six, four)
    return found


def pack_ends(address: U64, family: U8, port: U16, protocol: U8) -> tuple[bytes, I32]:
    """Every end as 20 bytes, and their spans `int32[n, 2]`: what campaigns keep as names."""
    n = len(family)
    packed = np.empty((n, _SIZE), np.uint8)
    packed[:, :16] = np.ascontiguousarray(address).astype(">u8").view(np.uint8).reshape(n, 16)
    packed[:, 16] = family
    packed[:, 17:19] = port.astype(">u2").view(np.uint8).reshape(n, 2)
    packed[:, 19] = protocol
    starts = np.arange(n, dtype=np.int32) * np.int32(_SIZE)
    return packed.tobytes(), np.stack([starts, starts + np.int32(_SIZE)], axis=1)


@lru_cache(maxsize=8192)
def unpack_end(packed: bytes) -> tuple[str, int, int]:
    """(address, port, protocol) of one packed end."""
    high, low = int.from_bytes(packed[:8], "big"), int.from_bytes(packed[8:16], "big")
    return address_text(packed[16], high, low), int.from_bytes(packed[17:19], "big"), packed[19]
