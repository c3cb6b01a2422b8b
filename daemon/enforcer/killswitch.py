"""The kill switch: cut model endpoints off, prove it, keep it so, and let go when a person says so.

It errs on the side of staying engaged: what the kernel holds without the journal's knowledge is taken over,
not taken away, and a journal that cannot be written stops no engaging, only the proof.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

from ..errors import EnforcerError
from . import conntrack, host, killtable, sockets
from .journal import Journal
from .killtable import BREAK_GLASS, DRILL, KILL
from .nft import Nft
from .rails import Endpoint, Rails, Refusal, Service
from .state import Kill

_ROUNDS = 3
MOST_NAMED = 10
"""The most endpoints that a refusal lists."""


class KillSwitch:
    """Works on the endpoints that the rails name; what is engaged stands in the journal's state."""

    def __init__(self, journal: Journal, nft: Nft) -> None:
        self._journal = journal
        self._nft = nft
        self._rails = Rails()
        self._ssh_ports: frozenset[int] | None = None
        self._unrecorded: dict[str, Kill] = {}
        self._drill: list[str] = []
        self._drill_ends = 0.0

    def use(self, rails: Rails) -> None:
        """These rails hold from now on."""
        self._rails = rails

    def follow(self) -> None:
        """After new rails: what is engaged is cut off at its new ports too, and the break-glass file is written
        anew. Raises EnforcerError."""
        grown = {
            name: endpoint.services
            for name, kill in self._engaged().items()
            if (endpoint := self._rails.endpoint(name)) and not set(endpoint.services) <= set(kill.services)
        }
        if grown:
            self._record(grown, "enforcer", "the rails name more ports")
            self._apply()
        self.write_break_glass(self._journal.folder)

    def restore(self) -> None:
        """Make the kernel cut off what the journal says, and take over what only the kernel knows of."""
        self._adopt()
        self._apply()

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
        """Read again where sshd listens; it takes too long for the moment when the switch is pulled."""
        self._ssh_ports = host.ssh_ports()

    def engage(
        self, names: list[str], reason: str, by: str, *, by_analyser: bool
    ) -> dict[str, Any] | Refusal:
        """Cut off the named endpoints, or all; the receipt. Raises EnforcerError where the kernel refuses."""
        started = time.perf_counter()
        chosen, left_out = self._choose(names, by_analyser)
        if not chosen:
            return left_out[0] if left_out else self._unknown()
        not_proven = [why.reason for why in left_out]
        engaged = self._engaged()
        new = {
            e.name: e.services
            for e in chosen
            if e.name not in engaged or not set(e.services) <= set(engaged[e.name].services)
        }
        if new:
            not_proven += self._record(new, by, reason)
        self._apply()
        services = tuple(s for e in chosen for s in e.services)
        before, after = self._cut(services, not_proven)
        try:
            self._journal.sync()
        except OSError as error:
            not_proven.append(f"not on disk, so a restart may forget it: {error.strerror}")
        held = killtable.held(self._nft, KILL)
        not_proven += self._unheld(held, [e.name for e in chosen])
        first = self._engaged()[chosen[0].name]
        return {
            "engaged": [e.name for e in chosen],
            "already": [e.name for e in chosen if e.name not in new],
            "proven": not not_proven,
            "not_proven": not_proven,
            "rules": held.rules if held else 0,
            "connections_before": before,
            "connections_after": after,
            "took_ms": round((time.perf_counter() - started) * 1e3, 1),
            "since_ns": first.since_ns,
            "by": first.by,
            "reason": first.reason,
        }

    def release(self, names: list[str], reason: str, by: str) -> dict[str, Any] | Refusal:
        """Let the named endpoints go, or all that are engaged. Raises EnforcerError."""
        engaged = self._engaged()
        unknown = [n for n in names if n not in engaged and self._rails.endpoint(n) is None]
        if unknown:
            return self._unknown(unknown[0])
        chosen = [n for n in names or engaged if n in engaged]
        if chosen:
            self._journal.append("release", endpoints=chosen, by=by, reason=reason)
            for name in chosen:
                self._unrecorded.pop(name, None)
            self._apply()
        glass = killtable.held(self._nft, BREAK_GLASS)
        return {"released": chosen, "engaged": list(self._engaged()), "break_glass": glass is not None}

    def status(self) -> dict[str, Any]:
        """What is engaged, as the journal and as the kernel say, and where they differ."""
        held, glass = killtable.held(self._nft, KILL), killtable.held(self._nft, BREAK_GLASS)
        kills = [
            {
                "endpoint": name,
                "since_ns": kill.since_ns,
                "by": kill.by,
                "reason": kill.reason,
                "kernel": not self._unheld(held, [name]),
                "services": [str(s) for s in kill.services],
            }
            for name, kill in self._engaged().items()
        ]
        endpoints = [
            {"endpoint": e.name, "kill_switch": e.kill_switch, "services": [str(s) for s in e.services]}
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
        chosen = [e for e in self._rails.endpoints if not names or e.name in names]
        unknown = [n for n in names if self._rails.endpoint(n) is None]
        if unknown or not chosen:
            return self._unknown(*unknown[:1])
        self._nft.run(killtable.render_drill({e.name: e.services for e in chosen}))
        self._drill, self._drill_ends = [e.name for e in chosen], time.monotonic() + seconds
        return {"endpoints": self._drill}

    def drill_stop(self) -> dict[str, Any]:
        """End the drill; packets seen of each endpoint."""
        packets = killtable.counted(self._nft) or []
        self._nft.run(killtable.remove(DRILL))
        names, self._drill, self._drill_ends = self._drill, [], 0.0
        seen = list(zip(names, packets, strict=False))
        return {"drill": [{"endpoint": n, "packets": p, "covered": p > 0} for n, p in seen]}

    def write_break_glass(self, folder: str) -> None:
        """Render the file for `nft -f` ahead of the day when nothing else runs. Raises EnforcerError."""
        endpoints = {e.name: e.services for e in self._choose([], by_analyser=False)[0]}
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
        for name in names or [e.name for e in self._rails.endpoints]:
            endpoint = self._rails.endpoint(name)
            if endpoint is None:
                left_out.append(self._unknown(name))
                continue
            why = self._forbidden(endpoint, by_analyser)
            if why is None:
                chosen.append(endpoint)
            elif names or why.rail == "management":
                left_out.append(why)
        return chosen, left_out

    def _unknown(self, name: str = "") -> Refusal:
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
        if self._ssh_ports is None:
            self.look_around()
        for service in endpoint.services:
            ours = (
                service.address is None
                or service.address.is_loopback
                or service.address in host.own_addresses()
            )
            if service.protocol == "tcp" and ours and service.port in (self._ssh_ports or ()):
                return Refusal(
                    f"{endpoint.name}: {service} is the way in for management (sshd)", "management"
                )
        return None

    def _record(self, new: Mapping[str, tuple[Service, ...]], by: str, reason: str) -> list[str]:
        """Written now, synced after the kernel has acted; the receipt follows both. What went wrong, in words."""
        try:
            said = {name: sorted(map(str, services)) for name, services in new.items()}
            self._journal.append("kill", sync=False, endpoints=said, by=by, reason=reason)
        except EnforcerError as error:
            for name, services in new.items():
                former = self._engaged().get(name)
                more = (*(former.services if former else ()), *services)
                since_ns = former.since_ns if former else time.time_ns()
                self._unrecorded[name] = Kill(tuple(dict.fromkeys(more)), since_ns, by, reason)
            return [f"not recorded, so a restart may forget it: {error.message}"]
        return []

    def _record_late(self) -> None:
        waiting, self._unrecorded = self._unrecorded, {}
        for name, kill in waiting.items():
            self._record({name: kill.services}, kill.by, kill.reason)

    def _apply(self) -> None:
        self._nft.run(killtable.render(KILL, {name: k.services for name, k in self._engaged().items()}))

    def _cut(self, services: tuple[Service, ...], not_proven: list[str]) -> tuple[int, int]:
        """End the connections of the services; how many there were and are."""
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
            conntrack.forget_services(services)
        if after:
            not_proven.append(f"{after} connections are still there, and silenced")
        return before, after

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
