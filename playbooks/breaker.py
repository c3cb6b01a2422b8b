"""The circuit breaker: before a block, whom of those that lately succeeded it would hit, and whether that is too many.

An attacker who can make Gatewatch block others has shut the service without a password. So the blocks in force and
the next one are held against the clients (or users) that succeeded of late; where together they hit more than a share
of them, a person decides. Those who succeeded for the first time longer ago are counted on their own as well: a flood
of new names must not make the share large enough for all of them. A block that hits nobody who succeeded goes through
whatever is in force: else tripping the breaker would be the way to stop the defence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ..config.values import IPNetwork
from .decisions import NS_PER_S, network_in

MOST_NAMED = 32
"""How many of those that are hit are named."""
SETTLED_NS = 3600 * NS_PER_S


class Hits(NamedTuple):
    """Who of those that lately succeeded a block hits; `over`: why it stops."""

    every: frozenset[str]
    over: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The first MOST_NAMED."""
        return tuple(sorted(self.every)[:MOST_NAMED])

    @property
    def number(self) -> int:
        return len(self.every)


NOBODY = Hits(frozenset())


@dataclass
class Breaker:
    """Judges one block after the other; `take` those that are made.

    `clients`, `users`: who lately succeeded (a client is an IPv4 address or an IPv6 /64) -> nanoseconds of the first
    time. `denied_client`, `denied_user`: whether one is hit by what is in force. `share`: of them that may be hit.
    `spared`: so many may be hit whatever the share. `now_ns`: from when an hour is counted back to who is settled.
    """

    clients: Mapping[str, int] = field(default_factory=dict)
    users: Mapping[str, int] = field(default_factory=dict)
    denied_client: Callable[[str], bool] = lambda client: False
    denied_user: Callable[[str], bool] = lambda user: False
    share: float = 0.2
    spared: int = 1
    now_ns: int = 0

    def __post_init__(self) -> None:
        self._groups: dict[str, tuple[_Group, ...]] = {}
        self._prefixes: dict[tuple[int, int], dict[int, list[str]]] = {}

    def source(self, target: str, since_ns: int) -> Hits:
        """A block of an address or network because of what began at `since_ns`: who succeeded before then counts."""
        return self._judged((c for c in self.inside(target) if self.clients[c] < since_ns), "clients")

    def user(self, principal: str, since_ns: int) -> Hits:
        """A block of a principal (`KIND:NAME`), in the same way."""
        name = principal.partition(":")[2]
        return self._judged(
            {u for u in (principal, name) if u in self.users and self.users[u] < since_ns}, "users"
        )

    def inside(self, target: str) -> list[str]:
        """The clients that lately succeeded from within a network, or from the /64 around it."""
        network = network_in(target)
        if network is None or not self.clients:
            return []
        if network.version == 6 and network.prefixlen > 64:
            network = network.supernet(new_prefix=64)
        version, length = network.version, network.prefixlen
        if (version, length) not in self._prefixes:
            self._prefixes[version, length] = self._by_prefix(version, length)
        shift = network.max_prefixlen - length
        return self._prefixes[version, length].get(int(network.network_address) >> shift, [])

    def take(self, hits: Hits) -> None:
        """The block is made: whom it hits counts for those that follow."""
        for groups in self._groups.values():
            for group in groups:
                group.struck |= hits.every & group.known

    def _judged(self, found: Iterable[str], what: str) -> Hits:
        hit = frozenset(found)
        if not hit:
            return NOBODY
        for group in self._groups_of(what):
            mine = hit & group.known
            together, known = len(group.struck) + len(mine - group.struck), len(group.known)
            if mine and together > max(self.spared, int(self.share * known)):
                over = (
                    f"circuit breaker: with what is blocked it would hit {together} of {known} {what} that lately "
                    f"succeeded{group.said} ({together / known:.0%}), more than {self.share:.0%}"
                )
                return Hits(hit, over)
        return Hits(hit)

    def _groups_of(self, what: str) -> tuple[_Group, ...]:
        """All that are known, and the settled of them, each with whom of them what is in force hits."""
        if what not in self._groups:
            known, denied = (
                (self.clients, self.denied_client) if what == "clients" else (self.users, self.denied_user)
            )
            struck = {name for name in known if denied(name)}
            settled = frozenset(n for n, first_ns in known.items() if first_ns < self.now_ns - SETTLED_NS)
            self._groups[what] = (
                _Group(frozenset(known), struck, ""),
                _Group(settled, struck & settled, ", the first time over an hour ago"),
            )
        return self._groups[what]

    def _by_prefix(self, version: int, length: int) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for client in self.clients:
            network = client_network(client)
            if network is not None and network.version == version and network.prefixlen >= length:
                prefix = int(network.network_address) >> (network.max_prefixlen - length)
                found.setdefault(prefix, []).append(client)
        return found


@dataclass
class _Group:
    known: frozenset[str]
    struck: set[str]
    said: str


@lru_cache(maxsize=32_768)
def client_network(client: str) -> IPNetwork | None:
    """A client's address or /64; of an IPv6 address the /64 around it."""
    network = network_in(client)
    if network is not None and network.version == 6 and network.prefixlen > 64:
        return network.supernet(new_prefix=64)
    return network
