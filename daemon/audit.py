"""Entries of the enforcer's journal as documents for the sinks.

Each has the number and the seal of the entry, so that whoever holds the documents can tell whether the journal was
changed later. Total: an entry of any shape gives a document, since the journal may be of another version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from .events import rfc3339

SEVERITIES = {"critical": 90, "high": 70, "medium": 45, "low": 25, "info": 5}
"""The severity (0 to 100) of a document by its priority: what `incidents.priority_of` makes of a sure finding."""
PRIORITIES = {
    "kill": "high",
    "release": "high",
    "restrict": "high",
    "lift": "high",
    "adjust": "info",
    "cut": "info",
    "refusals": "high",
    "block": "info",
    "unblock": "info",
    "block_user": "info",
    "unblock_user": "info",
    "import": "info",
    "start": "info",
    "stop": "info",
    "rails": "info",
    "proof": "info",  # high where something is not proven
    "damaged": "critical",
}
"""By what was done; anything else (healed, asked for, agreed to, granted, denied, expired, signed, torn) is medium."""
BUSY_RAILS = ("most_new_per_minute", "most_blocks", "most_users", "most_waiting")
"""Limits that the analyser itself reaches in a large attack. Every other refusal of its requests is a sign that
somebody else speaks with its rights."""
WORDS = {
    "block": "blocked",
    "unblock": "unblocked",
    "block_user": "blocked",
    "unblock_user": "unblocked",
    "import": "blocks imported",
    "kill": "kill switch engaged for",
    "grow": "kill switch follows new addresses of",
    "release": "kill switch released for",
    "restrict": "restricted to its allowed networks:",
    "adjust": "the restriction follows new addresses of",
    "lift": "restriction lifted from",
    "cut": "connections ended of",
    "healed": "mended what others had changed in the kernel",
    "proof": "kill switch tried from outside:",
    "ask": "approval asked for:",
    "agree": "approval agreed to by one person, needs another:",
    "grant": "approval granted:",
    "deny": "approval denied:",
    "expired": "nobody answered in time, approval expired:",
    "signed": "signed command taken",
    "refusals": "more requests refused",
    "torn": "the last line of the enforcer's journal was torn, and cut off",
    "damaged": "the enforcer's journal was damaged",
    "rails": "the enforcer's rails were read",
    "start": "the enforcer started",
    "stop": "the enforcer stopped",
}
ANSWERS = frozenset({"agree", "grant", "deny", "expired"})
"""Entries that name a request by its id."""
MOST_LISTED = 32
MOST_TEXT = 500
FIELDS_OF_THEIR_OWN = frozenset(
    {
        "seq", "wall", "boot", "boot_id", "do", "by", "reason", "why", "rail", "address", "endpoints", "asked",
        "user", "kind", "what", "request",
    }
)  # fmt: skip
"""What has a place in the document; other fields are listed under `what`."""


def document(
    key: str,
    time_ns: int,
    sequence: int,
    head: str,
    *,
    action: str,
    title: str,
    priority: str,
    outcome: str = "done",
    by: str = "",
    reason: str = "",
    rail: str = "",
    target: str = "",
    what: list[str] | None = None,
) -> dict[str, Any]:
    """The form that all of them have."""
    return {
        "event": "audit",
        "id": key,
        "time": rfc3339(time_ns),
        "priority": priority,
        "severity": SEVERITIES[priority],
        "title": title,
        "action": action,
        "outcome": outcome,
        "by": by,
        "reason": reason,
        "rail": rail,
        "target": target,
        "what": what or [],
        "sequence": sequence,
        "head": head,
    }


def entry_document(entry: Mapping[str, Any], sequence: int, head: str) -> dict[str, Any]:
    """What the sinks get of one entry; `head` is the journal's seal after it."""
    do = text(entry.get("do"))
    given = entry.get("asked")
    asked: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    by, rail = text(entry.get("by")), text(entry.get("rail"))
    reason = text(entry.get("why") or entry.get("reason") or asked.get("reason"))
    action = text(asked.get("request")) or "request" if do == "refused" else do
    target = _target(entry) or _target(asked)
    if do in ANSWERS:
        target = text(entry.get("id"))
    priority = PRIORITIES.get(do, "medium")
    if do == "refused" and by == "analyser" and rail not in BUSY_RAILS:
        priority = "high"
    if do == "proof" and entry.get("not_proven"):
        priority = "high"
    wall = entry.get("wall")
    return document(
        key_of(sequence, head),
        wall if whole(wall) else time.time_ns(),
        sequence,
        head,
        action=action,
        title=_title(do, action, text(asked.get("request")), target, by, reason, rail),
        priority=priority,
        outcome="refused" if do in ("refused", "refusals") else "done",
        by=by,
        reason=reason,
        rail=rail,
        target=target,
        what=_what(entry, asked if do == "refused" else {**asked, "for": asked.get("request")}),
    )


