"""Decides what an incident deserves: playbooks and an incident in, decisions out.

It is a pure function: no clock, no file, no socket; what it must know of the past comes in with the context. It
never decides on a source that the incident does not call `blockable`, and whatever it decides is a request: the
enforcer and its rails have the last word.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..config.values import IPNetwork, duration_text
from .schema import PRIORITIES, Approval, BlockSource, KillSwitch, Notify, Playbook, Prefix, Step

NS_PER_S = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_S
JOURNAL = 2
"""`Provenance.JOURNAL` of `daemon/events.py`: from here on nobody but root can have written the evidence."""

MOST_TARGETS = 4096
"""The most sources of one incident that are looked at; the rest is skipped with one decision that says so."""

MOST_REASON = 400
"""Characters of a reason; the enforcer takes 500."""

State = Literal["act", "would", "wait", "skip"]


@dataclass(frozen=True, slots=True)
class DecisionContext:
    """What the engine must be told of now and of the past.

    `earlier_blocks`: how often a target was blocked before. `blocked`: whether it is blocked now, for at least as
    long as the number of seconds. `corroborated`: whether its connection was seen on the wire, or packets are not
    watched at all. `last_action`: when a playbook last did this action to this target. `acted_since`: how many
    actions a playbook took since then.
    """

    now_ns: int
    mode: Literal["observe", "enforce"]
    max_action_age_s: int = 600
    earlier_blocks: Callable[[str], int] = lambda target: 0
    blocked: Callable[[str, int], bool] = lambda target, ttl_s: False
    corroborated: Callable[[str], bool] = lambda source: True
    last_action: Callable[[str, str, str], int | None] = lambda playbook, action, target: None
    acted_since: Callable[[str, int], int] = lambda playbook, since_ns: 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One action on one target. `state`: act = do it now; would = it would be done in enforce mode; wait = a
    person must approve (`approval`), or, with approval none, the wire must corroborate; skip = it is not done.
    `reason` is why the playbook asks for it, `why` is why the state is what it is.
    """

    playbook: str
    action: Literal["block_source", "notify", "kill_switch"]
    target: str  # a network, an endpoint's name, or "sinks"
    ttl_s: int  # 0 = no time limit
    approval: Approval
    reason: str
    state: State
    why: str


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
        return _without_doubles(decisions)


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
        concerned = {*_texts(incident, "endpoints"), *_texts(incident, "targets")}
        if not concerned.intersection(when.endpoints):
            return f"it concerns none of the endpoints {', '.join(when.endpoints)}"
    return None


def _wanted(playbook: Playbook, incident: Mapping[str, Any], context: DecisionContext) -> list[Decision]:
    reason = _plain(f"{incident.get('title') or incident.get('kind')} (incident {incident.get('id')})")
    late = _too_late(incident, context)
    if playbook.when.repeats and not _repeated(playbook, incident, context):
        return []
    decisions: list[Decision] = []
    for step in playbook.then:
        match step:
            case Notify():
                decisions.append(
                    _decision(playbook, step, "sinks", 0, reason, "act", "telling changes nothing")
                )
            case KillSwitch():
                decisions.append(_kill(playbook, step, reason, late, context))
            case BlockSource():
                decisions += _blocks(playbook, step, incident, reason, late, context)
    return decisions


