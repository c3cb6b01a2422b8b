"""Incidents: findings that belong together, with a priority and an explanation.

`Correlator` is a pure function of the findings that it is given, in their order: no clock, no input or output.
Findings join an incident by the keys of joining.py when the last finding that joined it was raised, or the campaign
that the new one follows ended, less than the gap before: neither depends on how events were divided into batches.
An incident grows; its id comes from its first finding. What people and sinks see of it is masked (masking.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..detectors.finding import Finding, finding_id
from .documents import (
    action_document,
    finding_document,
    finding_from_state,
    finding_state,
    graded,
    shown_principals,
)
from .events import NS_PER_S, rfc3339
from .joining import MOST_JOINED_KEYS, join_keys, network_text
from .masking import BLIND, Mask
from .ranking import CRITICALITY, PRIORITIES, PRIVILEGED, RANKS, priority_of, rank, sort_key
from .titles import TITLES, title

__all__ = [
    "CRITICALITY",
    "DEFAULT_GAP_S",
    "MOST_FINDINGS",
    "MOST_OPEN",
    "PRIORITIES",
    "RANKS",
    "TITLES",
    "Change",
    "Correlator",
    "Incident",
    "action_document",
    "network_text",
    "priority_of",
    "rank",
    "sort_key",
]

DEFAULT_GAP_S = 86_400
MOST_FINDINGS = 64
"""The most findings that one incident holds; the first, the strongest and the newest stay."""
MOST_OPEN = 20_000
"""The most incidents that are held in memory."""
MOST_GONE = 65_536
"""Of how many findings it is remembered that their incident went from memory."""
NO_COUNTS = frozenset({"threshold", "window_s", "port", "source_port", "credit_users"})
"""Figures that do not grow with the evidence."""
STRENGTH = {
    "account_compromise": 3,
    "impossible_travel": 2,
    "mfa_fatigue": 2,
    "credential_stuffing": 2,
    "distributed_brute_force": 2,
}
"""By kind, which findings stay when an incident has too many; 1 for all others. A finding's own severity may
grow, and when it is seen to depends on batches."""

SUCCESSIVE = frozenset({"brute_force", "password_spray", "distributed_brute_force", "credential_stuffing"})
"""Kinds of which one entity has one campaign at a time."""


class Told(NamedTuple):
    """What the sinks heard of an incident with its last revision."""

    kind: str = ""
    priority: str = ""
    findings: int = 0
    blockable: int = 0
    weight: int = 0


NOTHING_TOLD = Told()
GROWTH = 4
"""By what factor the evidence must grow for news while an attack goes on; the last figures are told when it rests."""


@dataclass(slots=True)
class Incident:
    """One incident and all that explains it. `revision` counts what was told to the sinks."""

    id: str
    findings: dict[str, Finding] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    criticality: float = 1.0
    revision: int = 0
    told: Told = NOTHING_TOLD
    pauses: int = 0  # how often it was told because it had come to rest
    closed: bool = False  # by a person: it may grow, but what is new begins an incident of its own
    first: str = ""  # the finding that began it
    factors: dict[str, float] = field(default_factory=dict)  # of CRITICALITY, of findings where it is above 1
    privileged: frozenset[str] = PRIVILEGED
    mask: Mask = field(default=BLIND, compare=False, repr=False)

    @property
    def lead(self) -> Finding:
        """The finding that names the incident: the gravest, then the surest, then the first."""
        if len(self.findings) == 1:  # as most have, and this is asked often
            return next(iter(self.findings.values()))
        return max(self.findings.values(), key=lambda f: (f.severity, f.confidence, -f.time_ns, f.id))

    @property
    def start_ns(self) -> int:
        return min(f.start_ns for f in self.findings.values())

    @property
    def end_ns(self) -> int:
        return max(f.end_ns for f in self.findings.values())

    @property
    def raised_ns(self) -> int:
        """When the newest of its findings was raised."""
        return max(f.time_ns for f in self.findings.values())

    def ended_before(self, finding: Finding) -> int:
        """When the last campaign ended that the finding's own follows, 0 = it follows none.

        One of the same source, account or site has ended for good when the next begins: unlike other ends, this
        one no longer depends on batches.
        """
        if finding.kind not in SUCCESSIVE:
            return 0
        same = (
            f.end_ns
            for f in self.findings.values()
            if (f.detector, f.kind, f.entity) == (finding.detector, finding.kind, finding.entity)
            and f.time_ns < finding.time_ns
        )
        return max(same, default=0)

    @property
    def priority(self) -> str:
        lead = self.lead
        return priority_of(lead.severity, lead.confidence, self.criticality)

    def reached(self) -> dict[str, int]:
        """When it first had each priority up to its present one or a graver one, in event time.

        That is when the finding was raised that made it so, or became what it is (`graded_ns`).
        """
        found: dict[str, int] = {}
        severity, confidence, factor = 0, 0.0, 1.0
        for f in sorted(self.findings.values(), key=lambda f: (graded(f), f.id)):
            severity, confidence = max((severity, confidence), (f.severity, f.confidence))
            factor = max(factor, self.factors.get(f.id, 1.0))
            now = PRIORITIES.index(priority_of(severity, confidence, factor))
            for priority in reversed(PRIORITIES[now:]):
                found.setdefault(priority, graded(f))
        now = PRIORITIES.index(self.priority)
        for priority in PRIORITIES[now:]:  # by what was aimed at in a finding that it no longer holds
            found.setdefault(priority, max(found.values()))
        return {priority: found[priority] for priority in reversed(PRIORITIES[now:])}

    @property
    def weight(self) -> int:
        """How much evidence there is: the largest count among the figures of each finding, added up."""
        return sum(
            max((v for k, v in f.figures.items() if isinstance(v, int) and k not in NO_COUNTS), default=1)
            for f in self.findings.values()
        )

    def together(self, name: str) -> list[str]:
        """What the findings list under `sources`, `users`, `targets`, `blockable` and the like, each once."""
        return sorted({text for f in self.findings.values() for text in getattr(f, name)})

    def refusable(self) -> list[str]:
        """The sources that only the authorisation endpoint can keep out."""
        blockable = set(self.together("blockable"))
        return [source for source in self.together("refusable") if source not in blockable]

    def accused(self) -> int:
        """How many sources and users there are to block."""
        return len(self.together("blockable") + self.refusable() + self.together("blockable_users"))

    def title(self) -> str:
        lead = self.lead
        users = lead.users or (
            (lead.entity,) if lead.entity_type == "user" else tuple(self.together("users"))
        )
        targets = self.together("targets")
        return title(lead, self.together("sources"), self.mask.for_targets(targets).all(users), targets)

    def document(self) -> dict[str, Any]:
        """The incident as users and sinks see it; times in RFC 3339."""
        lead, reached, targets = self.lead, self.reached(), self.together("targets")
        raised_ns = min(f.time_ns for f in self.findings.values())
        said = {time_ns: rfc3339(time_ns) for time_ns in {raised_ns, *reached.values()}}
        return {
            "id": self.id,
            "revision": self.revision,
            "kind": lead.kind,
            "priority": self.priority,
            "severity": lead.severity,
            "confidence": round(lead.confidence, 3),
            "rank": rank(self),
            "title": self.title(),
            "start": rfc3339(self.start_ns),
            "end": rfc3339(self.end_ns),
            "raised": said[raised_ns],
            "priority_since": said[reached[self.priority]],
            "reached": {priority: said[time_ns] for priority, time_ns in reached.items()},
            "sources": self.together("sources"),
            "users": self.mask.for_targets(targets).all(self.together("users")),
            "targets": targets,
            "blockable": self.together("blockable"),
            "refusable": self.refusable(),
            "blockable_users": shown_principals(
                self.together("blockable_users"), self.mask.for_targets(targets)
            ),
            "techniques": self.together("techniques"),
            "findings": [
                finding_document(f, self.mask)
                for f in sorted(self.findings.values(), key=lambda f: (f.time_ns, f.id))
            ],
        }

    def state(self) -> dict[str, Any]:
        """What `from_state` needs to go on after a restart. It holds true names: no person and no sink sees it."""
        return {
            "id": self.id,
            "revision": self.revision,
            "criticality": self.criticality,
            "keys": sorted(self.keys),
            "told": list(self.told),
            "first": self.first,
            "factors": self.factors,
            "findings": [finding_state(f) for f in self.findings.values()],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], closed: bool = False) -> Incident:
        findings = [finding_from_state(f) for f in state["findings"]]
        return cls(
            id=state["id"],
            findings={f.id: f for f in findings},
            keys=set(state["keys"]),
            criticality=state["criticality"],
            revision=state["revision"],
            told=Told(*state["told"]),
            closed=closed,
            first=state.get("first", ""),
            factors=dict(state.get("factors", {})),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """An incident that findings changed. `telling` is whether the sinks hear of it as a new revision.

    `before` is what they had heard until then.
    """

    incident: Incident
    telling: bool
    new: bool
    before: Told

    def take_back(self) -> None:
        """The sinks do not hear of it after all: it could not be committed."""
        if self.telling:
            self.incident.revision -= 1
            self.incident.told = self.before


class Judgements(Protocol):
    """What a person said is benign."""

    def covers(self, finding: Finding, known: Incident | None) -> bool:
        """Whether the finding is benign: counted there, and no matter of an incident."""
        ...

    def made_from(self, incident: str) -> bool:
        """Whether the incident was closed as benign."""
        ...


class Correlator:
    """Findings in, changed incidents out.

    Parameters
    ----------
    gap_s : seconds of event time after which a new finding about the same source makes a new incident.
    most_open : how many incidents are held in memory; the one that was longest without a new finding goes first.
    criticality_of : the factor of CRITICALITY for the targets of a finding.
    recall : an incident that went from memory, by its id, so that it goes on where it was; None = there is none.
    privileged : users an attack on whom comes before others.

    Attributes
    ----------
    mask : what people and sinks see of names that look like passwords.
    benign : what a person said is benign; such findings are counted there and make no incident.
    """

    def __init__(
        self,
        gap_s: float = DEFAULT_GAP_S,
        criticality_of: Callable[[Iterable[str]], float] | None = None,
        most_open: int = MOST_OPEN,
        recall: Callable[[str], Incident | None] = lambda incident: None,
        privileged: Iterable[str] = PRIVILEGED,
    ) -> None:
        self._gap_ns = int(gap_s * NS_PER_S)
        self._criticality_of = criticality_of or (lambda targets: 1.0)
        self._open: dict[str, Incident] = {}
        self._by_finding: dict[str, str] = {}
        self._by_key: dict[str, str] = {}
        self._latest_ns = 0
        self._most_open = most_open
        self.recall = recall
        self._privileged = frozenset(privileged)
        self._gone: OrderedDict[str, str] = OrderedDict()
        self.mask = BLIND
        self.benign: Judgements | None = None

    @property
    def open_incidents(self) -> list[Incident]:
        return list(self._open.values())

    def incident(self, incident: str) -> Incident | None:
        """One that is in memory."""
        return self._open.get(incident)

    def restore(self, incidents: Iterable[Incident]) -> None:
        for incident in incidents:
            self._adopt(incident)
            self._latest_ns = max(self._latest_ns, incident.end_ns)

    def apply(self, findings: Iterable[Finding]) -> list[Change]:
        """Joins findings to incidents; each changed incident comes once, in the order of its first change."""
        changed: dict[str, tuple[Incident, bool]] = {}
        for finding in findings:
            self._latest_ns = max(self._latest_ns, finding.end_ns)
            known = self._known(finding)
            if self.benign is not None and self.benign.covers(finding, known):
                continue
            if known is not None and not (known.closed and self._outgrown(finding, known)):
                known.findings[finding.id] = finding
                self._weigh(known, finding)
                changed.setdefault(known.id, (known, False))
                continue
            incident, new = self._incident_for(finding)
            self._join(incident, finding)
            changed[incident.id] = (incident, new or changed.get(incident.id, (None, False))[1])
        return [self.tell(incident, new) for incident, new in changed.values()]

    def _known(self, finding: Finding) -> Incident | None:
        """The incident that holds an earlier form of the finding, brought back where it went from memory."""
        known = self._open.get(self._by_finding.get(finding.id, ""))
        if known is not None or finding.id not in self._gone:
            return known
        known = self.recall(self._gone.pop(finding.id))
        if known is not None:
            self._adopt(known)
        return known

    def _outgrown(self, finding: Finding, known: Incident) -> bool:
        """Whether a finding of an incident that was closed as benign has grown into what nobody said is benign."""
        return self.benign is not None and self.benign.made_from(known.id)

    def set_closed(self, incident: str, closed: bool) -> None:
        """After a person closed an incident, or took that back."""
        found = self._open.get(incident)
        if found is None or found.closed == closed:
            return
        found.closed = closed
        if closed:
            self._by_key = {k: i for k, i in self._by_key.items() if i != incident}
        else:
            self._by_key |= dict.fromkeys(found.keys, incident)

    def expire(self) -> list[Incident]:
        """Takes out of memory, and returns, what is quiet for twice the gap by event time, or too much."""
        quiet = [i for i in self._open.values() if i.end_ns + 2 * self._gap_ns < self._latest_ns]
        surplus = len(self._open) - len(quiet) - self._most_open
        if surplus > 0:
            gone = {i.id for i in quiet}
            rest = (i for i in self._open.values() if i.id not in gone)
            quiet += sorted(rest, key=lambda i: i.raised_ns)[:surplus]
        if quiet:
            for incident in quiet:
                del self._open[incident.id]
                self._gone |= dict.fromkeys(incident.findings, incident.id)
            while len(self._gone) > MOST_GONE:
                self._gone.popitem(last=False)
            self._by_finding = {f: i for f, i in self._by_finding.items() if i in self._open}
            self._by_key = {k: i for k, i in self._by_key.items() if i in self._open}
        return quiet

    def _incident_for(self, finding: Finding) -> tuple[Incident, bool]:
        for key in join_keys(finding).sought:
            incident = self._holder(key, finding)
            if incident is not None:
                return incident, False
        name = finding_id("incident", finding.entity, finding.id)
        former = self._open.get(name) or self.recall(name)
        if former is not None and former.closed and self._outgrown(finding, former):
            name = finding_id("incident", finding.entity, finding.id, "outgrown")
            former = self._open.get(name) or self.recall(name)
        if former is not None:
            self._adopt(former)
            return former, False
        incident = self._open[name] = Incident(name, first=finding.id)
        incident.mask, incident.privileged = self.mask, self._privileged
        return incident, True

    def _holder(self, key: str, finding: Finding) -> Incident | None:
        """The incident that a finding joins by a key: the last to be raised with it, not too long before."""
        incident = self._open.get(self._by_key.get(key, ""))
        if incident is None:
            return None
        last_ns = max(incident.raised_ns, incident.ended_before(finding))
        return incident if finding.time_ns - last_ns <= self._gap_ns else None

    def _join(self, incident: Incident, finding: Finding) -> None:
        left = [key for key in join_keys(finding).left if self._holder(key, finding) in (None, incident)]
        incident.findings[finding.id] = finding
        self._by_finding[finding.id] = incident.id
        self._weigh(incident, finding)
        if len(incident.findings) > MOST_FINDINGS:
            rest = [f for f in incident.findings.values() if f.id != incident.first]
            weakest = min(rest, key=lambda f: (STRENGTH.get(f.kind, 1), f.time_ns, f.id))
            del incident.findings[weakest.id]
            incident.factors.pop(weakest.id, None)
            self._by_finding.pop(weakest.id, None)
        for key in left:
            if len(incident.keys) < MOST_JOINED_KEYS:
                incident.keys.add(key)
                self._by_key[key] = incident.id

    def _weigh(self, incident: Incident, finding: Finding) -> None:
        factor = self._criticality_of(finding.targets)
        if factor > 1.0:
            incident.factors[finding.id] = factor
            incident.criticality = max(incident.criticality, factor)

    def _adopt(self, incident: Incident) -> None:
        incident.mask, incident.privileged = self.mask, self._privileged
        self._open[incident.id] = incident
        for finding in incident.findings:
            self._by_finding[finding] = incident.id
            self._gone.pop(finding, None)
        if incident.closed:
            return
        raised_ns = incident.raised_ns
        for key in incident.keys:
            holder = self._open.get(self._by_key.get(key, ""))
            if holder is None or holder.raised_ns <= raised_ns:
                self._by_key[key] = incident.id

    def tell(self, incident: Incident, new: bool = False, *, at_rest: bool = False) -> Change:
        """A new revision for a new incident, kind, priority, finding, blockable source or user, each time the evidence
        has grown fourfold, and `at_rest` for whatever it has grown by."""
        lead, blockable = incident.lead, incident.accused()
        now = Told(lead.kind, incident.priority, len(incident.findings), blockable, incident.weight)
        before = incident.told
        telling = at_rest or now[:4] != before[:4] or now.weight >= GROWTH * before.weight
        if telling:
            incident.revision += 1
            incident.told = now
        return Change(incident, telling, new, before)
