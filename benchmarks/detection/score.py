"""Compares what a detector claims with the labels.

A claim is what one finding, or one ban of a peer, says: since when, what kind, which sources, which users,
at which priority. It belongs to an episode when it was raised between the episode's first attempt and an
hour after its last (`GRACE`); an earlier or later one does not count, whomever it names. An episode is
caught when a claim of a fitting kind (kinds.py), at medium priority or above (low where kinds.py says so),
names the right entity:

- `source`: the one source of the episode.
- `network`: sources or networks that together cover at least half of the attempts made until then.
- `account`: the user that is guessed (sources that are named must include one that takes part); or at least
  half of the participating sources.
- `site`: at least eight participants (half, where that is fewer) in one claim; or half of them over many
  claims.
- `entry`: the user who was taken over, not before the login itself and within an hour after it; a source
  that it names must be hostile. A peer's ban counts here when it names the source of the login, before or
  after it: it would have stopped it.
- `prompts`: the user who is asked for the second factor.

A claim that names sources of which fewer than four in five are hostile catches nothing (`PURE`): accusing
everybody is no detection. Networks wider than an IPv4 /24 or an IPv6 /48 catch nothing either.

Accused is a legitimate source that a claim at medium or above names, alone or within a network, unless it
takes part in an episode that runs then (an office with an attacker in it), and a user of whom such a claim
says that somebody else acted in their name (`ACCUSES_USER`) when nobody did. Background noise is neither:
it is no episode, so catching it earns nothing, and nobody's friend, so naming it accuses nobody. Incidents
that name noise alone are counted by themselves, since an analyst has to read them; on a benign-only log
there should be none above low.

Where the source of an earlier episode attacks again and the finding that was rightly raised then goes on into
the later episode, that one is caught from its start: it is one incident that grows.

An event is a failed attempt, at its `Failed` line; a detector that acts on PAM's line before it needs one
fewer. Labels of the log's own resolution are compared, so that with traditional times events of the same
second count.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from .kinds import ACCUSES_USER, KINDS
from .labels import GRACE_US, Labels, microseconds

PRIORITIES = ("info", "low", "medium", "high", "critical")
MEDIUM = PRIORITIES.index("medium")
PURE = 0.8
ENOUGH = 8
Z95 = 1.959964


class Claim(NamedTuple):
    """One thing that a detector says. `incident` is what an analyst reads as one."""

    incident: str
    raised_us: int
    kind: str
    priority: int
    sources: tuple[str, ...]
    users: tuple[str, ...]
    blockable: tuple[str, ...] = ()
    until_us: int = 0  # the last that it rests on: a campaign that goes on is the same finding, grown


@dataclass(slots=True)
class Caught:
    """What became of one episode."""

    id: str
    kind: str
    caught: bool = False
    exact: bool = False
    events: int | None = None
    seconds: float | None = None
    incidents: int = 0


@dataclass(slots=True)
class Score:
    """One log's result; `add` puts several together."""

    episodes: list[Caught] = field(default_factory=list)
    accused_sources: dict[str, str] = field(default_factory=dict)  # source or user: which claim, who it is
    accused_users: dict[str, str] = field(default_factory=dict)
    blockable: dict[str, str] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)  # by priority
    background: int = 0  # incidents at medium or above that name noise alone
    benign_logins: int = 0
    lines: int = 0

    def add(self, other: Score, name: str = "") -> None:
        self.episodes += other.episodes
        for mine, its in (
            (self.accused_sources, other.accused_sources),
            (self.accused_users, other.accused_users),
            (self.blockable, other.blockable),
        ):
            mine |= {f"{name} {key}".strip(): value for key, value in its.items()}
        for priority, number in other.incidents.items():
            self.incidents[priority] = self.incidents.get(priority, 0) + number
        self.background += other.background
        self.benign_logins += other.benign_logins
        self.lines += other.lines

    @property
    def clean(self) -> bool:
        """Everything caught, nobody accused."""
        return all(e.caught for e in self.episodes) and not self.accused_sources and not self.accused_users

    def per_million(self) -> float:
        accused = len(self.accused_sources) + len(self.accused_users)
        return accused * 1e6 / max(self.benign_logins, 1)


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 22, 1927)."""
    if of == 0:
        return 0.0, 1.0
    share, z2 = hits / of, Z95 * Z95
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z95 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def gatewatch_claims(incidents: Iterable[Mapping[str, Any]]) -> list[Claim]:
    """The findings of `gatewatch replay --json`, each at the priority that its incident has in the end, and since
    it had reached medium; one that was raised before that is a claim of its own, at the priority of that time.
    """
    claims = []
    for incident in incidents:
        priority = PRIORITIES.index(incident["priority"])
        reached = {PRIORITIES.index(name): microseconds(time) for name, time in incident["reached"].items()}
        for finding in incident["findings"]:
            sources, users = list(finding["sources"]), list(finding["users"])
            if finding["entity_type"] == "source":
                sources.append(finding["entity"])
            elif finding["entity_type"] == "user":
                users.append(finding["entity"])
            raised = microseconds(finding["time"])
            claim = Claim(
                incident["id"],
                raised,
                finding["kind"],
                priority,
                tuple(dict.fromkeys(sources)),
                tuple(dict.fromkeys(users)),
                tuple(finding.get("blockable", ())),
                microseconds(finding["end"]),
            )
            since = max(raised, reached.get(MEDIUM, raised))
            if since > raised:
                then = max((n for n, at in reached.items() if at <= raised and n < MEDIUM), default=0)
                claims.append(claim._replace(priority=then))
            claims.append(claim._replace(raised_us=since))
    return claims


class _Seen(NamedTuple):
    claim: Claim
    covers: frozenset[str]
    pure: bool
    rightly: bool  # when it was raised, an episode ran from a source that it names


def score(labels: Iterable[Mapping[str, Any]], claims: Iterable[Claim]) -> Score:
    """One log's score."""
    known = Labels(labels)
    made = Score(benign_logins=known.site["benign_logins"], lines=known.site["lines"])
    seen = sorted((_see(known, claim) for claim in claims), key=lambda s: s.claim.raised_us)
    by_source: dict[str, list[int]] = defaultdict(list)
    by_user: dict[str, list[int]] = defaultdict(list)
    for at, one in enumerate(seen):
        for source in one.covers:
            by_source[source].append(at)
        for user in one.claim.users:
            by_user[user].append(at)
    for episode in known.episodes:
        if episode["attempts"]:
            about = {at for source in episode["sources"] for at in by_source.get(source, ())}
            about |= {at for user in episode["users"] for at in by_user.get(user, ())}
            made.episodes.append(_catch(episode, [seen[at] for at in sorted(about)]))
    _count_incidents(known, seen, made)
    return made