def key_of(sequence: int, head: str) -> str:
    """The stable name of an entry: another journal gives another name to the same number."""
    return f"enforcer-{sequence}-{head[:12]}"


def _title(do: str, action: str, asked: str, target: str, by: str, reason: str, rail: str) -> str:
    if do == "refused":
        said = f"refused: {action} {target}"
    else:
        said = f"{WORDS.get(do, do)} {asked} {target}" if asked else f"{WORDS.get(do, do)} {target}"
    said = said.rstrip() + (f" by {by}" if by else "") + (f": {reason}" if reason else "")
    return f"{said} (rail {rail})" if rail else said


def _target(of: Mapping[str, Any]) -> str:
    """An address, a user, or the names of endpoints."""
    if of.get("address"):
        return text(of["address"])
    if of.get("user"):
        return text(f"{text(of.get('kind') or 'any')}:{text(of['user'])}")
    endpoints = of.get("endpoints")
    names = list(endpoints)[:MOST_LISTED] if isinstance(endpoints, Mapping | list) else []
    return text(", ".join(map(str, names)))


def _what(entry: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What was mended, in words; and the fields that have no place of their own."""
    given = entry.get("what")
    said = [text(w) for w in given] if isinstance(given, list) else [text(given)] if given else []
    for name, value in {**asked, **entry}.items():
        if name in FIELDS_OF_THEIR_OWN or value in ("", None, [], {}):
            continue
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            said += [f"{text(name)}: {text(v)}" for v in value[:MOST_LISTED]]
        else:
            said.append(f"{text(name)}: {len(value) if isinstance(value, Mapping | list) else text(value)}")
    return said[:MOST_LISTED]


def text(value: Any) -> str:
    """Attackers may have had a part in it; whoever shows it makes control characters harmless."""
    said = "" if value is None else str(value)[:MOST_TEXT]
    return said.encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character


def whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Counted:
    """Refusals that are told as a count: how many, of whom, and between which entries they are."""

    first: int
    last: int
    head: str
    since_ns: int
    count: int = 0
    priority: str = "medium"
    of: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Counted:
        """What `dataclasses.asdict` made. Raises KeyError, TypeError, ValueError, AttributeError."""
        numbers = {name: int(note[name]) for name in ("first", "last", "since_ns", "count")}
        priority = note["priority"] if note["priority"] in SEVERITIES else "high"
        of = {str(who): int(count) for who, count in note["of"].items()}
        return cls(head=str(note["head"]), priority=priority, of=of, **numbers)

    def with_more(self, refused: Mapping[str, Any], count: int) -> Counted:
        """`refused`: the document of one entry, which stands for so many refusals."""
        who = f"{refused['by'] or 'unknown'}, rail {refused['rail'] or 'unknown'}"
        if who not in self.of and len(self.of) >= MOST_LISTED - 1:
            who = "others"
        return replace(
            self,
            last=refused["sequence"],
            head=refused["head"],
            count=self.count + count,
            priority=max(self.priority, refused["priority"], key=lambda p: SEVERITIES[p]),
            of=self.of | {who: self.of.get(who, 0) + count},
        )

    def document(self, now_ns: int) -> dict[str, Any]:
        return document(
            f"{key_of(self.last, self.head)}-more",
            now_ns,
            self.last,
            self.head,
            action="refusals",
            title=f"the enforcer refused {self.count} more requests, too many to tell each",
            priority=self.priority,
            outcome="refused",
            reason=f"its journal has them between entries {self.first} and {self.last}, as far as it wrote them",
            what=[f"{who}: {count}" for who, count in self.of.items()],
        ) | {"count": self.count}
