"""Where published ports lead: the addresses and ports behind the fronts, by the kernel's own DNAT rules.

What NAT rules of nftables say in a form that can be read; connection tracking (`conntrack.py`) knows the rest
once a client has come by. A container that starts anew has another address, so this is asked again and again.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from ..rails import Address, Service
from .nft import Nft


def behind(nft: Nft, services: Iterable[Service], own: frozenset[Address]) -> dict[Service, set[Service]]:
    """For each of `services` that a DNAT rule leads elsewhere, where to. Raises EnforcerError."""
    wanted = list(services)
    found: dict[Service, set[Service]] = {}
    for rule in (o["rule"] for o in nft.ruleset() if "rule" in o):
        expressions = [e for e in rule.get("expr", ()) if isinstance(e, dict)]
        target = next((e["dnat"] for e in expressions if isinstance(e.get("dnat"), dict)), None)
        if target is None:
            continue
        protocol, ports, addresses = _matched(expressions)
        for service in wanted:
            if protocol not in ("", service.protocol) or (ports and service.port not in ports):
                continue
            place = {service.address} if service.address is not None else own
            if addresses and not (addresses & place):
                continue
            led = _target(target, service)
            if led is not None and led != service:
                found.setdefault(service, set()).add(led)
    return found


def _matched(expressions: list[dict[str, Any]]) -> tuple[str, set[int], set[Address]]:
    """Protocol, destination ports and destination addresses that a rule asks for; empty: any."""
    protocol, ports, addresses = "", set(), set()
    for match in (e["match"] for e in expressions if isinstance(e.get("match"), dict)):
        if match.get("op") not in ("==", "in"):
            continue
        payload = match["left"].get("payload") if isinstance(match.get("left"), dict) else None
        if not isinstance(payload, dict):
            continue
        values = _values(match.get("right"))
        if payload.get("field") == "dport":
            protocol = payload.get("protocol", "") if payload.get("protocol") in ("tcp", "udp") else protocol
            ports |= {v for v in values if type(v) is int}
        elif payload.get("field") == "daddr":
            addresses |= {a for a in map(_address, values) if a is not None}
    return protocol, ports, addresses


def _target(dnat: dict[str, Any], service: Service) -> Service | None:
    address, port = dnat.get("addr"), dnat.get("port", service.port)
    if isinstance(address, dict) and "map" in address:  # dnat to tcp dport map { 443 : 10.0.0.2 . 8443 }
        address = next((v for k, v in _pairs(address["map"].get("data")) if k == service.port), None)
        if isinstance(address, dict) and "concat" in address:
            address, port = (*address["concat"], port)[:2]
    led = _address(address)
    return Service(led, port, service.protocol) if led is not None and type(port) is int else None


def _values(right: Any) -> list[Any]:
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return list(right["set"])
    if isinstance(right, dict) and isinstance(right.get("range"), list):
        low, high = right["range"]
        return list(range(low, high + 1)) if type(low) is type(high) is int else []
    return [right]


def _pairs(data: Any) -> list[tuple[Any, Any]]:
    listed = data.get("set") if isinstance(data, dict) else data
    return [(p[0], p[1]) for p in listed if isinstance(p, list) and len(p) == 2] if listed else []


def _address(value: Any) -> Address | None:
    try:
        return ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return None
