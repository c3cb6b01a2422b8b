"""The table `inet gatewatch_kill` and its two relatives: the drill, which counts, and the break-glass file.

A rule matches the ports of an endpoint and nothing else, in both directions, before connection tracking and
after it, on every interface and on loopback. What the kernel holds is read back and compared, rule by rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from .blocktable import PRIORITY
from .nft import Nft
from .rails import Service

KILL = "gatewatch_kill"
DRILL = "gatewatch_drill"
BREAK_GLASS = "gatewatch_break_glass"
HOOKS = ("prerouting", "input", "forward", "output")


class Held(NamedTuple):
    """A kill table as the kernel has it."""

    services: dict[str, frozenset[Service]]  # by endpoint: both directions are dropped
    hooked: bool  # every hook leads to the rules, and the table is awake
    rules: int


def render(table: str, endpoints: Mapping[str, tuple[Service, ...]]) -> str:
    """A table that drops everything to and from the services, replacing whatever stands under its name."""
    rules = "".join(
        f'{_match(s, side)} counter drop comment "{name}"\n'
        for name, services in endpoints.items()
        for s in services
        for side in ("d", "s")
    )
    return _table(table, f"chain endpoints {{\n{rules}}}\n", HOOKS) if rules else remove(table)


def render_drill(endpoints: Mapping[str, tuple[Service, ...]]) -> str:
    """A table that counts what a kill switch would drop, at the hooks that see every packet once."""
    names = list(endpoints)
    counters = "".join(f"counter e{i} {{ }}\n" for i in range(len(names)))
    rules = "".join(
        f'{_match(s, side)} counter name "e{i}"\n'
        for i, name in enumerate(names)
        for s in endpoints[name]
        for side in ("d", "s")
    )
    return _table(DRILL, f"{counters}chain endpoints {{\n{rules}}}\n", ("prerouting", "output"))


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
        "# Connections stall at once and end by their own time-outs; to end them at once: ss -K sport = :PORT\n"
        f"{render(BREAK_GLASS, endpoints)}"
    )


def held(nft: Nft, table: str) -> Held | None:
    """What the kernel has in `table`; None where there is none. A rule that is not ours counts for nothing."""
    listed = nft.table(table)
    if listed is None:
        return None
    awake = all("flags" not in o["table"] for o in listed if "table" in o)  # such as dormant
    hooks = {
        o["chain"]["name"]
        for o in listed
        if "chain" in o
        and o["chain"].get("hook") == o["chain"]["name"]
        and o["chain"].get("prio") == PRIORITY
        and o["chain"].get("type") == "filter"
    }
    seen: dict[tuple[str, Service], set[str]] = {}
    reached: set[str] = set()
    first: set[str] = set()
    rules = 0
    for rule in (o["rule"] for o in listed if "rule" in o):
        chain, expressions = rule["chain"], rule["expr"]
        if chain in HOOKS and chain not in first:
            first.add(chain)
            if expressions == [{"jump": {"target": "endpoints"}}]:
                reached.add(chain)
        elif chain == "endpoints":
            matched = _matched(expressions)
            if matched is None:
                awake = False  # something that we did not write may accept before our rules are reached
                continue
            rules += 1
            seen.setdefault((rule.get("comment", ""), matched[1]), set()).add(matched[0])
    services: dict[str, frozenset[Service]] = {}
    for (name, service), sides in seen.items():
        if sides == {"d", "s"}:
            services[name] = services.get(name, frozenset()) | {service}
    return Held(services, awake and hooks >= set(HOOKS) and reached == set(HOOKS), rules)


def counted(nft: Nft) -> list[int] | None:
    """Packets that the drill's counters have seen, in the order of its endpoints; None where there is no drill."""
    listed = nft.table(DRILL)
    if listed is None:
        return None
    counters = {o["counter"]["name"]: int(o["counter"]["packets"]) for o in listed if "counter" in o}
    return [counters[f"e{i}"] for i in range(len(counters))]


def _table(table: str, endpoints: str, hooks: tuple[str, ...]) -> str:
    bases = "".join(
        f"chain {h} {{\ntype filter hook {h} priority {PRIORITY}; policy accept;\njump endpoints\n}}\n"
        for h in hooks
    )
    return f"{remove(table)}table inet {table} {{\n{endpoints}{bases}}}\n"


def _match(service: Service, side: str) -> str:
    if service.address is None:
        place = f"fib {side}addr type local"
    else:
        place = f"{'ip' if service.address.version == 4 else 'ip6'} {side}addr {service.address}"
    return f"{place} {service.protocol} {side}port {service.port}"


def _matched(expressions: list[dict[str, Any]]) -> tuple[str, Service] | None:
    """(side, service) of a rule that this module wrote; None for any other (libnftables-json(5))."""
    try:
        place, port, counter, drop = expressions
        if "counter" not in counter or "drop" not in drop:
            return None
        place, port = place["match"], port["match"]
        if place["op"] != "==" or port["op"] != "==":
            return None
        protocol, field, number = (
            port["left"]["payload"]["protocol"],
            port["left"]["payload"]["field"],
            port["right"],
        )
        side = {"dport": "d", "sport": "s"}[field]
        fib = place["left"].get("fib")
        if fib is not None:
            if fib["result"] != "type" or fib["flags"] not in (f"{side}addr", [f"{side}addr"]):
                return None
            return (side, Service(None, number, protocol)) if place["right"] in ("local", 2) else None
        if place["left"]["payload"]["field"] != f"{side}addr":
            return None
        return side, Service(ip_address(place["right"]), number, protocol)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
