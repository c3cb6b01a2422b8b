"""Incidents: findings that belong together, with a priority and an explanation.

`Correlator` is a pure function of the findings that it is given, in their order: no clock, no input or output.
Findings join an incident when they share a source network (or, for outgoing traffic, a destination) and the
last finding that joined it was raised less than the gap before: the moment at which a finding was raised does
not depend on how its events were divided into batches. An incident grows; its id comes from its first finding.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..detectors.finding import Finding, finding_id
from .events import NS_PER_S, rfc3339

PRIORITIES = ("critical", "high", "medium", "low", "info")
CRITICALITY = {"critical": 1.25, "high": 1.1, "normal": 1.0}
DEFAULT_GAP_S = 86_400
MOST_FINDINGS = 64
"""The most findings that one incident holds; the strongest and the newest stay."""

TITLES = {
    "brute_force": "Password guessing",
    "password_spray": "Password spraying",
    "distributed_brute_force": "Distributed guessing of one account",
    "credential_stuffing": "Credential stuffing",
    "account_compromise": "Account compromised: login succeeded after guessing",
    "mfa_fatigue": "Second factor asked for again and again",
    "off_allowlist_ingress": "Connection from outside the allow-list",
    "off_allowlist_egress": "Connection to an address off the allow-list",
    "port_scan": "Port scan",
    "host_sweep": "Host sweep",
}
MOST_OPEN = 20_000
"""The most incidents that are held in memory."""
NO_COUNTS = frozenset({"threshold", "window_s", "port", "source_port", "credit_users"})
"""Figures that do not grow with the evidence."""
MOST_JOINED_KEYS = 4096
"""The most join keys of one incident: a botnet's incident cannot grow without bound."""


def priority_of(severity: int, confidence: float, criticality: float = 1.0) -> str:
    """One of PRIORITIES from the harm (0 to 100), how sure it is (0 to 1) and what it is aimed at."""
    score = severity * confidence * criticality
    for name, least in zip(PRIORITIES, (80, 60, 36, 15), strict=False):
        if score >= least:
            return name
    return "info"


def join_keys(finding: Finding) -> list[str]:
    """What a finding can be joined by. Outgoing traffic is joined by where it goes: its source is ourselves."""
    keys = [f"{finding.entity_type} {finding.entity}"]
    if finding.entity_type != "destination":
        keys += [f"source {network_text(s)}" for s in finding.sources]
    return list(dict.fromkeys(keys))


