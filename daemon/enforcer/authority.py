"""Who may do what, and doing it: every request, from the enforcer's socket or from the command as root.

The order is always the same: authority, rails, journal, kernel. Nothing here waits for anybody.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from itertools import islice
from typing import Any, NamedTuple

from ..errors import EnforcerError
from . import blocktable, conntrack, host, sockets
from .journal import Journal
from .killswitch import KillSwitch
from .nft import Nft
from .protocol import PAGE
from .rails import PREFIXES, Network, Rails, Refusal, address_text, network_of, refusal
from .state import Block, Moment

_MOST_REFUSALS_A_MINUTE = 60
_SURROUNDINGS_S = 2.0
_NS = 1_000_000_000


class Caller(NamedTuple):
    """Who asks, as the kernel says (SO_PEERCRED)."""

    role: str  # "operator" or "analyser"
    uid: int
    pid: int

    @property
    def name(self) -> str:
        """For the journal: the uid, and who logged in where that is another (sudo keeps it, pam_loginuid(8))."""
        if self.role == "analyser":
            return "analyser"
        try:
            with open(f"/proc/{self.pid}/loginuid", encoding="ascii") as file:
                login = int(file.read())
        except (OSError, ValueError):
            login = self.uid
        return (
            f"uid {self.uid}"
            if login in (self.uid, 2**32 - 1)
            else f"uid {self.uid} (logged in as uid {login})"
        )


class Authority:
    """Answers requests that `protocol.parse` has let through.

    `restore` has to be called first: it puts the kernel in the state that the journal says.
    """

    def __init__(self, journal: Journal, nft: Nft, now: Callable[[], Moment]) -> None:
        self.journal = journal
        self.rails = Rails()
        self.killswitch = KillSwitch(journal, nft)
        self._nft = nft
        self._now = now
        self._never: tuple[tuple[Network, str], ...] = ()
        self._never_read = float("-inf")
        self._shape: list[str] = []
        self._recent: deque[float] = deque()
        self._refusals: deque[float] = deque()
        self._unwritten = 0
        self._to_cut: list[Network] = []

    def use(self, rails: Rails) -> None:
        """These rails hold from now on; `follow` then brings the kernel up to them."""
        self.rails = rails
        self._never_read = float("-inf")
        self.killswitch.use(rails)

    def follow(self) -> None:
        """After new rails: see to what is cut off and to what is never blocked. Raises EnforcerError."""
        self._fresh_never()
        self.killswitch.follow()

    def restore(self) -> None:
        """Make the kernel's blocks what the journal says, in one transaction. Raises EnforcerError."""
        moment = self._now()
        self.journal.state.advance(moment)
        self.journal.state.expire()
        never = self._fresh_never()
        left = [
            (network_of(a), self.journal.state.remaining_s(b, moment))
            for a, b in self.journal.state.blocks.items()
        ]
        blocktable.replace(self._nft, [n for n, _ in never], self.rails, left)
        now_held = blocktable.held(self._nft)
        self._shape = now_held.shape if now_held else []

    def heal(self) -> list[str]:
        """Compare the kernel with the journal and mend what differs; what it was, in words."""
        differs = self.killswitch.heal()
        missing = self._block_differences()
        if missing:
            self.restore()
        return differs + missing

    def tick(self) -> None:
        """Once a minute: note the clocks, forget what has ended, follow this machine's own addresses. Raises
        EnforcerError, after everything was tried that does not need the disk."""
        self._fresh_never()
        self.killswitch.look_around()
        self.killswitch.heal()
        state = self.journal.state
        if state.blocks:
            self.journal.append("tick")
            state.expire()
        if self._unwritten:
            self.journal.append("refusals", count=self._unwritten)
            self._unwritten = 0
        self.journal.maintain()

    def handle(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """The answer to one request; errors are answers too."""
        try:
            answer = getattr(self, f"_do_{ask['request']}")(ask, caller)
        except EnforcerError as error:
            return {"ok": False, "error": error.message, "remedy": error.remedy}
        except OSError as error:
            return {"ok": False, "error": f"kernel: {error.strerror}", "remedy": "see the enforcer's log"}
        return self._refused(answer, ask, caller) if isinstance(answer, Refusal) else {"ok": True, **answer}

    def _do_block(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = _network(ask["address"])
        if isinstance(network, Refusal):
            return network
        analyser, limits = caller.role == "analyser", self.rails.limits
        if analyser and "ttl_s" not in ask:
            return Refusal("the analyser has to give a ttl_s", "ttl")
        ttl_s = ask.get("ttl_s", limits.longest_ttl_s)
        if ttl_s < 1:
            return Refusal("a block lasts at least 1 s", "ttl")
        forbidden = refusal(network, ttl_s, self.rails, self._fresh_never())
        if forbidden is not None:
            return forbidden
        moment, state = self._now(), self.journal.state
        address = address_text(network)
        former = state.in_force(address, moment)
        remains_s = state.remaining_s(former, moment) if former else 0.0
        owner = former.owner if former and analyser else caller.role
        if former and remains_s >= ttl_s and owner == former.owner:
            return {
                "address": address,
                "ttl_s": int(remains_s),
                "already": True,
                **self._cut(network, caller),
            }
        if analyser and not _room(self._recent, limits.most_new_per_minute):
            return Refusal(f"more than {limits.most_new_per_minute} blocks a minute", "most_new_per_minute")
        if not former and len(state.blocks) >= limits.most_blocks:
            state.advance(moment)
            state.expire()
            if len(state.blocks) >= limits.most_blocks:
                return Refusal(f"{limits.most_blocks} blocks are in force", "most_blocks")
        lasting = max(ttl_s, int(remains_s))
        said = {k: ask[k] for k in ("incident", "playbook") if k in ask}
        self.journal.append(
            "block", address=address, ttl_s=lasting, owner=owner, by=caller.name, reason=ask["reason"], **said
        )
        blocktable.add(self._nft, network, lasting)
        return {
            "address": address,
            "ttl_s": lasting,
            "already": former is not None,
            **self._cut(network, caller),
        }

    def _do_unblock(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = _network(ask["address"])
        if isinstance(network, Refusal):
            return network
        address = address_text(network)
        former = self.journal.state.in_force(address, self._now())
        if former is None:
            return {"address": address, "unblocked": False, "covered_by": self._covering(network)}
        if caller.role == "analyser" and former.owner != "analyser":
            return Refusal(f"{address} was blocked by {former.by}, not by the analyser", "owner")
        self.journal.append("unblock", address=address, by=caller.name, reason=ask["reason"])
        blocktable.remove(self._nft, network)
        return {"address": address, "unblocked": True, "covered_by": self._covering(network)}

    def _do_blocks(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        page, moment = ask.get("page", 0), self._now()
        shown = islice(self.journal.state.blocks.items(), page * PAGE, (page + 1) * PAGE)
        listed = [self._said(a, b, moment) for a, b in shown]
        more = (page + 1) * PAGE < len(self.journal.state.blocks)
        return {"blocks": [b for b in listed if b["ttl_s"] > 0], "next": page + 1 if more else -1}

    def _do_check(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = _network(ask["address"])
        if isinstance(network, Refusal):
            return network
        moment, state = self._now(), self.journal.state
        blocked = [self._said(a, state.blocks[a], moment) for a in self._covering(network)]
        forbidden = refusal(network, 1, self.rails, self._fresh_never())
        answer: dict[str, Any] = {"address": address_text(network), "blocked": blocked, "would_refuse": ""}
        return (
            answer
            if forbidden is None
            else {**answer, "would_refuse": forbidden.reason, "rail": forbidden.rail}
        )

    def _do_kill(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        return self.killswitch.engage(
            ask.get("endpoints", []), ask["reason"], caller.name, by_analyser=caller.role == "analyser"
        )

    def _do_release(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person releases the kill switch", "release")
        return self.killswitch.release(ask.get("endpoints", []), ask["reason"], caller.name)

    def _do_drill_start(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person starts a drill", "drill")
        return self.killswitch.drill_start(ask.get("endpoints", []), ask["seconds"])

    def _do_drill_stop(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person ends a drill", "drill")
        return self.killswitch.drill_stop()

    def _do_status(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        journal, now_ns = self.journal, self.journal.state.elapsed_at(self._now())
        return {
            **self.killswitch.status(),
            "pid": os.getpid(),
            "blocks": sum(b.ends_ns > now_ns for b in journal.state.blocks.values()),
            "journal": {
                "sequence": journal.sequence, "head": journal.head, "intact": not journal.note, "note": journal.note,
            },
            "rails": {"path": self.rails.path, "management": [str(n) for n in self.rails.management]},
        }  # fmt: skip

    def _refused(self, why: Refusal, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        if _room(self._refusals, _MOST_REFUSALS_A_MINUTE):
            asked = {
                k: v for k, v in ask.items() if k in ("request", "address", "endpoints", "ttl_s", "incident")
            }
            try:
                self.journal.append(
                    "refused", sync=False, asked=asked, by=caller.name, rail=why.rail, why=why.reason
                )
            except EnforcerError:
                self._unwritten += 1
        else:
            self._unwritten += 1  # whoever floods us does not fill the disk; the count is written by `tick`
        return {"ok": False, "refused": why.reason, "rail": why.rail}

    def _fresh_never(self) -> tuple[tuple[Network, str], ...]:
        """What is never blocked as things stand now, told to the kernel where it changed."""
        now = time.monotonic()
        if now - self._never_read > _SURROUNDINGS_S:
            never = self.rails.never(host.surroundings())
            changed, self._never, self._never_read = never != self._never, never, now
            if changed and self._shape:
                blocktable.set_never(self._nft, [n for n, _ in never])
                now_held = blocktable.held(self._nft)
                self._shape = now_held.shape if now_held else []
        return self._never

    def _block_differences(self) -> list[str]:
        there = blocktable.held(self._nft)
        if there is None:
            return [f"table inet {blocktable.TABLE} was missing"]
        if there.shape != self._shape:
            return [f"table inet {blocktable.TABLE} was changed"]
        moment, state = self._now(), self.journal.state
        # An element that ends within the second may be gone on one side only.
        due = {a for a, b in state.blocks.items() if state.remaining_s(b, moment) > 1.5}
        missing, foreign = len(due - there.blocked), len(there.blocked - state.blocks.keys())
        return (
            [f"{missing} blocks were missing and {foreign} foreign in the kernel"]
            if missing or foreign
            else []
        )

    def _cut(self, network: Network, caller: Caller) -> dict[str, int]:
        """End the connections of a blocked network, whose packets are dropped already. A person is told how many
        sockets there were; the analyser does not wait for it (`finish`)."""
        if caller.role == "analyser":
            self._to_cut.append(network)
            return {}
        return {"cut": _end([network])}

    @property
    def unfinished(self) -> bool:
        """Whether there is something left to do for which nobody waits."""
        return bool(self._to_cut)

    def finish(self) -> None:
        """Do it; many at once take hardly longer than one. Raises OSError."""
        networks, self._to_cut = self._to_cut, []
        _end(networks)

    def _covering(self, network: Network) -> list[str]:
        moment, found = self._now(), []
        for length in PREFIXES[network.version]:
            if length <= network.prefixlen:
                wider = (
                    ip_network((int(network.network_address), length), strict=False)
                    if isinstance(network.network_address, IPv4Address)
                    else network.supernet(new_prefix=length)
                )
                address = address_text(wider)
                if self.journal.state.in_force(address, moment):
                    found.append(address)
        return found

    def _said(self, address: str, block: Block, moment: Moment) -> dict[str, Any]:
        return {
            "address": address,
            "ttl_s": int(self.journal.state.remaining_s(block, moment)),
            "since_ns": block.since_ns,
            "owner": block.owner,
            "by": block.by,
            "reason": block.reason,
            "incident": block.incident,
            "playbook": block.playbook,
        }


def _end(networks: list[Network]) -> int:
    cut = sockets.destroy(sockets.from_networks(networks))
    for network in networks:
        conntrack.forget_network(network)
    return cut


def _network(text: str) -> Network | Refusal:
    try:
        return network_of(text)
    except ValueError as error:
        return Refusal(f"address: {error}", "address")


def _room(recent: deque[float], most: int) -> bool:
    """Whether one more may happen within a minute of the last `most`; if so it is counted."""
    now = time.monotonic()
    while recent and recent[0] <= now - 60:
        recent.popleft()
    if len(recent) >= most:
        return False
    recent.append(now)
    return True
