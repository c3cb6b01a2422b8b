"""The circuit breaker's incident: blocks were stopped because of whom they would hit, and a person is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..detectors.finding import MOST_LISTED, Finding, finding_id
from ..playbooks.decisions import Decision
from .events import NS_PER_S, Provenance

HOUR_NS = 3600 * NS_PER_S


def tripped(trips: Sequence[tuple[Mapping[str, Any], Decision]], now_ns: int) -> Finding:
    """One finding for what was stopped within an hour; who is to be blocked stands as targets, nobody as a source."""
    hour_ns = now_ns - now_ns % HOUR_NS
    names = tuple(dict.fromkeys(decision.target for _, decision in trips))[:MOST_LISTED]
    incidents = list(dict.fromkeys(str(incident.get("id")) for incident, _ in trips))
    return Finding(
        id=finding_id("circuit_breaker", "response", hour_ns),
        detector="circuit_breaker",
        kind="circuit_breaker",
        entity_type="site",
        entity="response",
        time_ns=now_ns,
        start_ns=now_ns,
        end_ns=now_ns,
        severity=95,
        confidence=1.0,
        targets=names,
        figures={"blocks_stopped": len(trips), "incidents": ", ".join(incidents[:8])},
        threshold=trips[-1][1].tripped,
        baseline="gatewatch approvals list shows each block that waits, and whom it hits",
        provenance=int(Provenance.DECLARED),
    )
