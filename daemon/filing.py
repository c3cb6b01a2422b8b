"""Actions to which people must agree: under which name the enforcer filed each, and what its journal says of it.

The store is the authority: an action is settled when its state there is no longer `waiting`. So a transaction that
was taken back loses nothing, and an entry that comes again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .events import NS_PER_S
from .store import Store

LONGEST_S = 3600
"""After so long a request is over whatever the journal says: it may have been replaced."""
EFFECTS = ("block", "block_user", "cut", "kill", "restrict")


class Filed:
    """Which action waits under which name; several may share one, as two incidents that ask for one kill switch do."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._names: dict[str, str] = {}  # the action's id -> the request's
        self._since_ns = clock()

    def __contains__(self, action: str) -> bool:
        return action in self._names

    def note(self, action: str, name: str) -> None:
        self._names[action] = name

    def resume(self, waiting: Iterable[Mapping[str, Any]]) -> None:
        self._names = {a["id"]: a["detail"]["approval"] for a in waiting if a["detail"].get("approval")}

    def heard(self, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The actions that an entry settles, with their new state; call it inside a transaction."""
        asked = entry.get("asked") or {}
        name = str(entry.get("approval") or entry.get("id") or asked.get("id") or "")
        settled = []
        for action in self._waiting(name) if name else ():
            found = self._outcome(action, entry)
            if found is not None:
                settled.append(action | {"state": found[0], "why": found[1], "time_ns": self._clock()})
        return settled

    def overdue(self) -> list[dict[str, Any]]:
        """Those of which nothing was heard for so long that nothing will be."""
        latest_ns = self._clock() - LONGEST_S * NS_PER_S
        if self._since_ns > latest_ns:  # what was answered while we were away is still being told
            return []
        why = "the enforcer's journal never told what became of it"
        return [
            action | {"state": "refused", "why": why}
            for name in set(self._names.values())
            for action in self._waiting(name)
            if action["time_ns"] < latest_ns
        ]

    def _waiting(self, name: str) -> list[dict[str, Any]]:
        found = []
        for action in [a for a, n in self._names.items() if n == name]:
            kept = self._store.action(action)
            if kept is not None and kept["state"] == "waiting":
                found.append(kept)
            else:
                del self._names[action]
        return found

    def _outcome(self, action: dict[str, Any], entry: Mapping[str, Any]) -> tuple[str, str] | None:
        by = f"by {entry.get('by', 'somebody')}"
        match str(entry.get("do")):
            case "deny":
                return "refused", f"denied {by}"
            case "expired":
                return "refused", "nobody agreed in time"
            case "grant":  # kept over a restart: the rails may still refuse it
                action["detail"]["granted"] = True
                self._store.save_action(action)
            case "refused" if action["detail"].get("granted"):  # else somebody who may not tried to grant it
                return "refused", f"granted, but {entry.get('why')}"
            case do if do in EFFECTS:
                return "done", f"granted: {by}"
        return None
