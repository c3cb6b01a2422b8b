"""Blocked users: Unix accounts and principals of the gateway, by name alone.

Nothing here ends a session or refuses a request: the accounts helper and the authorisation endpoint do what the
published deny list says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .admins import admins, would_lock_out
from .blocks import asked_ttl, most_in_force, page, said
from .callers import Caller
from .journal import Journal
from .pace import room
from .protocol import KINDS, is_name
from .rails import Rails, Refusal, user_refusal
from .state import Block, Moment

ANY = "any"


class Users:
    """Answers what concerns users. `made` and `taken_back`: when the analyser did so, of addresses and users.

    `administrators` gives the accounts that can become root, the members of the named group among them.
    """

    def __init__(
        self,
        journal: Journal,
        now: Callable[[], Moment],
        made: deque[float],
        taken_back: deque[float],
        administrators: Callable[[str], set[str]] = lambda group: admins(extra_groups=(group,)),
    ) -> None:
        self._journal = journal
        self._now = now
        self._rails = Rails()
        self._made = made
        self._taken_back = taken_back
        self._administrators = administrators

    def use(self, rails: Rails) -> None:
        """These rails hold from now on."""
        self._rails = rails

    def forbidden(self, ask: dict[str, Any], caller: Caller) -> Refusal | None:
        """Why that block would be refused, before how many there are is looked at."""
        ttl_s = asked_ttl(ask, caller, self._rails)
        return ttl_s if isinstance(ttl_s, Refusal) else self._refusal(*_whom(ask), ttl_s)

    def block_user(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        (kind, name), limits = _whom(ask), self._rails.limits
        ttl_s = asked_ttl(ask, caller, self._rails)
        if isinstance(ttl_s, Refusal):
            return ttl_s
        forbidden = self._refusal(kind, name, ttl_s)
        if forbidden is not None:
            return forbidden
        moment, state = self._now(), self._journal.state
        former = state.user_in_force(f"{kind}:{name}", moment)
        remains_s = state.remaining_s(former, moment) if former else 0.0
        owner = former.owner if former and caller.owner == "analyser" else caller.owner
        same = former is not None and remains_s >= ttl_s and owner == former.owner
        if same and not caller.approval:  # what people granted is noted, whether it changes something or not
            return {"user": name, "kind": kind, "ttl_s": int(remains_s), "already": True}
        if caller.role == "analyser" and not room(self._made, limits.most_new_per_minute):
            return Refusal(f"more than {limits.most_new_per_minute} blocks a minute", "most_new_per_minute")
        most = most_in_force(limits.most_users, caller)
        if not former and len(state.users) >= most:
            state.advance(moment)
            state.expire()
            if len(state.users) >= most:
                return Refusal(f"{most} users are blocked", "most_users")
        lasting = max(ttl_s, int(remains_s))
        more = {k: ask[k] for k in ("incident", "playbook") if k in ask}
        self._journal.append(
            "block_user", user=name, kind=kind, ttl_s=lasting, owner=owner, reason=ask["reason"],
            **caller.noted, **more,
        )  # fmt: skip
        return {"user": name, "kind": kind, "ttl_s": lasting, "already": former is not None}

    def unblock_user(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any] | Refusal:
        kind, name = _whom(ask)
        former = self._journal.state.user_in_force(f"{kind}:{name}", self._now())
        most = self._rails.limits.most_new_per_minute
        if former is not None:
            if caller.role == "analyser" and former.owner != "analyser":
                return Refusal(f"{kind}:{name} was blocked by {former.by}, not by the analyser", "owner")
            if caller.role == "analyser" and not room(self._taken_back, most):
                return Refusal(f"more than {most} unblocks a minute", "most_new_per_minute")
            self._journal.append("unblock_user", user=name, kind=kind, reason=ask["reason"], **caller.noted)
        covered = self._covering(kind, name)
        return {"user": name, "kind": kind, "unblocked": former is not None, "covered_by": covered}

    def users(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        moment = self._now()
        listed, following = page(
            self._journal.state.users, ask.get("page", 0), lambda whom, block: self._said(whom, block, moment)
        )
        return {"users": listed, "next": following}

    def check_user(self, ask: dict[str, Any], caller: Caller) -> dict[str, Any]:
        (kind, name), moment, state = _whom(ask), self._now(), self._journal.state
        blocked = [self._said(whom, state.users[whom], moment) for whom in self._covering(kind, name)]
        forbidden = self._refusal(kind, name, 1)
        answer: dict[str, Any] = {"user": name, "kind": kind, "blocked": blocked, "would_refuse": ""}
        return (
            answer
            if forbidden is None
            else {**answer, "would_refuse": forbidden.reason, "rail": forbidden.rail}
        )

    def _refusal(self, kind: str, name: str, ttl_s: int) -> Refusal | None:
        if not is_name(name):
            return Refusal("a name of printable characters is wanted", "user")
        forbidden = user_refusal(kind, name, ttl_s, self._rails)
        if forbidden is None and kind in ("account", ANY):
            try:
                if self._is_last(name):
                    return Refusal(f"{name} is the last account left that can become root", "last_admin")
            except OSError as error:
                why = f"who can become root cannot be told ({error.filename}: {error.strerror})"
                return Refusal(why, "last_admin")
        return forbidden

    def _is_last(self, name: str) -> bool:
        """Whether without that account nobody could become root, while somebody can."""
        can = self._administrators(self._rails.operators)
        return would_lock_out(name, {other for other in can if self._covering("account", other)}, can)

    def _covering(self, kind: str, name: str) -> list[str]:
        """The blocks that hold for it: of its kind and of any; for `any` of every kind."""
        moment, state = self._now(), self._journal.state
        kinds = KINDS if kind == ANY else (kind, ANY)
        return [whom for k in kinds if state.user_in_force(whom := f"{k}:{name}", moment)]

    def _said(self, principal: str, block: Block, moment: Moment) -> dict[str, Any]:
        kind, _, name = principal.partition(":")
        ttl_s = int(self._journal.state.remaining_s(block, moment))
        return {"user": name, "kind": kind, **said(block, ttl_s)}


def _whom(ask: dict[str, Any]) -> tuple[str, str]:
    return ask.get("kind", ANY), ask["user"]
