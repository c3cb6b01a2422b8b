"""Connections of this network namespace: found by address or port in the kernel, counted, and destroyed.

Formats: linux/inet_diag.h, linux/sock_diag.h. `SOCK_DESTROY` needs CONFIG_INET_DIAG_DESTROY, which
distributions' kernels have. Listening sockets are left alone.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from .netlink import Netlink, attribute
from .rails import Address, Network, Service

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21
_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_LOCAL, _REMOTE = 7, 8  # INET_DIAG_BC_S_COND, INET_DIAG_BC_D_COND
_REQUEST = struct.Struct("=BBBBI48s")  # inet_diag_req_v2
_MESSAGE = struct.Struct("=BBBB48sIIIII")  # inet_diag_msg
_ID = struct.Struct("!HH16s16s")  # inet_diag_sockid up to the interface

# TCP states, linux/tcp_states.h; a UDP socket that is connected counts as established.
LISTEN = 10
OPEN = (1 << 1) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11) | (1 << 12)
"""Established, half-open from outside and closing."""
OPENING = 1 << 2
"""SYN sent from here, nothing heard."""


class Connection(NamedTuple):
    protocol: int
    family: int
    state: int
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    uid: int
    inode: int
    identity: bytes  # inet_diag_sockid with its cookie: this socket and no other


def connections(protocol: int, states: int, bytecode: bytes = b"") -> list[Connection]:
    """The sockets of `protocol` in one of `states` (a mask) that pass `bytecode`, IPv4 and IPv6."""
    found = []
    filtered = attribute(_BYTECODE, bytecode) if bytecode else b""
    with Netlink(_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, protocol, 0, 0, states, b"\0" * 48) + filtered
            try:
                for _, body in netlink.ask(_BY_FAMILY, request):
                    found.append(_connection(protocol, body))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT):  # a kernel without that family
                    raise
    return found


def from_network(network: Network) -> list[Connection]:
    """TCP and connected UDP sockets whose far end is in `network`."""
    code = _condition(_REMOTE, network.network_address, network.prefixlen, -1)
    return [
        c
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        for c in connections(protocol, OPEN | OPENING, code)
        if c.remote_port
    ]


def of_services(services: Iterable[Service], own: frozenset[Address], states: int = OPEN) -> list[Connection]:
    """The sockets of both ends, as far as they are here, of every connection to one of `services`."""
    found: dict[bytes, Connection] = {}
    for service in services:
        protocol = socket.IPPROTO_TCP if service.protocol == "tcp" else socket.IPPROTO_UDP
        for side in (_LOCAL, _REMOTE):
            length = 0 if service.address is None else service.address.max_prefixlen
            code = _condition(side, service.address, length, service.port)
            for c in connections(protocol, states, code):
                anyone = service.address is None and side == _REMOTE and c.remote not in own
                if c.remote_port and not anyone:
                    found[c.identity] = c
    return list(found.values())


def pairs(found: Iterable[Connection]) -> int:
    """How many connections the sockets make up: both ends of one on loopback are one."""
    ends = {(c.protocol, frozenset(((c.local, c.local_port), (c.remote, c.remote_port)))) for c in found}
    return len(ends)


def destroy(found: Iterable[Connection]) -> int:
    """End each socket at once; how many were ended. One that is gone already is no error.

    Raises OSError where the kernel cannot do it at all.
    """
    requests = [_REQUEST.pack(c.family, c.protocol, 0, 0, 1 << c.state, c.identity) for c in found]
    if not requests:
        return 0
    with Netlink(_SOCK_DIAG) as netlink:
        errors = netlink.tell(_DESTROY, requests)
    for code in errors:
        if code in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
            raise OSError(code, "the kernel does not end sockets")
    return errors.count(0)


def _condition(side: int, address: Address | None, length: int, port: int) -> bytes:
    """INET_DIAG_BC_S_COND or D_COND: accept on a match, else jump past the end, which rejects."""
    family, packed = socket.AF_UNSPEC, b""
    if address is not None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        packed = address.packed
    condition = struct.pack("=BBxxi", family, length, port) + packed
    size = 4 + len(condition)
    return struct.pack("=BBH", side, size, size + 4) + condition


def _connection(protocol: int, body: bytes) -> Connection:
    family, state, _, _, identity, _, _, _, uid, inode = _MESSAGE.unpack_from(body)
    local_port, remote_port, local, remote = _ID.unpack_from(identity)
    size = 4 if family == socket.AF_INET else 16
    return Connection(
        protocol, family, state, _plain(local[:size]), local_port, _plain(remote[:size]), remote_port, uid, inode,
        identity,
    )  # fmt: skip


def _plain(packed: bytes) -> Address:
    address = ip_address(packed)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
