"""What a person closed as benign: exceptions, each for one detector, kind and entity, that expire.

An exception is as narrow as the finding that it was made from: the same users, or fewer, and for what is about
an account the same sources. It covers its own kind alone, so that one for guessing never hides that the guess was
right. What it covers is counted and makes no incident. What goes on beyond its end is an incident again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..detectors.finding import Finding, finding_id
from .events import NS_PER_S, rfc3339
from .incidents import Incident
from .joining import network_text
from .masking import Mask

DEFAULT_S = 30 * 86_400
LONGEST_S = 366 * 86_400
MOST_SEEN = 256
"""Of how many findings an exception remembers that it has counted them."""
MOST_EXCEPTIONS = 4096
_COUNTS = {"users": "distinct_users", "sources": "distinct_sources"}


@dataclass(slots=True)
class Benign:
    """One exception. `users` and `sources`: those that it is for; None = any, where more took part than were listed,
    or none is named."""

    id: str
    incident: str
    detector: str
    kind: str
    entity_type: str
    entity: str
    users: tuple[str, ...] | None
    sources: tuple[str, ...] | None
    created_ns: int
    expires_ns: int
    by: str
    note: str
    removed_ns: int = 0
    removed_by: str = ""
    suppressed: int = 0  # findings that it covered
    last_ns: int = 0  # the last event of these
    seen: tuple[str, ...] = ()

    def covers(self, finding: Finding) -> bool:
        """Whether all that the finding says lies within it. Its key (`key_of`) is known to be the same."""
        return (
            not self.removed_ns
            and max(finding.time_ns, finding.end_ns) < self.expires_ns
            and _within(_scope(finding, "users"), self.users)
            and _within(_scope(finding, "sources"), self.sources)
        )

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Benign:
        """Raises KeyError, TypeError, ValueError for a state of another version."""
        tuples = {
            n: None if state[n] is None else tuple(map(str, state[n])) for n in ("users", "sources", "seen")
        }
        return cls(**{**state, **tuples})

    def document(self, mask: Mask, now_ns: int) -> dict[str, Any]:
        """The exception as users and sinks see it; times in RFC 3339."""
        removed = {"removed": rfc3339(self.removed_ns), "removed_by": self.removed_by}
        return {
            "id": self.id,
            "incident": self.incident,
            "detector": self.detector,
            "kind": self.kind,
            "entity_type": self.entity_type,
            "entity": mask(self.entity) if self.entity_type == "user" else self.entity,
            "users": None if self.users is None else mask.all(self.users),
            "sources": None if self.sources is None else list(self.sources),
            "created": rfc3339(self.created_ns),
            "until": rfc3339(self.expires_ns),
            "state": "removed" if self.removed_ns else "expired" if self.expires_ns <= now_ns else "in force",
            "by": self.by,
            "note": self.note,
            "suppressed": self.suppressed,
            "last": rfc3339(self.last_ns) if self.last_ns else None,
            **(removed if self.removed_ns else {}),
        }


class BenignList:
    """The exceptions, by what they are for. It is told the time; what changed in it is for the caller to save."""

    def __init__(self, known: Iterable[Benign] = ()) -> None:
        self._all: dict[str, Benign] = {}
        self._by_key: dict[tuple[str, str, str], list[Benign]] = {}
        self._incidents: set[str] = set()
        self._changed: dict[str, Benign] = {}
        for exception in known:
            self._take(exception)

    def __len__(self) -> int:
        return len(self._all)

    def covers(self, finding: Finding, known: Incident | None) -> bool:
        """Whether an exception covers the finding, which it then counts, once for each."""
        for exception in self._by_key.get(key_of(finding), ()):
            if exception.covers(finding):
                exception.last_ns = max(exception.last_ns, finding.end_ns)
                if finding.id not in exception.seen:
                    exception.seen = (*exception.seen, finding.id)[-MOST_SEEN:]
                    exception.suppressed += 1
                    self._changed[exception.id] = exception
                return True
        return False

    def made_from(self, incident: str) -> bool:
        return incident in self._incidents

    def closing(self, incident: Incident, now_ns: int, lasting_s: int, by: str, note: str) -> list[Benign]:
        """The exceptions that closing an incident as benign makes; `add` puts them in force.

        Raises ValueError where there would be too many.
        """
        made: dict[tuple[str, str, str], Benign] = {}
        for finding in sorted(incident.findings.values(), key=lambda f: (f.time_ns, f.id)):
            key = key_of(finding)
            users, sources = _scope(finding, "users"), _scope(finding, "sources")
            earlier = made.get(key)
            if earlier is not None:
                users, sources = _either(earlier.users, users), _either(earlier.sources, sources)
            made[key] = Benign(
                id=finding_id("exception", incident.id, *key, now_ns),
                incident=incident.id,
                detector=finding.detector,
                kind=finding.kind,
                entity_type=finding.entity_type,
                entity=key[2],
                users=users,
                sources=sources,
                created_ns=now_ns,
                expires_ns=now_ns + lasting_s * NS_PER_S,
                by=by,
                note=note,
                seen=(*(earlier.seen if earlier else ()), finding.id)[-MOST_SEEN:],
            )
        if len(self._all) + len(made) > MOST_EXCEPTIONS:
            raise ValueError(f"there are {len(self._all)} exceptions, and {MOST_EXCEPTIONS} is the most")
        return list(made.values())

    def add(self, made: Iterable[Benign]) -> None:
        for exception in made:
            self._take(exception)

    def removing(self, exception: str, now_ns: int, by: str) -> Benign | None:
        """The exception as it is once it was removed; `add` puts that in force. None where there is none in force."""
        found = self._all.get(exception)
        if found is None or found.removed_ns:
            return None
        return replace(found, removed_ns=now_ns, removed_by=by)

    def forget(self, before_ns: int) -> None:
        """Those that ended before then."""
        kept = [e for e in self._all.values() if (e.removed_ns or e.expires_ns) >= before_ns]
        self._all, self._by_key, self._incidents = {}, {}, set()
        for exception in kept:
            self._take(exception)
        self._changed = {i: e for i, e in self._changed.items() if i in self._all}

    def changed(self) -> list[Benign]:
        """Those whose count has grown since `saved`."""
        return list(self._changed.values())

    def saved(self) -> None:
        self._changed.clear()

    def _take(self, exception: Benign) -> None:
        old = self._all.get(exception.id)
        self._all[exception.id] = exception
        self._changed.pop(exception.id, None)
        self._incidents.add(exception.incident)
        key = exception.detector, exception.kind, exception.entity
        same = [e for e in self._by_key.get(key, []) if e is not old]
        self._by_key[key] = [*same, exception]


def key_of(finding: Finding) -> tuple[str, str, str]:
    """What an exception is found by: detector, kind and entity."""
    entity = network_text(finding.entity) if finding.entity_type == "source" else finding.entity
    return finding.detector, finding.kind, entity


def _scope(finding: Finding, name: str) -> tuple[str, ...] | None:
    """The users, or the sources, that a finding is about; None where it does not list them all, or names none."""
    if name == "sources" and finding.entity_type == "source":
        return None  # the entity says it
    listed: tuple[str, ...] = getattr(finding, name)
    count = finding.figures.get(_COUNTS[name], 0)
    if not listed or (isinstance(count, int) and count > len(listed)):
        return None
    return tuple(sorted(map(network_text, listed))) if name == "sources" else listed


def _either(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if first is None or second is None else tuple(sorted({*first, *second}))


def _within(asked: tuple[str, ...] | None, allowed: tuple[str, ...] | None) -> bool:
    return allowed is None or (asked is not None and set(asked) <= set(allowed))
