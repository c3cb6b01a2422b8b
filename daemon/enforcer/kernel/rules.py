"""Tables of plain rules: written as nft(8) takes them, and read back from the kernel in the same words.

What the kernel says is compared with what was meant line by line, so every expression that is not one of those
written here reads as something that matches nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import Any

from ..rails import Network, Service, address_text
from .blocktable import PRIORITY

_FAMILIES = {4: "ip", 6: "ip6"}


def table(name: str, chains: Mapping[str, list[str]], hooks: Collection[str]) -> str:
    """The table `inet name`; a chain that is named like one of `hooks` is hooked there, at our priority."""
    body = ""
    for chain, lines in chains.items():
        base = [f"type filter hook {chain} priority {PRIORITY}; policy accept;"] if chain in hooks else []
        rules = "\n".join([*base, *lines])
        body += f"chain {chain} {{\n{rules}\n}}\n"
    return f"table inet {name} {{\n{body}}}\n"


def chains(listed: list[dict[str, Any]], hooks: Collection[str]) -> tuple[dict[str, list[str]], bool]:
    """The rules of every chain in what `Nft.table` listed, and whether the table holds chains and rules alone, hooked
    as `table` writes them, and is awake."""
    unchanged = all("flags" not in o["table"] for o in listed if "table" in o)  # such as dormant
    unchanged &= all(o.keys() <= {"metainfo", "table", "chain", "rule"} for o in listed)
    found: dict[str, list[str]] = {}
    for chain in (o["chain"] for o in listed if "chain" in o):
        name = chain["name"]
        found[name] = []
        based = (chain.get("hook"), chain.get("type"), chain.get("prio"), chain.get("policy"))
        unchanged &= based == ((name, "filter", PRIORITY, "accept") if name in hooks else (None,) * 4)
    for rule in (o["rule"] for o in listed if "rule" in o):
        comment = f' comment "{rule["comment"]}"' if "comment" in rule else ""
        found[rule["chain"]].append(" ".join(map(_text, rule["expr"])) + comment)
    return found, unchanged


def match(service: Service, side: str) -> str:
    """Packets to the service where `side` is "d", from it where it is "s"."""
    if service.address is None:
        place = f"fib {side}addr type local"
    else:
        place = f"{_FAMILIES[service.address.version]} {side}addr {service.address}"
    return f"{place} {service.protocol} {side}port {service.port}"


def within(network: Network, side: str) -> str:
    """Packets whose source ("s") or destination ("d") is in `network`."""
    if not network.prefixlen:  # nft(8) has no mask of no bits
        return f"meta nfproto ipv{network.version}"
    return f"{_FAMILIES[network.version]} {side}addr {address_text(network)}"


def _text(expression: dict[str, Any]) -> str:
    """An expression of libnftables-json(5) as this module writes it; of any other, what matches nothing here."""
    match expression:
        case {
            "match": {
                "op": "==",
                "left": {"payload": {"protocol": protocol, "field": field, **more}},
                "right": right,
            }
        } if not more:  # such as the tunnel in which it is
            return f"{protocol} {field} {_plain(right)}"
        case {
            "match": {"op": "==", "left": {"fib": {"result": "type", "flags": flags}}, "right": "local" | 2}
        }:
            return f"fib {flags if isinstance(flags, str) else ' . '.join(flags)} type local"
        case {
            "match": {
                "op": "==",
                "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, 4]},
                "right": 4,
            }
        }:
            return "tcp flags & rst == rst"
        case {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4" | 2}}:
            return "meta nfproto ipv4"
        case {"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv6" | 10}}:
            return "meta nfproto ipv6"
        case {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp" | 6}}:
            return "meta l4proto tcp"
        case {"counter": {"packets": _}}:
            return "counter"
        case {"drop": None}:
            return "drop"
        case {"accept": None}:
            return "accept"
        case {"return": None}:
            return "return"
        case {"jump": {"target": chain}}:
            return f"jump {chain}"
        case {"reject": {"type": "tcp reset"}}:
            return "reject with tcp reset"
    return repr(expression)


def _plain(value: Any) -> str:
    """An address or a network as Python writes it, any other value as it is."""
    try:
        match value:
            case {"prefix": {"addr": address, "len": int(length)}}:
                return f"{ip_address(address)}/{length}"
        return str(value if isinstance(value, int) else ip_address(value))
    except ValueError:
        return repr(value)
