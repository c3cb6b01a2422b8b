"""Ways to a model by a Unix socket, which no packet filter sees: the sockets that an endpoint's servers hold.

A proxy that listens on a front and asks the model by a path leaves the path open to local processes while the
kill switch is engaged. It looks and changes nothing. Formats: linux/unix_diag.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..kernel.netlink import Netlink, attributes
from ..kernel.sockets import LISTEN, connections
from ..rails import Endpoint, Service
from . import spaces

_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req
_MESSAGE = struct.Struct("=BBBBI")  # unix_diag_msg up to the cookie
_NAME, _PEER = 0, 2  # UNIX_DIAG_*
_SHOW = 0x1 | 0x4  # UDIAG_SHOW_NAME, UDIAG_SHOW_PEER
_ESTABLISHED, _UDP_OPEN = 1, 7
_STREAMS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
_WELL_KNOWN = (
    "/dev/log", "/run/systemd/", "/run/dbus/", "/run/nscd/", "/run/docker", "/run/containerd/", "/run/podman/",
    "/var/lib/sss/", "/run/avahi-daemon/", "/run/gatewatch", "/var/lib/gatewatch/",
)  # fmt: skip
_AGAIN_S = 1.0
_PAUSE_S = 0.05
_MOST_DESCRIPTORS = 65_536
_MOST_FOUND = 50


class Bypass(NamedTuple):
    """A way past the kill switch, or something that could not be looked into."""

    kind: str  # flowtable, netdev, xdp, tc, bridge, macvlan, ipvlan, unix-socket, unseen
    what: str  # one sentence: the thing, and what passes by it
    remedy: str


class Watch:
    """Looks again and again, as a proxy's connection to its model often lasts no longer than a request.

    `sample` reads the descriptors of the servers, and once a second those of every process, as a proxy that is
    reloaded has new workers. Called too often it does nothing: it takes a tenth of the time at most.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._holders: dict[int, set[tuple[str, Service, bool]]] = {}
        self._looked = self._next = float("-inf")
        self._found: dict[Bypass, None] = {}
        self._unseen: list[Bypass] = []

    def sample(self) -> None:
        """Look once. Raises OSError where the kernel does not list sockets."""
        began = time.monotonic()
        if began < self._next:
            return
        try:
            self._look(began)
        finally:
            ended = time.monotonic()
            self._next = ended + max(_PAUSE_S, 9 * (ended - began))

    def _look(self, now: float) -> None:
        if now - self._looked > _AGAIN_S:
            self._looked = now
            self._find_holders()
        connected, listening = _named()
        if not connected and not listening:
            return
        for pid, held in self._holders.items():
            try:
                inodes = _sockets_of(pid)
            except PermissionError:
                continue  # it has become somebody else; the next look for servers says so
            asked = {connected[i] for i in inodes & connected.keys()}
            offered = {listening[i] for i in inodes & listening.keys()}
            for name, service, entrance in held:
                if entrance:
                    self._add(name, service, pid, asked, "is connected to")
                self._add(name, service, pid, offered, "listens also on")

    def found(self) -> list[Bypass]:
        """What every sample saw, this moment's as well."""
        self._next = float("-inf")
        try:
            self.sample()
        except OSError as error:
            what = f"Unix sockets could not be looked into: {error.strerror}"
            self._unseen = [Bypass("unseen", what, "look by hand, as root: ss -xp")]
        return [*self._found, *self._unseen]

    def _add(self, name: str, service: Service, pid: int, paths: Iterable[str], does: str) -> None:
        for path in sorted(paths):
            if len(self._found) < _MOST_FOUND:
                who = process(pid).partition(" (")[2].rstrip(")") or "a process"
                found = Bypass(
                    "unix-socket",
                    f"{name}: {who}, which listens on {service}, {does} the Unix socket {path}: local processes can"
                    " reach the model by it though the kill switch is engaged",
                    f"let the model listen on a TCP port that is named under backs, or let nobody else open {path}",
                )
                self._found[found] = None

    def _find_holders(self) -> None:
        services: dict[tuple[str, int], list[tuple[str, Service, bool]]] = {}
        for endpoint in self._endpoints:
            for service in endpoint.services:
                entrance = service in (endpoint.fronts or endpoint.backs)
                at = services.setdefault((service.protocol, service.port), [])
                at.append((endpoint.name, service, entrance))
        listeners = [(c, "tcp") for c in connections(socket.IPPROTO_TCP, 1 << LISTEN)]
        listeners += [(c, "udp") for c in connections(socket.IPPROTO_UDP, 1 << _UDP_OPEN)]
        wanted: dict[int, set[tuple[str, Service, bool]]] = {}
        for connection, protocol in listeners:
            for held in services.get((protocol, connection.local_port), ()):
                if held[1].address in (None, connection.local) or connection.local.is_unspecified:
                    wanted.setdefault(connection.inode, set()).add(held)
        self._holders = {}
        lost, closed = set(wanted), False
        for pid in map(int, filter(str.isdigit, os.listdir("/proc") if wanted else ())):
            try:
                inodes = wanted.keys() & _sockets_of(pid)
            except PermissionError:
                closed = closed or _is_here(pid)
                continue
            for inode in inodes:
                self._holders.setdefault(pid, set()).update(wanted[inode])
                lost.discard(inode)
        dark = {held[0] for inode in (wanted if closed else lost) for held in wanted[inode]}
        self._unseen = [
            Bypass(
                "unseen",
                f"{name}: whether it can be reached by a Unix socket could not be told, as not every process may be"
                " looked into",
                "look by hand, as root: ss -xp",
            )
            for name in sorted(dark)
        ]


