"""Blocked addresses: what may be asked of them, what is in force, and making the kernel hold exactly that.

A block with `where` = "gateway" is known to the authorisation endpoint alone, for clients behind a proxy: nothing
here puts it into the kernel.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from itertools import islice
from typing import Any

from .callers import Caller
from .journal import Journal
from .kernel import blocktable, conntrack, host, sockets
from .kernel.elements import MissingError
from .kernel.nft import Nft
from .pace import room
from .protocol import MOST_BYTES, PAGE
from .rails import PREFIXES, Network, Rails, Refusal, address_text, network_of, refusal
from .state import NS_PER_S, Block, Moment

MOST_LISTED_BYTES = MOST_BYTES - 10_000  # one block more has its longest reason in JSON's escapes
GATEWAY = "gateway"
_SURROUNDINGS_S = 2.0


class Blocks:
    """Answers what concerns addresses. `made` and `taken_back`: when the analyser did so, of addresses and users."""

    def __init__(
        self,
        journal: Journal,
        nft: Nft,
        now: Callable[[], Moment],
        made: deque[float],
        taken_back: deque[float],
    ) -> None:
        self._journal = journal
        self._nft = nft
        self._now = now
        self._rails = Rails()
        self._never: tuple[tuple[Network, str], ...] = ()
        self._never_read = float("-inf")
        self._shape: list[str] = []
        self._made = made
        self._taken_back = taken_back
        self._to_cut: list[Network] = []

    def use(self, rails: Rails) -> None:
        """These rails hold from now on."""
        self._rails = rails
        self._never_read = float("-inf")

    def restore(self) -> None:
        """Make the kernel's blocks what the journal says, in one transaction. Raises EnforcerError."""
        moment, state = self._now(), self._journal.state
        state.advance(moment)
        state.expire()
        never = self.fresh_never()
        now_ns = state.elapsed_at(moment)
        left = [(a, (b.ends_ns - now_ns) / NS_PER_S) for a, b in state.blocks.items() if b.where != GATEWAY]
        blocktable.replace(self._nft, [n for n, _ in never], self._rails, left)
        self._shape = blocktable.shape(self._nft) or []

    def differences(self) -> list[str]:
        """Where the kernel differs from the journal, in words."""
        there = blocktable.held(self._nft)
        if there is None:
            return [f"table inet {blocktable.TABLE} was missing"]
        if there.shape != self._shape:
            return [f"table inet {blocktable.TABLE} was changed"]
        state = self._journal.state
        # An element that ends within the second may be gone on one side only.
        soon_ns = state.elapsed_at(self._now()) + 3 * NS_PER_S // 2
        known = {a: b.ends_ns for a, b in state.blocks.items() if b.where != GATEWAY}
        due = {a for a, ends_ns in known.items() if ends_ns > soon_ns}
        missing, foreign = due - there.blocked, len(there.blocked - known.keys())
        if missing:  # a block that ends while they are read may hide others, but hardly the same ones twice
            again = blocktable.held(self._nft)
            missing -= again.blocked if again else set()
        return (
            [f"{len(missing)} blocks were missing and {foreign} foreign in the kernel"]
            if missing or foreign
            else []
        )

    def fresh_never(self) -> tuple[tuple[Network, str], ...]:
        """What is never blocked as things stand now, told to the kernel where it changed. Raises EnforcerError."""
        now = time.monotonic()
        if now - self._never_read > _SURROUNDINGS_S:
            never = self._rails.never(host.surroundings())
            changed, self._never, self._never_read = never != self._never, never, now
            if changed and self._shape:
                blocktable.set_never(self._nft, [n for n, _ in never])
                self._shape = blocktable.shape(self._nft) or []
        return self._never

    def forbidden(self, ask: dict[str, Any], caller: Caller) -> Refusal | None:
        """Why that block would be refused, before how many there are is looked at."""
        judged = self._judged(ask, caller)
        return judged if isinstance(judged, Refusal) else None

    def block(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        judged = self._judged(ask, caller)
        if isinstance(judged, Refusal):
            return judged
        network, ttl_s = judged
        limits, analyser = self._rails.limits, caller.role == "analyser"
        moment, state = self._now(), self._journal.state
        address = address_text(network)
        former = state.in_force(address, moment)
        remains_s = state.remaining_s(former, moment) if former else 0.0
        owner = former.owner if former and caller.owner == "analyser" else caller.owner
        where = ask.get("where", "") if former is None or former.where else ""  # it never narrows
        same = former is not None and remains_s >= ttl_s and (owner, where) == (former.owner, former.where)
        if same and not caller.approval:  # what people granted is noted, whether it changes something or not
            cut = self._cut(network, where, caller)
            return {"address": address, "ttl_s": int(remains_s), "already": True, **cut}
        if analyser and not room(self._made, limits.most_new_per_minute):
            return Refusal(f"more than {limits.most_new_per_minute} blocks a minute", "most_new_per_minute")
        most = most_in_force(limits.most_blocks, caller)
        if not former and len(state.blocks) >= most:
            state.advance(moment)
            state.expire()
            if len(state.blocks) >= most:
                return Refusal(f"{most} blocks are in force", "most_blocks")
        lasting = max(ttl_s, int(remains_s))
        more: dict[str, Any] = {k: ask[k] for k in ("incident", "playbook") if k in ask}
        if where:
            more["where"] = where
        self._journal.append(
            "block", address=address, ttl_s=lasting, owner=owner, reason=ask["reason"], **caller.noted, **more
        )
        if where != GATEWAY:
            self._tell(lambda: blocktable.add(self._nft, network, lasting))
        cut = self._cut(network, where, caller)
        return {"address": address, "ttl_s": lasting, "already": former is not None, **cut}

    def unblock(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = asked_network(ask["address"])
        if isinstance(network, Refusal):
            return network
        address = address_text(network)
        former = self._journal.state.in_force(address, self._now())
        if former is None:
            return {"address": address, "unblocked": False, "covered_by": self._covering(network)}
        if caller.role == "analyser" and former.owner != "analyser":
            return Refusal(f"{address} was blocked by {former.by}, not by the analyser", "owner")
        most = self._rails.limits.most_new_per_minute
        if caller.role == "analyser" and not room(self._taken_back, most):
            return Refusal(f"more than {most} unblocks a minute", "most_new_per_minute")
        self._journal.append("unblock", address=address, reason=ask["reason"], **caller.noted)
        if former.where != GATEWAY:
            self._tell(lambda: blocktable.remove(self._nft, network))
        return {"address": address, "unblocked": True, "covered_by": self._covering(network)}

    def blocks(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        moment, state = self._now(), self._journal.state
        listed, following = page(
            state.blocks, ask.get("page", 0), lambda address, block: self._said(address, block, moment)
        )
        return {"blocks": listed, "next": following}

    def check(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        network = asked_network(ask["address"])
        if isinstance(network, Refusal):
            return network
        moment, state = self._now(), self._journal.state
        blocked = [self._said(a, state.blocks[a], moment) for a in self._covering(network)]
        forbidden = refusal(network, 1, self._rails, self.fresh_never())
        answer: dict[str, Any] = {"address": address_text(network), "blocked": blocked, "would_refuse": ""}
        return (
            answer
            if forbidden is None
            else {**answer, "would_refuse": forbidden.reason, "rail": forbidden.rail}
        )

    def import_blocks(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        if caller.role == "analyser":
            return Refusal("only an operator imports blocks", "import")
        if "block" in self._rails.two_people:
            return Refusal("a block needs two people, so many cannot be imported by one", "two_people")
        moment, state, longest_s = self._now(), self._journal.state, self._rails.limits.longest_ttl_s
        state.advance(moment)
        state.expire()
        never, already, shortened = self.fresh_never(), 0, 0
        left = self._rails.limits.most_blocks - len(state.blocks)
        taken: dict[str, int] = {}
        refused: list[list[str]] = []
        for text, wanted_s in ask["blocks"]:
            ttl_s = min(wanted_s, longest_s)
            network = asked_network(text)
            why = network if isinstance(network, Refusal) else refusal(network, ttl_s, self._rails, never)
            address = "" if isinstance(network, Refusal) else address_text(network)
            former = state.blocks.get(address)
            remains_s = state.remaining_s(former, moment) if former else 0.0
            if why is None and ttl_s < 1:
                why = Refusal("a block lasts at least 1 s", "ttl")
            if why is None and former is None and address not in taken and left < 1:
                why = Refusal(f"{self._rails.limits.most_blocks} blocks are in force", "most_blocks")
            if why is not None:
                refused.append([brief(text), brief(why.reason)])
            elif former is not None and not former.where and remains_s >= ttl_s:
                already += 1
            else:
                left -= former is None and address not in taken
                shortened += ttl_s < wanted_s
                taken[address] = max(ttl_s, int(remains_s), taken.get(address, 0))
        if taken:
            self._journal.append(
                "import", blocks=list(taken.items()), owner="operator", by=caller.name, reason=ask["reason"]
            )
            self._tell(
                lambda: blocktable.add_many(self._nft, [(network_of(a), ttl_s) for a, ttl_s in taken.items()])
            )
            self.end([network_of(a) for a in taken])
        return {"imported": len(taken), "already": already, "shortened": shortened, "refused": refused}

    @property
    def unfinished(self) -> bool:
        """Whether connections are left to end for which nobody waits."""
        return bool(self._to_cut)

    def finish(self) -> None:
        """End them; many at once take hardly longer than one. Raises OSError."""
        networks, self._to_cut = self._to_cut, []
        self.end(networks)

    def end(self, networks: list[Network]) -> int:
        """End their connections, but for those of whom a wider block lets through; how many. Raises OSError."""
        spared = [n for n, _ in self.fresh_never()]
        found = sockets.from_networks(networks)
        cut = sockets.destroy([c for c in found if not any(c.remote in n for n in spared)])
        conntrack.forget_networks(networks, spared)
        return cut

    def _judged(self, ask: dict[str, Any], caller: Caller) -> tuple[Network, int] | Refusal:
        """What is to be blocked, and for how long."""
        network = asked_network(ask["address"])
        if isinstance(network, Refusal):
            return network
        ttl_s = asked_ttl(ask, caller, self._rails)
        if isinstance(ttl_s, Refusal):
            return ttl_s
        return refusal(network, ttl_s, self._rails, self.fresh_never()) or (network, ttl_s)

    def _cut(self, network: Network, where: str, caller: Caller) -> dict[str, int]:
        """End the connections of a blocked network, whose packets are dropped already. A person is told how many
        sockets there were; the analyser does not wait for it (`finish`)."""
        if caller.role == "analyser":
            if where != GATEWAY:
                self._to_cut.append(network)
            return {}
        return {"cut": 0 if where == GATEWAY else self.end([network])}

    def _tell(self, change: Callable[[], None]) -> None:
        """Let the kernel follow the journal; where somebody took the table away this moment, with all that is in it."""
        try:
            change()
        except MissingError:
            self.restore()

    def _covering(self, network: Network) -> list[str]:
        """The blocks that hold for it, in the kernel or at the gateway alone."""
        moment, found = self._now(), []
        for length in PREFIXES[network.version]:
            if length <= network.prefixlen:
                wider = (
                    ip_network((int(network.network_address), length), strict=False)
                    if isinstance(network.network_address, IPv4Address)
                    else network.supernet(new_prefix=length)
                )
                address = address_text(wider)
                if self._journal.state.in_force(address, moment):
                    found.append(address)
        return found

    def _said(self, address: str, block: Block, moment: Moment) -> dict[str, Any]:
        ttl_s = int(self._journal.state.remaining_s(block, moment))
        return {"address": address, **said(block, ttl_s), "where": block.where}


def said(block: Block, ttl_s: int) -> dict[str, Any]:
    """How a block is listed, of an address or of a user; `ttl_s` remain."""
    return {
        "ttl_s": ttl_s,
        "since_ns": block.since_ns,
        "owner": block.owner,
        "by": block.by,
        "reason": block.reason,
        "incident": block.incident,
        "playbook": block.playbook,
    }


def page(
    blocks: dict[str, Block], first: int, say: Callable[[str, Block], dict[str, Any]]
) -> tuple[list[dict[str, Any]], int]:
    """What is in force from the place `first` on, as much as fits into an answer; and the next place, or -1."""
    left = MOST_LISTED_BYTES
    listed: list[dict[str, Any]] = []
    for at, (name, block) in enumerate(islice(blocks.items(), first, first + PAGE), first):
        row = say(name, block)
        left -= len(json.dumps(row))
        if left < 0 and listed:  # reasons may be long, an answer may not
            return listed, at
        if row["ttl_s"] > 0:
            listed.append(row)
    return listed, first + PAGE if first + PAGE < len(blocks) else -1


def asked_ttl(ask: dict[str, Any], caller: Caller, rails: Rails) -> int | Refusal:
    """For how long a block is wanted, seconds: without `ttl_s` a person's lasts as long as the rails allow."""
    if caller.role == "analyser" and "ttl_s" not in ask:
        return Refusal("the analyser has to give a ttl_s", "ttl")
    ttl_s: int = ask.get("ttl_s", rails.limits.longest_ttl_s)
    return ttl_s if ttl_s >= 1 else Refusal("a block lasts at least 1 s", "ttl")


def most_in_force(most: int, caller: Caller) -> int:
    """How many blocks there may be where `caller` asks for one more: the last of a hundred are left to people."""
    return most - most // 100 if caller.role == "analyser" else most


def asked_network(text: str) -> Network | Refusal:
    """The network that a request names."""
    try:
        return network_of(text)
    except ValueError as error:
        return Refusal(f"address: {error}", "address")


def brief(text: str, most: int = 100) -> str:
    """So short and plain that an answer has room for as many as one message can ask for."""
    return "".join(c if c.isascii() and c not in '"\\' else "?" for c in text[:most])
