"""Findings and actions as plain values: as they are kept, and as people and sinks see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..detectors.finding import MOST_LISTED, Finding
from .events import NS_PER_S, rfc3339
from .masking import BLIND, Mask, looks_like_password

TUPLES = (
    "sources", "users", "targets", "techniques", "lines", "samples", "blockable", "part_of", "blockable_users",
    "refusable",
)  # fmt: skip


def finding_state(finding: Finding) -> dict[str, Any]:
    """A finding as plain values (JSON)."""
    made = {name: getattr(finding, name) for name in Finding.__slots__}
    return made | {name: list(made[name]) for name in TUPLES}


def finding_from_state(state: Mapping[str, Any]) -> Finding:
    return Finding(**{**state, **{name: tuple(state.get(name, ())) for name in TUPLES}})


def finding_document(finding: Finding, mask: Mask = BLIND) -> dict[str, Any]:
    """A finding as users see it; times in RFC 3339, names that look like passwords masked.

    `participants` is there where more sources take part than are listed: how many, and a digest of them all where
    the detector keeps one.
    """
    mask = mask.for_targets(finding.targets)
    made = finding_state(finding)
    made["time"] = rfc3339(made.pop("time_ns"))
    made["start"] = rfc3339(made.pop("start_ns"))
    made["end"] = rfc3339(made.pop("end_ns"))
    made["graded"] = rfc3339(graded(finding)) if finding.graded_ns > finding.time_ns else made["time"]
    del made["graded_ns"]
    names = [*finding.users, *((finding.entity,) if finding.entity_type == "user" else ())]
    hidden = [name for name in names if looks_like_password(name) and mask.hides(name)]
    for place in ("entity", "baseline", "threshold"):
        made[place] = mask.text(made[place], hidden)
    made["blockable_users"] = shown_principals(finding.blockable_users, mask)
    made["users"] = mask.all(finding.users) if hidden else list(finding.users)
    made["samples"] = [mask.text(sample, hidden) for sample in finding.samples]
    made["figures"] = {
        k: mask.text(v, hidden) if isinstance(v, str) else v for k, v in sorted(finding.figures.items())
    }
    digest, count = made.pop("participants_digest") or None, finding.figures.get("distinct_sources", 0)
    if isinstance(count, int) and count > max(MOST_LISTED, len(finding.sources)):
        made["participants"] = {"count": count, "digest": digest}
    return made


def shown_principals(principals: Iterable[str], mask: Mask) -> list[str]:
    """Those whose name may be shown. The others are left out: a mask is nobody who could be blocked."""
    return [principal for principal in principals if not mask.hides(principal.partition(":")[2])]


def action_document(action: Mapping[str, Any]) -> dict[str, Any]:
    """An action as users and sinks see it; times in RFC 3339.

    `until`: when it ends or would have ended. `hits`: who lately succeeded and is hit by it; `approval`: the request
    that waits for a person; `where`, `hooks`: see docs/playbooks.md.
    """
    detail = action.get("detail") or {}
    made = {k: v for k, v in action.items() if k not in ("time_ns", "reason", "detail")}
    if action["ttl_s"] and action["state"] in ("done", "would"):
        made["until"] = rfc3339(action["time_ns"] + action["ttl_s"] * NS_PER_S)
    made |= {k: detail[k] for k in ("hits", "approval", "where", "hooks") if detail.get(k)}
    return made | {"time": rfc3339(action["time_ns"])}


def graded(finding: Finding) -> int:
    """When a finding became as grave as it is."""
    return max(finding.time_ns, finding.graded_ns)
