"""The proof from outside: knock at the real fronts as a client from elsewhere would, and see nothing come of it.

What the gateway sends to itself arrives on loopback and proves nothing, so the knocks come from a network
namespace that lives for half a second, by a veth pair. A table of its own counts them just before the kill
table and just after it. It must never call dropped what it did not see arrive, and must leave nothing behind.

Formats: linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h, linux/veth.h.
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

from ..errors import EnforcerError
from . import host
from .blocktable import PRIORITY
from .netlink import ACK, Netlink, attribute
from .nft import Nft
from .rails import Address, Service

TABLE = "gatewatch_probe"
WAIT_S = 0.4
"""How long an answer is waited for."""

_TRIES, _STEP_S = 3, 0.1  # the first packet may be lost on a flooded machine
_MOST = 64  # their sockets are passed in one message, of at most 253 descriptors (SCM_MAX_FD)
_FINISH_S = 1.0
_CHILD_S = 3  # whatever happens, the child is gone by then
_FIRST_PORT = 40_000  # by its source port a knock is known, even where its destination was rewritten

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
_CREATE = ACK | 0x400 | 0x200  # NLM_F_CREATE, NLM_F_EXCL
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 16, 17, 18, 20, 24, 26, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 1, 3, 18, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_ADDR_GEN_MODE, _NO_LINK_LOCAL = 8, b"\x01"  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
_IFF_UP, _NODAD, _PERMANENT = 0x1, 0x2, 0x80
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the route itself, not what it resolves to
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, length, -, -, table, protocol, scope, type, flags

_BENCHMARKING = 0xC612_0000  # 198.18.0.0/15, RFC 2544: no client's address
_libc = ctypes.CDLL(None, use_errno=True)


class Outcome(NamedTuple):
    """What came of knocking at one address of a service."""

    endpoint: str
    service: str  # as the rails have it, e.g. "*:8443/tcp"
    target: str  # what was knocked at, e.g. "192.0.2.2:8443/tcp"; empty where there is nothing to knock at
    verdict: str  # "dropped", "reached" or "not probed"
    why: str


class _Plan(NamedTuple):
    endpoint: str
    service: Service
    target: Service | None
    why: str = ""  # why it is not probed


class _End(NamedTuple):
    """One end of the veth pair, and the socket that acts in its namespace."""

    netlink: Netlink
    name: str
    mac: bytes
    ifindex: int = 0


class _Said(NamedTuple):
    """What the child has to say of one target: whether an answer came, or what was in the way of asking."""

    answer: str = ""
    failed: str = ""


class Probe:
    """Starts at once and waits for nothing; `finish` when `fileno` is readable. It has to be called.

    What cannot be done raises nothing: it is an outcome "not probed" with the reason.
    """

    def __init__(self, nft: Nft, services: Mapping[str, Sequence[Service]]) -> None:
        self._nft = nft
        self._name = (
            f"gwprobe{os.urandom(3).hex()}"  # of the interface and, so that no other's count, the counters
        )
        self._plans: list[_Plan] = []
        self._child, self._report = 0, -1
        self._failed = ""
        try:
            self._plans = _plans(services)
            self._targets = [p.target for p in self._plans if p.target is not None and not p.why]
            if self._targets:
                nft.run(_render(self._name, len(self._targets)))
            self._start()
        except (OSError, EnforcerError) as error:
            self._failed = str(error)

    def fileno(self) -> int:
        """Readable when it is finished; -1 where there were no descriptors left to wait for."""
        return self._report

    def finish(self) -> list[Outcome]:
        """One outcome for every address that was or should have been knocked at; nothing is left of it."""
        said = self._collect()
        counts: dict[str, int] = {}
        try:
            listed = self._nft.table(TABLE) or []
            counts = {o["counter"]["name"]: int(o["counter"]["packets"]) for o in listed if "counter" in o}
            remove_stale(self._nft)
        except EnforcerError as error:
            self._failed = self._failed or str(error)
        outcomes = []
        at = 0
        for plan in self._plans:
            verdict, why = "not probed", plan.why
            if plan.target is not None and not plan.why:
                arrived = counts.get(f"{self._name}_arrived{at}", 0)
                passed = counts.get(f"{self._name}_passed{at}", 0)
                verdict, why = _verdict(
                    said[at] if at < len(said) else _Said(), arrived, passed, self._failed
                )
                at += 1
            outcomes.append(Outcome(plan.endpoint, str(plan.service), str(plan.target or ""), verdict, why))
        return outcomes

    def _start(self) -> None:
        self._report, writing = os.pipe()
        try:
            if self._targets:
                parent = os.getpid()
                self._child = os.fork()
                if self._child == 0:
                    _child(parent, writing, self._name, self._targets)
        finally:
            os.close(writing)

    def _collect(self) -> list[_Said]:
        """What the child said; none where it did not come to an end."""
        if self._report < 0:
            return []
        os.set_blocking(self._report, False)
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        until, said = time.monotonic() + _FINISH_S, b""
        with contextlib.suppress(BlockingIOError):
            while poll.poll(max(0.0, until - time.monotonic()) * 1e3):
                more = os.read(self._report, 65_536)
                if not more:
                    break
                said += more
        os.close(self._report)
        self._report = -1
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            with contextlib.suppress(OSError), Netlink(socket.NETLINK_ROUTE) as netlink:
                _unlink(netlink, self._name)
        try:
            return [_Said(*each) for each in json.loads(said)]
        except (ValueError, TypeError):
            self._failed = self._failed or "the probe did not come to an end"
            return []


def remove_stale(nft: Nft) -> None:
    """Take away the table that a killed enforcer may have left. Raises EnforcerError."""
    nft.run(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")


def _plans(services: Mapping[str, Sequence[Service]]) -> list[_Plan]:
    fronts: dict[int, Address] = {}
    for address in (*host.outward_addresses(), *host.own_addresses()):
        if not _unreachable(address):
            fronts.setdefault(address.version, address)
    plans: list[_Plan] = []
    for endpoint, each in services.items():
        for service in each:
            addresses = list(fronts.values()) if service.address is None else [service.address]
            if not addresses:
                plans.append(_Plan(endpoint, service, None, "this machine has no address but loopback"))
            for address in addresses:
                why = _unreachable(address) or ("too many at once" if len(plans) >= _MOST else "")
                plans.append(_Plan(endpoint, service, service._replace(address=address), why))
    return plans


def _unreachable(address: Address) -> str:
    """Why nobody from elsewhere can knock there; empty where one can."""
    if address.is_loopback:
        return "only reachable from this machine"
    if address.is_link_local:
        return "only reachable from its own link"
    return "no machine's address" if address.is_multicast or address.is_unspecified else ""


def _render(name: str, targets: int) -> str:
    """Counters around the kill table's hook: what arrives there, and what gets past it."""
    counters = chains = ""
    for chain, priority in (("arrived", PRIORITY - 1), ("passed", PRIORITY + 1)):
        counters += "".join(f"counter {name}_{chain}{i} {{ }}\n" for i in range(targets))
        rules = "".join(
            f'iifname "{name}" meta l4proto {{ tcp, udp }} th sport {ports[0]}-{ports[-1]} '
            f'counter name "{name}_{chain}{i}"\n'
            for i, ports in ((i, _ports(i)) for i in range(targets))
        )
        chains += f"chain {chain} {{\ntype filter hook prerouting priority {priority};\n{rules}}}\n"
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{counters}{chains}}}\n"


