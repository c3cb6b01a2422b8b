"""Port scans and host sweeps: one source that asks for much and is given little."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...daemon.events import NS_PER_S, Direction, FlowBatch, FlowState, Provenance
from ..addressing import NetworkKeys, join_keys
from ..campaigns import Campaigns, Record, marks
from ..finding import EntityType, Finding, Kind, finding_id
from ..standing import Standing, counted
from ..tables import DistinctCounter
from .addresses import end_text, pack_ends, unpack_end


class PortScan:
    """Network service discovery (ATT&CK T1046): TCP targets without a completed handshake, less those with one.

    A source is raised at the `targets`-th distinct address and port within `window_s` (port_scan), or at the
    `targets`-th distinct address at one port (host_sweep). Connections that did not come in count once they
    are refused, or three times as many while unanswered: a client may open many at once. A SYN can be forged, and
    so can its refusal be had: a source is blockable only where `targets` distinct ones took its handshake within the
    window as well. A few prove that it is connected, and nothing of the scan: a forger names one that is.

    Parameters: `targets` (int, 20), `window_s` (int, 300), `sources` (int, 8192), `hash_key`.
    """

    name: ClassVar[str] = "port_scan"
    kinds: ClassVar[tuple[Kind, ...]] = ("port_scan", "host_sweep")
    partition_key: ClassVar[EntityType] = "source"

    def __init__(self, hash_key: bytes, targets: int = 20, window_s: int = 300, sources: int = 8192) -> None:
        self._targets, self._window_ns = targets, window_s * NS_PER_S
        self._networks, self._hosts = NetworkKeys(hash_key), NetworkKeys(hash_key, prefix6=128)
        window = (self._window_ns, self._window_ns)
        self._counter = DistinctCounter(sources, 4 * targets, window, alike=True)
        gap = 4 * self._window_ns
        self._scanning = Campaigns(gap, capacity=sources, records=1024)
        self._sweeping = Campaigns(gap, capacity=sources, records=1024)

    def update(self, batch: FlowBatch, /) -> list[Finding]:
        # What closes has been established before, or has been refused.
        told = (batch.state == FlowState.SYN) | (batch.state == FlowState.ESTABLISHED)
        rows = np.flatnonzero((batch.protocol == 6) & (told | (batch.state == FlowState.REFUSED)))
        if not len(rows):
            return []
        state, family, direction = batch.state[rows], batch.family[rows], batch.direction[rows]
        inbound = (direction == Direction.INGRESS) | (direction == Direction.UNKNOWN)
        to_us = direction == Direction.INGRESS
        time_ns = np.clip(batch.time_ns[rows], 10**17, 1 << 62)
        source = self._networks.keys(batch.source.take(rows, axis=0), family)
        host = self._hosts.keys(batch.destination.take(rows, axis=0), family)
        port = batch.destination_port[rows].astype(np.uint64)
        target = (host << np.uint64(16)) | port
        change = _CHANGE[inbound.view(np.uint8), state]
        counts = self._counter.update(source, target, time_ns, change)
        swept = counts[:, 3:]
        sweep = self._over(swept)
        # What is one port of many hosts is the sweep's; the scan is what remains.
        scan = self._over(counts[:, :2] - np.maximum(swept - 1, 0))
        tried = change != DistinctCounter.ADD_AGAINST
        found = []
        for kind, campaigns, most, over in (
            ("port_scan", self._scanning, counts[:, 0], scan),
            ("host_sweep", self._sweeping, swept[:, 0], sweep),
        ):
            at = np.flatnonzero(tried & (most > 1))
            if not len(at):
                continue
            key = source[at] if kind == "port_scan" else join_keys(source[at], port[at])
            chosen = rows[at]
            text, spans = pack_ends(
                batch.destination[chosen],
                batch.family[chosen],
                batch.destination_port[chosen],
                batch.protocol[chosen],
            )
            weight = (state[at] == FlowState.SYN).astype(np.int64)
            followed = campaigns.update(
                key,
                time_ns[at],
                over[at],
                marks(batch.frame[chosen], batch.provenance[chosen], to_us[at], weight),
                target[at],
                spans,
                text,
                time_ns[at] - self._window_ns,
                np.stack([counts[at, 2], counts[at, 2] >= self._targets], axis=1).astype(np.int64),
            )

            def story_of(row: int, kind: str = kind, chosen: Any = chosen) -> dict[str, Any]:
                flow = int(chosen[row])
                return {
                    "kind": kind,
                    "entity": self._networks.text(int(batch.family[flow]), *batch.source[flow].tolist()),
                    "port": int(batch.destination_port[flow]),
                }

            found += [self._finding(*campaign) for campaign in campaigns.grown(followed, story_of)]
        return found

    def standing(self, family: int, high: int, low: int, now_ns: int) -> list[Standing]:
        """How near the source is to being raised, for a scan and for a sweep of the port that it tried most."""
        source = self._networks.key(family, high, low)
        total, by_port = self._counter.counts(source, now_ns)
        port, swept = max(by_port.items(), key=lambda group: self._nearness(group[1]), default=(0, [0, 0]))
        key = join_keys(np.array([source]), np.array([port], np.uint64))[0]
        found = []
        for what, raised, counts in (
            ("targets", self._scanning.attempts(source, now_ns), total),
            (f"addresses at port {port}" if by_port else "addresses at one port",
             self._sweeping.attempts(key, now_ns), swept),
        ):  # fmt: skip
            if raised is not None:
                text = f"raised, with {raised} connections tried at {what}"
                found.append(Standing(self.name, text, figure=raised, unit=what))
                continue
            hard, any_ = max(0, counts[1]), max(0, counts[0])
            figure = (hard, self._targets) if 3 * hard >= any_ else (any_, 3 * self._targets)
            unit = f"{what} {'without a completed handshake' if 3 * hard >= any_ else 'that did not answer'}"
            found += counted(self.name, unit, [(self._window_ns // NS_PER_S, *figure)])
        return found

    def _nearness(self, counts: list[int]) -> int:
        """In thirds of a target; at the threshold it is three times as many as the targets."""
        return max(3 * counts[1], counts[0])

    def _over(self, counts: Any) -> Any:
        return (counts[:, 1] >= self._targets) | (counts[:, 0] >= 3 * self._targets)

    def _finding(self, record: Record, story: dict[str, Any]) -> Finding:
        kind, entity, port = story["kind"], story["entity"], story["port"]
        sweep = kind == "host_sweep"
        ends = [unpack_end(packed) for packed in record.items if packed]
        what = f"addresses at port {port}" if sweep else "targets"
        proven = record.provenance >= Provenance.KERNEL  # inside a tunnel anybody makes up both sides
        return Finding(
            id=finding_id(kind, f"{entity} {port if sweep else ''}", record.trigger_ns, record.trigger_line),
            detector=self.name,
            kind=kind,
            entity_type="source",
            entity=entity,
            time_ns=record.trigger_ns,
            start_ns=record.start_ns,
            end_ns=record.end_ns,
            severity=40,
            confidence=0.85,
            sources=(entity,),
            targets=tuple(sorted(end_text(*end) for end in ends)),
            figures={
                "connections": record.attempts,
                "distinct_targets": record.distinct,
                "completed": int(record.amounts[0] > 0),
                **({"port": port} if sweep else {}),
            },
            threshold=f"{self._targets} {what} in {self._window_ns // NS_PER_S} s without a completed handshake",
            baseline="clients complete nearly every handshake that they begin",
            techniques=("T1046",),
            lines=tuple(filter(None, record.lines)),  # a live flow has no frame
            provenance=record.provenance,
            blockable=(entity,) if record.blockable and record.amounts[1] and proven else (),
        )

    def save(self) -> dict[str, Any]:
        return {
            "counter": self._counter.save(),
            "scanning": self._scanning.save(),
            "sweeping": self._sweeping.save(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self._counter.load(state["counter"])
        self._scanning.load(state["scanning"])
        self._sweeping.load(state["sweeping"])


def _changes() -> NDArray[np.int8]:
    """What a row does to its target's standing, by whether it came in and by its state."""
    changes: NDArray[np.int8] = np.zeros((2, len(FlowState)), np.int8)
    changes[0, FlowState.SYN] = DistinctCounter.ADD_LESSER
    changes[1, FlowState.SYN] = DistinctCounter.ADD_UNLESS_AGAINST
    changes[:, FlowState.REFUSED] = DistinctCounter.ADD
    changes[:, FlowState.ESTABLISHED] = DistinctCounter.ADD_AGAINST
    return changes


_CHANGE = _changes()
