"""What this machine is to itself: its own addresses, its gateways and name servers, and where sshd listens.

Read from the kernel at the moment of a decision, so that a rail knows the address that was given a second ago.
"""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import ip_address, ip_network

from ..rails import SSH, Address, Network
from .netlink import ACK, Netlink, attribute, attributes
from .sockets import LISTEN, Connection, connections

_RTM_GETADDR, _RTM_GETROUTE = 22, 26  # linux/rtnetlink.h
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_GATEWAY, _RTA_PREFSRC = 1, 5, 7
_IFADDRMSG_BYTES, _RTMSG_BYTES = 8, 12

# The next hop is asked for addresses far apart, as a VPN may split the default route in two. Nothing is sent.
_FAR = tuple(map(ip_address, ("1.0.0.1", "193.0.0.1", "2001:500::1", "2c00::1")))


def own_addresses() -> tuple[Address, ...]:
    """Every address of every interface of this network namespace."""
    found: dict[Address, None] = {}
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        for _, body in netlink.ask(_RTM_GETADDR, struct.pack("=BBBBi", 0, 0, 0, 0, 0)):
            given = attributes(body, _IFADDRMSG_BYTES)
            local = given.get(_IFA_LOCAL, given.get(_IFA_ADDRESS))
            if local is not None:
                found[ip_address(local)] = None
    return tuple(found)


def gateways() -> tuple[Address, ...]:
    """The next hops towards the internet; a full routing table is not read for it."""
    return _of_routes(_RTA_GATEWAY)


def outward_addresses() -> tuple[Address, ...]:
    """Those of its own that this machine shows to the internet, where it has a way there."""
    return _of_routes(_RTA_PREFSRC)


def _of_routes(kind: int) -> tuple[Address, ...]:
    found: dict[Address, None] = {}
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        for far in _FAR:
            family = socket.AF_INET if far.version == 4 else socket.AF_INET6
            header = struct.pack("=BBBBBBBBI", family, far.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
            try:
                for _, body in netlink.ask(_RTM_GETROUTE, header + attribute(_RTA_DST, far.packed), ACK):
                    address = attributes(body, _RTMSG_BYTES).get(kind)
                    if address is not None:
                        found[ip_address(address)] = None
            except OSError:
                continue  # no route there
    return tuple(found)


def name_servers(path: str = "/etc/resolv.conf") -> tuple[Address, ...]:
    """The servers that resolv.conf(5) names."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(65_536).splitlines()
    except OSError:
        return ()
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(found)


def surroundings() -> tuple[tuple[Network, str], ...]:
    """What is never blocked because of where this machine stands, with why."""
    kinds = ((own_addresses(), "own_address"), (gateways(), "gateway"), (name_servers(), "name_server"))
    return tuple((ip_network(address), why) for addresses, why in kinds for address in addresses)


def ssh_ports() -> frozenset[int]:
    """The TCP ports that are the way in for management: 22, and wherever an sshd of root's listens.

    Listeners of other users do not count: `ssh -R` lets a user open one to ward off the kill switch.
    """
    listeners = [c for c in connections(socket.IPPROTO_TCP, 1 << LISTEN) if c.uid == 0]
    return frozenset({SSH} | {c.local_port for c in listeners if c.inode in _sshd_inodes(listeners)})


def _sshd_inodes(listeners: list[Connection]) -> set[int]:
    wanted = {f"socket:[{c.inode}]": c.inode for c in listeners}
    found: set[int] = set()
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            with open(f"/proc/{process}/comm", encoding="ascii", errors="replace") as file:
                if not file.read().startswith("sshd"):
                    continue
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                target = os.readlink(f"/proc/{process}/fd/{descriptor}")
                if target in wanted:
                    found.add(wanted[target])
        except OSError:
            continue  # it ended meanwhile
    return found