def _ports(target: int) -> range:
    return range(_FIRST_PORT + target * _TRIES, _FIRST_PORT + (target + 1) * _TRIES)


def _verdict(said: _Said, arrived: int, passed: int, failed: str) -> tuple[str, str]:
    if said.answer:
        return "reached", said.answer
    if passed:
        return "reached", f"{passed} of {arrived} packets got past the hook; no answer came"
    if failed or said.failed:
        return "not probed", failed or said.failed
    if not arrived:
        return "not probed", "its packets did not arrive at the hook"
    return "dropped", f"{arrived} packets came to the hook, none got past it, no answer in {WAIT_S:g} s"


def _child(parent: int, report: int, name: str, targets: Sequence[Service]) -> None:
    """Everything that may wait, in a process that holds nothing of the enforcer's and does not return."""
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            return
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(_CHILD_S)
        os.dup2(report, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        try:
            said = _knock(name, targets)
        except OSError as error:
            said = [_Said(failed=str(error.strerror or error))] * len(targets)
        with open(3, "w", encoding="ascii") as file:
            json.dump(said, file)
    finally:
        os._exit(0)


def _knock(name: str, targets: Sequence[Service]) -> list[_Said]:
    """Knock at every target from a namespace of its own. Raises OSError."""
    kinds = [_kind(target) for target in targets for _ in range(_TRIES)]
    namespace, netlink, sockets = _namespace(kinds)
    with Netlink(socket.NETLINK_ROUTE) as ours, Netlink(socket.NETLINK_ROUTE, netlink) as theirs:
        try:
            gateway, client = _pair(_End(ours, name, _mac()), _End(theirs, "client", _mac()), namespace)
            failed = {family: _address(gateway, client, family) for family in {kind[0] for kind in kinds}}
            return _ask(targets, failed, sockets)
        finally:
            with contextlib.suppress(OSError):
                _unlink(ours, name)


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
        raise OSError(said.decode() or "no network namespace could be made")
    netlink, *sockets = (socket.socket(fileno=descriptor) for descriptor in descriptors[1:])
    return descriptors[0], netlink, sockets


def _hand_over(channel: socket.socket, kinds: Sequence[tuple[int, int]]) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if _libc.unshare(_CLONE_NEWNET) and _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        channel.send(b"no network namespace can be made: needs CAP_SYS_ADMIN, or user namespaces")
        return
    try:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        made = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)]
        made += [socket.socket(*kind) for kind in kinds]
        socket.send_fds(channel, [b"."], [namespace, *(each.fileno() for each in made)])
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
    """Join the namespaces, without the link-local addresses that would have to be waited for."""
    peer = (
        _LINK.pack(0, 0, 0, 0, 0) + _named(client) + attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
    )
    data = attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer, nested=True), nested=True)
    veth = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, b"veth\0") + data, nested=True)
    _do(gateway.netlink, _NEWLINK, _LINK.pack(0, 0, 0, 0, 0) + _named(gateway) + veth)
    quiet = attribute(socket.AF_INET6, attribute(_ADDR_GEN_MODE, _NO_LINK_LOCAL), nested=True)
    ends = []
    for end in (gateway, client):  # whichever comes up last can send at once
        asked = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, end.name.encode() + b"\0")
        _, answer = next(end.netlink.ask(_GETLINK, asked, 0))
        index = _LINK.unpack_from(answer)[2]
        with contextlib.suppress(OSError):  # no IPv6 there
            silent = attribute(_IFLA_AF_SPEC, quiet, nested=True)
            _do(end.netlink, _NEWLINK, _LINK.pack(0, 0, index, 0, 0) + silent, ACK)
        _do(end.netlink, _NEWLINK, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP), ACK)
        ends.append(end._replace(ifindex=index))
    return ends[0], ends[1]


