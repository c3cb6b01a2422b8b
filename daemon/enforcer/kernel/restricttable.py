"""The table `inet gatewatch_restrict`: lets the networks that are named reach an endpoint, and drops everybody else.

Hooked where the kill switch is, before connection tracking and NAT, and beside it: what either drops is dropped. This
machine itself is never kept from an endpoint. What the kernel holds is read back and compared rule by rule.

A server elsewhere that answers somebody who may not hear it is sent a TCP reset in his place; clients are sent nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import NamedTuple

from ...errors import EnforcerError
from ..rails import Network, Service
from . import rules
from .killtable import HOOKS, RESETS, remove
from .nft import Nft

RESTRICT = "gatewatch_restrict"

Chains = dict[str, list[str]]


class Door(NamedTuple):
    """One endpoint that is restricted: where it is, and who passes."""

    services: tuple[Service, ...]
    networks: tuple[Network, ...]


def put(nft: Nft, doors: Mapping[str, Door]) -> None:
    """Make the kernel restrict exactly these endpoints, in one transaction. Raises EnforcerError."""
    if not doors:
        nft.run(remove(RESTRICT))
        return
    try:
        nft.run(render(doors))
    except EnforcerError:  # perhaps a kernel that cannot answer servers with a reset
        nft.run(render(doors, resets=False))


def render(doors: Mapping[str, Door], resets: bool = RESETS) -> str:
    """The table, replacing whatever stands under its name."""
    return remove(RESTRICT) + rules.table(RESTRICT, _chains(doors, resets), HOOKS)


def wrong(nft: Nft, doors: Mapping[str, Door]) -> list[str]:
    """What differs between the kernel and these endpoints, in words; nothing where it is as it should be.

    Raises EnforcerError.
    """
    listed = nft.table(RESTRICT)
    if listed is None:
        return [f"table inet {RESTRICT} is missing in the kernel"] if doors else []
    if not doors:
        return [f"table inet {RESTRICT} is in the kernel, and nothing is restricted in the journal"]
    found, unchanged = rules.chains(listed, HOOKS)
    if unchanged and found in (_chains(doors, True), _chains(doors, False)):
        return []
    return [f"table inet {RESTRICT} was changed: others may reach what is restricted"]


def joined(networks: Collection[Network]) -> list[Network]:
    """The same addresses in as few networks as there can be, IPv4 first."""
    return [
        *collapse_addresses(n for n in networks if isinstance(n, IPv4Network)),
        *collapse_addresses(n for n in networks if isinstance(n, IPv6Network)),
    ]


def _chains(doors: Mapping[str, Door], resets: bool) -> Chains:
    """The rules of every chain, in order. A packet that belongs to two endpoints has to pass both."""
    made: Chains = {}
    requests: list[str] = []
    answers: list[str] = []
    for number, (name, door) in enumerate(doors.items()):
        services = dict.fromkeys(door.services)
        requests += [f"{rules.match(s, 'd')} jump from_{number}" for s in services]
        answers += [f"{rules.match(s, 's')} jump to_{number}" for s in services]
        networks, drop = joined(door.networks), f'counter drop comment "{name}"'
        for chain, side in (("from", "s"), ("to", "d")):
            made[f"{chain}_{number}"] = [
                *(f"{rules.within(n, side)} return" for n in networks),
                f"fib {side}addr type local return",
                drop,
            ]
        elsewhere = any(s.protocol == "tcp" and s.address and not s.address.is_loopback for s in services)
        if resets and elsewhere:
            made[f"to_{number}"][-1:] = [
                f"fib saddr type local {drop}",
                f'meta l4proto tcp counter reject with tcp reset comment "{name}"',
                drop,
            ]
    both = ["jump requests", "jump answers"]
    # What this machine sends to an endpoint is its own, or such a reset, which bears the client's address.
    hooks = {hook: ["jump answers"] if hook == "output" else both for hook in HOOKS}
    return {**made, "requests": requests, "answers": answers, **hooks}