def _is_here(pid: int) -> bool:
    """Whether a process is in this network namespace, or may be."""
    with Netlink(socket.NETLINK_ROUTE) as netlink:
        try:
            return spaces.known_as(netlink, f"/proc/{pid}/ns/net") == spaces.known_as(netlink, spaces.OURS)
        except PermissionError:
            return True


def process(pid: int) -> str:
    """The process, for people."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({shown(file.read(64).strip())})"
    except OSError:
        return f"process {pid}"


def _sockets_of(pid: int) -> set[int]:
    """Inodes of the sockets that a process holds; none where it is gone. Raises PermissionError."""
    found = set()
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in itertools.islice(descriptors, _MOST_DESCRIPTORS):
                try:
                    target = os.readlink(descriptor.path)
                except FileNotFoundError:
                    continue  # closed meanwhile
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    except (FileNotFoundError, ProcessLookupError):
        pass
    except PermissionError:
        if os.path.exists(
            f"/proc/{pid}"
        ):  # the kernel refuses to read links of a process that has ended, too
            raise
    return found


def _named() -> tuple[dict[int, str], dict[int, str]]:
    """Unix stream sockets by inode: with the path at the far end of the connection, and with the one they listen on."""
    peers, names, listening = {}, {}, {}
    states = (1 << _ESTABLISHED) | (1 << LISTEN)
    with Netlink(4) as netlink:  # NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY
        for _, body in netlink.ask(20, _REQUEST.pack(socket.AF_UNIX, 0, 0, states, 0, _SHOW, 0, 0)):
            _, kind, state, _, inode = _MESSAGE.unpack_from(body)
            given = attributes(body, 16)
            if kind not in _STREAMS:
                continue
            path = _path(given.get(_NAME, b""))
            short = path.removeprefix("/var") if path.startswith("/var/run/") else path
            if path and not short.startswith(_WELL_KNOWN):
                names[inode] = path
                if state == LISTEN:
                    listening[inode] = path
            if _PEER in given:
                peers[inode] = struct.unpack("=I", given[_PEER])[0]
    return {inode: names[peer] for inode, peer in peers.items() if peer in names}, listening


def _path(name: bytes) -> str:
    """An address as unix(7) shows it: an abstract one begins with @."""
    text = name.rstrip(b"\0").decode("utf-8", "replace")
    return shown("@" + text[1:] if text.startswith("\0") else text)


def shown(text: str) -> str:
    """`text` that another chose, for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