def _named(end: _End) -> bytes:
    return attribute(_IFLA_IFNAME, end.name.encode() + b"\0") + attribute(_IFLA_ADDRESS, end.mac)


def _address(gateway: _End, client: _End, family: int) -> str:
    """Give both ends an address of that family and the client the way; what was in the way of it."""
    try:
        network = _free_network(gateway.netlink) if family == socket.AF_INET else _private_network()
        first = int(network.network_address) + (network.version == 6)
        addresses = [(first + n).to_bytes(network.max_prefixlen // 8, "big") for n in range(2)]
        ends = (gateway, client)
        for end, own in zip(ends, addresses, strict=True):
            header = struct.pack("=BBBBi", family, network.prefixlen, _NODAD, 0, end.ifindex)
            _do(
                end.netlink, _NEWADDR, header + attribute(1, own) + attribute(2, own)
            )  # IFA_ADDRESS, IFA_LOCAL
        for end, other, theirs in zip(ends, ends[::-1], addresses[::-1], strict=True):
            header = struct.pack("=BxxxiHBB", family, end.ifindex, _PERMANENT, 0, 0)
            _do(end.netlink, _NEWNEIGH, header + attribute(1, theirs) + attribute(2, other.mac))
        way = attribute(5, addresses[0]) + attribute(
            4, struct.pack("=i", client.ifindex)
        )  # RTA_GATEWAY, RTA_OIF
        _do(client.netlink, _NEWROUTE, _ROUTE.pack(family, 0, 0, 0, 254, 4, 0, 1, 0) + way)
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
    question += attribute(1, address.to_bytes(4, "big"))  # RTA_DST
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
) -> list[_Said]:
    """Knock at all of them, some times over; what each answered until the time was up."""
    said = [_Said(failed=failed[_kind(target)[0]]) for target in targets]
    poll = select.poll()
    by_descriptor = {}
    started = time.monotonic()
    for attempt in range(_TRIES):
        for at, target in enumerate(targets):
            knocking = sockets[at * _TRIES + attempt]
            if said[at] == _Said():
                try:
                    _send(knocking, target, _ports(at)[attempt])
                except OSError as error:
                    said[at] = _Said(failed=f"nothing could be sent: {error.strerror}")
                by_descriptor[knocking.fileno()] = at, knocking
                poll.register(knocking, select.POLLIN if target.protocol == "udp" else select.POLLOUT)
        until = started + (WAIT_S if attempt == _TRIES - 1 else _STEP_S * (attempt + 1))
        while _Said() in said and (left := until - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1e3):
                at, knocking = by_descriptor[descriptor]
                said[at] = _Said(answer=_answer(knocking, targets[at].protocol))
                poll.unregister(descriptor)
    return said


def _send(knocking: socket.socket, target: Service, port: int) -> None:
    knocking.setblocking(False)
    if knocking.family == socket.AF_INET:
        knocking.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        knocking.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
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


def _do(netlink: Netlink, kind: int, payload: bytes, flags: int = _CREATE) -> None:
    for _ in netlink.ask(kind, payload, flags):
        pass


def _unlink(netlink: Netlink, name: str) -> None:
    _do(netlink, _DELLINK, _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, name.encode() + b"\0"), ACK)
