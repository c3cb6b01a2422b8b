"""Knocking at services from a network namespace of its own: the part of the probe that runs in a child process.

The namespace lives for half a second and is joined to this one by a veth pair. Everything that may wait is
done here, by a process that holds nothing of the enforcer's and never returns into its code. It must leave
nothing behind, however it ends: the pair goes with the namespace, and the namespace with the last socket in it.

Formats: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/veth.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from ..kernel.netlink import ACK, Netlink, attribute
from ..rails import Service

WAIT_S = 0.4
"""How long an answer is waited for."""
MOST = 64
"""The most services at once: their sockets pass in one message, with at most 253 descriptors (SCM_MAX_FD)."""
CHILD_S = 5
"""Whatever happens, the child is gone by then."""

_TRIES, _STEP_S = 3, 0.1  # the first packet may be lost on a flooded machine
_FIRST_PORT = 40_000

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
_NEW = ACK | 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 16, 17, 18, 20, 24, 26, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 1, 3, 18, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_ADDR_GEN_MODE, _NO_LINK_LOCAL = 8, b"\x01"  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
_IFA_ADDRESS, _IFA_LOCAL, _NODAD = 1, 2, 0x2
_NDA_DST, _NDA_LLADDR, _PERMANENT = 1, 2, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_MAIN, _STATIC, _UNICAST = 254, 4, 1  # RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route itself, not what it resolves to
_IFF_UP = 0x1
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, length, flags, scope, index
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, length, source's, TOS, table, protocol, scope, type, flags
_ANY = _LINK.pack(0, 0, 0, 0, 0)

_MADE = b"made"
_BENCHMARKING = 0xC612_0000  # 198.18.0.0/15, RFC 2544: no client's address
_libc = ctypes.CDLL(None, use_errno=True)


class Said(NamedTuple):
    """What there is to say of one service: that an answer came, or what was in the way of asking."""

    answer: str = ""
    failed: str = ""


class _End(NamedTuple):
    """One end of the veth pair, and the socket that acts in its namespace."""

    netlink: Netlink
    name: str
    mac: bytes
    ifindex: int = 0


def ports(at: int) -> range:
    """The source ports of the packets to service `at`: by them they are known, even where others rewrite where
    they go."""
    return range(_FIRST_PORT + at * _TRIES, _FIRST_PORT + (at + 1) * _TRIES)


def start(interface: str, targets: Sequence[Service], report: int) -> int:
    """A child's process id: it knocks at every target from behind `interface`, which it makes, and writes a JSON
    list of `Said` to the descriptor `report` when it has finished. Raises OSError."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _child(parent, interface, targets, report)
        finally:
            os._exit(0)
    return pid


