"""The circuit breaker: before a block, whom of those that lately succeeded it would hit, and whether that is too many.

An attacker who can make Gatewatch block others has shut the service without a password. So the blocks in force and
the next one are held against the clients (or users) that succeeded of late; where together they hit more than a share
of them, a person decides. A block that hits nobody who succeeded goes through whatever is in force: else tripping the
breaker would be the way to stop the defence.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .decisions import network_in

MOST_NAMED = 32
"""How many of those that are hit are named."""


class Hits(NamedTuple):
    """Who of those that lately succeeded a block hits: the first MOST_NAMED and how many; `over`: why it stops."""

    names: tuple[str, ...]
    number: int
    over: str


@dataclass
class Breaker:
    """Judges one block after the other; `take` those that are made.

    `clients`, `users`: who lately succeeded -> nanoseconds of the first time. `denied_client`, `denied_user`: whether
    one is hit by what is in force. `share`: of them that may be hit. `spared`: so many may be hit whatever the share.
    """

    clients: Mapping[str, int] = field(default_factory=dict)
    users: Mapping[str, int] = field(default_factory=dict)
    denied_client: Callable[[str], bool] = lambda client: False
    denied_user: Callable[[str], bool] = lambda user: False
    share: float = 0.2
    spared: int = 1

    def __post_init__(self) -> None:
        self._taken: set[str] = set()
        self._parsed: list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]] | None = None

    def source(self, target: str, since_ns: int) -> Hits:
        """A block of an address or network because of what began at `since_ns`: who succeeded before then counts."""
        network = network_in(target)
        if network is None or not self.clients:
            return Hits((), 0, "")
        if network.num_addresses == 1:
            found: Iterable[str] = [str(network.network_address)]
        else:
            found = [client for client, address in self._addresses() if address in network]
        hit = {c for c in found if c in self.clients and self.clients[c] < since_ns}
        return self._judged(hit, self.clients, self.denied_client, "clients")

    def user(self, principal: str, since_ns: int) -> Hits:
        """A block of a principal (`KIND:NAME`), in the same way."""
        name = principal.partition(":")[2]
        hit = {u for u in (principal, name) if u in self.users and self.users[u] < since_ns}
        return self._judged(hit, self.users, self.denied_user, "users")

    def take(self, hits: Hits) -> None:
        """The block is made: whom it hits counts for those that follow."""
        self._taken.update(hits.names)

    def _judged(
        self, hit: set[str], known: Mapping[str, int], denied: Callable[[str], bool], what: str
    ) -> Hits:
        if not hit:
            return Hits((), 0, "")
        together = {name for name in known if name in hit or name in self._taken or denied(name)}
        names = tuple(sorted(hit)[:MOST_NAMED])
        if len(together) <= max(self.spared, int(self.share * len(known))):
            return Hits(names, len(hit), "")
        share = len(together) / len(known)
        over = (
            f"circuit breaker: with what is blocked it would hit {len(together)} of {len(known)} {what} that lately "
            f"succeeded ({share:.0%}), more than {self.share:.0%}"
        )
        return Hits(names, len(hit), over)

    def _addresses(self) -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
        if self._parsed is None:
            self._parsed = [(c, ipaddress.ip_address(c)) for c in self.clients]
        return self._parsed