def network_text(source: str) -> str:
    """The network by which sources are the same: an IPv4 address, an IPv6 /64."""
    try:
        network = ipaddress.ip_network(source, strict=False)
    except ValueError:
        return source
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen > 64:
        return str(network.supernet(new_prefix=64))
    return str(network) if network.num_addresses > 1 else str(network.network_address)


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

    @property
    def lead(self) -> Finding:
        """The finding that names the incident: the gravest, then the surest, then the first."""
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

    @property
    def priority(self) -> str:
        lead = self.lead
        return priority_of(lead.severity, lead.confidence, self.criticality)

    @property
    def weight(self) -> int:
        """How much evidence there is: the largest count among the figures of each finding, added up."""
        return sum(
            max((v for k, v in f.figures.items() if isinstance(v, int) and k not in NO_COUNTS), default=1)
            for f in self.findings.values()
        )

    def together(self, name: str) -> list[str]:
        """What the findings list under `sources`, `users`, `targets` or `blockable`, each once."""
        return sorted({text for f in self.findings.values() for text in getattr(f, name)})

    def title(self) -> str:
        lead = self.lead
        sources, users, targets = (self.together(n) for n in ("sources", "users", "targets"))
        what = TITLES.get(lead.kind, lead.kind.replace("_", " ").capitalize())
        parts = [what]
        if users and lead.kind == "account_compromise":
            parts.append(f"of {listed(lead.users or tuple(users))}")
        if sources:
            parts.append(f"from {listed(sources)}")
        many = lead.figures.get("distinct_targets")
        if many and lead.kind == "host_sweep":
            parts.append(f"at port {lead.figures.get('port')} of {many} addresses")
        elif many and lead.kind == "port_scan":
            hosts = {target.rpartition(":")[0] for target in lead.targets}
            parts.append(f"at {many} ports of {listed(sorted(hosts))}")
        elif targets:
            parts.append(
                f"to {listed(targets)}" if lead.entity_type == "destination" else f"at {listed(targets)}"
            )
        return " ".join(parts)

    def document(self) -> dict[str, Any]:
        """The incident as users and sinks see it; times in RFC 3339."""
        lead = self.lead
        return {
            "id": self.id,
            "revision": self.revision,
            "kind": lead.kind,
            "priority": self.priority,
            "severity": lead.severity,
            "confidence": round(lead.confidence, 3),
            "title": self.title(),
            "start": rfc3339(self.start_ns),
            "end": rfc3339(self.end_ns),
            "sources": self.together("sources"),
            "users": self.together("users"),
            "targets": self.together("targets"),
            "blockable": self.together("blockable"),
            "techniques": self.together("techniques"),
            "findings": [
                finding_document(f) for f in sorted(self.findings.values(), key=lambda f: (f.time_ns, f.id))
            ],
        }

    def state(self) -> dict[str, Any]:
        """What `from_state` needs to go on after a restart."""
        return {
            "id": self.id,
            "revision": self.revision,
            "criticality": self.criticality,
            "keys": sorted(self.keys),
            "told": list(self.told),
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
        )


def listed(names: Iterable[str], most: int = 2) -> str:
    """`a, b and 3 more`."""
    all_names = list(names)
    shown = ", ".join(all_names[:most])
    return shown if len(all_names) <= most else f"{shown} and {len(all_names) - most} more"


TUPLES = ("sources", "users", "targets", "techniques", "lines", "samples", "blockable")


def finding_state(finding: Finding) -> dict[str, Any]:
    """A finding as plain values (JSON)."""
    made = {name: getattr(finding, name) for name in Finding.__slots__}
    return made | {name: list(made[name]) for name in TUPLES}


