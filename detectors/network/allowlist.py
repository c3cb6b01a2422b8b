"""Off-allowlist traffic: flows whose far end nobody has allowed, in either direction."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...daemon.events import U8, U16, U64, Bool, Direction, FlowBatch, FlowState, Provenance
from ..addressing import NetworkKeys, join_keys
from ..campaigns import Campaigns, Record, marks
from ..finding import EntityType, Finding, Kind, finding_id
from ..standing import Standing
from ..tables import NS_PER_DAY, FlowGrowth
from .addresses import end_text, on_link, pack_ends, protocol_number, unpack_end

_LARGE_UPLOAD = 1_000_000
MOST_ANSWERED = 65_536
"""Of how many flows that nobody allowed it is remembered that they were answered; the oldest is forgotten first."""


def _said(rule: AllowRule) -> str:
    ports = ", ".join(str(p) if isinstance(p, int) else f"{p[0]}-{p[1]}" for p in rule.ports)
    return f"{' '.join(rule.protocols) or 'any protocol'}, {f'port {ports}' if ports else 'any port'}"


@dataclass(frozen=True, slots=True)
class AllowRule:
    """Far networks that may be spoken with. An empty tuple of ports or protocols allows any.

    A port is a number or a pair (first, last).
    """

    networks: tuple[str, ...]
    ports: tuple[int | tuple[int, int], ...] = ()
    protocols: tuple[str, ...] = ()


class AllowTable:
    """Rules compiled to arrays. Raises ValueError naming a network, port or protocol that is none."""

    def __init__(self, rules: Sequence[AllowRule]) -> None:
        self._rules = [_compiled(rule) for rule in rules]

    def allows(self, address: U64, family: U8, port: U16, protocol: U8) -> Bool:
        """Whether any rule allows the far end `address` (`uint64[n, 2]`) at `port`, as bool[n]."""
        allowed: Bool = np.zeros(len(family), np.bool_)
        for networks, ports, protocols in self._rules:
            open_ = np.flatnonzero(~allowed)
            open_ = open_[protocols[protocol[open_]] & ports[port[open_]]]
            if not len(open_):
                continue
            of, (high, low) = family[open_], address.take(open_, axis=0).T
            hit: Bool = np.zeros(len(open_), np.bool_)
            for version, mask_high, mask_low, net_high, net_low in networks:
                hit |= (of == version) & (low & mask_low == net_low) & (high & mask_high == net_high)
            allowed[open_] = hit
        return allowed

    def naming(self, family: int, high: int, low: int) -> list[int]:
        """The rules by number whose networks hold the address, whatever their ports and protocols."""
        return [
            number
            for number, (networks, _, _) in enumerate(self._rules)
            if any(
                version == family and high & int(mask_high) == net_high and low & int(mask_low) == net_low
                for version, mask_high, mask_low, net_high, net_low in networks
            )
        ]


def _compiled(
    rule: AllowRule,
) -> tuple[list[tuple[int, np.uint64, np.uint64, np.uint64, np.uint64]], Bool, Bool]:
    networks = []
    for text in rule.networks:
        network = ipaddress.ip_network(text, strict=False)
        numbers = int(network.netmask), int(network.network_address)
        mask_high, mask_low, net_high, net_low = (
            np.uint64(half) for number in numbers for half in (number >> 64, number & (2**64 - 1))
        )
        networks.append((int(network.version), mask_high, mask_low, net_high, net_low))
    ports: Bool = np.full(65536, not rule.ports, np.bool_)
    for port in rule.ports:
        first, last = (port, port) if isinstance(port, int) else port
        if not 0 <= first <= last <= 65535:
            raise ValueError(f"{port!r} is no port or range of ports")
        ports[first : last + 1] = True
    protocols: Bool = np.full(256, not rule.protocols, np.bool_)
    for name in rule.protocols:
        protocols[protocol_number(name)] = True
    return networks, ports, protocols


class AllowList:
    """Flows of one direction whose far end is on no rule: the source of an ingress, the destination of an egress.

    One finding for each far end, port and protocol. Connections to us that were never completed are gathered
    by the endpoint that they went to instead: a forger can invent any number of sources. Campaigns end after
    a day without such flows. Bytes of a flow are counted once, however often it appears. A far end that no router
    passes on (link-local, or multicast on the link) is no matter of an allow-list.

    Parameters: `direction`, `rules`, `hash_key`.
    """

    partition_key: ClassVar[EntityType] = "destination"

    def __init__(self, direction: Direction, rules: Sequence[AllowRule], hash_key: bytes) -> None:
        self._direction = direction
        self._kind: Kind = (
            "off_allowlist_egress" if direction == Direction.EGRESS else "off_allowlist_ingress"
        )
        self.name = f"allowlist_{direction.name.lower()}"
        self._rules = tuple(rules)
        self._table = AllowTable(rules)
        self._networks = NetworkKeys(hash_key)
        self._addresses = NetworkKeys(hash_key, prefix6=128)
        self._growth = FlowGrowth()
        self._answered: OrderedDict[int, None] = OrderedDict()
        self._campaigns = Campaigns(NS_PER_DAY, capacity=8192)

    def update(self, batch: FlowBatch, /) -> list[Finding]:
        egress = self._direction == Direction.EGRESS
        rows = np.flatnonzero(batch.direction == self._direction)
        far = batch.destination if egress else batch.source
        port, protocol, family = batch.destination_port[rows], batch.protocol[rows], batch.family[rows]
        end = far.take(rows, axis=0)
        rows = rows[~(self._table.allows(end, family, port, protocol) | on_link(end, family))]
        if not len(rows):
            return []
        port, protocol, family = batch.destination_port[rows], batch.protocol[rows], batch.family[rows]
        state = batch.state[rows]
        time_ns = np.clip(batch.time_ns[rows], 10**17, 1 << 62)
        answered = (state == FlowState.ESTABLISHED) | (state == FlowState.CLOSED)
        answered |= (state == FlowState.OTHER) & (batch.bytes_in[rows] > 0)
        if not egress:
            answered &= self._taken(batch.flow[rows], answered & (state != FlowState.CLOSED), state)
        by_endpoint = ~answered & (not egress)
        near = batch.source if egress else batch.destination
        near, far = near.take(rows, axis=0), far.take(rows, axis=0)
        entity = np.where(by_endpoint[:, None], near, far)
        other = np.where(by_endpoint[:, None], far, near)
        service = (port.astype(np.uint64) << np.uint64(16)) | (protocol.astype(np.uint64) << np.uint64(1))
        grown = self._growth.update(
            join_keys(batch.flow[rows], by_endpoint.astype(np.uint64)),
            time_ns,
            batch.bytes_out[rows],
            batch.bytes_in[rows],
        )
        # A destination is named exactly; a source by the network that would be blocked.
        exact = by_endpoint | egress
        keys = np.where(exact, self._addresses.keys(entity, family), self._networks.keys(entity, family))
        text, spans = pack_ends(other, family, np.where(exact, batch.source_port[rows], port), protocol)
        # Inside a tunnel anybody makes up both sides.
        proven = answered & (protocol == 6) & (batch.provenance[rows] >= Provenance.KERNEL)
        followed = self._campaigns.update(
            join_keys(keys, service | by_endpoint.astype(np.uint64)),
            time_ns,
            np.ones(len(rows), np.bool_),
            marks(batch.frame[rows], batch.provenance[rows], proven, grown[:, 2]),
            self._networks.keys(other, family),
            spans,
            text,
            time_ns,
            np.ascontiguousarray(grown[:, :2]),
        )

        def story_of(at: int) -> dict[str, Any]:
            named = self._addresses if exact[at] else self._networks
            address = named.text(int(family[at]), *entity[at].tolist())
            return {
                "address": address,
                "port": int(port[at]),
                "protocol": int(protocol[at]),
                "by_endpoint": bool(by_endpoint[at]),
            }

        return [self._finding(*campaign) for campaign in self._campaigns.grown(followed, story_of)]

    def _taken(self, flows: U64, answered: Bool, state: U8) -> Bool:
        """Whether each flow was answered in this row or an earlier one. An opening that is reset closes as well, and
        whoever was named in a forged SYN resets the answer.
        """
        taken = answered.copy()
        at = np.flatnonzero(answered | (state == FlowState.CLOSED))
        for row, flow, now in zip(at.tolist(), flows[at].tolist(), answered[at].tolist(), strict=True):
            if now:
                self._answered[flow] = None
                self._answered.move_to_end(flow)
                if len(self._answered) > MOST_ANSWERED:
                    self._answered.popitem(last=False)
            else:
                taken[row] = flow in self._answered
        return taken

    def standing(self, family: int, high: int, low: int, now_ns: int) -> list[Standing]:
        """Which rules are for the address as far end of a flow; without one, any flow is raised."""
        way = "to" if self._direction == Direction.EGRESS else "from"
        end = np.array([[high, low]], np.uint64)
        if on_link(end, np.array([family], np.uint8))[0]:
            return [Standing(self.name, "of a scope that no router passes on: no matter of the allow-list")]
        found = [_said(self._rules[number]) for number in self._table.naming(family, high, low)]
        text = (
            f"rules allow flows {way} it: {'; '.join(found)}"
            if found
            else f"any flow {way} it would be raised"
        )
        return [Standing(self.name, text, figure=len(found), unit="rules")]

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        egress, by_endpoint = self._direction == Direction.EGRESS, story["by_endpoint"]
        address, port, protocol = story["address"], story["port"], story["protocol"]
        here = end_text(address, port, protocol)
        ends = [unpack_end(packed) for packed in record.items if packed]
        bytes_out, bytes_in = record.amounts
        first_port: dict[str, int] = {}
        if egress or by_endpoint:
            first_port = {"source_port": ends[0][1]} if ends and ends[0][1] else {}
            sources: tuple[str, ...] = tuple(sorted({end[0] for end in ends}))
            targets: tuple[str, ...] = (here,)
        else:
            sources, targets = (address,), tuple(sorted({end_text(*end) for end in ends}))
        upload = bytes_out >= _LARGE_UPLOAD and bytes_out > 4 * bytes_in
        if egress:
            techniques = ("T1071" if port in (53, 80, 443) else "T1571", *(("T1048",) if upload else ()))
            severity = 85 if upload else 70
        else:
            techniques = ("T1595",) if by_endpoint else ("T1133", "T1190")
            severity = 25 if by_endpoint else 65
        entity = here if egress or by_endpoint else address
        return Finding(
            id=finding_id(self.name, f"{here} {by_endpoint}", record.trigger_ns, record.trigger_line),
            detector=self.name,
            kind=self._kind,
            entity_type="destination" if egress else "endpoint" if by_endpoint else "source",
            entity=entity,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=severity,
            confidence=0.5 if by_endpoint else 0.95,
            sources=sources,
            targets=targets,
            figures={
                "connections": record.attempts,
                "bytes_out": bytes_out,
                "bytes_in": bytes_in,
                "port": port,
                **first_port,
                "sources" if egress or by_endpoint else "destinations": record.distinct,
            },
            threshold=f"any flow whose {'destination' if egress else 'source'} no rule allows",
            baseline="the allow-list of the site",
            techniques=techniques,
            lines=tuple(filter(None, record.lines)),  # a live flow has no frame
            provenance=record.provenance,
            blockable=(address,) if record.blockable and not egress and not by_endpoint else (),
        )

    def save(self) -> dict[str, Any]:
        answered = np.fromiter(self._answered, np.uint64, len(self._answered))
        return {"growth": self._growth.save(), "campaigns": self._campaigns.save(), "answered": answered}

    def load(self, state: dict[str, Any]) -> None:
        self._growth.load(state["growth"])
        self._campaigns.load(state["campaigns"])
        self._answered = OrderedDict.fromkeys(np.asarray(state.get("answered", ()), np.uint64).tolist())
