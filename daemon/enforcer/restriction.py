"""Restrictions: an endpoint that only the networks which the rails name for it may reach, for a time or until lifted.

The journal alone says what is restricted. Management, the proxies and this machine itself always pass, and a way in for
management is never touched, whatever an entry says. The kill switch is beside it and stronger: while both are
on, nobody passes, and a release leaves the restriction as it was.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from .callers import Caller
from .journal import Journal
from .kernel import conntrack, host, restricttable, sockets
from .kernel.nft import Nft
from .kernel.restricttable import Door
from .kernel.sockets import Connection
from .killswitch import MOST_NAMED, KillSwitch
from .rails import Address, Endpoint, Network, Rails, Refusal, Service
from .state import NS_PER_S, Moment, Restriction

_ROUNDS = 3
MOST_SHOWN = 50
"""The most allowed networks that an answer lists, of all endpoints together and of each in `status`."""


class Restrictions:
    """Works on the endpoints that the rails name; `killswitch` knows where they lead and what is no endpoint to touch.

    Methods raise EnforcerError where the journal or the kernel refuses.
    """

    def __init__(self, journal: Journal, nft: Nft, now: Callable[[], Moment], killswitch: KillSwitch) -> None:
        self._journal = journal
        self._nft = nft
        self._now = now
        self._killswitch = killswitch
        self._rails = Rails()

    def use(self, rails: Rails) -> None:
        """These rails hold from now on; `look_around` then brings what is restricted up to them."""
        self._rails = rails

    def restore(self) -> None:
        """Make the kernel restrict what the journal says, and nothing else."""
        restricttable.put(self._nft, self._doors())

    def heal(self) -> list[str]:
        """Mend the kernel where it differs from the journal; what it was, in words."""
        differs = restricttable.wrong(self._nft, self._doors())
        if differs:
            self.restore()
        return differs

    def look_around(self) -> None:
        """Follow the rails, and where NAT leads now as the kill switch has just found out. Raises OSError, too."""
        changed: dict[str, Restriction] = {}
        for name, former in self._in_force().items():
            endpoint = self._rails.endpoint(name)
            if endpoint is not None:
                latest = former._replace(
                    services=self._services(endpoint, former),
                    allowed=endpoint.allowed or former.allowed,
                    always=self._always(),
                )
                if latest != former:
                    changed[name] = latest
        if changed:
            self._journal.append("adjust", endpoints={n: _door(*r[:3]) for n, r in changed.items()})
            self.restore()
            self._cut(changed, [])

    def end_due(self) -> list[str]:
        """Lift what was restricted for a time that is over; its names."""
        in_force = self._in_force()
        due = [name for name in self._journal.state.restrictions if name not in in_force]
        if due:
            try:
                self._journal.append(
                    "lift", endpoints=due, by="enforcer", reason="the time that it was restricted for is over"
                )
            finally:  # it is over, whether the disk takes that or not
                self.restore()
        return due

    def next_end_s(self) -> float:
        """Seconds until `end_due` has something to do; infinite where nothing ends by itself."""
        now_ns = self._now_ns()
        ends = [r.ends_ns - now_ns for r in self._journal.state.restrictions.values() if r.ends_ns]
        return min(ends, default=float("inf")) / NS_PER_S

    def restrict(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        """Close the named endpoints to everybody but their allowed networks, until lifted or for `ttl_s` seconds, and
        end the connections of others."""
        chosen, left_out = self._choose(ask["endpoints"])
        if not chosen:
            return _nothing(left_out)
        not_proven = [why.reason for why in left_out[:MOST_NAMED]]
        if len(left_out) > MOST_NAMED:
            not_proven.append(f"{len(left_out) - MOST_NAMED} more that were named are left out")
        self._killswitch.learn(chosen, not_proven, rules=True)
        already = self._record(chosen, ask, caller)
        self.restore()
        in_force = self._in_force()
        done = {e.name: in_force[e.name] for e in chosen}
        cut = self._cut(done, not_proven)
        not_proven += restricttable.wrong(self._nft, self._doors())
        allowed = list(dict.fromkeys(str(n) for r in done.values() for n in r.allowed))
        first = done[chosen[0].name]
        return {
            "restricted": list(done),
            "already": already,
            "allowed": allowed[:MOST_SHOWN],
            "allowed_count": len(allowed),
            "always": [str(n) for n in first.always[:MOST_SHOWN]],
            "killed": [name for name in done if name in self._journal.state.kills],
            "cut": cut,
            "proven": not not_proven,
            "not_proven": not_proven,
            "since_ns": first.since_ns,
            "ends_s": self._left_s(first),
        }

    def lift(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        """Open the named endpoints again; the analyser its own alone."""
        names = ask["endpoints"]
        in_force = self._in_force()
        for name in names:
            if name not in in_force and self._rails.endpoint(name) is None:
                return self._killswitch.unknown(name)
            if caller.role == "analyser" and name in in_force and in_force[name].owner != "analyser":
                return Refusal(f"{name} was restricted by {in_force[name].by}, not by the analyser", "owner")
        chosen = [name for name in dict.fromkeys(names) if name in in_force]
        if chosen:
            self._journal.append("lift", endpoints=chosen, by=caller.name, reason=ask["reason"])
            self.restore()
        return {
            "lifted": chosen,
            "restricted": list(self._in_force()),
            "not_proven": restricttable.wrong(self._nft, self._doors()),
        }

    def status(self) -> list[dict[str, Any]]:
        """What is restricted, as the journal says; `kernel`: whether the kernel has it so."""
        held = not self.differences()
        return [
            {
                "endpoint": name,
                "since_ns": r.since_ns,
                "by": r.by,
                "owner": r.owner,
                "reason": r.reason,
                "incident": r.incident,
                "playbook": r.playbook,
                "ends_s": self._left_s(r),
                "allowed": [str(n) for n in r.allowed[:MOST_SHOWN]],
                "allowed_count": len(r.allowed),
                "services": [str(s) for s in r.services],
                "kernel": held,
            }
            for name, r in self._in_force().items()
        ]

    def differences(self) -> list[str]:
        """Where the kernel differs from the journal, in words."""
        return restricttable.wrong(self._nft, self._doors())

    def without_person(self, names: list[str]) -> bool:
        """Whether the rails let the analyser restrict them by itself."""
        chosen, _ = self._choose(names)
        return all(endpoint.restrict_without_person for endpoint in chosen)

    def forbidden(self, ask: dict[str, Any], caller: Caller) -> Refusal | None:
        """Why nobody could restrict any of the endpoints."""
        chosen, left_out = self._choose(ask["endpoints"])
        return None if chosen else _nothing(left_out)

    def _choose(self, names: list[str]) -> tuple[list[Endpoint], list[Refusal]]:
        chosen, left_out = [], []
        for name in dict.fromkeys(names):
            endpoint = self._rails.endpoint(name)
            why = self._killswitch.unknown(name) if endpoint is None else self._forbidden(endpoint)
            if why is not None:
                left_out.append(why)
            elif endpoint is not None:
                chosen.append(endpoint)
        return chosen, left_out

    def _forbidden(self, endpoint: Endpoint) -> Refusal | None:
        if not endpoint.kill_switch:
            return Refusal(
                f"{endpoint.name}: the rails say that it may not be touched (kill_switch = false)",
                "kill_switch",
            )
        if not endpoint.allowed:
            return Refusal(
                f"{endpoint.name}: {self._rails.path} names no allowed networks for it, so it would be closed to "
                f"everybody; name some (allowed = [...]), or use the kill switch",
                "allowed",
            )
        return self._killswitch.door(endpoint)

    def _record(self, chosen: list[Endpoint], ask: dict[str, Any], caller: Caller) -> list[str]:
        """An entry of what is new, lasts longer or reaches further; the names of those that were restricted before."""
        in_force, ttl_s, owner = self._in_force(), ask.get("ttl_s", 0), caller.owner
        said: dict[str, Any] = {k: ask[k] for k in ("incident", "playbook") if k in ask}
        if caller.approval:
            said["approval"] = caller.approval
        entries: dict[tuple[int, str], dict[str, Any]] = {}
        for endpoint in chosen:
            former = in_force.get(endpoint.name)
            latest = (self._services(endpoint, former), endpoint.allowed, self._always())
            lasting_s, whose, longer = ttl_s, owner, False
            if former is not None:
                left_s = self._left_s(former)
                longer = left_s is not None and (not ttl_s or ttl_s > left_s)
                lasting_s = max(1, ttl_s, left_s) if ttl_s and left_s is not None else 0
                whose = former.owner if owner == "analyser" else owner
            changes = former is None or longer or former[:3] != latest or former.owner != whose
            if changes or caller.approval:  # what people granted is noted, whatever it changes
                entries.setdefault((lasting_s, whose), {})[endpoint.name] = _door(*latest)
        for (lasting_s, whose), doors in entries.items():
            more: dict[str, Any] = {**said, "ttl_s": lasting_s} if lasting_s else {**said}
            self._journal.append(
                "restrict", endpoints=doors, owner=whose, by=caller.name, reason=ask["reason"], **more
            )
        return [e.name for e in chosen if e.name in in_force]

    def _cut(self, restricted: dict[str, Restriction], not_proven: list[str]) -> int:
        """End the connections of those who may not reach what is restricted; how many: of this machine's sockets, and
        of those that it forwards."""
        own, cut = frozenset(host.own_addresses()), 0
        for restriction in restricted.values():
            others = _Others(restriction, own)
            try:
                cut += others.end_sockets()
                cut += others.end_forwarded()
            except OSError as error:
                not_proven.append(f"connections not ended, only silenced: {error.strerror}")
            not_proven += others.left
        return cut

    def _in_force(self) -> dict[str, Restriction]:
        now_ns = self._now_ns()
        return {
            name: r
            for name, r in self._journal.state.restrictions.items()
            if not r.ends_ns or r.ends_ns > now_ns
        }

    def _doors(self) -> dict[str, Door]:
        """What the kernel has to hold."""
        own, always = frozenset(host.own_addresses()), self._always()
        return {
            name: Door(
                tuple(s for s in r.services if not self._killswitch.is_door(s, own)),
                (*r.allowed, *r.always, *always),
            )
            for name, r in self._in_force().items()
        }

    def _services(self, endpoint: Endpoint, former: Restriction | None) -> tuple[Service, ...]:
        """Where it is, and where it was when it was restricted: what is closed stays closed."""
        return tuple(
            dict.fromkeys((*(former.services if former else ()), *self._killswitch.services(endpoint)))
        )

    def _always(self) -> tuple[Network, ...]:
        return (*self._rails.management, *self._rails.proxies)

    def _left_s(self, restriction: Restriction) -> int | None:
        """Whole seconds that remain; None: until lifted."""
        return max(0, restriction.ends_ns - self._now_ns()) // NS_PER_S if restriction.ends_ns else None

    def _now_ns(self) -> int:
        return self._journal.state.elapsed_at(self._now())


class _Others:
    """The connections to one endpoint of those who may not reach it. `left`: what could not be ended, in words."""

    def __init__(self, restriction: Restriction, own: frozenset[Address]) -> None:
        self._services = restriction.services
        numbers = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
        self._ends = {(numbers[s.protocol], s.address, s.port) for s in restriction.services}
        self._networks = restricttable.joined((*restriction.allowed, *restriction.always))
        self._own = own
        self._known: dict[Address, bool] = {}
        self.left: list[str] = []

    def end_sockets(self) -> int:
        """Those of this machine's sockets; how many. Raises OSError."""
        before = after = sockets.pairs(found := self._sockets())
        for _ in range(_ROUNDS):
            if not found:
                break
            sockets.destroy(found)
            after = sockets.pairs(found := self._sockets())
        if after:
            self.left.append(f"{after} connections are still there, and silenced")
        return max(0, before - after)

    def end_forwarded(self) -> int:
        """What connection tracking knows, so that NAT and flow tables carry it no longer; how many of them went
        elsewhere. Raises OSError."""
        tracked = [f for f in conntrack.flows(self._services) if self._other(f.client)]
        conntrack.forget(tracked)
        return sum(f.open and f.served.address not in self._own for f in tracked)

    def _sockets(self) -> list[Connection]:
        return [
            c
            for c in sockets.of_services(self._services, self._own)
            if not self._ends.isdisjoint(
                ((c.protocol, None, c.local_port), (c.protocol, c.local, c.local_port))
            )
            and self._other(c.remote)
        ]  # the other end is here where this machine is the client

    def _other(self, client: Address) -> bool:
        if client not in self._known:
            passes = client in self._own or client.is_loopback or any(client in n for n in self._networks)
            self._known[client] = not passes
        return self._known[client]


def _nothing(left_out: list[Refusal]) -> Refusal:
    """Why none of the endpoints that were named can be restricted."""
    return left_out[0] if left_out else Refusal("name an endpoint to restrict", "endpoint")


def _door(
    services: Iterable[Service], allowed: Iterable[Network], always: Iterable[Network]
) -> list[list[str]]:
    """As an entry holds it."""
    return [[str(s) for s in services], [str(n) for n in allowed], [str(n) for n in always]]
