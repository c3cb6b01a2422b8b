"""The table `inet gatewatch_kill`, and the break-glass file, which makes one like it.

A rule matches the ports of an endpoint and nothing else, in both directions, before connection tracking and
after it, on every interface and on loopback. What the kernel holds is read back and compared, rule by rule.

A server elsewhere, as in a container behind this gateway, is answered with a TCP reset when it next sends, so
that it stops generating. Resets without payload from this machine to that server pass the output hook, and
nothing else does; towards clients nothing goes at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

from ..rails import Service
from . import rules
from .nft import Nft

KILL = "gatewatch_kill"
DRILL = "gatewatch_drill"
BREAK_GLASS = "gatewatch_break_glass"
HOOKS = ("prerouting", "input", "forward", "output")
_KERNEL = re.match(r"(\d+)\.(\d+)", os.uname().release)
RESETS = _KERNEL is not None and tuple(map(int, _KERNEL.groups())) >= (5, 9)
"""Whether this kernel can answer with a reset at the prerouting hook: linux/net/netfilter/nft_reject_inet.c."""

_BARE_RESETS = [
    f"tcp flags & rst == rst tcp doff {words} {length} accept"
    for words, length in (
        (5, "ip length 40"),
        (8, "ip length 52"),
        (5, "ip6 length 20"),
        (8, "ip6 length 32"),
    )
]
"""Without payload: as `reject` sends them, and with the time stamps that a socket adds (RFC 9293, RFC 7323). The
length in an IPv6 header leaves that header out."""


class Held(NamedTuple):
    """A kill table as the kernel has it."""

    services: dict[str, frozenset[Service]]  # by endpoint: both directions are dropped
    hooked: bool  # every hook leads to the rules, nothing else is there, and the table is awake
    rules: int  # that drop
    resets: bool  # a server elsewhere is reset


def render(table: str, endpoints: Mapping[str, tuple[Service, ...]], resets: bool = RESETS) -> str:
    """A table that drops everything to and from the services, replacing whatever stands under its name.

    Without `resets` a server elsewhere hears nothing, which every kernel can do.
    """
    if not any(endpoints.values()):
        return remove(table)
    return remove(table) + rules.table(table, _chains(endpoints, resets), HOOKS)


def _chains(endpoints: Mapping[str, tuple[Service, ...]], resets: bool) -> dict[str, list[str]]:
    """The rules of every chain, in order."""
    named = [(name, s) for name, services in endpoints.items() for s in dict.fromkeys(services)]
    drops = [_rule(s, side, "drop", name) for name, s in named for side in ("d", "s")]
    jumps = {hook: ["jump endpoints"] for hook in HOOKS}
    if not resets:
        return {"endpoints": drops, **jumps}
    elsewhere = [(n, s) for n, s in named if s.protocol == "tcp" and s.address and not s.address.is_loopback]
    jumps["prerouting"].insert(0, "jump from_servers")
    jumps["output"].insert(0, "jump to_servers")
    return {
        "bare_reset": _BARE_RESETS,
        "from_servers": [_rule(s, "s", "reject with tcp reset", name) for name, s in elsewhere],
        "to_servers": [_rule(s, "d", "jump bare_reset", name) for name, s in elsewhere],
        "endpoints": drops,
        **jumps,
    }


def _rule(service: Service, side: str, action: str, name: str) -> str:
    return f'{rules.match(service, side)} counter {action} comment "{name}"'


def remove(table: str) -> str:
    """Commands that take the table away, whether it is there or not."""
    return f"add table inet {table}\ndelete table inet {table}\n"


def break_glass(endpoints: Mapping[str, tuple[Service, ...]], path: str) -> str:
    """A file for `nft -f` that cuts every endpoint off when nothing of Gatewatch runs any more."""
    return (
        "#!/usr/sbin/nft -f\n"
        "# Cuts the model endpoints off without Gatewatch. Written ahead by the enforcer; it never removes the table.\n"
        f"#   engage:   nft -f {path}\n"
        f"#   release:  nft delete table inet {BREAK_GLASS}\n"
        "# Connections stall at once. A server elsewhere is reset when it next sends; those of this machine end by\n"
        "# their own time-outs, or at once by: ss -K sport = :PORT\n"
        f"{render(BREAK_GLASS, endpoints)}"
    )


def held(nft: Nft, table: str) -> Held | None:
    """What the kernel has in `table`; None where there is none. Whatever we would not have written is a change."""
    listed = nft.table(table)
    if listed is None:
        return None
    chains, unchanged = rules.chains(listed, HOOKS)
    sides: dict[tuple[str, Service], set[str]] = {}
    for line in chains.get("endpoints", []):
        dropped = _dropped(line)
        if dropped is not None:
            name, side, service = dropped
            sides.setdefault((name, service), set()).add(side)
    endpoints: dict[str, tuple[Service, ...]] = {}
    for (name, service), seen in sides.items():
        if seen == {"d", "s"}:
            endpoints[name] = (*endpoints.get(name, ()), service)
    resets = "from_servers" in chains
    unchanged &= chains == _chains(endpoints, resets)
    services = {name: frozenset(s) for name, s in endpoints.items()}
    return Held(services, unchanged, len(chains.get("endpoints", [])), resets)


def _dropped(line: str) -> tuple[str, str, Service] | None:
    """(endpoint, side, service) of a rule that drops, None for any other."""
    try:
        rule, _, name = line.partition(" comment ")
        *place, protocol, field, port, _, _ = rule.split()
        address = None if place[0] == "fib" else ip_address(place[2])
        service, name = Service(address, int(port), protocol), name.strip('"')
    except (ValueError, IndexError):
        return None
    return (name, field[0], service) if line == _rule(service, field[0], "drop", name) else None