def finding_from_state(state: Mapping[str, Any]) -> Finding:
    return Finding(**{**state, **{name: tuple(state[name]) for name in TUPLES}})


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding as users see it; times in RFC 3339."""
    made = finding_state(finding)
    made["time"] = rfc3339(made.pop("time_ns"))
    made["start"] = rfc3339(made.pop("start_ns"))
    made["end"] = rfc3339(made.pop("end_ns"))
    made["figures"] = dict(sorted(finding.figures.items()))
    return made


def action_document(action: Mapping[str, Any]) -> dict[str, Any]:
    """An action as users and sinks see it; times in RFC 3339."""
    made = {k: v for k, v in action.items() if k not in ("time_ns", "reason")}
    until = (
        {"until": rfc3339(action["time_ns"] + action["ttl_s"] * NS_PER_S)}
        if action["ttl_s"] and action["state"] == "done"
        else {}
    )
    return made | {"time": rfc3339(action["time_ns"])} | until


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


class Correlator:
    """Findings in, changed incidents out.

    Parameters
    ----------
    gap_s : seconds of event time after which a new finding about the same source makes a new incident.
    most_open : how many incidents are held in memory; the one that was longest without a new finding goes first.
    criticality_of : the factor of CRITICALITY for the targets of a finding.
    recall : an incident that went from memory, by its id, so that it goes on where it was; None = there is none.
    """

    def __init__(
        self,
        gap_s: float = DEFAULT_GAP_S,
        criticality_of: Callable[[Iterable[str]], float] | None = None,
        most_open: int = MOST_OPEN,
        recall: Callable[[str], Incident | None] = lambda incident: None,
    ) -> None:
        self._gap_ns = int(gap_s * NS_PER_S)
        self._criticality_of = criticality_of or (lambda targets: 1.0)
        self._open: dict[str, Incident] = {}
        self._by_finding: dict[str, str] = {}
        self._by_key: dict[str, str] = {}
        self._latest_ns = 0
        self._most_open = most_open
        self.recall = recall

    @property
    def open_incidents(self) -> list[Incident]:
        return list(self._open.values())

    def restore(self, incidents: Iterable[Incident]) -> None:
        for incident in incidents:
            self._adopt(incident)
            self._latest_ns = max(self._latest_ns, incident.end_ns)

    def apply(self, findings: Iterable[Finding]) -> list[Change]:
        """Joins findings to incidents; each changed incident comes once, in the order of its first change."""
        changed: dict[str, tuple[Incident, bool]] = {}
        for finding in findings:
            self._latest_ns = max(self._latest_ns, finding.end_ns)
            known = self._open.get(self._by_finding.get(finding.id, ""))
            if known is not None:
                known.findings[finding.id] = finding
                changed.setdefault(known.id, (known, False))
                continue
            incident, new = self._incident_for(finding)
            self._join(incident, finding)
            changed[incident.id] = (incident, new or changed.get(incident.id, (None, False))[1])
        return [self.tell(incident, new) for incident, new in changed.values()]

    def set_closed(self, incident: str, closed: bool) -> None:
        """After a person closed an incident, or took that back."""
        found = self._open.get(incident)
        if found is None or found.closed == closed:
            return
        found.closed = closed
        if closed:
            self._by_key = {k: i for k, i in self._by_key.items() if i != incident}
        else:
            self._adopt(found)

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
            self._by_finding = {f: i for f, i in self._by_finding.items() if i in self._open}
            self._by_key = {k: i for k, i in self._by_key.items() if i in self._open}
        return quiet

    def _incident_for(self, finding: Finding) -> tuple[Incident, bool]:
        for key in join_keys(finding):
            incident = self._open.get(self._by_key.get(key, ""))
            if incident is not None and finding.time_ns - incident.raised_ns <= self._gap_ns:
                return incident, False
        name = finding_id("incident", finding.entity, finding.id)
        former = self._open.get(name) or self.recall(name)
        if former is not None:
            self._adopt(former)
            return former, False
        incident = self._open[name] = Incident(name)
        return incident, True

    def _join(self, incident: Incident, finding: Finding) -> None:
        incident.findings[finding.id] = finding
        self._by_finding[finding.id] = incident.id
        if len(incident.findings) > MOST_FINDINGS:
            weakest = min(incident.findings.values(), key=lambda f: (f.severity, f.end_ns, f.id))
            del incident.findings[weakest.id]
            self._by_finding.pop(weakest.id, None)
        for key in join_keys(finding):
            if len(incident.keys) < MOST_JOINED_KEYS:
                incident.keys.add(key)
                self._by_key[key] = incident.id
        incident.criticality = max(incident.criticality, self._criticality_of(finding.targets))

    def _adopt(self, incident: Incident) -> None:
        self._open[incident.id] = incident
        for finding in incident.findings:
            self._by_finding[finding] = incident.id
        if not incident.closed:
            for key in incident.keys:
                self._by_key[key] = incident.id

    def tell(self, incident: Incident, new: bool = False, *, at_rest: bool = False) -> Change:
        """A new revision for a new incident, kind, priority, finding or blockable source, each time the evidence
        has grown fourfold, and `at_rest` for whatever it has grown by."""
        lead, blockable = incident.lead, len(incident.together("blockable"))
        now = Told(lead.kind, incident.priority, len(incident.findings), blockable, incident.weight)
        before = incident.told
        telling = at_rest or now[:4] != before[:4] or now.weight >= GROWTH * before.weight
        if telling:
            incident.revision += 1
            incident.told = now
        return Change(incident, telling, new, before)
