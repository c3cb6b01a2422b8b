"""What passes by the kill switch: ways to an endpoint that do not lead through its hooks, named for the drill.

It looks and changes nothing. What it cannot look into is a finding of its own, `unseen`: silence has to mean that there
is nothing. A way that it names need not be in use; what it means for the endpoints is for a person to judge.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ...errors import EnforcerError
from ..kernel.netlink import ACK, Netlink, attribute, attributes
from ..kernel.nft import Nft
from ..rails import Address, Endpoint, Service
from . import spaces
from .unixsockets import Bypass, Watch, process, shown

__all__ = ["Bypass", "Watch", "find"]

# linux/rtnetlink.h, if_link.h, pkt_cls.h
_GET_LINK, _GET_ROUTE, _GET_FILTER = 18, 26, 46
_NAME, _PARENT, _MASTER, _INFO, _PARENT_SPACE, _XDP, _SPACE = 3, 5, 10, 18, 37, 43, 46  # IFLA_*
_INFO_KIND, _INFO_DATA = 1, 2
_XDP_ATTACHED, _XDP_PROGRAM = 2, 4
_CALLS = {4: 36, 6: 37}  # IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_NF_CALL_IP6TABLES
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_FILTER = struct.Struct("=BxxxiIII")  # tcmsg
_INGRESS = 0xFFFF_FFF2  # TC_H_CLSACT and TC_H_MIN_INGRESS; an ingress qdisc answers to it as well

# bpf(2), linux/bpf.h since Linux 6.6: programs at ingress without a filter of traffic control
_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_QUERY = struct.Struct("=IIIIQIIQQQQ")  # interface, attach type, flags, flags, where to, how many, …
_PROGRAM_QUERY, _TCX_INGRESS = 16, 46

# linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h
_NETFILTER, _GET_TRACKED = 12, (1 << 8) | 1
_ORIGINAL, _REPLY, _STATUS, _STATUS_MASK = 1, 2, 3, 26  # CTA_*; before Linux 5.15 all are given
_OFFLOADED = 1 << 14  # IPS_OFFLOAD; one that the hardware carries has it as well

_LOOPBACK = 1  # its number in every namespace
_MOST_OF_A_KIND = 10


class _Interface(NamedTuple):
    number: int
    name: str
    kind: str  # "" of a physical one
    parent: int
    parent_space: int  # the namespace of the parent, by the id that it has here; -1: its own
    master: int
    xdp: int  # program; -1: several, or one that has no number; 0: none
    calls: frozenset[int]  # a bridge: families that it hands to the hooks by its own setting


def find(endpoints: Sequence[Endpoint], nft: Nft, watch: Watch | None = None) -> list[Bypass]:
    """Every way that is known to pass by, at most ten of a kind; `watch` adds what it saw while the drill ran."""
    found: list[Bypass] = []
    looks: list[tuple[str, Callable[[], Iterator[Bypass]]]] = [
        ("nftables", lambda: _nftables(endpoints, nft)),
        ("the interfaces", lambda: _interfaces(endpoints)),
        ("programs on the interfaces", _programs),
        ("the sockets", lambda: iter((watch or Watch(endpoints)).found())),
    ]
    for what, look in looks:
        try:
            found += look()
        except (OSError, EnforcerError) as error:
            said = error.message if isinstance(error, EnforcerError) else error.strerror
            found.append(
                Bypass("unseen", f"{what} could not be looked into: {said}", "run the drill as root")
            )
    listed: list[Bypass] = []
    for kind in dict.fromkeys(f.kind for f in found):
        of_kind = list(dict.fromkeys(f for f in found if f.kind == kind))
        listed += of_kind[:_MOST_OF_A_KIND]
        if len(of_kind) > _MOST_OF_A_KIND:
            more = f"{len(of_kind) - _MOST_OF_A_KIND} more of the kind {kind} were found, and are not listed"
            listed.append(Bypass(kind, more, "mend the first ones and drill again"))
    return listed


def _nftables(endpoints: Sequence[Endpoint], nft: Nft) -> Iterator[Bypass]:
    listed = nft.ruleset()
    if not listed:
        yield Bypass(
            "unseen", "nftables gave no readable list of its rules, so flow tables would not be named",
            "look by hand: nft list flowtables",
        )  # fmt: skip
    tables = [o["flowtable"] for o in listed if "flowtable" in o]
    count = offloaded(endpoints) if tables else 0
    for table in tables:
        devices = table.get("dev", [])
        named = ", ".join([devices] if isinstance(devices, str) else devices) or "none"
        yield Bypass(
            "flowtable",
            f"flow table {table['name']} of table {table['family']} {table['table']} (devices: {named}) carries"
            f" established flows past prerouting and forward; {count or 'none'} of the endpoints' is in it now",
            "leave the endpoints' ports out of the rule that says `flow add`",
        )
    for rule in (o["rule"] for o in listed if "rule" in o):
        words = {key for e in rule.get("expr", []) if isinstance(e, dict) for key in e}
        if "fwd" in words or (rule["family"] == "netdev" and "dup" in words):
            yield Bypass(
                "netdev",
                f"a rule in chain {rule['chain']} of table {rule['family']} {rule['table']} sends packets on from"
                " where they come in, before the kill switch's hooks",
                f"leave the endpoints out of it: nft list table {rule['family']} {rule['table']}",
            )


def offloaded(endpoints: Sequence[Endpoint]) -> int:
    """How many flows to the endpoints a flow table carries now, by connection tracking."""
    status = struct.pack("!I", _OFFLOADED)
    wanted = struct.pack("!BBH", 0, 0, 0) + attribute(_STATUS, status) + attribute(_STATUS_MASK, status)
    services = {s for e in endpoints for s in e.services}
    with (
        contextlib.suppress(OSError),
        Netlink(_NETFILTER) as netlink,
    ):  # where nothing is tracked, nothing is in it
        return sum(carried(body, services) for _, body in netlink.ask(_GET_TRACKED, wanted))
    return 0


def carried(body: bytes, services: set[Service]) -> bool:
    """Whether an entry of connection tracking (nfgenmsg and attributes) is offloaded and leads to a service."""
    given = attributes(body, 4)
    if not int.from_bytes(given.get(_STATUS, b""), "big") & _OFFLOADED:
        return False
    ends = ((given.get(_ORIGINAL, b""), (2, 4), 3), (given.get(_REPLY, b""), (1, 3), 2))
    for packed, addresses, port in ends:  # asked for: the destination; served by: the source of the reply
        parts = attributes(packed)
        address, ports = attributes(parts.get(1, b"")), attributes(parts.get(2, b""))
        place = next((address[kind] for kind in addresses if kind in address), b"")
        protocol = {b"\x06": "tcp", b"\x11": "udp"}.get(ports.get(1, b""))
        number = int.from_bytes(ports.get(port, b""), "big")
        if any(
            (s.protocol, s.port) == (protocol, number) and (s.address is None or s.address.packed == place)
            for s in services
        ):
            return True
    return False


def _interfaces(endpoints: Sequence[Endpoint]) -> Iterator[Bypass]:
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        here = {i.number: i for i in _links(netlink)}
        for interface in here.values():
            if interface.xdp:
                which = f"program {interface.xdp}" if interface.xdp > 0 else "program"
                yield Bypass(
                    "xdp",
                    f"the XDP {which} on {interface.name} can answer and redirect packets before the kill"
                    " switch's hooks see them",
                    f"let it pass the endpoints' packets on, or: ip link set dev {_word(interface.name)} xdp off",
                )
            if interface.kind in ("macvtap", "ipvtap"):
                yield _beside(interface, here, "of this namespace")
            yield from _filters(netlink, interface)
        yield from _bridges(netlink, endpoints, here)
        yield from _elsewhere(netlink, here)


def _links(netlink: Netlink, space: int = -1) -> list[_Interface]:
    """The interfaces of this namespace, or of the one that has the id `space` here."""
    which = attribute(_SPACE, struct.pack("=i", space)) if space >= 0 else b""
    for _ in netlink.ask(_GET_LINK, _LINK.pack(0, 0, _LOOPBACK, 0, 0) + which, 0):
        pass  # whether it may be asked for: a list that the kernel refuses is just empty
    wanted = _LINK.pack(0, 0, 0, 0, 0) + which
    found = []
    for _, body in netlink.ask(_GET_LINK, wanted):
        index = _LINK.unpack_from(body)[2]
        given = attributes(body, _LINK.size)
        info, xdp = attributes(given.get(_INFO, b"")), attributes(given.get(_XDP, b""))
        data = attributes(info.get(_INFO_DATA, b""))
        attached = any(xdp.get(_XDP_ATTACHED, b""))
        kind = _text(info.get(_INFO_KIND, b""))
        found.append(
            _Interface(
                index, _text(given.get(_NAME, b"")), kind, _number(given.get(_PARENT)),
                _number(given.get(_PARENT_SPACE), -1), _number(given.get(_MASTER)),
                _number(xdp.get(_XDP_PROGRAM), -1) if attached else 0,
                frozenset(f for f, key in _CALLS.items() if kind == "bridge" and any(data.get(key, b""))),
            )
        )  # fmt: skip
    return found


def _filters(netlink: Netlink, interface: _Interface) -> Iterator[Bypass]:
    """Traffic control at ingress: a program, or an action that redirects or copies (tc-mirred(8))."""
    kinds = set()
    for _, body in netlink.ask(_GET_FILTER, _FILTER.pack(0, interface.number, 0, _INGRESS, 0)):
        given = attributes(body, _FILTER.size)
        kind = _text(given.get(1, b""))  # TCA_KIND, TCA_OPTIONS
        if kind == "bpf" or b"mirred\0" in given.get(2, b""):
            kinds.add(kind)
    if kinds:
        yield Bypass(
            "tc",
            f"a traffic control filter ({', '.join(sorted(kinds))}) on {interface.name} can send packets on before"
            " the kill switch's hooks see them",
            f"leave the endpoints out of it: tc filter show dev {_word(interface.name)} ingress",
        )


def _programs() -> Iterator[Bypass]:
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        for interface in _links(netlink):
            if _attached(interface.number):
                yield Bypass(
                    "tc",
                    f"a program (tcx) on {interface.name} can send packets on before the kill switch's hooks see them",
                    f"let it pass the endpoints' packets on: bpftool net show dev {_word(interface.name)}",
                )


def _attached(number: int) -> int:
    """How many programs hang on the interface by tcx. Raises OSError where it may not be asked."""
    request = ctypes.create_string_buffer(
        _QUERY.pack(number, _TCX_INGRESS, 0, 0, 0, 0, 0, 0, 0, 0, 0), _QUERY.size
    )
    libc = ctypes.CDLL(None, use_errno=True)
    call = _BPF.get(os.uname().machine)
    if call is None or libc.syscall(call, _PROGRAM_QUERY, request, _QUERY.size) != 0:
        code = ctypes.get_errno() if call else errno.ENOSYS
        if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV):  # an older kernel has none
            return 0
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return int(_QUERY.unpack(request)[5])


def _bridges(
    netlink: Netlink, endpoints: Sequence[Endpoint], here: dict[int, _Interface]
) -> Iterator[Bypass]:
    for endpoint in endpoints:
        for address in dict.fromkeys(s.address for s in endpoint.services):
            bridge = here.get(_next(netlink, address)) if address is not None else None
            if (
                address is None
                or bridge is None
                or bridge.kind != "bridge"
                or address.version in bridge.calls
            ):
                continue
            ports = [i.name for i in here.values() if i.master == bridge.number]
            setting = f"bridge-nf-call-ip{'' if address.version == 4 else '6'}tables"
            if len(ports) > 1 and not _switched_on(f"/proc/sys/net/bridge/{setting}"):
                yield Bypass(
                    "bridge",
                    f"bridge {bridge.name} passes what goes between its ports ({', '.join(ports)}) on to {address} of"
                    f" {endpoint.name} without the kill switch's hooks, as {setting} is off",
                    f"modprobe br_netfilter; sysctl -w net.bridge.{setting}=1",
                )


def _next(netlink: Netlink, address: Address) -> int:
    """The interface by which packets to `address` leave, where it is a direct neighbour; else 0."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    header = struct.pack("=BBBBBBBBI", family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)  # rtmsg
    try:
        for _, body in netlink.ask(_GET_ROUTE, header + attribute(1, address.packed), ACK):
            given = attributes(body, len(header))
            return 0 if 5 in given else _number(given.get(4))  # RTA_GATEWAY, RTA_OIF
    except OSError:
        pass  # no route there
    return 0