def _child(parent: int, interface: str, targets: Sequence[Service], report: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.alarm(CHILD_S)
    os.dup2(report, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    try:
        said = _knock(interface, targets)
    except Exception as error:  # whatever it is, the one place where it can be said is the report
        said = [Said(failed=f"the probe failed: {error}")] * len(targets)
    with open(3, "w", encoding="ascii") as file:
        json.dump(said, file)


def _knock(interface: str, targets: Sequence[Service]) -> list[Said]:
    """Knock at every target from a namespace of its own. Raises OSError."""
    kinds = [_kind(target) for target in targets for _ in range(_TRIES)]
    namespace, netlink, sockets = _namespace(kinds)
    with Netlink(socket.NETLINK_ROUTE) as ours, Netlink(socket.NETLINK_ROUTE, netlink) as theirs:
        try:
            gateway, client = _pair(_End(ours, interface, _mac()), _End(theirs, "client", _mac()), namespace)
            failed = {family: _address(gateway, client, family) for family in {kind[0] for kind in kinds}}
            return _ask(targets, failed, sockets)
        finally:
            for each in sockets:
                each.close()  # a connection that was made after all is reset while there is a way
            with contextlib.suppress(OSError):
                _do(ours, _DELLINK, _ANY + _name(interface), ACK)


def _namespace(kinds: Sequence[tuple[int, int]]) -> tuple[int, socket.socket, list[socket.socket]]:
    """A new network namespace: a descriptor of it, a netlink socket and sockets of these kinds in it.

    It lives as long as they do. They are made by a child of the child, since whoever enters it by a user
    namespace has no say in the gateway's any more. Raises OSError.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            _hand_over(theirs, kinds)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        said, descriptors, _, _ = socket.recv_fds(ours, 256, len(kinds) + 2)
    os.waitpid(pid, 0)
    if len(descriptors) != len(kinds) + 2:
        raise OSError("too few descriptors for its sockets" if said == _MADE else said.decode())
    netlink, *sockets = (socket.socket(fileno=descriptor) for descriptor in descriptors[1:])
    return descriptors[0], netlink, sockets


def _hand_over(channel: socket.socket, kinds: Sequence[tuple[int, int]]) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if _libc.unshare(_CLONE_NEWNET) and _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        why = os.strerror(ctypes.get_errno())
        channel.send(f"no network namespace: {why}; it needs CAP_SYS_ADMIN, or user namespaces".encode())
        return
    try:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        made = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)]
        made += [socket.socket(*kind) for kind in kinds]
        socket.send_fds(channel, [_MADE], [namespace, *(each.fileno() for each in made)])
    except OSError as error:
        channel.send(f"no sockets in the probe's namespace: {error.strerror}".encode())


def _kind(target: Service) -> tuple[int, int]:
    assert target.address is not None
    family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
    return family, socket.SOCK_STREAM if target.protocol == "tcp" else socket.SOCK_DGRAM


def _mac() -> bytes:
    """A locally administered one. Where none is given, udev may think of another meanwhile."""
    return b"\x02" + os.urandom(5)


def _pair(gateway: _End, client: _End, namespace: int) -> tuple[_End, _End]:
    """Join the namespaces, without the link-local addresses that would have to be waited for. Raises OSError."""
    peer = _ANY + _name(client.name) + attribute(_IFLA_ADDRESS, client.mac)
    peer += attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer, nested=True), nested=True)
    veth = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth\0") + data, nested=True)
    try:
        _do(
            gateway.netlink,
            _NEWLINK,
            _ANY + _name(gateway.name) + attribute(_IFLA_ADDRESS, gateway.mac) + veth,
        )
    except OSError as error:
        raise OSError(f"no veth pair can be made: {error.strerror}") from None
    return _up(gateway), _up(client)  # whichever comes up last can send at once


def _up(end: _End) -> _End:
    _, answer = next(end.netlink.ask(_GETLINK, _ANY + _name(end.name), 0))
    ifindex = _LINK.unpack_from(answer)[2]
    quiet = attribute(socket.AF_INET6, attribute(_ADDR_GEN_MODE, _NO_LINK_LOCAL), nested=True)
    with contextlib.suppress(OSError):  # there may be no IPv6
        silent = attribute(_IFLA_AF_SPEC, quiet, nested=True)
        _do(end.netlink, _NEWLINK, _LINK.pack(0, 0, ifindex, 0, 0) + silent, ACK)
    _do(end.netlink, _NEWLINK, _LINK.pack(0, 0, ifindex, _IFF_UP, _IFF_UP), ACK)
    return end._replace(ifindex=ifindex)


def _address(gateway: _End, client: _End, family: int) -> str:
    """Give both ends an address of that family, and the client its way; what prevented it, in words.

    Neighbours are given as well: nobody has to be asked for them, which takes time.
    """
    try:
        network = _free_network(gateway.netlink) if family == socket.AF_INET else _private_network()
        first = int(network.network_address) + (
            network.version == 6
        )  # a router's anycast comes before, RFC 4291
        addresses = [(first + n).to_bytes(network.max_prefixlen // 8, "big") for n in range(2)]
        for end, address in zip((gateway, client), addresses, strict=True):
            header = _ADDRESS.pack(family, network.prefixlen, _NODAD, 0, end.ifindex)
            given = attribute(_IFA_LOCAL, address) + attribute(_IFA_ADDRESS, address)
            _do(end.netlink, _NEWADDR, header + given)
        for end, other, address in ((gateway, client, addresses[1]), (client, gateway, addresses[0])):
            header = _NEIGHBOUR.pack(family, end.ifindex, _PERMANENT, 0, 0)
            there = attribute(_NDA_DST, address) + attribute(_NDA_LLADDR, other.mac)
            _do(end.netlink, _NEWNEIGH, header + there)
        default = _ROUTE.pack(family, 0, 0, 0, _MAIN, _STATIC, 0, _UNICAST, 0)
        way = attribute(_RTA_GATEWAY, addresses[0]) + attribute(_RTA_OIF, struct.pack("=i", client.ifindex))
        _do(client.netlink, _NEWROUTE, default + way)
    except OSError as error:
        return f"no way to it from the probe's namespace: {error.strerror or error}"
    return ""


def _free_network(netlink: Netlink) -> IPv4Network:
    """Two addresses of 198.18.0.0/15 to which this machine has no way but a default one. Raises OSError."""
    for _ in range(32):
        first = _BENCHMARKING | int.from_bytes(os.urandom(3), "big") & 0x1_FFFE
        if not any(_routed(netlink, first + n) for n in range(2)):
            return IPv4Network((first, 31))
    raise OSError("198.18.0.0/15 is in use here")


def _routed(netlink: Netlink, address: int) -> bool:
    question = _ROUTE.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    question += attribute(_RTA_DST, address.to_bytes(4, "big"))
    try:
        _, answer = next(netlink.ask(_GETROUTE, question, 0))
    except OSError:
        return False  # no way at all
    return answer[1] >= 8  # a VPN may split the default route; that is no neighbour


def _private_network() -> IPv6Network:
    """RFC 4193: 40 bits at random are nobody else's."""
    return IPv6Network((b"\xfd" + os.urandom(7) + bytes(8), 126))


def _ask(
    targets: Sequence[Service], failed: Mapping[int, str], sockets: Sequence[socket.socket]
) -> list[Said]:
    """Knock at all of them, some times over; what each answered until the time was up."""
    said = [Said(failed=failed[_kind(target)[0]]) for target in targets]
    poll = select.poll()
    by_descriptor = {}
    started = time.monotonic()
    for attempt in range(_TRIES):
        for at, target in enumerate(targets):
            knocking = sockets[at * _TRIES + attempt]
            if said[at] == Said():
                try:
                    _send(knocking, target, ports(at)[attempt])
                except OSError as error:
                    said[at] = Said(failed=f"nothing could be sent: {error.strerror}")
                    continue
                by_descriptor[knocking.fileno()] = at, knocking
                poll.register(knocking, select.POLLIN if target.protocol == "udp" else select.POLLOUT)
        until = started + (WAIT_S if attempt == _TRIES - 1 else _STEP_S * (attempt + 1))
        while Said() in said and (left := until - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1e3):
                at, knocking = by_descriptor[descriptor]
                said[at] = Said(answer=_answer(knocking, targets[at].protocol))
                poll.unregister(descriptor)
    return said


def _send(knocking: socket.socket, target: Service, port: int) -> None:
    knocking.setblocking(False)
    if knocking.family == socket.AF_INET:
        knocking.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        knocking.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    if target.protocol == "tcp":
        knocking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))  # close by a reset
    knocking.bind(("", port))
    with contextlib.suppress(BlockingIOError):
        knocking.connect((str(target.address), target.port))
    if target.protocol == "udp":
        knocking.send(b"gatewatch probe")


def _answer(knocking: socket.socket, protocol: str) -> str:
    """What came, in words; called when something did."""
    with contextlib.suppress(OSError):
        knocking.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        return "ICMP came back"
    if protocol == "udp":
        return "a datagram came back"
    error = knocking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return f"a reset came back: {os.strerror(error)}" if error else "a connection was made"


def _do(netlink: Netlink, kind: int, payload: bytes, flags: int = _NEW) -> None:
    for _ in netlink.ask(kind, payload, flags):
        pass


def _name(interface: str) -> bytes:
    return attribute(_IFLA_IFNAME, interface.encode() + b"\0")
