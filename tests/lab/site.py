"""A gateway at work: three endpoints, fifty clients that stream from them by four ways, and what watches the wire.

`chat` is behind nginx with its back on loopback, `direct` listens on the gateway itself, `published` is behind DNAT.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from . import published
from .lab import HOSTS, MODEL_PORTS, Lab, wait_for
from .published import ModelServer, Published, ends_of
from .stream import Crowd
from .tap import Payload, Tap, Transactions

GATEWAY = HOSTS["gateway"]
CHAT, CHAT_BACK = MODEL_PORTS["chat"]
DIRECT = 8443
CROWD = (
    (12, GATEWAY.v4, CHAT),
    (10, GATEWAY.v4, DIRECT),
    (10, GATEWAY.v6, DIRECT),
    (10, GATEWAY.v4, published.FRONT),
    (8, GATEWAY.v6, published.FRONT),
)
"""Clients, and where they ask."""

ENDPOINTS = f"""
[[endpoint]]
name = "direct"
fronts = ["*:{DIRECT}/tcp"]
[[endpoint]]
name = "published"
fronts = ["*:{published.FRONT}/tcp"]
"""
"""For the rails, which name `chat` themselves. Where the published one really is, Gatewatch has to find out."""

_PORTS = {CHAT, DIRECT, published.FRONT, published.BACK}


class Site:
    """`with Site(lab) as site:` serves, and hears what leaves; after whoever flushes the gateway's ruleset."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._stack = ExitStack()

    def __enter__(self) -> Site:
        with ExitStack() as stack:
            self.published = stack.enter_context(Published(self.lab))
            self.direct = stack.enter_context(ModelServer(self.lab, "gateway", "::", DIRECT))
            self._tap = stack.enter_context(Tap(self.lab, "gateway", "eth0"))
            self._transactions = stack.enter_context(Transactions(self.lab, "gatewatch_kill"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def fill(self, crowd: Crowd) -> None:
        """Fifty clients more, all of them being answered."""
        for count, address, port in CROWD:
            crowd.join(count, address, port)
        wait_for("fifty streams", crowd.flows, 30)

    def listen(self) -> None:
        """Forget what was heard until now."""
        self._tap.read()
        self._transactions.read()

    def transactions(self) -> list[int]:
        """When the kill switch's table was changed, since the last call."""
        return self._transactions.read()

    def answers(self) -> list[Payload]:
        """What left the gateway towards clients since the last call: from a front, or from the published server's
        own port where nobody translates it back any more."""
        return [p for p in self._tap.read() if p.port in _PORTS]

    def ends(self, chat: Path) -> Counter[str]:
        """How the servers' unfinished answers ended, with the server's port; `chat`: what its server said."""
        outputs = {CHAT_BACK: chat, DIRECT: self.direct.output}
        outputs[published.BACK] = self.published.server.output
        return Counter(f"{port} {end}" for port, output in outputs.items() for end in ends_of(output, port))
