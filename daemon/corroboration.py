"""What the wire must have shown of a source before a log that others can write to gets it, or a user, blocked.

Whoever may call syslog(3), or send a datagram to a syslog server, writes lines about any address. A client that is
connected anyway proves nothing about such lines: what proves them is that it made as many connections as they need,
since they began, to the service that they are about. Everything here is pure; what was seen is `Detection`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..playbooks.decisions import texts, time_ns
from .events import NS_PER_S, Provenance, rfc3339

SHORTLY_NS = 120 * NS_PER_S
"""How long before its first failure a connection may have been opened: LoginGraceTime of sshd_config(5)."""

TRIES_A_CONNECTION = 6
"""MaxAuthTries of sshd_config(5): so many attempts one connection to sshd holds."""

REQUESTS_A_CONNECTION = 1000
"""keepalive_requests of nginx (ngx_http_core_module): so many requests one connection to it holds."""

MOST_REMEMBERED = 32
"""Of so many handshakes of one source it is remembered when they were and with which port; the oldest goes first."""

MOST_ASKED = 24
"""The most connections that are asked for: three quarters of what is remembered. Whoever has made so many since the
campaign began is believed to have made all, however many a log tells of.
"""

SSHD_NAMES = ("sshd", "sshd-session", "sshd-auth")
"""What OpenSSH calls its processes in a log; before 9.8 all of them `sshd`."""

ATTEMPTS = ("attempts", "denied_prompts", "jumps")
"""Figures that count what a log says a source tried; the first that a finding has is taken."""
ATTEMPTS_BEFORE = ("failures_before", "failures_from_there", "successes")
"""Figures of a finding about logins that succeeded, which are added up."""
SUCCEEDED = frozenset({"account_compromise", "new_access", "impossible_travel", "mfa_fatigue"})
"""Kinds that are about a login that succeeded: one then belongs to the attack."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered of one source, in no order.

    `handshakes`: completed ones as (time in ns, port that it was made to). `logins_ns`: when it logged in to sshd.
    `failures`: what logs say of its failures with sshd, as (time in ns, how many).
    """

    handshakes: Sequence[tuple[int, int]] = ()
    logins_ns: Sequence[int] = ()
    failures: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What one finding asks: connections for so many attempts, since then.

    `ssh`: sshd tells of the attempt by which the threshold was crossed; else another service does. `hits`: so many
    logins belong to the attack; each one more that succeeded since then accounts for a connection to sshd, which is
    then none of the attacker's.
    """

    attempts: int
    ssh: bool
    since_ns: int
    hits: int = 0
    tries: int = TRIES_A_CONNECTION

    def asks(self, seen: Seen) -> tuple[int, int]:
        """How many connections to sshd and to other services: of a campaign against both, logs tell how many of the
        attempts were sshd's.
        """
        of_sshd = sum(count for when_ns, count in seen.failures if when_ns >= self.since_ns)
        if self.ssh:
            return _with_losses(-(-min(self.attempts, of_sshd or self.attempts) // self.tries)), 0
        of_sshd = min(self.attempts, of_sshd)
        requests = max(1, self.attempts - of_sshd)
        return _with_losses(-(-of_sshd // self.tries)), _with_losses(-(-requests // REQUESTS_A_CONNECTION))

    def met_by(self, seen: Seen, ssh_ports: Collection[int]) -> bool:
        """Whether what was seen of a source is enough; `ssh_ports` are those where sshd listens."""
        ssh_asked, others_asked = self.asks(seen)
        lately = [port in ssh_ports for made_ns, port in seen.handshakes if made_ns >= self.since_ns]
        ssh = sum(lately)
        others = len(lately) - ssh
        ssh -= max(0, sum(login_ns >= self.since_ns for login_ns in seen.logins_ns) - self.hits)
        return ssh >= ssh_asked and others >= others_asked


@dataclass(frozen=True, slots=True)
class Needed:
    """What all findings ask that accuse a source, or a user from there: each part must be met.

    Without any part nothing that could be forged accuses, or nothing at all: then there is nothing to corroborate.
    """

    parts: tuple[Part, ...] = ()

    def met_by(self, seen: Seen, ssh_ports: Collection[int]) -> bool:
        return bool(self.parts) and all(part.met_by(seen, ssh_ports) for part in self.parts)

    def told(self, seen: Seen) -> str:
        """What is asked, in words: `2 connections to sshd since 2026-11-24T08:00:00Z`."""
        said = []
        for part in self.parts:
            named = zip(part.asks(seen), ("to sshd", "to another service"), strict=True)
            counts = [f"{n} connection{'s' if n > 1 else ''} {where}" for n, where in named if n]
            said.append(f"{' and '.join(counts)} since {rfc3339(part.since_ns)}")
        return "; ".join(dict.fromkeys(said)) or "evidence that names it"


def needs(
    incident: Mapping[str, Any], source: str, accused: str = "", *, tries: int = TRIES_A_CONNECTION
) -> Needed:
    """What must have been seen of `source` before the incident (a document) is held against somebody.

    accused : the source, or the user (`blockable_users`), against whom something is to be done: only findings count
        that name it. Empty: every finding counts that names `source`, or users who were attacked from there, and
        what is asked is what all of them need together.
    tries : attempts that one connection to sshd holds.
    """
    told = incident.get("findings")
    found = [
        finding
        for finding in (told if isinstance(told, list | tuple) else ())
        if isinstance(finding, Mapping) and _accuses(finding, source, accused) and not _proven(finding)
    ]
    # A login that one finding holds against the attacker is none of a bystander for the others.
    hits = int(any(str(finding.get("kind")) in SUCCEEDED for finding in found))
    return Needed(tuple(dict.fromkeys(_part(finding, hits, max(1, tries)) for finding in found)))


def _proven(finding: Mapping[str, Any]) -> bool:
    """Whether nobody but root can have written what it rests on: then it needs nothing from the wire."""
    provenance = finding.get("provenance")
    return isinstance(provenance, int) and provenance >= Provenance.JOURNAL


def _accuses(finding: Mapping[str, Any], source: str, accused: str) -> bool:
    sources = {*texts(finding, "blockable"), *texts(finding, "refusable")}
    users = texts(finding, "blockable_users")
    if accused and accused != source:
        named = accused in users or accused in sources
        return named and source in {*sources, *texts(finding, "sources")}
    return source in sources or (not accused and bool(users) and source in texts(finding, "sources"))


def _part(finding: Mapping[str, Any], hits: int, tries: int) -> Part:
    return Part(
        _attempts(finding.get("figures")),
        ssh=any(target.partition("@")[0] in SSHD_NAMES for target in texts(finding, "targets")),
        since_ns=_began_ns(finding) - SHORTLY_NS,
        hits=hits,
        tries=tries,
    )


def _began_ns(finding: Mapping[str, Any]) -> int:
    return time_ns(str(finding.get("start"))) or time_ns(str(finding.get("time"))) or 0


def _attempts(figures: object) -> int:
    """How many attempts the finding rests on, at least one."""
    if not isinstance(figures, Mapping):
        return 1
    numbers = {name: n for name, n in figures.items() if isinstance(n, int) and not isinstance(n, bool)}
    told = next((numbers[name] for name in ATTEMPTS if name in numbers), 0)
    return max(1, told or sum(numbers.get(name, 0) for name in ATTEMPTS_BEFORE))


def _with_losses(connections: int) -> int:
    """A quarter of many connections may have escaped a collector that is overloaded, but never all but one."""
    return min(connections - connections // 4, MOST_ASKED)
