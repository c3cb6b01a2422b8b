"""Requests that wait until enough different persons agree, and what comes of their answers.

What an operator asks for and the rails want two people for, the operator is one of. Of what the analyser asks for it
is none. Every step is an entry of the journal: `ask`, `agree`, `grant`, `deny`, `expired`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from ..errors import EnforcerError
from .blocks import MOST_LISTED_BYTES
from .callers import Caller, shared
from .journal import Journal
from .killswitch import Later
from .protocol import encode
from .rails import Rails, Refusal
from .state import NS_PER_S, Approval, Moment

MOST_WAITING = 50
WAITING_S = 900
_LONGEST = 20_000  # bytes: a reason and whom it hits at their longest, in JSON's escapes
_UNESSENTIAL = frozenset({"reason", "hits"})
_OF_THE_WAITING = frozenset({"approval", "hits"})

Answer = dict[str, Any] | Refusal | Later


class Approvals:
    """`perform` does what was granted; it is given the request and who is answerable for it."""

    def __init__(
        self,
        journal: Journal,
        now: Callable[[], Moment],
        perform: Callable[[dict[str, Any], Caller], Answer],
    ) -> None:
        self._journal = journal
        self._now = now
        self._perform = perform
        self._rails = Rails()

    def use(self, rails: Rails) -> None:
        """These rails hold from now on, for what waits already as well."""
        self._rails = rails

    def file(self, ask: dict[str, Any], caller: Caller, needs: int) -> Answer:
        """Note that `needs` persons have to agree to `ask`; from another person the same request agrees to it."""
        self.expire()
        waiting = self._journal.state.approvals
        for name, other in waiting.items():
            if _essence(other.asked) == _essence(ask):
                if caller.role == "analyser":
                    if other.owner == "analyser":
                        return self._pending(name)
                elif _agreed(caller.person, other):
                    return self._pending(name)
                else:
                    return self._agree(name, other, caller)
        most = self._rails.limits.most_waiting
        if caller.role == "analyser" and sum(a.owner == "analyser" for a in waiting.values()) >= most:
            return Refusal(f"{most} requests of the analyser wait for a person already", "most_waiting")
        if len(waiting) >= MOST_WAITING:
            return Refusal(f"{MOST_WAITING} requests wait for a person already", "two_people")
        if len(encode(ask)) > _LONGEST:
            return Refusal(f"what waits for a person has {_LONGEST} bytes at most", "two_people")
        name = f"A{self._journal.sequence + 1}"
        self._journal.append(
            "ask", id=name, asked=ask, by=caller.name, person=caller.person, ttl_s=WAITING_S,
            needs=needs, owner=caller.role,
        )  # fmt: skip
        return self._pending(name)

    def approvals(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        with contextlib.suppress(EnforcerError):  # the list does not depend on the disk
            self.expire()
        now_ns, first, left = self._now_ns(), ask.get("page", 0), MOST_LISTED_BYTES
        listed: list[dict[str, Any]] = []
        for at, (name, waiting) in enumerate(self._journal.state.approvals.items()):
            if at >= first and waiting.ends_ns > now_ns:
                said = self._said(name, waiting, now_ns)
                left -= len(json.dumps(said))
                if left < 0 and listed:
                    return {"approvals": listed, "next": at}
                listed.append(said)
        return {"approvals": listed, "next": -1}

    def grant(self, ask: dict[str, Any], caller: Caller) -> Answer:
        waiting = self._waiting(ask["id"], caller)
        return waiting if isinstance(waiting, Refusal) else self._agree(ask["id"], waiting, caller)

    def deny(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        waiting = self._waiting(ask["id"], caller)
        if isinstance(waiting, Refusal):
            return waiting
        self._journal.append("deny", id=ask["id"], by=caller.name)
        return {"denied": ask["id"]}

    def expire(self) -> None:
        """Note what has waited too long. Raises EnforcerError."""
        now_ns, waiting = self._now_ns(), self._journal.state.approvals
        for name in [n for n, a in waiting.items() if a.ends_ns <= now_ns]:
            self._journal.append("expired", id=name)

    def _waiting(self, name: str, caller: Caller) -> Approval | Refusal:
        if caller.role == "analyser":
            return Refusal("only a person grants or denies", "two_people")
        waiting = self._journal.state.approvals.get(name)
        if waiting is None:
            return Refusal(
                f"no request {name!r} waits for a person; see `gatewatch approvals list`", "approval"
            )
        if waiting.ends_ns <= self._now_ns():
            with contextlib.suppress(EnforcerError):  # it is over, whether the disk takes that or not
                self.expire()
            return Refusal(f"request {name} has expired: it waited for {WAITING_S // 60} minutes", "approval")
        return waiting

    def _agree(self, name: str, waiting: Approval, caller: Caller) -> Answer:
        if _agreed(caller.person, waiting):
            others = " and ".join(by for by, _ in waiting.granted)
            return Refusal(f"{name} needs another person than {others}", "two_people")
        if len(waiting.granted) + 1 < self._needs(waiting):
            self._journal.append("agree", id=name, by=caller.name, person=caller.person)
            return self._pending(name)
        self._journal.append("grant", id=name, by=caller.name, person=caller.person)
        people = [by for by, person in waiting.granted if person != waiting.person]
        granted = " and ".join((*people, caller.name))
        asked = {k: v for k, v in waiting.asked.items() if k not in _OF_THE_WAITING}
        asker = "analyser" if waiting.owner == "analyser" else ""
        both = caller._replace(said=f"{waiting.by}, granted by {granted}", asker=asker, approval=name)
        return self._perform(asked, both)

    def _needs(self, waiting: Approval) -> int:
        """How many persons have to agree, by the rails of now."""
        return max(waiting.needs, 2 if waiting.asked.get("request") in self._rails.two_people else 1)

    def _pending(self, name: str) -> dict[str, Any]:
        waiting = self._journal.state.approvals[name]
        return {
            "pending": name,
            "needs": self._needs(waiting) - len(waiting.granted),
            "expires_s": (waiting.ends_ns - self._now_ns()) // NS_PER_S,
        }

    def _said(self, name: str, waiting: Approval, now_ns: int) -> dict[str, Any]:
        return {
            "id": name,
            **{k: v for k, v in waiting.asked.items() if k != "approval"},
            "by": waiting.by,
            "since_ns": waiting.since_ns,
            "expires_s": (waiting.ends_ns - now_ns) // NS_PER_S,
            "needs": self._needs(waiting),
            "granted": [by for by, _ in waiting.granted],
        }

    def _now_ns(self) -> int:
        return self._journal.state.elapsed_at(self._now())


def _agreed(person: str, waiting: Approval) -> bool:
    """Whether who agreed already can be that person."""
    return any(shared(person, other) for _, other in waiting.granted)


def _essence(asked: dict[str, Any]) -> dict[str, Any]:
    """What makes two requests the same."""
    return {k: v for k, v in asked.items() if k not in _UNESSENTIAL}
