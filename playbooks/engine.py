"""Decides what an incident deserves: playbooks and an incident in, decisions out.

It is a pure function: no clock, no file, no socket; what it must know of the past comes in with the context. It
never decides on a source that the incident does not call `blockable`, nor on a user against whom there is nothing but
failures, and whatever it decides is a request: the enforcer and its rails have the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..config.values import IPNetwork
from .actions.block_source import BlockSource, block_target
from .breaker import NOBODY
from .decisions import (
    JOURNAL,
    MOST_TARGETS,
    NS_PER_S,
    Approval,
    Case,
    Decision,
    DecisionContext,
    network_in,
    plain,
    texts,
    time_ns,
    too_late,
)
from .schema import PRIORITIES, Playbook, Prefix

__all__ = [
    "JOURNAL",
    "MOST_TARGETS",
    "Decision",
    "DecisionContext",
    "Engine",
    "block_target",
    "mismatch",
    "time_ns",
]

NS_PER_MINUTE = 60 * NS_PER_S


class Engine:
    """Playbooks, ready to decide. They are tried in the order of their names."""

    def __init__(self, playbooks: Iterable[Playbook]) -> None:
        self.playbooks = sorted((p for p in playbooks if p.enabled), key=lambda p: p.name)

    def decide(self, incident: Mapping[str, Any], context: DecisionContext) -> list[Decision]:
        """What every playbook that fits does about `incident` (the object that `replay --json` prints).

        A closed incident gets nothing. Raises nothing for missing fields: what is not there does not fit.
        """
        if incident.get("status") == "closed":
            return []
        decisions: list[Decision] = []
        for playbook in self.playbooks:
            if mismatch(playbook, incident) is None:
                decisions += _limited(playbook, _wanted(playbook, incident, context), context)
        return _broken(_without_doubles(decisions), incident, context)


def mismatch(playbook: Playbook, incident: Mapping[str, Any]) -> str | None:
    """Why a playbook is not for this incident; None where it is."""
    when = playbook.when
    kind, priority = str(incident.get("kind")), str(incident.get("priority"))
    if when.kinds and kind not in when.kinds:
        return f"kind {kind} is not among {', '.join(when.kinds)}"
    if priority not in PRIORITIES or PRIORITIES.index(priority) > PRIORITIES.index(when.priority):
        return f"priority {priority} is below {when.priority}"
    confidence = incident.get("confidence")
    if not isinstance(confidence, int | float) or not confidence >= when.confidence:
        return f"confidence {confidence} is below {when.confidence:g}"
    if when.endpoints:
        concerned = {*texts(incident, "endpoints"), *texts(incident, "targets")}
        if not concerned.intersection(when.endpoints):
            return f"it concerns none of the endpoints {', '.join(when.endpoints)}"
    return None


def _wanted(playbook: Playbook, incident: Mapping[str, Any], context: DecisionContext) -> list[Decision]:
    if playbook.when.repeats and not _repeated(playbook, incident, context):
        return []
    reason = plain(f"{incident.get('title') or incident.get('kind')} (incident {incident.get('id')})")
    case = Case(playbook, incident, context, reason, too_late(incident, context))
    return [decision for step in playbook.then for decision in step.decide(case)]


def _repeated(playbook: Playbook, incident: Mapping[str, Any], context: DecisionContext) -> bool:
    """Whether any source, or user that may be blocked, was blocked as often before as the playbook asks."""
    step = next((s for s in playbook.then if isinstance(s, BlockSource)), None)
    prefix = step.prefix if step is not None else Prefix()
    sources = (block_target(s, prefix) for s in texts(incident, "sources")[:MOST_TARGETS])
    targets = {t for t in sources if t is not None} | set(texts(incident, "blockable_users")[:MOST_TARGETS])
    return any(context.earlier_blocks(target) >= playbook.when.repeats for target in targets)


def _limited(playbook: Playbook, decisions: list[Decision], context: DecisionContext) -> list[Decision]:
    """Apply the playbook's cool-down and its limit to what would otherwise be done."""
    left = playbook.limits.per_minute - context.acted_since(playbook.name, context.now_ns - NS_PER_MINUTE)
    result: list[Decision] = []
    for decision in decisions:
        if decision.state == "skip":
            result.append(decision)
            continue
        last_ns = context.last_action(playbook.name, decision.action, decision.target)
        if last_ns is not None and 0 <= context.now_ns - last_ns < playbook.cooldown * NS_PER_S:
            why = f"done {(context.now_ns - last_ns) // NS_PER_S} s ago; cool-down is {playbook.cooldown} s"
            decision = replace(decision, state="skip", why=why)
        elif left <= 0:
            why = f"the limit of {playbook.limits.per_minute} actions a minute is reached"
            decision = replace(decision, state="skip", why=why)
        else:
            left -= 1
        result.append(decision)
    return result


