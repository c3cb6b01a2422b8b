"""Entries of the kernel's connection tracking: found by the kernel and deleted, so that a flow that NAT or a flow table
carries has to begin anew.

Formats: linux/netfilter/nfnetlink_conntrack.h. The kernel filters since Linux 5.8; before, it gives every
entry, so what comes back is compared here again before it is deleted. Where connection tracking is not
in use, there is nothing to do.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from ..rails import Address, Network, Service
from .netlink import Netlink, attribute, attributes

_NETFILTER = 12  # NETLINK_NETFILTER
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET and _DELETE
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25  # CTA_*
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_ADDRESSES: dict[int, tuple[int, int]] = {
    socket.AF_INET: (1, 2),
    socket.AF_INET6: (3, 4),
}  # CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST
_PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_NUMBERS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_PROTOCOLS = {bytes([number]): name for name, number in _NUMBERS.items()}
_ORIG_FLAGS = 1
_BY_SOURCE, _BY_PROTOCOL, _BY_PORT = 1 << 0, 1 << 3, 1 << 5  # CTA_FILTER_FLAG
_PROTOINFO, _PROTOINFO_TCP, _TCP_STATE = 4, 1, 1  # CTA_PROTOINFO, CTA_PROTOINFO_TCP and _STATE
_ENDING = (6, 7, 8)  # LAST_ACK, TIME_WAIT, CLOSE: linux/netfilter/nf_conntrack_tcp.h
_MOST_READ, _MOST_ASKED = 20_000, 16
_READ_PER_WALK = 1_000  # entries read here in the time of one walk through the kernel's table
_sockets: dict[int, Netlink] = {}


def entries() -> int:
    """How many entries there are; 0 where connection tracking is not in use."""
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_count", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def forget_networks(
    networks: Sequence[Network], spared: Sequence[Network] = (), most_read: int = _MOST_READ
) -> int:
    """Delete what was opened from any of `networks` and not from `spared`; how many entries. Raises OSError.

    For every question the kernel walks its whole table, which takes 10 ms and more, so a small table is read once
    for many networks. In a large one a few single addresses are searched for: the packets of all of them are dropped
    before connection tracking anyway. Of IPv6 the kernel's filter by source finds all but the source (Linux 6.18,
    ctnetlink_filter_match_tuple in nf_conntrack_netlink.c), so those are read here as long as the table has no more
    than `most_read` entries.
    """
    count, gone = entries(), 0
    for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        chosen = [n for n in networks if n.version == version] if count else []
        singles = [n.network_address.packed for n in chosen if n.prefixlen == n.max_prefixlen]
        asked = [(attribute(_ADDRESSES[family][0], packed), _BY_SOURCE) for packed in singles[:_MOST_ASKED]]
        many = version == 6 or len(singles) < len(chosen) or (len(singles) - 1) * _READ_PER_WALK > count
        if chosen and many and count <= most_read:
            asked = [(b"", 0)]
        wanted, kept = _starts(chosen), _starts([n for n in spared if n.version == version])
        for addresses, flags in asked:
            found = [
                key
                for given, key in _dump(family, addresses, b"", flags)
                if (source := _source(given.get(_TUPLE_ORIG, b""), family)) >= 0
                and _within(source, wanted)
                and not _within(source, kept)
            ]
            gone += _netfilter().tell(_DELETE, found).count(0)
    return gone


def _starts(networks: Sequence[Network]) -> dict[int, set[int]]:
    """What the networks begin with, by the number of bits that follow."""
    found: dict[int, set[int]] = {}
    for network in networks:
        rest = network.max_prefixlen - network.prefixlen
        found.setdefault(rest, set()).add(int(network.network_address) >> rest)
    return found


def _within(address: int, starts: dict[int, set[int]]) -> bool:
    return any(address >> rest in those for rest, those in starts.items())


def _source(packed: bytes, family: int) -> int:
    """The source of a tuple; -1 where the kernel left it out."""
    ends = attributes(attributes(packed).get(_TUPLE_IP, b""))
    start = ends.get(_ADDRESSES[family][0])
    return -1 if start is None else int.from_bytes(start, "big")


def _netfilter() -> Netlink:
    """The socket of this network namespace; kept, as the kernel takes 20 ms and more to close one."""
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    if namespace not in _sockets:
        _sockets[namespace] = Netlink(_NETFILTER)
    return _sockets[namespace]


class Flow(NamedTuple):
    asked: Service  # what the client asked for: address, port
    served: Service  # who answers, which NAT may have made somebody else
    key: bytes  # for the deletion
    client: Address  # who opened it
    open: bool  # not on its way out: TCP from its SYN to the first FIN of each side


def flows(services: Iterable[Service]) -> list[Flow]:
    """What was opened towards any of `services`. Raises OSError.

    A small table is read once, whatever is asked: of what NAT carries, the kill switch cuts nothing off before.
    """
    count, every = entries(), frozenset(services)
    ports = {(s.protocol, s.port) for s in every} if count else set()
    asked = [
        (
            family,
            attribute(_PROTO_NUM, bytes([_NUMBERS[protocol]]))
            + attribute(_PROTO_DST_PORT, port.to_bytes(2, "big")),
        )
        for protocol, port in ports
        for family in _ADDRESSES
    ]
    if (len(asked) - 1) * _READ_PER_WALK > count:
        asked = [(socket.AF_UNSPEC, b"")]
    found: dict[bytes, Flow] = {}
    for family, port in asked:
        for given, key in _dump(family, b"", port, _BY_PROTOCOL | _BY_PORT if port else 0):
            flow = _flow(given, key)
            if flow is not None and not every.isdisjoint((flow.asked, flow.asked._replace(address=None))):
                found[key] = flow
    return list(found.values())


def forget(tracked: Iterable[Flow]) -> int:
    """Delete the entries of these flows; how many were there. Raises OSError."""
    return _netfilter().tell(_DELETE, [flow.key for flow in tracked]).count(0)


def _dump(
    family: int, addresses: bytes, protocol: bytes, flags: int
) -> Iterator[tuple[dict[int, bytes], bytes]]:
    """Attributes of each entry that the kernel's filter passes, and the message that would delete it."""
    header = struct.pack("!BBH", family, 0, 0)  # nfgenmsg
    wanted = header
    if flags:
        inner = attribute(_TUPLE_IP, addresses, nested=True) if addresses else b""
        inner += attribute(_TUPLE_PROTO, protocol, nested=True) if protocol else b""
        wanted += attribute(_TUPLE_ORIG, inner, nested=True)
        wanted += attribute(_FILTER, attribute(_ORIG_FLAGS, struct.pack("=I", flags)), nested=True)
    try:
        for _, body in _netfilter().ask(_GET, wanted):
            given = attributes(body, 4)
            kept = [(k, given[k]) for k in (_TUPLE_ORIG, _ZONE, _ID) if k in given]
            yield given, body[:4] + b"".join(attribute(k, v, nested=k == _TUPLE_ORIG) for k, v in kept)
    except OSError as error:
        # Connection tracking without its netlink half, or a filter that this kernel does not know.
        if error.errno not in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            raise


