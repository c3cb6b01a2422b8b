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
from .events import NS_PER_S, rfc3339

SHORTLY_NS = 120 * NS_PER_S
"""How long before its first failure a connection may have been opened: LoginGraceTime of sshd_config(5)."""

TRIES_A_CONNECTION = 6
"""MaxAuthTries of sshd_config(5): so many attempts one connection to sshd holds."""

REQUESTS_A_CONNECTION = 1000
"""keepalive_requests of nginx (ngx_http_core_module): so many requests one connection to it holds."""

MOST_ASKED = 24
"""Three quarters of `MOST_REMEMBERED`: who has made so many connections since then is believed to have made all."""

MOST_REMEMBERED = 32
"""Of so many handshakes of one source it is remembered when they were and with which port; the oldest goes first."""

ATTEMPTS = ("attempts", "denied_prompts", "jumps")
"""Figures that count what a log says a source tried; the first that a finding has is taken."""
ATTEMPTS_BEFORE = ("failures_before", "failures_from_there", "successes")
"""Figures of a finding about logins that succeeded, which are added up."""
SUCCEEDED = frozenset({"account_compromise", "new_access", "impossible_travel", "mfa_fatigue"})
"""Kinds that are about a login that succeeded: there it does not speak for the source."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is remembered of one source: completed handshakes as (time in ns, port that it was made to), and the times
    of its logins to sshd, at most MOST_REMEMBERED of each, in no order.
    """

    handshakes: Sequence[tuple[int, int]] = ()
    logins_ns: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What one finding asks: so many handshakes with sshd's ports, and so many with others, since then.

    `logins_speak`: each login that succeeded since then accounts for one of those with sshd, which is then not one
    of the attacker's.
    """

    ssh: int
    others: int
    since_ns: int
    logins_speak: bool = False

    def __str__(self) -> str:
        """In words: `2 connections to sshd since 2026-11-24T08:00:00Z`."""
        counts = ((self.ssh, "to sshd"), (self.others, "to another service"))
        said = [f"{n} connection{'s' if n > 1 else ''} {where}" for n, where in counts if n]
        login = ", those that logged in aside" if self.logins_speak else ""
        return f"{' and '.join(said)} since {rfc3339(self.since_ns)}{login}"


@dataclass(frozen=True, slots=True)
class Needed:
    """What all findings ask that accuse a source, or a user from there: each part must be met.

    Without any part nothing in the incident accuses: then nothing corroborates it either.
    """

    parts: tuple[Part, ...] = ()

    def __str__(self) -> str:
        """In words, for people."""
        said = [str(part) for part in self.parts]
        return "; and ".join(said) or "evidence that names it"

    def met_by(self, seen: Seen, ssh_ports: Collection[int]) -> bool:
        """Whether what was seen of a source is enough; `ssh_ports` are those where sshd listens."""
        return bool(self.parts) and all(_met(part, seen, ssh_ports) for part in self.parts)


def _met(part: Part, seen: Seen, ssh_ports: Collection[int]) -> bool:
    lately = [port in ssh_ports for made_ns, port in seen.handshakes if made_ns >= part.since_ns]
    ssh = sum(lately)
    others = len(lately) - ssh
    if part.logins_speak:
        ssh -= sum(login_ns >= part.since_ns for login_ns in seen.logins_ns)
    return ssh >= part.ssh and others >= part.others


def needs(
    incident: Mapping[str, Any], source: str, accused: str = "", *, tries: int = TRIES_A_CONNECTION
) -> Needed:
    """What must have been seen of `source` before the incident (a document) is held against somebody.

    accused : the source, or the user (`blockable_users`), against whom something is to be done: only findings count
        that name it. Empty: every finding counts that names `source`, or users who were attacked from there, and
        what is asked is what all of them need together.
    tries : attempts that one connection to sshd holds.
    """
    found = incident.get("findings")
    parts = [
        _part(finding, max(1, tries))
        for finding in (found if isinstance(found, list | tuple) else ())
        if isinstance(finding, Mapping) and _accuses(finding, source, accused)
    ]
    return Needed(tuple(dict.fromkeys(parts)))


def _accuses(finding: Mapping[str, Any], source: str, accused: str) -> bool:
    sources = {*texts(finding, "blockable"), *texts(finding, "refusable")}
    users = texts(finding, "blockable_users")
    if accused and accused != source:
        named = accused in users or accused in sources
        return named and source in {*sources, *texts(finding, "sources")}
    return source in sources or (not accused and bool(users) and source in texts(finding, "sources"))


def _part(finding: Mapping[str, Any], tries: int) -> Part:
    attempts = _attempts(finding.get("figures"))
    services = {target.partition("@")[0] for target in texts(finding, "targets")}
    ssh, others = "sshd" in services, bool(services - {"sshd"})
    if ssh and others:
        # Nobody can tell how many of the attempts each service had: all may have been sshd's.
        asked = _with_losses(-(-attempts // tries)), 1
    elif ssh:
        asked = _with_losses(-(-attempts // tries)), 0
    elif others or not services:
        asked = 0, _with_losses(-(-attempts // REQUESTS_A_CONNECTION))
    since_ns = _began_ns(finding) - SHORTLY_NS
    return Part(*asked, since_ns, logins_speak=ssh and finding.get("kind") not in SUCCEEDED)


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