def _without_doubles(decisions: list[Decision]) -> list[Decision]:
    """Where several playbooks want the same done to the same target, the longest (then the first) does it."""
    best: dict[tuple[str, str, str], Decision] = {}
    for decision in decisions:
        key = decision.action, decision.target, decision.state
        if key not in best or decision.ttl_s > best[key].ttl_s:
            best[key] = decision
    result = []
    for decision in decisions:
        winner = best[decision.action, decision.target, decision.state]
        if decision.state != "skip" and winner is not decision:
            why = f"playbook {winner.playbook} does it"
            decision = replace(decision, state="skip", why=why)
        result.append(decision)
    return result


def _broken(
    decisions: list[Decision], incident: Mapping[str, Any], context: DecisionContext
) -> list[Decision]:
    """Say of each block whom it hits; where that is too many together, a person is asked instead."""
    breaker = context.breaker
    if breaker is None:
        return decisions
    began = _Beginnings(incident, context.now_ns)
    result = []
    for decision in decisions:
        if decision.state == "skip" or decision.action not in ("block_source", "block_user"):
            result.append(decision)
            continue
        if decision.action == "block_user":
            hits = breaker.user(decision.target, began.of_user(decision.target))
        elif breaker.inside(decision.target):
            hits = breaker.source(decision.target, began.of_source(decision.target))
        else:
            hits = NOBODY
        decision = replace(decision, hits=hits.names, hit_count=hits.number)
        if hits.over and decision.state in ("act", "would"):
            approval: Approval = "one" if decision.approval == "none" else decision.approval
            decision = replace(decision, approval=approval, tripped=hits.over, why=f"asks first: {hits.over}")
            if decision.state == "act":
                decision = replace(decision, state="wait", why=hits.over)
        elif decision.state in ("act", "would"):
            breaker.take(hits)
        result.append(decision)
    return result


class _Beginnings:
    """When what an incident accuses somebody of began: who succeeded before then is a good client, or user.

    An incident may have begun hours before the source in question appeared in it.
    """

    def __init__(self, incident: Mapping[str, Any], now_ns: int) -> None:
        self._incident_ns = time_ns(str(incident.get("start"))) or now_ns
        findings = incident.get("findings")
        self._findings = [f for f in findings if isinstance(f, Mapping)] if isinstance(findings, list) else []
        self._since: dict[str, int] | None = None
        self._within: dict[tuple[int, int], dict[IPNetwork, int]] = {}

    def of_user(self, principal: str) -> int:
        return self._accused().get(principal, self._incident_ns)

    def of_source(self, target: str) -> int:
        """Of a network: the first of those who are accused within."""
        single, network = self._accused().get(target), network_in(target)
        if single is not None or network is None:
            return self._incident_ns if single is None else single
        place = network.version, network.prefixlen
        if place not in self._within:
            self._within[place] = self._by_network(*place)
        return self._within[place].get(network, self._incident_ns)

    def _by_network(self, version: int, length: int) -> dict[IPNetwork, int]:
        found: dict[IPNetwork, int] = {}
        for accused, since_ns in self._accused().items():
            network = network_in(accused)
            if network is not None and network.version == version and network.prefixlen >= length:
                wide = network.supernet(new_prefix=length)
                found[wide] = min(since_ns, found.get(wide, since_ns))
        return found

    def _accused(self) -> dict[str, int]:
        if self._since is None:
            self._since = {}
            for finding in self._findings:
                start_ns = time_ns(str(finding.get("start"))) or self._incident_ns
                for key in ("blockable", "refusable", "blockable_users"):
                    for accused in texts(finding, key):
                        self._since[accused] = min(start_ns, self._since.get(accused, start_ns))
        return self._since
