"""The table `inet gatewatch`: hash sets of blocked networks, one for each prefix length, and the rules that drop.

Hooked before connection tracking, in both directions. What is never blocked is let through first. Every
element has a timeout, so a block ends though the enforcer be dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv6Address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from ...errors import EnforcerError
from ..rails import PREFIXES, Network, Rails
from .elements import MissingError
from .nft import Nft

TABLE = "gatewatch"
PRIORITY = -310
"""Before connection tracking (-200) and before raw (-300), linux/netfilter_ipv4.h."""
_SPARE = 65_536
"""Room above `most_blocks`: within one transaction a refreshed element counts twice."""
_CHUNK = 5_000
_ZEROS = bytes(8)


def name_of(network: Network) -> str:
    """The set for networks of that length."""
    return f"block{network.version}_{network.prefixlen}"


def render(never: Collection[Network], rails: Rails, *, resets: bool = True) -> str:
    """The table without blocks, replacing whatever stands under its name, in one transaction. With `resets`, a
    server behind this machine hears that its client is gone when it next sends."""
    sets = "".join(
        f"set block{version}_{length} {{ type ipv{version}_addr; flags timeout; "
        f"size {rails.limits.most_blocks + _SPARE}; }}\n"
        for version, lengths in PREFIXES.items()
        for length in lengths
    )
    for version in PREFIXES:
        named = [str(n) for n in never if n.version == version]
        elements = f"elements = {{ {', '.join(named)} }}" if named else ""
        sets += f"set never{version} {{ type ipv{version}_addr; flags interval; auto-merge; {elements} }}\n"
    reset = 'meta l4proto tcp counter name "dropped_out" reject with tcp reset'
    chains = _chain("from_source", "prerouting", "iif", "saddr", 'counter name "dropped_in" drop')
    chains += _chain("from_server", "forward", "oif", "daddr", reset) if resets else ""
    chains += _chain("to_source", "postrouting", "oif", "daddr", 'counter name "dropped_out" drop')
    return (
        f"add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{sets}"
        f"counter dropped_in {{ }}\ncounter dropped_out {{ }}\n{chains}}}\n"
    )


def _chain(name: str, hook: str, interface: str, side: str, verdict: str) -> str:
    rules = [f'{interface} "lo" accept', f"ip {side} @never4 accept", f"ip6 {side} @never6 accept"]
    for version, lengths in PREFIXES.items():
        protocol, any_address, full = ("ip", "0.0.0.0", 32) if version == 4 else ("ip6", "::", 128)
        masks = [f" & {ip_network(f'{any_address}/{n}').netmask}" if n < full else "" for n in lengths]
        rules += [
            f"{protocol} {side}{mask} @block{version}_{length} {verdict}"
            for length, mask in zip(lengths, masks, strict=True)
        ]
    body = "\n".join(rules)
    return f"chain {name} {{\ntype filter hook {hook} priority {PRIORITY}; policy accept;\n{body}\n}}\n"


def add(nft: Nft, network: Network, seconds: float) -> None:
    """Block `network` for `seconds` from now, whether it is blocked already or not. Raises EnforcerError,
    MissingError where the table is gone."""
    add_many(nft, [(network, seconds)])


def add_many(nft: Nft, blocks: Iterable[tuple[Network, float]]) -> None:
    """Block each (network, seconds from now) in one transaction. Raises as `add` does."""
    wanted: dict[str, dict[bytes, int]] = {}
    for network, seconds in blocks:
        wanted.setdefault(name_of(network), {})[network.network_address.packed] = (
            max(1, round(seconds)) * 1000
        )
    nft.elements.put(TABLE, wanted)


def remove(nft: Nft, network: Network) -> None:
    """End the block of `network`, whether there is one or not. Raises as `add` does."""
    nft.elements.remove(TABLE, name_of(network), network.network_address.packed)


def replace(nft: Nft, never: Collection[Network], rails: Rails, blocks: Iterable[tuple[str, float]]) -> None:
    """Make the kernel hold exactly these blocks (`address_text`, seconds that remain), in one transaction. Raises
    EnforcerError, OSError or ValueError for what is no address."""
    by_set: dict[str, list[str]] = {}
    for network, seconds in blocks:
        address, _, length = network.partition("/")  # in a tenth of the time that an ip_network takes
        family, name = (
            (AF_INET6, f"block6_{int(length or 128)}")
            if ":" in address
            else (AF_INET, f"block4_{int(length or 32)}")
        )
        inet_pton(family, address)  # nothing else gets into a command
        by_set.setdefault(name, []).append(f"{address} timeout {max(1, round(seconds))}s")
    put = "".join(
        f"add element inet {TABLE} {name} {{ {', '.join(elements[at : at + _CHUNK])} }}\n"
        for name, elements in by_set.items()
        for at in range(0, len(elements), _CHUNK)
    )
    try:
        nft.run(render(never, rails) + put)
    except EnforcerError:  # perhaps a kernel that cannot answer servers with a reset
        nft.run(render(never, rails, resets=False) + put)


def set_never(nft: Nft, never: Collection[Network]) -> None:
    """Change what is let through first, and leave the blocks alone. Raises EnforcerError."""
    commands = ""
    for version in PREFIXES:
        named = [str(n) for n in never if n.version == version]
        commands += f"flush set inet {TABLE} never{version}\n"
        if named:
            commands += f"add element inet {TABLE} never{version} {{ {', '.join(named)} }}\n"
    nft.run(commands)


def shape(nft: Nft) -> list[str] | None:
    """Sets, chains, rules and what is let through first; equal while nobody changes them. None where the table is
    missing. Raises EnforcerError."""
    return nft.elements.parts(TABLE, [f"never{version}" for version in PREFIXES])


class Held(NamedTuple):
    """The table as the kernel has it."""

    shape: list[str]  # see `shape`
    blocked: frozenset[str]  # as `address_text`


def held(nft: Nft) -> Held | None:
    """What the kernel has; None where the table is missing. Raises EnforcerError.

    Takes some 2 ms for each thousand blocks, and with 100,000 in one set twice as long: the kernel walks a set anew
    for every 30 KiB. Now and then a block is left out because another one ended meanwhile.
    """
    there = shape(nft)
    if there is None:
        return None
    blocked: list[str] = []
    for version, lengths in PREFIXES.items():
        for length in lengths:
            try:
                found = nft.elements.dump(TABLE, f"block{version}_{length}")
            except MissingError:  # its shape tells
                continue
            blocked += texts(version, length, [key for key, _ in found])
    return Held(there, frozenset(blocked))


def texts(version: int, length: int, keys: Iterable[bytes]) -> Iterable[str]:
    """As `address_text`, in a fifth of the time. inet_ntop(3) writes some that begin with zeros differently."""
    suffix = "" if length in (32, 128) else f"/{length}"
    if version == 4:
        return [inet_ntop(AF_INET, key) + suffix for key in keys]
    return [
        (str(IPv6Address(key)) if key.startswith(_ZEROS) else inet_ntop(AF_INET6, key)) + suffix
        for key in keys
    ]