def _see(known: Labels, claim: Claim) -> _Seen:
    covers = frozenset(a for source in claim.sources for a in known.covered(source))
    hostile = sum(known.hostile(a, claim.raised_us) for a in covers)
    pure = hostile >= PURE * len(covers) and not any(map(known.wide, claim.sources))
    rightly = any(known.attacking(a, claim.raised_us) for a in covers)
    return _Seen(claim, covers, pure, rightly)


def _catch(episode: Mapping[str, Any], about: list[_Seen]) -> Caught:
    kind = KINDS[episode["kind"]]
    made = Caught(episode["id"], kind.name)
    start, until = episode["start_us"], episode["end_us"] + GRACE_US
    during = [s for s in about if start <= s.claim.raised_us <= until]
    if kind.rule == "source":
        during += [s for s in about if s.rightly and s.claim.raised_us < start <= s.claim.until_us]
    least = PRIORITIES.index(kind.least)
    participants, users = set(episode["sources"]), set(episode["users"])
    by_user = kind.rule in ("account", "entry", "prompts")
    named = [
        s for s in during
        if s.claim.priority >= MEDIUM
        and (s.covers & participants or (by_user and s.claim.kind in ACCUSES_USER and users & set(s.claim.users)))
    ]  # fmt: skip
    made.incidents = len({s.claim.incident for s in named})
    fitting = [
        s
        for s in during
        if s.pure and s.claim.priority >= least and _fits(kind.fits, kind.rule, s.claim.kind)
    ]
    first = _first(episode, kind.rule, fitting, participants, users)
    if first is None:
        return made
    made.caught = True
    made.exact = any(s.claim.kind == kind.exact for s in fitting)
    if kind.rule == "entry":
        made.events, made.seconds = 0, max(0.0, (first - microseconds(episode["compromise"]["time"])) / 1e6)
        made.events = sum(
            microseconds(episode["compromise"]["time"]) < t <= first for t in episode["times_us"]
        )
    else:
        made.events, made.seconds = max(1, bisect_right(episode["times_us"], first)), (first - start) / 1e6
    return made


