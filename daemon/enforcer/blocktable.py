"""The table `inet gatewatch`: hash sets of blocked networks, one for each prefix length, and the rules that drop.

Hooked before connection tracking, in both directions. What is never blocked is let through first. Every
element has a timeout, so a block ends though the enforcer be dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_network
from typing import Any, NamedTuple

from .nft import Nft
from .rails import PREFIXES, Network, Rails, address_text

TABLE = "gatewatch"
PRIORITY = -310
"""Before connection tracking (-200) and before raw (-300), linux/netfilter_ipv4.h."""
_SPARE = 65_536
"""Room above `most_blocks`: within one transaction a refreshed element counts twice."""
_CHUNK = 5_000


def name_of(network: Network) -> str:
    """The set for networks of that length."""
    return f"block{network.version}_{network.prefixlen}"


def render(never: Collection[Network], rails: Rails) -> str:
    """The table without blocks, replacing whatever stands under its name, in one transaction."""
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
    return (
        f"add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{sets}"
        "counter dropped_in { }\ncounter dropped_out { }\n"
        f"{_chain('from_source', 'prerouting', 'iif', 'saddr', 'dropped_in')}"
        f"{_chain('to_source', 'postrouting', 'oif', 'daddr', 'dropped_out')}}}\n"
    )


def _chain(name: str, hook: str, interface: str, side: str, counter: str) -> str:
    rules = [f'{interface} "lo" accept', f"ip {side} @never4 accept", f"ip6 {side} @never6 accept"]
    for version, lengths in PREFIXES.items():
        protocol, any_address, full = ("ip", "0.0.0.0", 32) if version == 4 else ("ip6", "::", 128)
        masks = [f" & {ip_network(f'{any_address}/{n}').netmask}" if n < full else "" for n in lengths]
        rules += [
            f'{protocol} {side}{mask} @block{version}_{length} counter name "{counter}" drop'
            for length, mask in zip(lengths, masks, strict=True)
        ]
    body = "\n".join(rules)
    return f"chain {name} {{\ntype filter hook {hook} priority {PRIORITY}; policy accept;\n{body}\n}}\n"


def _put(network: Network, seconds: float) -> str:
    """Add, delete, add: the timeout becomes this one, whether the element is there or not."""
    place, key = f"element inet {TABLE} {name_of(network)}", str(network.network_address)
    timeout = max(1, round(seconds))
    return (
        f"add {place} {{ {key} }}\ndelete {place} {{ {key} }}\nadd {place} {{ {key} timeout {timeout}s }}\n"
    )


def add(nft: Nft, network: Network, seconds: float) -> None:
    """Block `network` for `seconds` from now, whether it is blocked already or not. Raises EnforcerError."""
    nft.run(_put(network, seconds))


def remove(nft: Nft, network: Network) -> None:
    """End the block of `network`, whether there is one or not. Raises EnforcerError."""
    place = f"element inet {TABLE} {name_of(network)} {{ {network.network_address} }}"
    nft.run(f"add {place}\ndelete {place}\n")


def replace(
    nft: Nft, never: Collection[Network], rails: Rails, blocks: Iterable[tuple[Network, float]]
) -> None:
    """Make the kernel hold exactly these blocks (network, seconds that remain), in one transaction."""
    by_set: dict[str, list[str]] = {}
    for network, seconds in blocks:
        element = f"{network.network_address} timeout {max(1, round(seconds))}s"
        by_set.setdefault(name_of(network), []).append(element)
    parts = [render(never, rails)]
    for name, elements in by_set.items():
        parts += [
            f"add element inet {TABLE} {name} {{ {', '.join(elements[at : at + _CHUNK])} }}\n"
            for at in range(0, len(elements), _CHUNK)
        ]
    nft.run("".join(parts))


def set_never(nft: Nft, never: Collection[Network]) -> None:
    """Change what is let through first, and leave the blocks alone. Raises EnforcerError."""
    commands = ""
    for version in PREFIXES:
        named = [str(n) for n in never if n.version == version]
        commands += f"flush set inet {TABLE} never{version}\n"
        if named:
            commands += f"add element inet {TABLE} never{version} {{ {', '.join(named)} }}\n"
    nft.run(commands)


class Held(NamedTuple):
    """The table as the kernel has it."""

    shape: list[str]  # sets, chains, rules and what is let through first; equal while nobody changes them
    blocked: frozenset[str]  # as `address_text`


def held(nft: Nft) -> Held | None:
    """What the kernel has; None where the table is missing. Takes some 10 microseconds for each block."""
    listed = nft.table(TABLE)
    if listed is None:
        return None
    shape, blocked = [], set()
    for item in listed:
        named = item.get("set", {})
        if str(named.get("name", "")).startswith("block"):
            length = int(named["name"].partition("_")[2])
            for element in named.pop("elem", []):
                key = element["elem"]["val"] if isinstance(element, dict) else element
                blocked.add(address_text(ip_network(f"{key}/{length}")))
        if "metainfo" not in item:
            shape.append(repr(_plain(item)))
    return Held(sorted(shape), frozenset(blocked))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in ("handle", "packets", "bytes")}
    return [_plain(v) for v in value] if isinstance(value, list) else value
