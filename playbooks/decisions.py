"""What a decision is, and what must be known to make one: the words that engine and actions share."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..config.values import IPNetwork

if TYPE_CHECKING:
    from .breaker import Breaker
    from .schema import Playbook

NS_PER_S = 1_000_000_000
JOURNAL = 2
"""`Provenance.JOURNAL` of `daemon/events.py`: from here on nobody but root can have written the evidence."""

MOST_TARGETS = 4096
"""The most sources or users of one incident that are looked at; the rest is skipped with one decision that says so."""

MOST_REASON = 400
"""Characters of a reason; the enforcer takes 500."""

State = Literal["act", "would", "wait", "skip"]
Approval = Literal["none", "one", "two"]
PEOPLE: dict[Approval, int] = {"none": 0, "one": 1, "two": 2}


def _nothing(*_: object) -> None:
    return None


def _zero(*_: object) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class DecisionContext:
    """What the engine must be told of now and of the past.

    `earlier_blocks`: how often a target was blocked before. `earlier_inside`: how many addresses of a network were.
    `blocked`: whether a target is blocked now, for at least as long as the number of seconds. `corroborated`: whether
    what is told of a source, against itself or the user `accused`, fits what was seen of it on the wire,
    or packets are not watched at all. `last_action`: when a playbook last
    did this action to this target. `acted_since`: how many actions a playbook took since then. `asn_networks`: the
    networks of the autonomous system that an address is in, None where no database knows. `breaker`: who of those
    that lately succeeded a block would hit; None = nobody is known.
    """

    now_ns: int
    mode: Literal["observe", "enforce"]
    max_action_age_s: int = 600
    earlier_blocks: Callable[[str], int] = _zero
    earlier_inside: Callable[[str], int] = _zero
    blocked: Callable[[str, int], bool] = lambda target, ttl_s: False
    corroborated: Callable[[str, str], bool] = lambda source, accused: True
    last_action: Callable[[str, str, str], int | None] = _nothing
    acted_since: Callable[[str, int], int] = _zero
    asn_networks: Callable[[str], Sequence[str] | None] = _nothing
    breaker: Breaker | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One action on one target. `state`: act = do it now; would = it would be done in enforce mode; wait = a
    person must approve (`approval`), or, with approval none, the wire must corroborate; skip = it is not done.
    `reason` is why the playbook asks for it, `why` is why the state is what it is. `hits`: the first of the
    `hit_count` who lately succeeded and would be hit. `detail`: what the action needs beside its target. `tripped`: the
    circuit breaker stopped it.
    """

    playbook: str
    action: str
    target: str  # a network, a principal, an endpoint's name, "sinks", ...
    ttl_s: int  # 0 = no time limit
    approval: Approval
    reason: str
    state: State
    why: str
    hits: tuple[str, ...] = ()
    hit_count: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    tripped: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One playbook that fits one incident. `late`: why nothing may be done any more, empty = it may."""

    playbook: Playbook
    incident: Mapping[str, Any]
    context: DecisionContext
    reason: str
    late: str

    @property
    def id(self) -> str:
        return str(self.incident.get("id", ""))

    def texts(self, key: str) -> list[str]:
        return texts(self.incident, key)

    def could_be_forged(self, named: str, key: str) -> bool:
        """Whether all that stands against a source or user could have been written by somebody without root's rights,
        and no source of it was seen on the wire. `key`: under which findings name whom they accuse.
        """
        sources = unproven(self.incident, named, key)
        if sources is None:
            return False
        if key == "blockable_users":
            return not any(self.context.corroborated(source, named) for source in sources)
        return not self.context.corroborated(named, named)

    def hits_nobody(self, network: str) -> bool:
        """Whether nobody who lately succeeded is in a network."""
        breaker = self.context.breaker
        return breaker is None or not breaker.inside(network)

    @staticmethod
    def waits_for_the_wire(state: State, approval: Approval) -> bool:
        """Whether an action must not rest on what could be forged, whatever the mode; people who are asked judge."""
        return approval == "none" and state in ("act", "would")

    def open_state(self, approval: Approval, doing: str) -> tuple[State, str]:
        """What becomes of an action against which nothing stands but time, mode and people."""
        if self.late:
            return "skip", self.late
        if self.context.mode == "observe":
            return "would", "observe mode: nothing is done"
        if approval != "none":
            return "wait", f"needs the approval of {approval}"
        return "act", doing


FORGEABLE = "the log could be forged: waits until the packet collector sees the connections that it tells of"


def texts(document: Mapping[str, Any], key: str) -> list[str]:
    """The texts that a document lists under `key`; nothing where there is no list."""
    value = document.get(key)
    return [text for text in value if isinstance(text, str)] if isinstance(value, list | tuple) else []


def unproven(incident: Mapping[str, Any], named: str, key: str) -> list[str] | None:
    """None where root's own record stands against `named`; else the sources of the evidence, which others may have
    written. `key`: under which findings name whom they accuse (`blockable`, `refusable`, `blockable_users`).
    """
    sources: list[str] = []
    findings = incident.get("findings")
    for finding in findings if isinstance(findings, list | tuple) else ():
        if isinstance(finding, Mapping) and named in texts(finding, key):
            provenance = finding.get("provenance")
            if isinstance(provenance, int) and provenance >= JOURNAL:
                return None
            sources += texts(finding, "sources")
    return sources


def single_or_network(network: IPNetwork) -> str:
    """A network as text; one that is a single address without its length."""
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def network_in(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def plain(text: str) -> str:
    """Text that an attacker may have had a part in, as the enforcer takes it: short, without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:MOST_REASON])


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


def too_late(incident: Mapping[str, Any], context: DecisionContext) -> str:
    """Why it is too late to act on an incident; empty where it is not."""
    end_ns = time_ns(str(incident.get("end")))
    if end_ns is None:
        return "the incident does not say when it ended"
    age_s = (context.now_ns - end_ns) // NS_PER_S
    if age_s <= context.max_action_age_s:
        return ""
    return f"its last event is {age_s} s old, more than {context.max_action_age_s} s"
