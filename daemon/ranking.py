"""What comes first: the priority of an incident, and its rank, by which people should look at incidents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..detectors.finding import Finding

if TYPE_CHECKING:
    from .incidents import Incident

PRIORITIES = ("critical", "high", "medium", "low", "info")
CRITICALITY = {"critical": 1.25, "high": 1.1, "normal": 1.0}
PRIVILEGED = frozenset({"root"})
RANKS = ("compromise", "privileged or critical", "campaign", "background")
"""The order in which people should look at incidents: `rank` counts from 1."""
SCANNING = frozenset({"port_scan", "host_sweep"})
ACCOUNT_KINDS = frozenset({"distributed_brute_force", "new_access", "impossible_travel", "mfa_fatigue"})
MOST_AIMED_AT = 3
"""An incident that names more users than this aims at none of them: every list of names has root in it."""


def priority_of(severity: int, confidence: float, criticality: float = 1.0) -> str:
    """One of PRIORITIES from the harm (0 to 100), how sure it is (0 to 1) and what it is aimed at."""
    score = severity * confidence * criticality
    for name, least in zip(PRIORITIES, (80, 60, 36, 15), strict=False):
        if score >= least:
            return name
    return "info"


def rank(incident: Incident) -> int:
    """Which of RANKS an incident is of, from 1; within one, the graver priority comes first, then the newest.

    A compromise is an account that somebody else seems to use. What is aimed at few users, a privileged one
    among them, or at a critical endpoint comes next, once it is more than noise; a login by such a user that is
    unlike those before, or an attack on that very account, at any priority but info. Of the rest, what is at
    medium priority or above and no mere scanning is a campaign.
    """
    now = PRIORITIES.index(incident.priority)
    active, noticed = now <= PRIORITIES.index("medium"), now < PRIORITIES.index("info")
    if active and any(map(taken, incident.findings.values())):
        return 1
    critical = incident.criticality >= CRITICALITY["critical"]
    for f in incident.findings.values():
        if (active or (noticed and f.kind in ACCOUNT_KINDS)) and aims_at(f, incident.privileged):
            return 2
    if active and critical:
        return 2
    return 3 if active and incident.lead.kind not in SCANNING else 4


def taken(finding: Finding) -> bool:
    """Whether a finding says that somebody else got into an account: a prompt that was let through is one, too."""
    return finding.kind == "account_compromise" or (
        finding.kind == "mfa_fatigue" and "successes" in finding.figures
    )


def aims_at(finding: Finding, users: frozenset[str]) -> bool:
    """Whether a finding is about few users, and one of these is among them."""
    if finding.entity_type == "user":
        return finding.entity in users
    distinct = finding.figures.get("distinct_users")
    many = max(distinct if isinstance(distinct, int) else 0, len(finding.users))
    return many <= MOST_AIMED_AT and not users.isdisjoint(finding.users)


def sort_key(incident: Incident) -> tuple[int, int, int, str]:
    """Sorts incidents into the order in which people should look at them."""
    return rank(incident), PRIORITIES.index(incident.priority), -incident.end_ns, incident.id
