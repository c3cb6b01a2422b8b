"""Ends the connections of an address without blocking it: sockets here, and what this machine forwards.

Sockets are destroyed, so both ends hear of it. What is forwarded is forgotten by connection tracking, and reset in
both directions when it next speaks. Where connection tracking is not in use, nothing that is only routed can be
ended; neither can UDP that is forwarded, as it has no connection to reset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from .blocks import Blocks, asked_network
from .callers import Caller
from .journal import Journal
from .kernel import conntrack, cuttable, sockets
from .kernel.nft import Nft
from .pace import room
from .rails import Network, Rails, Refusal, address_text, refusal

_MOST_READ = 200_000  # entries of connection tracking: what is cut is not dropped, so it has to be found


class Ended(NamedTuple):
    sockets: int
    forgotten: int  # entries of connection tracking, those of the sockets among them


class Ending:
    """Answers `cut`. `blocks` knows what is never blocked, and thus never cut."""

    def __init__(self, journal: Journal, nft: Nft, blocks: Blocks) -> None:
        self._journal = journal
        self._nft = nft
        self._blocks = blocks
        self._rails = Rails()
        self._made: deque[float] = deque()

    def use(self, rails: Rails) -> None:
        """These rails hold from now on."""
        self._rails = rails

    def forbidden(self, ask: dict[str, Any], caller: Caller) -> Refusal | None:
        """Why nobody could cut that."""
        network = asked_network(ask["address"])
        if isinstance(network, Refusal):
            return network
        return refusal(network, 0, self._rails, self._blocks.fresh_never())

    def cut(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        """End the connections of an address or a network, and let new ones begin. Raises EnforcerError, OSError."""
        network = asked_network(ask["address"])
        if isinstance(network, Refusal):
            return network
        why = self.forbidden(ask, caller)
        if why is not None:
            return why
        most = self._rails.limits.most_new_per_minute
        if caller.role == "analyser" and not room(self._made, most):
            return Refusal(f"more than {most} cuts a minute", "most_new_per_minute")
        said: dict[str, Any] = {k: ask[k] for k in ("incident", "playbook") if k in ask}
        if caller.approval:
            said["approval"] = caller.approval
        address = address_text(network)
        self._journal.append("cut", address=address, by=caller.name, reason=ask["reason"], **said)
        ended = end(self._nft, network, [n for n, _ in self._blocks.fresh_never()])
        return {"address": address, "cut": ended.sockets, "forgotten": ended.forgotten}


def end(nft: Nft, network: Network, spared: Sequence[Network]) -> Ended:
    """End what `network` is connected to, but for the addresses in `spared`. Raises EnforcerError, OSError."""
    found = sockets.from_networks([network])
    cut = sockets.destroy([c for c in found if not any(c.remote in n for n in spared)])
    if not conntrack.entries():
        return Ended(cut, 0)
    cuttable.put(nft, network)
    return Ended(cut, conntrack.forget_networks([network], spared, _MOST_READ))
