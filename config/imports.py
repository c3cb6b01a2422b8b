"""What another program's bans and ignore lists come to here: blocks that the rails can hold, and networks never to
block. Everything read is somebody else's data: whatever is no address is kept as a remark and never guessed at; no
network is made wider than it was, and nothing that the other program ignored is blocked.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import NamedTuple

from ..daemon.enforcer.rails import PREFIXES, Network, Rails, address_text, network_of
from ..daemon.errors import InputError

FOREVER_S = 10**9
"""For a ban without an end; the enforcer cuts it to the longest time that the rails allow."""

MOST_PIECES = 256
"""The most blocks that one range is split into."""

MOST_REMARKS = 10_000
MOST_BANS = 300_000

_WIDEST = {4: 8, 6: 16}
_PRIVATE_IPV6 = IPv6Network("fc00::/7")  # RFC 4193: all of it is somebody's own
_MOST_TEXT = 100
_TOO_WIDE = f"too wide: a range is split into at most {MOST_PIECES} blocks that the rails allow"


class Ban(NamedTuple):
    network: Network
    ttl_s: int
    where: str


class Ignored(NamedTuple):
    network: Network
    where: str


class Remark(NamedTuple):
    """Something that is not taken over: where it stands, what it is, why."""

    where: str
    value: str
    why: str


@dataclass
class Found:
    """What was read. `bans` has the longest ban of each network; `read` names what was read."""

    bans: dict[Network, Ban] = field(default_factory=dict)
    ignored: dict[Network, Ignored] = field(default_factory=dict)
    ended: int = 0
    remarks: list[Remark] = field(default_factory=list)
    remarks_more: int = 0
    read: list[str] = field(default_factory=list)

    def ban(self, text: object, ttl_s: float, where: str) -> None:
        """A ban of `text` for `ttl_s` more seconds; FOREVER_S has no end."""
        network = self._network(text, where)
        if network is None:
            return
        if ttl_s < 1:
            self.ended += 1
            return
        former = self.bans.get(network)
        if former is None and len(self.bans) >= MOST_BANS:
            self.remark(where, text, f"more than {MOST_BANS:,} bans")
        elif former is None or former.ttl_s < ttl_s:
            self.bans[network] = Ban(network, min(int(ttl_s), FOREVER_S), where)

    def ignore(self, text: object, where: str) -> None:
        """An address or network that is never to be blocked."""
        network = self._network(text, where, "a host name: the rails take literal addresses")
        if network is not None:
            self.ignored.setdefault(network, Ignored(network, where))

    def remark(self, where: str, value: object, why: str) -> None:
        if len(self.remarks) < MOST_REMARKS:
            self.remarks.append(Remark(where, shown(value), why))
        else:
            self.remarks_more += 1

    def _network(self, text: object, where: str, name: str = "") -> Network | None:
        if not isinstance(text, str):
            self.remark(where, text, "no address")
            return None
        try:
            return network_in(text)
        except ValueError:
            named = name and text[:1].isalnum() and all(c.isalnum() or c in "-._" for c in text)
            like_a_name = named and any(c.isalpha() for c in text.rpartition(".")[2])
            self.remark(where, text, name if like_a_name else "no address")
            return None


def shown(value: object) -> str:
    """A foreign value in a remark: short, whatever it is."""
    text = value if isinstance(value, str) else f"({type(value).__name__})"
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"


def network_in(text: str) -> Network:
    """The address or network in `text`, with host bits cleared as fail2ban and CrowdSec do; IPv4 where mapped.

    Raises ValueError.
    """
    text = text.strip()
    if len(text) > 64 or "%" in text or not text.isascii():
        raise ValueError(text)
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return network_of(str(ip_network(text, strict=False)))


class Plan(NamedTuple):
    """What is asked for: `blocks` of the enforcer, `proposed` of whoever owns the rails."""

    blocks: list[tuple[str, int]]
    permanent: int
    proposed: list[Ignored]
    covered: int


def plan(found: Found, rails: Rails) -> Plan:
    """What of `found` is asked for under these rails; the rest becomes remarks in `found`."""
    spared = Networks(n for n, _ in rails.never())
    covered, proposed = 0, []
    for ignored in sorted(found.ignored.values(), key=lambda i: i.network.prefixlen):
        if spared.around(ignored.network):
            covered += 1
        elif _too_wide(ignored.network):
            found.remark(ignored.where, str(ignored.network), "too much of the internet to be never blocked")
        else:
            spared.add(ignored.network)
            proposed.append(ignored)
    kept = Networks(n for n in found.ignored if spared.around(n))
    ahead = Networks(p.network for p in proposed)
    blocks: dict[str, int] = {}
    permanent = 0
    for ban in found.bans.values():
        why = _why_not(ban.network, kept, ahead)
        pieces = [] if why else list(pieces_of(ban.network, rails))
        if not pieces:
            found.remark(ban.where, address_text(ban.network), why or _TOO_WIDE)
            continue
        if len(blocks) + len(pieces) > rails.limits.most_blocks:
            found.remark(ban.where, address_text(ban.network), "more blocks than most_blocks of the rails")
            continue
        permanent += ban.ttl_s >= FOREVER_S
        for piece in pieces:
            address = address_text(piece)
            blocks[address] = max(ban.ttl_s, blocks.get(address, 0))
    return Plan(list(blocks.items()), permanent, proposed, covered)


def _why_not(network: Network, kept: Networks, ahead: Networks) -> str:
    """Why a banned network is not blocked, by the ignore list; empty where nothing is against it."""
    if kept.around(network):
        return "on the ignore list as well"
    inner = ahead.inside(network)
    return f"holds {address_text(inner)} of the ignore list, which the rails do not name yet" if inner else ""


class Networks:
    """A set of networks that is asked what lies in what; asking takes no longer where it is large."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._held: set[Network] = set()
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        self._sorted: list[tuple[int, int, Network]] = []
        for network in networks:
            self.add(network)

    def add(self, network: Network) -> None:
        self._held.add(network)
        self._lengths[network.version].add(network.prefixlen)
        self._sorted = []

    def around(self, network: Network) -> Network | None:
        """One of these that `network` is or lies in."""
        for length in self._lengths[network.version]:
            if length <= network.prefixlen:
                wider: Network = network.supernet(new_prefix=length)
                if wider in self._held:
                    return wider
        return None

    def inside(self, network: Network) -> Network | None:
        """One of these that is or lies in `network`, where none lies around it."""
        if not self._sorted:
            self._sorted = sorted((n.version, int(n.network_address), n) for n in self._held)
        at = bisect_left(self._sorted, (network.version, int(network.network_address)))
        first = self._sorted[at : at + 1]
        return (
            first[0][2]
            if first and first[0][:2] <= (network.version, int(network.broadcast_address))
            else None
        )


