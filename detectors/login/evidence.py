"""How the login detectors put a campaign of one source into words and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ...daemon.events import I64, U8, Bool
from ..campaigns import Followed, Record
from ..finding import Finding, Kind

DOOR = 1 << 20
"""Sources that are remembered after a single failure, until they fail again or a million others have."""
NO_SLIP = 5
"""Failures of a user at a place that is new for that user, from which on a success is that of no slip."""
SHARED = 2
"""Users who log in from a source from which on it is shared."""


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


def goes_on(counts: I64, limits: Sequence[I64]) -> Bool:
    """Whether a campaign whose windows are an hour and less, and last a day, is still that of its beginning: a
    threshold is still reached, and that of the day not by what was hours ago alone.
    """
    _, lately = shortest_over(counts[:, :-1], limits[:-1])
    today, hour = counts[:, -1], counts[:, -2]
    steady: Bool = (today >= limits[-1]) & ((hour * 24 >= today) | (today <= 24))
    return lately | steady


def spread(followed: Followed, rows: I64, n: int) -> Followed:
    """What was said of some `rows` of n attempts, for all of them: of the others, that they belong to nothing."""
    columns = {}
    for field in fields(followed):
        of_rows = getattr(followed, field.name)
        columns[field.name] = np.zeros(n, of_rows.dtype)
        columns[field.name][rows] = of_rows
    return Followed(**columns)


def source_finding(
    detector: str,
    kind: Kind,
    record: Record,
    story: dict[str, Any],
    *,
    severity: int,
    technique: str,
) -> Finding:
    """The finding of a campaign whose entity is its source; `story` as `Attempts.story_of` and `news` give it.

    A source from which several users log in is neither blockable nor refusable: that is for a person to decide. Nor
    is a job.
    """
    entity, credit = story["entity"], max(story["credit"], story["credit_now"])
    stale, job = story["at_home"] and record.distinct == 1, story["job"]
    baseline, clear = story["baseline"], credit < SHARED and not (stale or job)
    if job:
        baseline += "; one user, at a fixed period or with a refused key alone: a job that nobody looks after"
    elif stale:
        baseline += ", this user among them: a stale saved password looks the same"
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
        confidence=0.4 if stale or job else 0.75 if credit else 0.9,
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
        baseline=baseline,
        techniques=(technique,),
        lines=record.lines,
        samples=story["samples"],
        trigger_line=record.trigger_line,
        provenance=record.provenance,
        blockable=(entity,) if record.blockable and clear else (),
        refusable=(entity,) if record.refusable and clear else (),
    )
