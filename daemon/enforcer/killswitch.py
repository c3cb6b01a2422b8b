"""The kill switch: cut model endpoints off, prove it, keep it so, and let go when a person says so.

It errs on the side of staying engaged: what the kernel holds without the journal's knowledge is taken over,
not taken away, and a journal that cannot be written stops no engaging, only the proof.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import EnforcerError
from . import signatures
from .journal import Journal
from .kernel import conntrack, dnat, host, killtable, sockets
from .kernel.killtable import BREAK_GLASS, KILL
from .kernel.nft import Nft
from .rails import Address, Endpoint, Rails, Refusal, Service
from .state import NS_PER_S, Kill

if TYPE_CHECKING:
    from .proof.probe import Outcome, Probe
    from .proof.unixsockets import Watch

_ROUNDS = 3
_HELPER_S = 2.0
MOST_NAMED = 10
"""The most endpoints that a refusal lists."""


class Later:
    """An answer to come: poll `fileno`, then `finish`, which waits a second at most."""

    def __init__(self, probe: Probe, finish: Callable[[], dict[str, Any]]) -> None:
        self._probe = probe
        self.finish = finish

    def fileno(self) -> int:
        return self._probe.fileno()


class KillSwitch:
    """Works on the endpoints that the rails name; what is engaged stands in the journal's state."""

    def __init__(self, journal: Journal, nft: Nft) -> None:
        self._journal = journal
        self._nft = nft
        self._rails = Rails()
        self._ssh_ports: frozenset[int] | None = None
        self._unrecorded: dict[str, Kill] = {}
        self._behind: dict[str, frozenset[Service]] = {}  # where NAT leads the fronts, by endpoint
        self._drill: list[Endpoint] = []
        self._watch: Watch | None = None
        self._drill_ends = 0.0

    def use(self, rails: Rails) -> None:
        """These rails hold from now on."""
        self._rails = rails

    def follow(self) -> None:
        """After new rails: what is engaged is cut off at its new ports too, and the break-glass file is written
        anew. Raises EnforcerError."""
        self._grow({e.name: e.services for e in self._rails.endpoints})
        self.write_break_glass(self._journal.folder)

    def restore(self) -> None:
        """Make the kernel cut off what the journal says, and take over what only the kernel knows of."""
        self._adopt()
        self._apply()

    def tidy(self) -> None:
        """Take away what a probe left whose enforcer was killed. Raises EnforcerError."""
        from .proof import probe

        probe.remove_stale(self._nft)

    def heal(self) -> list[str]:
        """Mend the kernel where it differs from the journal; what it was, in words."""
        if self._unrecorded:
            self._record_late()
        differs = self._differences()
        if differs:
            self.restore()
        if self._drill_ends and time.monotonic() > self._drill_ends + 5:
            self.drill_stop()
        return differs

    def look_around(self) -> None:
        """Read again where sshd listens and where NAT leads the fronts; it takes too long for the moment when the
        switch is pulled. What is engaged is cut off there, too. Raises EnforcerError, OSError."""
        self._ssh_ports = host.ssh_ports()
        found = self._led([e for e in self._rails.endpoints if e.kill_switch], rules=True)
        if found != self._behind:
            self._behind = found
            self.write_break_glass(self._journal.folder)
        self._grow({e.name: self.services(e) for e in self._rails.endpoints})

    def end_due(self) -> list[str]:
        """Release what was engaged for a time that is over; its names. Raises EnforcerError: it stays engaged."""
        due = [name for name, left in self._lasting().items() if left <= 0]
        if due:
            self._journal.append(
                "release", endpoints=due, by="enforcer", reason="the time that it was engaged for is over"
            )
            self._apply()
        return due

    def next_end_s(self) -> float:
        """Seconds until `end_due` has something to do; infinite where nothing ends by itself."""
        return min(self._lasting().values(), default=float("inf"))

    def engage(
        self,
        names: list[str],
        reason: str,
        by: str,
        *,
        by_analyser: bool,
        ttl_s: int = 0,
        probe: bool = True,
        approval: str = "",
    ) -> dict[str, Any] | Refusal | Later:
        """Cut off the named endpoints, or all; the receipt. It stays so until released, or for `ttl_s` seconds.
        Raises EnforcerError where the kernel refuses."""
        started = time.perf_counter()
        chosen, left_out = self._choose(names, by_analyser)
        if not chosen:
            return left_out[0] if left_out else self.unknown()
        not_proven = [why.reason for why in left_out[:MOST_NAMED]]
        if len(left_out) > MOST_NAMED:
            not_proven.append(f"{len(left_out) - MOST_NAMED} more that were named are left out")
        engaged = self._engaged()
        lasting = self._lasting()
        already = [e.name for e in chosen if e.name in engaged]
        new = {
            e.name: self.services(e)
            for e in chosen
            if approval  # what people granted is noted, whether it changes something or not
            or e.name not in engaged
            or not set(self.services(e)) <= set(engaged[e.name].services)
            or lasting.get(e.name, float("inf")) < (ttl_s or float("inf"))
        }
        if new:
            not_proven += self._record(new, by, reason, ttl_s, approval)
        self._apply()
        self.learn(
            chosen, not_proven, rules=False
        )  # what answers now; its packets do not bear the front's port
        services = tuple(dict.fromkeys(s for e in chosen for s in self._engaged()[e.name].services))
        before, after = self._cut(services, not_proven)
        namespaces = self._cut_inside(chosen, not_proven)
        self.learn(chosen, not_proven, rules=True)
        try:
            self._journal.sync()
        except OSError as error:
            not_proven.append(f"not on disk, so a restart may forget it: {error.strerror}")
        held = killtable.held(self._nft, KILL)
        not_proven += self._unheld(held, [e.name for e in chosen])
        first = self._engaged()[chosen[0].name]
        ends_s = self._lasting().get(chosen[0].name)
        receipt = {
            "engaged": [e.name for e in chosen],
            "already": already,
            "rules": held.rules if held else 0,
            "connections_before": before,
            "connections_after": after,
            "namespaces": namespaces,
            "took_ms": round((time.perf_counter() - started) * 1e3, 1),
            "since_ns": first.since_ns,
            "ends_s": round(ends_s) if ends_s is not None else None,
            "by": first.by,
            "reason": first.reason,
        }
        if not probe:
            return self._receipt(receipt, not_proven, [], by)
        from .proof.probe import Probe

        running = Probe(self._nft, {e.name: self.services(e) for e in chosen})
        later = Later(running, lambda: self._receipt(receipt, not_proven, running.finish(), by))
        return later if running.fileno() >= 0 else later.finish()

    def without_person(self, names: list[str]) -> bool:
        """Whether the rails let the analyser cut off all that it names; where it names none, any at all."""
        alone, chosen = self._choose(names, by_analyser=True)[0], self._choose(names, by_analyser=False)[0]
        return len(alone) == len(chosen) if names else bool(alone) or not chosen

    def forbidden(self, names: list[str]) -> Refusal | None:
        """Why nothing of that is cut off, whoever asks for it."""
        chosen, left_out = self._choose(names, by_analyser=False)
        return None if chosen else left_out[0] if left_out else self.unknown()

    def _receipt(
        self, receipt: dict[str, Any], not_proven: list[str], outcomes: list[Outcome], by: str
    ) -> dict[str, Any]:
        """The receipt with what the probe found, noted in the journal and signed."""
        not_proven = [
            *not_proven,
            *(
                f"{o.endpoint}: a probe reached {o.target}: {o.why}"
                for o in outcomes
                if o.verdict == "reached"
            ),
        ]
        try:
            self._journal.append(
                "proof", sync=False, endpoints=receipt["engaged"], by=by, not_proven=not_proven,
                probes=[[o.target, o.verdict] for o in outcomes],
            )  # fmt: skip
        except EnforcerError:
            pass  # said above: it is engaged, and the disk takes nothing
        whole = {
            **receipt,
            "proven": not not_proven,
            "not_proven": not_proven,
            "probes": [o._asdict() for o in outcomes],
            "machine": signatures.this_machine(),
            "time_ns": time.time_ns(),
            "sequence": self._journal.sequence,
            "head": self._journal.head,
        }
        try:
            return {**signatures.signed_receipt(whole, self._journal.folder), "ok": True}
        except EnforcerError as error:
            return {**whole, "unsigned": error.message, "ok": True}

    def release(self, names: list[str], reason: str, by: str) -> dict[str, Any] | Refusal:
        """Let the named endpoints go, or all that are engaged. Raises EnforcerError."""
        engaged = self._engaged()
        unknown = [n for n in names if n not in engaged and self._rails.endpoint(n) is None]
        if unknown:
            return self.unknown(unknown[0])
        chosen = [n for n in names or engaged if n in engaged]
        if chosen:
            self._journal.append("release", endpoints=chosen, by=by, reason=reason)
            for name in chosen:
                self._unrecorded.pop(name, None)
            self._apply()
        held, glass = killtable.held(self._nft, KILL), killtable.held(self._nft, BREAK_GLASS)
        left = [name for name in chosen if held is not None and name in held.services]
        return {
            "released": chosen,
            "not_proven": [f"{name}: is still cut off in the kernel" for name in left],
            "engaged": list(self._engaged()),
            "break_glass": glass is not None,
        }

    def status(self) -> dict[str, Any]:
        """What is engaged, as the journal and as the kernel say, and where they differ."""
        held, glass = killtable.held(self._nft, KILL), killtable.held(self._nft, BREAK_GLASS)
        lasting = self._lasting()
        kills = [
            {
                "endpoint": name,
                "since_ns": kill.since_ns,
                "by": kill.by,
                "reason": kill.reason,
                "ends_s": round(lasting[name]) if name in lasting else None,
                "kernel": not self._unheld(held, [name]),
                "services": [str(s) for s in kill.services],
            }
            for name, kill in self._engaged().items()
        ]
        endpoints = [
            {
                "endpoint": e.name,
                "kill_switch": e.kill_switch,
                "services": [str(s) for s in self.services(e)],
            }
            for e in self._rails.endpoints
        ]
        return {
            "kills": kills,
            "endpoints": endpoints,
            "differs": self._differences(),
            "break_glass": sorted(glass.services) if glass else [],
        }

    def drill_start(self, names: list[str], seconds: int) -> dict[str, Any] | Refusal:
        """Count what a kill switch would drop; cuts nothing. A drill that is running begins anew."""
        from .proof import drill, unixsockets

        chosen = [e for e in self._rails.endpoints if not names or e.name in names]
        unknown = [n for n in names if self._rails.endpoint(n) is None]
        if unknown or not chosen:
            return self.unknown(*unknown[:1])
        self._drill = [
            e._replace(backs=tuple(s for s in self.services(e) if s not in e.fronts)) for e in chosen
        ]
        drill.start(self._nft, {e.name: e for e in self._drill})
        self._watch = unixsockets.Watch(self._drill)
        self._drill_ends = time.monotonic() + seconds
        return {"endpoints": [e.name for e in chosen]}

    @property
    def drilling(self) -> bool:
        return bool(self._drill)

    def sample(self) -> None:
        """While a drill runs: look by what ways a proxy reaches its model now. Raises OSError."""
        if self._watch is not None:
            self._watch.sample()

    def drill_stop(self) -> dict[str, Any]:
        """End the drill; requests seen of each endpoint, and what passes by the kill switch."""
        from .proof import bypass, drill

        endpoints, watch, self._drill, self._watch, self._drill_ends = self._drill, self._watch, [], None, 0.0
        seen = drill.stop(self._nft)
        names = {e["endpoint"] for e in seen}  # known after a restart, too
        endpoints = endpoints or [e for e in self._rails.endpoints if e.name in names]
        found = bypass.find(endpoints, self._nft, watch) if endpoints else []
        return {"drill": seen, "bypasses": [b._asdict() for b in found]}

    def write_break_glass(self, folder: str) -> None:
        """Render the file for `nft -f` ahead of the day when nothing else runs. Raises EnforcerError."""
        endpoints = {e.name: self.services(e) for e in self._choose([], by_analyser=False)[0]}
        path = f"{folder}/break-glass.nft"
        try:
            fresh = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fresh, "w", encoding="ascii") as file:
                file.write(killtable.break_glass(endpoints, path))
            os.replace(f"{path}.new", path)
        except OSError as error:
            raise EnforcerError(f"{path}: {error.strerror}", remedy="make room on that disk") from None

    def _engaged(self) -> dict[str, Kill]:
        return {**self._journal.state.kills, **self._unrecorded}

    def _choose(self, names: list[str], by_analyser: bool) -> tuple[list[Endpoint], list[Refusal]]:
        chosen, left_out = [], []
        for name in dict.fromkeys(names or [e.name for e in self._rails.endpoints]):
            endpoint = self._rails.endpoint(name)
            if endpoint is None:
                left_out.append(self.unknown(name))
                continue
            why = self._forbidden(endpoint, by_analyser)
            if why is None:
                chosen.append(endpoint)
            elif names or why.rail == "management":
                left_out.append(why)
        return chosen, left_out

    def unknown(self, name: str = "") -> Refusal:
        """There is no endpoint of that name, or none at all; whoever asks in a hurry is told which there are."""
        known = [e.name for e in self._rails.endpoints]
        if not known:
            return Refusal(f"{self._rails.path} names no [[endpoint]], so nothing can be cut off", "endpoint")
        more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
        return Refusal(
            f"no endpoint is named {name!r}; there are {', '.join(known[:MOST_NAMED])}{more}", "endpoint"
        )

    def _forbidden(self, endpoint: Endpoint, by_analyser: bool) -> Refusal | None:
        if not endpoint.kill_switch:
            return Refusal(f"{endpoint.name}: the rails keep the kill switch from it", "kill_switch")
        if by_analyser and not endpoint.kill_without_person:
            return Refusal(f"{endpoint.name}: a person has to pull the kill switch", "kill_without_person")
        return self.door(endpoint)

    def door(self, endpoint: Endpoint) -> Refusal | None:
        """Why nobody may be kept from the endpoint: it is the way in for management."""
        own = frozenset(host.own_addresses())
        for service in endpoint.services:
            if self.is_door(service, own):
                return Refusal(
                    f"{endpoint.name}: {service} is the way in for management (sshd)", "management"
                )
        return None

    def services(self, endpoint: Endpoint) -> tuple[Service, ...]:
        """What the rails name, and where NAT leads it."""
        led = sorted(self._behind.get(endpoint.name, frozenset()), key=str)
        return tuple(dict.fromkeys((*endpoint.services, *led)))

    def _lasting(self) -> dict[str, float]:
        """Seconds that remain of each kill that ends by itself."""
        now_ns = self._journal.awake_ns()
        return {n: (k.ends_ns - now_ns) / NS_PER_S for n, k in self._engaged().items() if k.ends_ns}

    def learn(self, endpoints: list[Endpoint], not_proven: list[str], *, rules: bool) -> None:
        """Cut off where NAT leads the endpoints as well."""
        try:
            led = self._led(endpoints, rules=rules)
            self._behind = {
                **self._behind,
                **{n: s | self._behind.get(n, frozenset()) for n, s in led.items()},
            }
            self._grow({e.name: self.services(e) for e in endpoints}, sync=False)
        except (EnforcerError, OSError) as error:
            not_proven.append(f"where published ports lead is not known: {error}")

    def _led(self, endpoints: list[Endpoint], *, rules: bool) -> dict[str, frozenset[Service]]:
        """Where NAT leads the services of the endpoints now, by endpoint; ways for management left out. Connection
        tracking knows who answers; `rules`: read the NAT rules, too."""
        own = frozenset(host.own_addresses())
        every = {s for e in endpoints for s in e.services}
        led = dnat.behind(self._nft, every, own) if rules else {}
        for flow in conntrack.flows(every):
            if flow.served != flow.asked:
                for service in every & {flow.asked, flow.asked._replace(address=None)}:
                    if service.address is not None or flow.asked.address in own:
                        led.setdefault(service, set()).add(flow.served)
        return {
            e.name: frozenset(
                s for front in e.services for s in led.get(front, ()) if not self.is_door(s, own)
            )
            for e in endpoints
        }

    def is_door(self, service: Service, own: frozenset[Address]) -> bool:
        """Whether it is the way in for management."""
        if self._ssh_ports is None:
            self._ssh_ports = host.ssh_ports()
        ours = service.address is None or service.address.is_loopback or service.address in own
        return service.protocol == "tcp" and ours and service.port in self._ssh_ports

    def _grow(self, wanted: Mapping[str, tuple[Service, ...]], *, sync: bool = True) -> None:
        """Cut off what is engaged at more services, too. Raises EnforcerError."""
        engaged = self._engaged()
        grown = {
            name: services
            for name, services in wanted.items()
            if name in engaged and not set(services) <= set(engaged[name].services)
        }
        if not grown:
            return
        try:
            said = {name: sorted(map(str, services)) for name, services in grown.items()}
            self._journal.append("grow", sync=sync, endpoints=said)
        except EnforcerError:
            for name, services in grown.items():
                former = engaged[name]
                self._unrecorded[name] = former._replace(
                    services=tuple(dict.fromkeys((*former.services, *services)))
                )
        self._apply()

    def _record(
        self,
        new: Mapping[str, tuple[Service, ...]],
        by: str,
        reason: str,
        ttl_s: int = 0,
        approval: str = "",
    ) -> list[str]:
        """Written now, synced after the kernel has acted; the receipt follows both. What went wrong, in words."""
        try:
            said = {name: sorted(map(str, services)) for name, services in new.items()}
            more = {k: v for k, v in (("ttl_s", ttl_s), ("approval", approval)) if v}
            self._journal.append("kill", sync=False, endpoints=said, by=by, reason=reason, **more)
        except EnforcerError as error:
            for name, services in new.items():
                former = self._engaged().get(name)
                every = (*(former.services if former else ()), *services)
                since_ns = former.since_ns if former else time.time_ns()
                self._unrecorded[name] = Kill(tuple(dict.fromkeys(every)), since_ns, by, reason)
            return [f"not recorded, so a restart may forget it: {error.message}"]
        return []

    def _record_late(self) -> None:
        waiting, self._unrecorded = self._unrecorded, {}
        for name, kill in waiting.items():
            self._record({name: kill.services}, kill.by, kill.reason)

    def _apply(self) -> None:
        cut_off = {name: k.services for name, k in self._engaged().items()}
        try:
            self._nft.run(killtable.render(KILL, cut_off))
        except (
            EnforcerError
        ):  # perhaps a kernel that cannot answer servers with a reset: silence cuts off, too
            self._nft.run(killtable.render(KILL, cut_off, resets=False))

    def _cut(self, services: tuple[Service, ...], not_proven: list[str]) -> tuple[int, int]:
        """End the connections of the services; how many there were and are: those of this machine's sockets, and
        those that it forwards."""
        own = frozenset(host.own_addresses())
        try:
            found = sockets.of_services(services, own)
            before = after = sockets.pairs(found)
            for _ in range(_ROUNDS):
                if not found:
                    break
                sockets.destroy(found)
                found = sockets.of_services(services, own)
                after = sockets.pairs(found)
        except OSError as error:
            not_proven.append(f"connections not ended, only silenced: {error.strerror}")
            return -1, -1
        with contextlib.suppress(OSError):  # its packets are dropped before connection tracking anyway
            tracked = conntrack.flows(services)
            before += sum(f.open and f.served.address not in own for f in tracked)
            conntrack.forget(tracked)
            after += sum(f.open and f.served.address not in own for f in conntrack.flows(services) if tracked)
        if after:
            not_proven.append(f"{after} connections are still there, and silenced")
        return before, after

    def _cut_inside(self, chosen: list[Endpoint], not_proven: list[str]) -> list[dict[str, Any]]:
        """Have the helper end what the endpoints' namespaces hold; what it says of each."""
        names = [e.name for e in chosen if e.namespaces]
        if not names or not self._rails.cut_helper:
            return []
        from . import cut  # off by default

        path = f"{os.path.dirname(self._journal.folder)}/run/cut.sock"
        try:
            places = cut.ask(path, names, _HELPER_S)
        except EnforcerError as error:
            not_proven.append(f"connections inside namespaces not ended, only silenced: {error.message}")
            return []
        not_proven += [f"{p.path}: {p.error}" for p in places if p.error]
        not_proven += [f"{p.path}: {p.after} connections are still there" for p in places if p.after]
        return [p._asdict() for p in places]

    def _unheld(self, held: killtable.Held | None, names: list[str]) -> list[str]:
        """What of the named endpoints the kernel does not cut off, in words."""
        if held is None:
            return [f"table inet {KILL} is missing in the kernel"]
        wrong = [] if held.hooked else [f"table inet {KILL} was changed: packets may pass by its rules"]
        for name in names:
            lacking = set(self._engaged()[name].services) - held.services.get(name, frozenset())
            wrong += [f"{name}: no rule in the kernel for {s}" for s in sorted(map(str, lacking))]
        return wrong

    def _differences(self) -> list[str]:
        held, engaged = killtable.held(self._nft, KILL), self._engaged()
        if held is None and not engaged:
            return []
        foreign = sorted((held.services if held else {}).keys() - engaged.keys())
        return self._unheld(held, list(engaged)) + [
            f"{n}: cut off in the kernel, not in the journal" for n in foreign
        ]

    def _adopt(self) -> None:
        held = killtable.held(self._nft, KILL)
        foreign = {
            n: tuple(s) for n, s in (held.services if held else {}).items() if n and n not in self._engaged()
        }
        if foreign:
            self._record(foreign, "enforcer", "found engaged in the kernel")
