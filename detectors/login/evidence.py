"""How the login detectors put a campaign of one source into words and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...daemon.events import I64, U8, Bool
from ..campaigns import Record
from ..finding import Finding, Kind


def shortest_over(counts: I64, limits: Sequence[I64]) -> tuple[U8, Bool]:
    """For `counts` (`int64[n, scales]`) and a column of limits for each scale: the first scale whose limit is
    reached (0 where none is), and whether any is.
    """
    scale: U8 = np.zeros(len(counts), np.uint8)
    over: Bool = np.zeros(len(counts), np.bool_)
    for number in reversed(range(len(limits))):
        reached = counts[:, number] >= limits[number]
        scale[reached] = number
        over |= reached
    return scale, over


def source_finding(
    detector: str,
    kind: Kind,
    record: Record,
    story: dict[str, Any],
    *,
    severity: int,
    technique: str,
) -> Finding:
    """The finding of a campaign whose entity is its source; `story` as `Attempts.story_of` gives it."""
    entity, credit = story["entity"], story["credit"]
    stale = story["at_home"] and record.distinct == 1
    return Finding(
        id=story["id"],
        detector=detector,
        kind=kind,
        entity_type="source",
        entity=entity,
        time_ns=record.trigger_ns,
        start_ns=record.start_ns,
        end_ns=record.end_ns,
        severity=severity,
        confidence=0.4 if stale else 0.7 if credit else 0.9,
        sources=(entity,),
        users=record.names,
        targets=story["targets"],
        figures={
            "attempts": record.attempts,
            "distinct_users": record.distinct,
            "threshold": story["limit"],
            "window_s": story["window_s"],
            "credit_users": credit,
        },
        threshold=story["threshold"],
        baseline=story["baseline"]
        + (", this user among them: a stale saved password looks the same" if stale else ""),
        techniques=(technique,),
        lines=record.lines,
        samples=story["samples"],
        provenance=record.provenance,
        blockable=(entity,) if record.blockable else (),
    )
