"""Detection: batches in, findings out. Owns the state of all detectors, and of the flow table before them.

The same object serves the live daemon and `replay`; it opens nothing and asks no clock. The caller gives the
receive time, and saves and restores the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..detectors.finding import Finding
from ..detectors.network.allowlist import AllowRule
from ..detectors.registry import FLOW_DETECTORS, login_detectors, network_detectors
from ..detectors.standing import Standing
from .collectors.flows import FlowTable
from .collectors.parsers.scan import keyed_hash
from .corroboration import Needed
from .events import NS_PER_S, AuthBatch, FlowBatch, Outcome, address_columns
from .handshakes import Handshakes
from .incidents import CRITICALITY

if TYPE_CHECKING:
    from .geography import Geography

MOST_USERS = 65_536
"""Of how many names it is remembered that somebody has logged in by them."""


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """What detection needs to know of the configuration."""

    detectors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    disabled: frozenset[str] = frozenset()  # detectors whose findings are dropped
    ingress: Sequence[AllowRule] | None = None
    egress: Sequence[AllowRule] | None = None
    local: Sequence[str] = ()
    future_skew_s: float = 300.0
    handshake_s: float = 3600.0
    ssh_ports: tuple[int, ...] = (22,)
    flow_capacity: int = 1 << 16


class Detection:
    """All detectors and their state.

    Parameters
    ----------
    settings : thresholds, allow-lists and own networks.
    hash_key : 16 bytes that key the hashes under which state is held.
    geography : where addresses are; None where no database is configured.
    """

    def __init__(
        self, settings: DetectionSettings, hash_key: bytes, geography: Geography | None = None
    ) -> None:
        self._settings = settings
        of_flows = {n: o for n, o in settings.detectors.items() if n in FLOW_DETECTORS}
        of_logins = {n: o for n, o in settings.detectors.items() if n not in FLOW_DETECTORS}
        self._login = login_detectors(of_logins, hash_key, geography)
        self._network = network_detectors(of_flows, settings.ingress, settings.egress, hash_key)
        self._table = FlowTable(settings.local, capacity=settings.flow_capacity, hash_key=hash_key)
        self._handshakes = Handshakes(hash_key)
        self._hash_key = hash_key
        self._users: dict[int, None] = {}  # hashes of names, the last to log in at the end
        self.auth_events = 0
        self.packets_seen = 0
        self.flows_seen = 0

    def auth(self, batch: AuthBatch, receive_ns: int | None = None) -> list[Finding]:
        """Findings from authentication events.

        `receive_ns` is when they arrived: an event cannot be later than that plus the skew, so that one line
        from the future expires nothing. None (replay, and lines already there when a file was opened): the
        events' own times stand.
        """
        if not len(batch):
            return []
        if receive_ns is not None:
            latest = receive_ns + int(self._settings.future_skew_s * NS_PER_S)
            if batch.time_ns.max() > latest:
                batch = replace(batch, time_ns=np.minimum(batch.time_ns, latest))
        self.auth_events += len(batch)
        self._remember_users(batch)
        if self.packets_seen:
            self._handshakes.lines(batch)
        return self._enabled(self._login.update(batch))

    def packets(self, packets: Any) -> list[Finding]:
        """Findings from decoded packets (`decode.PACKET` rows)."""
        self.packets_seen += len(packets)
        return self.flows(self._table.update(packets))

    def finish(self) -> list[Finding]:
        """At the end of a capture: what the flows still open have to say."""
        return self.flows(self._table.finish())

    def flows(self, batch: FlowBatch) -> list[Finding]:
        if not len(batch):
            return []
        self.flows_seen += len(batch)
        self._handshakes.flows(batch)
        return self._enabled(self._network.update(batch))

    def _enabled(self, findings: list[Finding]) -> list[Finding]:
        off = self._settings.disabled
        return [f for f in findings if f.detector not in off] if off else findings

    def corroborated(self, source: str, now_ns: int, needed: Needed | None = None) -> bool:
        """Whether a packet collector saw this source make the connections that are `needed`.

        `source` is an address, the IPv6 network that is judged in its place (one address in a /64 speaks for all of
        it), or the network around it. `needed` None: any one connection of the last hour is enough.
        """
        if needed is not None:
            return not self.lacking(source, needed)
        last_ns = self._handshakes.last_ns(source)
        return bool(last_ns) and now_ns - last_ns <= int(self._settings.handshake_s * NS_PER_S)

    def lacking(self, source: str, needed: Needed) -> str:
        """What is needed of this source, in words; empty where it was seen."""
        seen = self._handshakes.seen(source)
        return "" if needed.met_by(seen, self._settings.ssh_ports) else needed.told(seen)

    def standing(self, network: str, now_ns: int, *, packets: bool) -> list[Standing]:
        """How near the detectors are to raising an address, or the IPv6 network that is judged in its place.

        `packets`: whether packets are watched; else the detectors of flows know nothing. Changes nothing. Raises
        ValueError where `network` is none, or wider than what is judged as one.
        """
        address, _, length = network.partition("/")
        family, high, low = address_columns(address)
        judged = 32 if family == 4 else 64
        if not family or (length and not (length.isdecimal() and judged <= int(length) <= 128)):
            raise ValueError(f"{network}: detectors judge each IPv4 address and each IPv6 /64 by itself")
        found = self._login.standing(family, high, low, now_ns)
        if packets:
            found += self._network.standing(family, high, low, now_ns)
        off = self._settings.disabled
        found = [s for s in found if s.detector not in off]
        return found + [Standing(name, "off: what it finds is dropped") for name in sorted(off)]

    def _remember_users(self, batch: AuthBatch) -> None:
        rows = np.flatnonzero(batch.outcome == Outcome.SUCCESS)
        keyed = (batch.key[rows] != 0) & (batch.status[rows] != 0)  # a gateway's request names its key
        latest_first = np.where(keyed, batch.key[rows], batch.user[rows])[::-1].tolist()
        for user in reversed(dict.fromkeys(latest_first)):
            self._users.pop(user, None)
            self._users[user] = None
        self._users.pop(0, None)
        while len(self._users) > MOST_USERS:
            del self._users[next(iter(self._users))]

    def knows_user(self, name: str) -> bool:
        """Whether somebody has logged in by a name, as far back as is remembered."""
        return keyed_hash(name.encode("utf-8", "surrogatepass"), self._hash_key) in self._users

    def save(self) -> dict[str, Any]:
        """The state for a snapshot. Flows under way are not in it: their packets cannot be read again."""
        users = np.fromiter(self._users, np.uint64, len(self._users))
        return {
            "login": self._login.save(),
            "network": self._network.save(),
            "users": users,
            "handshakes": self._handshakes.save(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._login.load(state["login"])
        self._network.load(state["network"])
        self._users = dict.fromkeys(np.asarray(state.get("users", ()), np.uint64).tolist())
        if "handshakes" in state:
            self._handshakes.load(state["handshakes"])


def criticality_of_endpoints(endpoints: Iterable[Any]) -> dict[str, float]:
    """The factor for each target text that names an endpoint: its fronts and backs as `:port/protocol` ends."""
    factors: dict[str, float] = {}
    for endpoint in endpoints:
        for socket in (*endpoint.fronts, *endpoint.backs):
            port = str(socket).rsplit(":", 1)[-1]
            factors[port] = max(factors.get(port, 1.0), CRITICALITY[endpoint.criticality])
    return factors


def criticality_of(factors: Mapping[str, float], targets: Iterable[str]) -> float:
    """The highest factor among targets such as `192.0.2.1:443/tcp`; `nginx` stands for every front."""
    best = 1.0
    for target in targets:
        service, _, port = target.rpartition(":")
        best = max(best, factors.get(port, 1.0))
        if not service and target.split("@")[0] == "nginx":
            best = max([best, *factors.values()])
    return best
