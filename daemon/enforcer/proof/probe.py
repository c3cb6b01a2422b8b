"""The proof from outside: knock at the real fronts as a client from elsewhere would, and see nothing come of it.

What the gateway sends to itself arrives on loopback and proves nothing, so the knocks come from a network
namespace of their own. A table counts them just before the kill table's hook and just after it. It must never
call dropped what it did not see arrive there, or what would have been dropped on any port.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ...errors import EnforcerError
from ..kernel import host
from ..kernel.blocktable import PRIORITY
from ..kernel.nft import Nft
from ..rails import Address, Service
from . import knock

TABLE = "gatewatch_probe"
DROPPED, REACHED, NOT_PROBED = "dropped", "reached", "not probed"

_CONTROL = 1  # a UDP port that nobody serves, so that no kill switch is for it: its packets have to get past
_FINISH_S = 1.0


class Outcome(NamedTuple):
    """What came of knocking at one address of a service.

    `DROPPED`: its packets came to the hook, none got past it, and nothing was answered. `REACHED`: something
    was answered, or packets got past the hook. Else `NOT_PROBED`.
    """

    endpoint: str
    service: str  # as the rails have it, e.g. "*:8443/tcp"
    target: str  # what was knocked at, e.g. "192.0.2.2:8443/tcp"; empty where there is nothing to knock at
    verdict: str
    why: str


class _Plan(NamedTuple):
    endpoint: str
    service: Service
    target: Service | None
    why: str = ""  # why it is not probed


class Probe:
    """Starts at once and waits for nothing; to be ended by `finish`, best when `fileno` is readable.

    Nothing is raised: what cannot be done is an outcome "not probed" that says why.
    """

    def __init__(self, nft: Nft, services: Mapping[str, Sequence[Service]]) -> None:
        self._nft = nft
        # The interface, and part of the counters' names, so that no other probe's are taken for this one's.
        self._name = f"gwprobe{os.urandom(3).hex()}"
        self._plans: list[_Plan] = []
        self._targets: list[Service] = []
        self._controls: dict[int, int] = {}  # by IP version: where in the targets
        self._child, self._report = 0, -1
        self._failed = ""
        try:
            self._report, writing = os.pipe()
            try:
                self._start(services, writing)
            finally:
                os.close(writing)
        except (OSError, EnforcerError) as error:
            self._failed = f"the probe failed: {error}"
            if not self._plans:
                self._plans = [_Plan(e, s, None, self._failed) for e, each in services.items() for s in each]

    def fileno(self) -> int:
        """Readable when it is finished. -1 where no descriptor was left, and after `finish`."""
        return self._report

    def finish(self) -> list[Outcome]:
        """An outcome for every address that was or should have been knocked at. Nothing of the probe is left.

        Waits for at most a second where it is not finished.
        """
        said = self._collect()
        counts: dict[str, int] = {}
        try:
            listed = self._nft.table(TABLE) or []
            counts = {o["counter"]["name"]: int(o["counter"]["packets"]) for o in listed if "counter" in o}
            remove_stale(self._nft)
        except EnforcerError as error:
            self._failed = self._failed or f"the probe failed: {error}"
        judged = iter([self._judge(at, said, counts) for at in range(len(self._targets))])
        outcomes = []
        for endpoint, service, target, why in self._plans:
            verdict, why = (NOT_PROBED, why) if why or target is None else next(judged)
            outcomes.append(Outcome(endpoint, str(service), str(target or ""), verdict, why))
        return outcomes

    def _start(self, services: Mapping[str, Sequence[Service]], report: int) -> None:
        self._plans = _plans(services)
        self._targets = [p.target for p in self._plans if p.target is not None and not p.why]
        for address in [target.address for target in self._targets]:
            if address is not None and address.version not in self._controls:
                self._controls[address.version] = len(self._targets)
                self._targets.append(Service(address, _CONTROL, "udp"))
        if self._targets:
            self._nft.run(_render(self._name, len(self._targets)))
            self._child = knock.start(self._name, self._targets, report)

    def _collect(self) -> list[knock.Said]:
        """What the child said; nothing where it did not come to an end."""
        if self._report < 0:
            return []
        os.set_blocking(self._report, False)
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        until, read = time.monotonic() + _FINISH_S, b""
        while poll.poll(max(0.0, until - time.monotonic()) * 1e3):
            more = os.read(self._report, 65_536)
            if not more:
                break
            read += more
        os.close(self._report)
        self._report = -1
        if self._child:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
        try:
            return [knock.Said(*each) for each in json.loads(read)]
        except (ValueError, TypeError):
            self._failed = self._failed or "the probe did not come to an end"
            return []

    def _judge(self, at: int, said: Sequence[knock.Said], counts: Mapping[str, int]) -> tuple[str, str]:
        """The verdict on a target and why, in words."""
        answer, failed = said[at] if at < len(said) else knock.Said()
        arrived, passed = self._counted(at, counts)
        address = self._targets[at].address
        assert address is not None
        if answer:
            return REACHED, answer
        if passed:
            return REACHED, f"{passed} of {arrived} packets got past the hook; no answer came"
        if self._failed or failed:
            return NOT_PROBED, self._failed or failed
        if not counts:
            return NOT_PROBED, "its counters were taken away by others"
        if not arrived:
            return NOT_PROBED, "its packets did not arrive at the hook"
        if not self._counted(self._controls[address.version], counts)[1]:
            return NOT_PROBED, "the probe is dropped on every port, so that this one says nothing"
        return (
            DROPPED,
            f"{arrived} packets came to the hook, none got past it, no answer in {knock.WAIT_S:g} s",
        )

    def _counted(self, at: int, counts: Mapping[str, int]) -> tuple[int, int]:
        return counts.get(f"{self._name}_arrived{at}", 0), counts.get(f"{self._name}_passed{at}", 0)


def remove_stale(nft: Nft) -> None:
    """Take away the table that a killed enforcer may have left. Raises EnforcerError."""
    nft.run(_REMOVE)


_REMOVE = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def _plans(services: Mapping[str, Sequence[Service]]) -> list[_Plan]:
    """What to knock at: of this machine's own addresses one of each family, which the default route prefers."""
    fronts: dict[int, Address] = {}
    for address in (*host.outward_addresses(), *host.own_addresses()):
        if not _secluded(address):
            fronts.setdefault(address.version, address)
    plans: list[_Plan] = []
    for endpoint, each in services.items():
        for service in each:
            addresses = list(fronts.values()) if service.address is None else [service.address]
            if not addresses:
                plans.append(_Plan(endpoint, service, None, "this machine has no address but loopback"))
            for address in addresses:
                why = _secluded(address) or ("too many at once" if len(plans) >= knock.MOST else "")
                plans.append(_Plan(endpoint, service, service._replace(address=address), why))
    return plans


def _secluded(address: Address) -> str:
    """Why nobody from elsewhere can knock there; empty where one can."""
    if address.is_loopback:
        return "only reachable from this machine"
    if address.is_link_local:
        return "only reachable from its own link"
    if address.is_multicast or address.is_unspecified:
        return "no machine's address"
    return "" if address.version == 4 or os.path.exists("/proc/net/if_inet6") else "this machine has no IPv6"


def _render(name: str, targets: int) -> str:
    """Counters around the kill table's hook: what arrives there, and what gets past it."""
    body = ""
    for chain, priority in (("arrived", PRIORITY - 1), ("passed", PRIORITY + 1)):
        rules = ""
        for at in range(targets):
            ports = knock.ports(at)
            body += f"counter {name}_{chain}{at} {{ }}\n"
            rules += (
                f'iifname "{name}" meta l4proto {{ tcp, udp }} th sport {ports[0]}-{ports[-1]} '
                f'counter name "{name}_{chain}{at}"\n'
            )
        body += f"chain {chain} {{\ntype filter hook prerouting priority {priority};\n{rules}}}\n"
    return f"{_REMOVE}table inet {TABLE} {{\n{body}}}\n"
