"""The books of what was done, or would have been done: what is in force, how often before, how lately.

In observe mode a block that would have been made counts as one that was: the books then say what a week of enforcing
would have been, with the blocks that grow, the repeat offenders and those that were blocked already.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .events import NS_PER_S
from .store import Store

BLOCKS = ("block_source", "block_user")
MOST_REMEMBERED = 100_000
"""How many blocks are read at the start."""
WIDE_S = 30 * 86_400
"""For how long an address counts as one of its network that was blocked."""


class Books:
    """Questions about the past, for `DecisionContext`. Call `note` whenever an action was saved."""

    def __init__(self, store: Store, mode: Literal["observe", "enforce"], clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self.counted = ("done",) if mode == "enforce" else ("done", "would")
        self._ends: dict[str, int] = {}  # what is in force -> when it ends, nanoseconds since 1970
        self._inside: defaultdict[str, set[str]] = defaultdict(set)
        for action in store.blocks_since(clock() - WIDE_S * NS_PER_S, MOST_REMEMBERED):
            self.note(action)

    def note(self, action: Mapping[str, Any]) -> None:
        if action["action"] not in BLOCKS:
            return
        target, ends_ns = str(action["target"]), end_ns(action)
        if action["state"] in self.counted or action["state"] == "pending":
            self._ends[target] = max(ends_ns, self._ends.get(target, 0))
        elif action["state"] in ("lifted", "undone", "refused"):
            self._ends.pop(target, None)
        if action["action"] == "block_source" and action["state"] in (*self.counted, "lifted"):
            for wide in _around(target):
                self._inside[wide].add(target)

    def in_force(self, target: str) -> bool:
        return self._ends.get(target, 0) > self._clock()

    def covers(self, client: str) -> bool:
        """Whether a client's address is hit by a block that is in force by the books."""
        return self.in_force(client) or any(self.in_force(wide) for wide in _around(client, all_of=True))

    def covers_user(self, user: str) -> bool:
        return self.in_force(user) or any(
            self.in_force(f"{kind}:{user}") for kind in ("account", "subject", "key", "certificate")
        )

    def standing(self, target: str, ttl_s: int) -> list[dict[str, Any]]:
        """The blocks of a target in force that were made for at least so long."""
        now_ns = self._clock()
        return [a for a in self._blocks(target) if end_ns(a) > now_ns and a["ttl_s"] >= ttl_s]

    def served(self, target: str) -> int:
        """How many blocks of it ran their time: whoever is still blocked has not come back."""
        now_ns = self._clock()
        return sum(end_ns(a) <= now_ns for a in self._blocks(target))

    def inside(self, network: str) -> int:
        """How many addresses of a /24 or /48 were blocked within WIDE_S."""
        return len(self._inside.get(network, ()))

    def last_action(self, playbook: str, action: str, target: str) -> int | None:
        times = (
            a["time_ns"]
            for a in self._store.actions(target=target)
            if a["playbook"] == playbook and a["action"] == action and a["state"] in self.counted
        )
        return max(times, default=None)

    def _blocks(self, target: str) -> list[dict[str, Any]]:
        actions = self._store.actions(target=target)
        return [a for a in actions if a["action"] in BLOCKS and a["state"] in self.counted]


def end_ns(action: Mapping[str, Any]) -> int:
    return int(action["time_ns"] + action["ttl_s"] * NS_PER_S)


def _around(target: str, *, all_of: bool = False) -> list[str]:
    """The /24 or /48 around an address or network; with `all_of` each network that may be blocked around it."""
    try:
        network = ipaddress.ip_network(target, strict=False)
    except ValueError:
        return []
    lengths = (
        ((24,) if network.version == 4 else (64, 48)) if all_of else (24 if network.version == 4 else 48,)
    )
    return [str(network.supernet(new_prefix=n)) for n in lengths if n <= network.prefixlen]