def _switched_on(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _elsewhere(netlink: Netlink, here: dict[int, _Interface]) -> Iterator[Bypass]:
    """Interfaces of other namespaces that sit on one of ours: their packets never come to our IP stack."""
    seen, refused = [], False
    for space, path in spaces.others(netlink).items():
        try:
            seen += [(i, path) for i in _links(netlink, space) if i.parent_space >= 0]
        except PermissionError:
            refused = True
        except OSError:
            continue  # it is gone
    ours = spaces.known_as(netlink, spaces.OURS)
    for interface, path in seen:
        if interface.parent_space == ours and interface.kind in ("macvlan", "macvtap", "ipvlan", "ipvtap"):
            pid = spaces.process_of(path)
            who = process(pid) if pid else path or "nobody that is known"
            enter = f"nsenter --net={path} " if path else ""
            yield _beside(interface, here, f"in the network namespace of {who}", enter)
    if refused:
        yield Bypass(
            "unseen", "not every other network namespace could be looked into for macvlan and ipvlan",
            "look by hand, as root: ip -all netns exec ip -d link",
        )  # fmt: skip


def _beside(interface: _Interface, here: dict[int, _Interface], where: str, enter: str = "") -> Bypass:
    parent = here[interface.parent].name if interface.parent in here else f"interface {interface.parent}"
    return Bypass(
        interface.kind.replace("vtap", "vlan"),
        f"{interface.kind} {interface.name} {where} sits on {parent}: its packets never reach the kill switch's hooks",
        f"join it by veth and a route instead; in need: {enter}ip link set {_word(interface.name)} down",
    )


def _number(packed: bytes | None, otherwise: int = 0) -> int:
    return int(struct.unpack_from("=i", packed)[0]) if packed and len(packed) >= 4 else otherwise


def _text(packed: bytes) -> str:
    return shown(packed.rstrip(b"\0").decode("utf-8", "replace"))


def _word(name: str) -> str:
    """The name of an interface for a command line: in a container its own root chooses it."""
    return name if all(c.isalnum() or c in "._-" for c in name) else "NAME"