def _too_wide(network: Network) -> bool:
    if isinstance(network, IPv6Network) and network.subnet_of(_PRIVATE_IPV6):
        return False
    return network.prefixlen < _WIDEST[network.version]


def pieces_of(network: Network, rails: Rails) -> Iterator[Network]:
    """`network` in the widest pieces that the rails allow, never wider; none where that takes too many."""
    limits = rails.limits
    smallest = limits.smallest_prefix_ipv4 if network.version == 4 else limits.smallest_prefix_ipv6
    lengths = [p for p in PREFIXES[network.version] if p >= max(smallest, network.prefixlen)]
    if lengths and 2 ** (min(lengths) - network.prefixlen) <= MOST_PIECES:
        yield from network.subnets(new_prefix=min(lengths))


def open_plain(path: str | os.PathLike[str], most_bytes: int) -> tuple[int, os.stat_result]:
    """A descriptor of the plain file `path`, and what it is; a pipe or a device is never waited for.

    Raises InputError.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    what = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(what.st_mode):
        problem = "is no plain file"
    elif what.st_size > most_bytes:
        problem = f"{what.st_size:,} bytes; at most {most_bytes:,} are read"
    if problem:
        os.close(descriptor)
        raise InputError(f"{name}: {problem}")
    return descriptor, what


def read_plain(path: str | os.PathLike[str], most_bytes: int) -> tuple[bytes, float]:
    """The content of the plain file `path`, and when it was last written (seconds since 1970). Raises InputError."""
    descriptor, what = open_plain(path, most_bytes)
    with open(descriptor, "rb") as file:
        return file.read(most_bytes + 1), what.st_mtime


def text_of(path: Path, most_bytes: int = 1 << 20) -> str:
    """A configuration file as text; what is no UTF-8 is replaced. Raises InputError."""
    return read_plain(path, most_bytes)[0].decode("utf-8", "replace")