def _plain(text: str) -> str:
    """Text that an attacker may have had a part in, as the enforcer takes it: short, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:MOST_REASON])


def _repeated(playbook: Playbook, incident: Mapping[str, Any], context: DecisionContext) -> bool:
    """Whether any source was blocked as often before as the playbook asks."""
    prefix = next((step.prefix for step in playbook.then if isinstance(step, BlockSource)), Prefix())
    targets = {block_target(s, prefix) for s in _texts(incident, "sources")[:MOST_TARGETS]}
    return any(context.earlier_blocks(t) >= playbook.when.repeats for t in targets if t is not None)


def _kill(playbook: Playbook, step: KillSwitch, reason: str, late: str, context: DecisionContext) -> Decision:
    if late:
        return _decision(playbook, step, step.endpoint, 0, reason, "skip", late)
    if context.mode == "observe":
        return _decision(playbook, step, step.endpoint, 0, reason, "would", "observe mode: nothing is done")
    why = f"a kill switch needs the approval of {step.approval}"
    return _decision(playbook, step, step.endpoint, 0, reason, "wait", why)


def _blocks(
    playbook: Playbook,
    step: BlockSource,
    incident: Mapping[str, Any],
    reason: str,
    late: str,
    context: DecisionContext,
) -> list[Decision]:
    blockable = set(_texts(incident, "blockable"))
    decisions: list[Decision] = []
    seen: set[str] = set()
    for source in _texts(incident, "sources"):
        if len(seen) >= MOST_TARGETS:
            why = f"an incident blocks at most {MOST_TARGETS} sources"
            decisions.append(_decision(playbook, step, source, 0, reason, "skip", why))
            break
        if source not in blockable:
            why = "not blockable: it may be forged, a proxy, or shared with others"
            decisions.append(_decision(playbook, step, source, 0, reason, "skip", why))
            continue
        target = block_target(source, step.prefix)
        if target is None:
            why = f"wider than /{step.prefix.ipv4} (IPv4) or /{step.prefix.ipv6} (IPv6), or no address"
            decisions.append(_decision(playbook, step, source, 0, reason, "skip", why))
        elif target not in seen:
            seen.add(target)
            decision = _block(playbook, step, target, reason, late, context)
            if decision.state == "act" and _unproven(incident, source) and not context.corroborated(source):
                why = "the log could be forged: waits until the packet collector sees a handshake"
                decision = replace(decision, state="wait", why=why)
            decisions.append(decision)
    return decisions


def _block(
    playbook: Playbook, step: BlockSource, target: str, reason: str, late: str, context: DecisionContext
) -> Decision:
    earlier = max(0, context.earlier_blocks(target))
    ttl_s = grown(step, earlier)
    state: State
    if earlier < playbook.when.repeats:
        state, why = "skip", f"blocked {earlier} times before, not {playbook.when.repeats}"
    elif late:
        state, why = "skip", late
    elif context.blocked(target, ttl_s):
        state, why = "skip", "blocked already"
    elif step.approval != "none" and context.mode == "enforce":
        state, why = "wait", f"needs the approval of {step.approval}"
    elif context.mode == "observe":
        state, why = "would", "observe mode: nothing is done"
    else:
        times = f", as {earlier} blocks came before" if earlier and step.grow > 1 else ""
        state, why = "act", f"for {duration_text(ttl_s)}{times}"
    return _decision(playbook, step, target, ttl_s, reason, state, why)


def grown(step: BlockSource, earlier: int) -> int:
    """Seconds of a block after `earlier` blocks of the same target; never more than `longest`."""
    ttl = float(step.ttl)
    for _ in range(min(earlier, 1000)):
        if step.grow == 1 or ttl >= step.longest:
            break
        ttl *= step.grow
    return min(int(ttl), step.longest)


def block_target(source: str, prefix: Prefix) -> str | None:
    """The network to block for a source: an address stands for itself, anything longer is widened to `prefix`.

    None where the source is wider than `prefix` or is no address.
    """
    try:
        network: IPNetwork = ipaddress.ip_network(source, strict=False)
    except ValueError:
        return None
    length = prefix.ipv4 if network.version == 4 else prefix.ipv6
    if network.prefixlen < length:
        return None
    wider = network.supernet(new_prefix=length)
    return str(wider.network_address) if wider.num_addresses == 1 else str(wider)


def _unproven(incident: Mapping[str, Any], source: str) -> bool:
    """Whether all evidence against a source could have been written by somebody without root's rights."""
    findings = incident.get("findings")
    for finding in findings if isinstance(findings, list | tuple) else ():
        if isinstance(finding, Mapping) and source in _texts(finding, "blockable"):
            provenance = finding.get("provenance")
            if isinstance(provenance, int) and provenance >= JOURNAL:
                return False
    return True


def _texts(document: Mapping[str, Any], key: str) -> list[str]:
    """The texts that a document lists under `key`; nothing where there is no list."""
    value = document.get(key)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list | tuple) else []


def _too_late(incident: Mapping[str, Any], context: DecisionContext) -> str:
    end_ns = time_ns(str(incident.get("end")))
    if end_ns is None:
        return "the incident does not say when it ended"
    age_s = (context.now_ns - end_ns) // NS_PER_S
    if age_s <= context.max_action_age_s:
        return ""
    return f"its last event is {age_s} s old, more than {context.max_action_age_s} s"


def time_ns(text: str) -> int | None:
    """Nanoseconds since 1970 of an RFC 3339 time; None where `text` is none."""
    whole, dot, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or (dot and not (fraction.isascii() and fraction.isdecimal())):
        return None
    try:
        moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    except ValueError:
        return None
    return int(moment.timestamp()) * NS_PER_S + int(fraction[:9].ljust(9, "0") or "0")


def _decision(
    playbook: Playbook, step: Step, target: str, ttl_s: int, reason: str, state: State, why: str
) -> Decision:
    approval: Approval = "none" if isinstance(step, Notify) else step.approval
    return Decision(playbook.name, step.action, target, ttl_s, approval, reason, state, why)


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
