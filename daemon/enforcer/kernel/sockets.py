"""Connections of this network namespace: found by address or port in the kernel, counted, and destroyed.

Formats: linux/inet_diag.h, linux/sock_diag.h. `SOCK_DESTROY` needs CONFIG_INET_DIAG_DESTROY, which
distributions' kernels have. Listening sockets are left alone.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from ..rails import Address, Network, Service
from .netlink import Netlink, attribute

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_TCP_OF_ANY_FAMILY, _BY_FAMILY, _DESTROY = 18, 20, 21  # TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY
_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_JUMP, _LOCAL, _REMOTE = 1, 7, 8  # INET_DIAG_BC_JMP, INET_DIAG_BC_S_COND, INET_DIAG_BC_D_COND
_OLD_REQUEST = struct.Struct("=BBBB48sII")  # inet_diag_req
_REQUEST = struct.Struct("=BBBBI48s")  # inet_diag_req_v2
_MESSAGE = struct.Struct("=BBBB48sIIIII")  # inet_diag_msg
_ID = struct.Struct("!HH16s16s")  # inet_diag_sockid up to the interface

# TCP states, linux/tcp_states.h; a UDP socket that is connected counts as established.
LISTEN = 10
OPEN = (1 << 1) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11) | (1 << 12)
"""Established, half-open from outside and closing."""
OPENING = 1 << 2
"""SYN sent from here, nothing heard."""
_MOST_CONDITIONS = 100


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
    """The sockets of `protocol` in one of `states` (a mask) that pass `bytecode`, IPv4 and IPv6.

    TCP is asked for by the older request, which takes both families in one walk through the kernel's table: a
    walk takes a millisecond and more, however few connections there are.
    """
    filtered = attribute(_BYTECODE, bytecode) if bytecode else b""
    if protocol == socket.IPPROTO_TCP:
        asked = [(_TCP_OF_ANY_FAMILY, _OLD_REQUEST.pack(0, 0, 0, 0, b"\0" * 48, states, 0))]
    else:
        families = (socket.AF_INET, socket.AF_INET6)
        asked = [
            (_BY_FAMILY, _REQUEST.pack(family, protocol, 0, 0, states, b"\0" * 48)) for family in families
        ]
    found: list[Connection] = []
    with Netlink(_SOCK_DIAG) as netlink:
        for kind, request in asked:
            try:
                found += [_connection(protocol, body) for _, body in netlink.ask(kind, request + filtered)]
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT):  # a kernel without that family
                    raise
    return found


def from_networks(networks: Sequence[Network]) -> list[Connection]:
    """TCP and connected UDP sockets whose far end is in one of `networks`."""
    found = []
    for at in range(0, len(networks), _MOST_CONDITIONS):
        chosen = networks[at : at + _MOST_CONDITIONS]
        code = _any_of([_condition(_REMOTE, n.network_address, n.prefixlen, -1) for n in chosen])
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            found += [c for c in connections(protocol, OPEN | OPENING, code) if c.remote_port]
    return found


def of_services(services: Iterable[Service], own: frozenset[Address]) -> list[Connection]:
    """The sockets of both ends, as far as they are here, of every connection to one of `services`."""
    found: list[Connection] = []
    for name, protocol in (("tcp", socket.IPPROTO_TCP), ("udp", socket.IPPROTO_UDP)):
        wanted = {(s.address, s.port) for s in services if s.protocol == name}
        conditions = [
            _condition(side, address, address.max_prefixlen if address else 0, port)
            for address, port in wanted
            for side in (_LOCAL, _REMOTE)
        ]
        for at in range(0, len(conditions), _MOST_CONDITIONS):
            code = _any_of(conditions[at : at + _MOST_CONDITIONS])
            found += [
                c for c in connections(protocol, OPEN, code) if c.remote_port and _serves(c, wanted, own)
            ]
    return list({c.identity: c for c in found}.values())


def _serves(c: Connection, wanted: set[tuple[Address | None, int]], own: frozenset[Address]) -> bool:
    """Whether one end is a service; one at any own address is none at an address of somebody else."""
    return (
        (None, c.local_port) in wanted
        or (c.local, c.local_port) in wanted
        or (c.remote, c.remote_port) in wanted
        or ((None, c.remote_port) in wanted and c.remote in own)
    )


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
    """An inet_diag_hostcond behind its operation; -1 is any port."""
    family, packed = socket.AF_UNSPEC, b""
    if address is not None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        packed = address.packed
    return struct.pack("=BBHBBxxi", side, 0, 0, family, length, port) + packed


def _any_of(conditions: Sequence[bytes]) -> bytes:
    """Bytecode that passes what meets one of the conditions: reaching the end passes, four bytes beyond rejects.

    Each condition but the last is followed by a jump to the end, which a miss leaps over.
    """
    code = b""
    for number, condition in enumerate(reversed(conditions)):
        size = len(condition)
        jump = struct.pack("=BBH", _JUMP, 4, 4 + len(code)) if number else b""
        code = struct.pack("=BBH", condition[0], size, size + 4) + condition[4:] + jump + code
    return code


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
