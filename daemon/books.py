"""The books of what was done, or would have been done: what is in force, how often before, how lately.

In observe mode a block that would have been made counts as one that was: the books then say what a week of enforcing
would have been, with the blocks that grow, the repeat offenders and those that were blocked already. What people
would have been asked for does not count: nobody knows what they would have said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..playbooks.breaker import client_network
from ..playbooks.decisions import network_in, single_or_network
from .events import NS_PER_S
from .store import Store

BLOCKS = ("block_source", "block_user")
MOST_REMEMBERED = 100_000
"""How many blocks are read at the start; of so many targets, those whose time is over are forgotten."""
WIDE_S = 30 * 86_400
"""For how long an address counts as one of its network that was blocked."""


class Books:
    """Questions about the past, for `DecisionContext`. Call `note` whenever an action was saved."""

    def __init__(self, store: Store, mode: Literal["observe", "enforce"], clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._counted = ("done",) if mode == "enforce" else ("done", "would")
        self._ends: dict[str, int] = {}  # what is in force -> when it ends, nanoseconds since 1970
        self._networks: dict[int, dict[int, dict[int, int]]] = {
            4: {},
            6: {},
        }  # the same: version, shift, prefix
        self._inside: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for action in store.blocks_since(clock() - WIDE_S * NS_PER_S, MOST_REMEMBERED):
            self.note(action)

    def note(self, action: Mapping[str, Any]) -> None:
        if action["action"] not in BLOCKS:
            return
        target, ends_ns = str(action["target"]), end_ns(action)
        if self._counts(action) or action["state"] == "pending":
            self._set(target, max(ends_ns, self._ends.get(target, 0)))
        elif target in self._ends:  # another block of it may stand all the same
            others = self._store.blocks_of(target, (*self._counted, "pending"))
            self._set(target, max((end_ns(a) for a in others if a["id"] != action["id"]), default=0))
        if action["action"] == "block_source":
            wide = _around(target)
            if self._counts(action) or action["state"] == "lifted":
                self._inside[wide][target] = ends_ns
            elif action["state"] == "undone":
                self._inside[wide].pop(target, None)

    def in_force(self, target: str) -> bool:
        return self._ends.get(target, 0) > self._clock()

    def covers(self, client: str) -> bool:
        """Whether a client (an IPv4 address or an IPv6 /64) is hit by a block that is in force by the books."""
        network, now_ns = client_network(client), self._clock()
        if network is None:
            return False
        value = int(network.network_address)
        return any(
            ends.get(value >> shift, 0) > now_ns for shift, ends in self._networks[network.version].items()
        )

    def covers_user(self, user: str) -> bool:
        return self.in_force(user) or any(
            self.in_force(f"{kind}:{user}") for kind in ("account", "subject", "key", "certificate")
        )

    def standing(self, target: str, ttl_s: int) -> list[dict[str, Any]]:
        """The blocks of a target in force that were made for at least so long."""
        if not self.in_force(target):
            return []
        now_ns = self._clock()
        return [a for a in self._blocks(target) if end_ns(a) > now_ns and a["ttl_s"] >= ttl_s]

    def served(self, target: str) -> int:
        """How many blocks of it ran their time: whoever is still blocked has not come back."""
        return self._store.blocks_over(target, self._counted, self._clock())

    def ended(self, target: str) -> int:
        """How many blocks of it are over, those that somebody took back included."""
        return self._store.blocks_over(target, self._counted, self._clock(), ("lifted", "undone"))

    def inside(self, network: str) -> int:
        """How many addresses of a /24 or /48 were blocked within WIDE_S."""
        since_ns = self._clock() - WIDE_S * NS_PER_S
        return sum(ends_ns >= since_ns for ends_ns in self._inside.get(network, {}).values())

    def last_action(self, playbook: str, action: str, target: str) -> int | None:
        return self._store.last_action(playbook, action, target, self._counted)

    def _counts(self, action: Mapping[str, Any]) -> bool:
        """Whether it was done, or in observe mode would have been without asking anybody."""
        asks = action["state"] == "would" and bool((action.get("detail") or {}).get("needs"))
        return action["state"] in self._counted and not asks

    def _blocks(self, target: str) -> list[dict[str, Any]]:
        return [a for a in self._store.blocks_of(target, self._counted) if self._counts(a)]

    def _set(self, target: str, ends_ns: int) -> None:
        if len(self._ends) > MOST_REMEMBERED and target not in self._ends:
            self._forget_ended()
        network = network_in(target)
        if ends_ns:
            self._ends[target] = ends_ns
        else:
            del self._ends[target]
        if network is None:
            return
        if network.version == 6 and network.prefixlen > 64:  # hits the client that is the /64 around it
            network = network.supernet(new_prefix=64)
        shift = network.max_prefixlen - network.prefixlen
        self._networks[network.version].setdefault(shift, {})[int(network.network_address) >> shift] = ends_ns

    def _forget_ended(self) -> None:
        now_ns = self._clock()
        self._ends = {target: ends_ns for target, ends_ns in self._ends.items() if ends_ns > now_ns}
        for lengths in self._networks.values():
            for shift, ends in lengths.items():
                lengths[shift] = {prefix: ends_ns for prefix, ends_ns in ends.items() if ends_ns > now_ns}
        since_ns = now_ns - WIDE_S * NS_PER_S
        for wide, targets in list(self._inside.items()):
            if all(ends_ns < since_ns for ends_ns in targets.values()):
                del self._inside[wide]


def end_ns(action: Mapping[str, Any]) -> int:
    return int(action["time_ns"] + action["ttl_s"] * NS_PER_S)


def _around(target: str) -> str:
    """The /24 or /48 around an address or network, itself where it is wider."""
    network = network_in(target)
    if network is None:
        return target
    length = 24 if network.version == 4 else 48
    return single_or_network(network.supernet(new_prefix=min(length, network.prefixlen)))