def _flow(given: dict[int, bytes], key: bytes) -> Flow | None:
    """None where it is neither TCP nor UDP. Raises OSError where the kernel left an address or a port out."""
    ends = []
    for kind, which, port_kind in ((_TUPLE_ORIG, 1, _PROTO_DST_PORT), (_TUPLE_REPLY, 0, _PROTO_SRC_PORT)):
        parts = attributes(given.get(kind, b""))
        ports = attributes(parts.get(_TUPLE_PROTO, b""))
        protocol = _PROTOCOLS.get(ports.get(_PROTO_NUM, b""))
        if protocol is None or key[0] not in _ADDRESSES:
            return None
        port = ports.get(port_kind, b"")
        address = attributes(parts.get(_TUPLE_IP, b"")).get(_ADDRESSES[key[0]][which], b"")
        if len(port) != 2 or len(address) not in (4, 16):
            raise OSError(errno.EBADMSG, "connection tracking gave an entry without addresses")
        ends.append(Service(ip_address(address), int.from_bytes(port, "big"), protocol))
    told = attributes(attributes(given.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b"")).get(_TCP_STATE)
    source = attributes(attributes(given[_TUPLE_ORIG]).get(_TUPLE_IP, b"")).get(_ADDRESSES[key[0]][0], b"")
    if len(source) not in (4, 16):
        raise OSError(errno.EBADMSG, "connection tracking gave an entry without its source")
    return Flow(ends[0], ends[1], key, ip_address(source), open=told is None or told[0] not in _ENDING)
