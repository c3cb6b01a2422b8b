"""What hooks are told: rows of the outbox for one recipient, which the shipper delivers, and what came of them.

Of a user's block a hook hears when the enforcer has made it, and again when it is over, by its time or before. A hook
that failed keeps nobody from being blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .books import end_ns
from .events import rfc3339
from .store import Store

OVER = ("", "released", "there is no such hook")
"""States of a hook that need not hear of the end. One that failed must: it may have done half of it."""


class HookBox:
    """`hooks`: the names that the configuration knows."""

    def __init__(
        self, store: Store, hooks: frozenset[str], clock: Callable[[], int], say: Callable[[str], None]
    ) -> None:
        self._store = store
        self._names = hooks
        self._clock = clock
        self._say = say
        self._ends: dict[str, int] = {}  # actions that hooks were told of -> when they end
        self._postponed: set[str] = set()

    def resume(self) -> None:
        """After a restart: whose end is still to be told."""
        for action in self._store.actions_in("done"):
            if any(state not in OVER for state in _hooks(action).values()):
                self._ends[action["id"]] = end_ns(action)

    def tell(self, action: dict[str, Any]) -> None:
        """A block was made: its hooks are told. Changes the action's detail."""
        hooks = _hooks(action)
        for hook, state in hooks.items():
            if not state:
                hooks[hook] = "told" if self.send(action, hook, "block_user") else "there is no such hook"
        if hooks:
            action["detail"] = {**action["detail"], "hooks": hooks}
            self._ends[action["id"]] = end_ns(action)

    def release(self, action: dict[str, Any]) -> None:
        """It is over. Changes the action's detail.

        A hook that was told of another block of the user, which lasts, hears nothing yet.
        """
        hooks = _hooks(action)
        for hook, state in hooks.items():
            if state not in OVER and (self._lasts(action, hook) or self.send(action, hook, "unblock_user")):
                hooks[hook] = "released"
        if hooks:
            action["detail"] = {**action["detail"], "hooks": hooks}

    def postpone(self, action: Mapping[str, Any]) -> None:
        """The store could not be written: `tend` does it."""
        if _hooks(action):
            self._postponed.add(action["id"])

    def tend(self) -> list[dict[str, Any]]:
        """Tells of those whose time is over, and what was postponed; returns the actions that changed.

        Nothing is forgotten before what was told is committed: what the store says of an action decides.
        """
        now_ns = self._clock()
        changed = []
        for name in {n for n, ends_ns in self._ends.items() if ends_ns <= now_ns} | self._postponed:
            action = self._store.action(name)
            before = {} if action is None else _hooks(action)
            if action is not None and action["state"] == "done" and end_ns(action) > now_ns:
                self.tell(action)
            elif action is not None and action["state"] in ("done", "lifted", "undone"):
                self.release(action)
            if action is not None and _hooks(action) != before:
                self._store.save_action(action)
                changed.append(action)
            elif action is not None and action["state"] == "pending":
                continue
            else:
                self._postponed.discard(name)
                if action is None or end_ns(action) <= now_ns:
                    self._ends.pop(name, None)
        return changed

    def _lasts(self, action: Mapping[str, Any], hook: str) -> bool:
        """Whether another block of the same user of which the hook was told is in force."""
        return any(
            other["id"] != action["id"]
            and end_ns(other) > self._clock()
            and _hooks(other).get(hook, "") not in OVER
            for other in self._store.blocks_of(action["target"], ("done",))
        )

    def send(self, action: Mapping[str, Any], hook: str, do: str) -> bool:
        """Puts a document for the hook into the outbox; False where the configuration knows none of that name."""
        if hook not in self._names:
            return False
        now_ns = self._clock()
        incident = next(iter(self._store.incidents(incident=action["incident"], limit=1)), {})
        document: dict[str, Any] = {
            "event": "hook",
            "hook": hook,
            "do": do,
            "id": action["id"],
            "reason": action["reason"],
            "incident": incident,
            "time": rfc3339(now_ns),
        }
        if action["action"] == "block_user":
            document |= {"user": action["target"], "ttl_s": action["ttl_s"], "until": rfc3339(end_ns(action))}
        self._store.add_to_outbox(f"{action['id']}:{hook}:{do}", document, now_ns, recipient=hook)
        return True

    def delivered(self, key: str, problem: str | None) -> list[dict[str, Any]]:
        """A hook took a row of the outbox, or never will (`problem`); returns the action that changed."""
        name, _, rest = key.partition(":")
        hook, _, do = rest.rpartition(":")
        action = self._store.action(name)
        if action is None:
            return []
        said = "delivered" if problem is None else f"failed: {problem}"
        if do == "notify":
            action |= {"state": "failed" if problem else "done", "why": said}
        elif do == "block_user" or problem:
            hooks = _hooks(action)
            if hooks.get(hook) != "released":  # the end was told meanwhile
                action["detail"] = {**action["detail"], "hooks": {**hooks, hook: said}}
        self._store.save_action(action)
        self._say(f"{action['action']} {action['target']}: hook {hook}, {do}: {said}")
        return [action]


def _hooks(action: Mapping[str, Any]) -> dict[str, str]:
    return dict((action.get("detail") or {}).get("hooks") or {})