def _fits(fits: frozenset[str], rule: str, kind: str) -> bool:
    return kind in fits or (kind == "ban" and rule in ("entry", "prompts"))


def _first(
    episode: Mapping[str, Any], rule: str, fitting: list[_Seen], participants: set[str], users: set[str]
) -> int | None:
    """When the claims had named what the rule asks for, in microseconds; None = never."""
    together: set[str] = set()
    few = min(ENOUGH, max(1, len(participants) // 2))
    for one in fitting:
        its, raised = one.covers & participants, one.claim.raised_us
        together |= its
        if rule == "source":
            if its:
                return max(raised, int(episode["start_us"]))
        elif rule == "network":
            made = [
                entry
                for entry, at in zip(episode["attempts"], episode["times_us"], strict=True)
                if at <= raised
            ]
            if its and sum(episode["sources"][e[2]] in together for e in made) * 2 >= max(len(made), 1):
                return raised
        elif rule == "account":
            if users & set(one.claim.users) and (its or not one.covers):
                return raised
        elif rule == "site":
            if len(its) >= few:
                return raised
        elif one.claim.kind == "ban":
            if rule != "entry" or episode["compromise"]["source"] in its:
                return raised if rule != "entry" else max(raised, microseconds(episode["compromise"]["time"]))
        elif users & set(one.claim.users) and (
            rule == "prompts" or raised >= microseconds(episode["compromise"]["time"])
        ):
            return raised
        if rule in ("account", "site") and its and len(together) * 2 >= len(participants):
            return raised
    return None


def _count_incidents(known: Labels, seen: list[_Seen], made: Score) -> None:
    priority: dict[str, int] = {}
    noise_alone: dict[str, bool] = {}
    for claim, covers, _, _ in seen:
        priority[claim.incident] = max(priority.get(claim.incident, 0), claim.priority)
        alone = bool(covers) and all(a in known.noise for a in covers) and claim.kind not in ACCUSES_USER
        noise_alone[claim.incident] = noise_alone.get(claim.incident, True) and alone
        if claim.priority < MEDIUM:
            continue
        for source in covers:
            why = known.legitimate.get(source)
            if why and not known.attacking(source, claim.raised_us):
                made.accused_sources.setdefault(source, f"{claim.kind} {claim.incident}; {why}")
        if claim.kind in ACCUSES_USER:
            for user in claim.users:
                if not any(a <= claim.raised_us <= b for a, b in known.accusable.get(user, ())):
                    made.accused_users.setdefault(user, f"{claim.kind} {claim.incident}")
        for source in claim.blockable:
            for address in known.covered(source):
                if address in known.legitimate:
                    made.blockable.setdefault(
                        address, f"{claim.kind} {claim.incident}; {known.legitimate[address]}"
                    )
    for number in priority.values():
        name = PRIORITIES[number]
        made.incidents[name] = made.incidents.get(name, 0) + 1
    made.background = sum(noise_alone[i] and p >= MEDIUM for i, p in priority.items())


@dataclass(slots=True)
class Row:
    """A kind's line in the table."""

    kind: str
    episodes: int
    caught: int
    exact: int
    interval: tuple[float, float]
    events: tuple[float, float] | None
    seconds: tuple[float, float] | None
    incidents: tuple[float, int]


def rows(made: Score) -> list[Row]:
    """By kind, in the order of kinds.py."""
    found = []
    for name in KINDS:
        mine = [e for e in made.episodes if e.kind == name]
        if not mine:
            continue
        caught = [e for e in mine if e.caught]
        events = [e.events for e in caught if e.events is not None]
        seconds = [e.seconds for e in caught if e.seconds is not None]
        raised = [e.incidents for e in caught]
        found.append(
            Row(
                name,
                len(mine),
                len(caught),
                sum(e.exact for e in caught),
                wilson(len(caught), len(mine)),
                (median(events), max(events)) if events else None,
                (median(seconds), max(seconds)) if seconds else None,
                (median(raised), max(raised)) if raised else (0, 0),
            )
        )
    return found
