"""Carries out what playbooks decide: keeps the books of every action, and asks the enforcer.

Decisions are recorded in the transaction that holds the incident, and the enforcer is asked at once: a block waits
neither for the commit nor for the disk. Should the commit fail, the same lines give the same request again, which
changes nothing. What could not be done yet (no corroboration, no enforcer) is tried again.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from ..detectors.finding import finding_id
from ..playbooks.engine import Decision, DecisionContext, Engine, time_ns
from .cli.output import printable
from .errors import EnforcerError, RefusedError, StoreError
from .events import NS_PER_S
from .link import Answer, EnforcerLink
from .store import Store

MOST_WAITING = 1000
"""How many incidents wait for corroboration or for the enforcer; the oldest is given up, and said so."""
STATES = {"act": "pending", "would": "would", "wait": "waiting", "skip": "skipped"}
OVER = ("done", "refused", "pending")
"""States after which the same action is not asked for again."""
PASSING_RAILS = ("most_new_per_minute", "most_blocks")
"""Limits of the enforcer that a later request may find lifted."""


class Responder:
    """Decides, records and acts.

    Parameters
    ----------
    link : to the enforcer; None where nothing can be enforced (no privilege, or observe mode).
    corroborated : whether a source proved, in front of the packet collector, that it is real.
    say : one line for a person about what was done.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        link: EnforcerLink | None,
        *,
        mode: Literal["observe", "enforce"],
        max_action_age_s: int,
        corroborated: Callable[[str], bool],
        say: Callable[[str], None],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = engine
        self._store = store
        self._link = link
        self._mode = mode
        self._max_action_age_s = max_action_age_s
        self._corroborated = corroborated
        self._say = say
        self._clock = clock
        self._finished: Callable[[dict[str, Any]], None] | None = None
        self._early: list[dict[str, Any]] = []  # what was submitted before `run`
        self._waiting: dict[str, tuple[dict[str, Any], list[str]]] = {}  # and whom it waits for
        self._failed: dict[str, dict[str, Any]] = {}
        self._doubted: list[dict[str, Any]] = []

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """Incidents with something still to be done for which something is missing."""
        return [incident for incident, _ in self._waiting.values()]

    def due(self) -> list[dict[str, Any]]:
        """Incidents to be decided again: somebody proved to be real meanwhile, or it is too late."""
        limit_ns = self._clock() - self._max_action_age_s * NS_PER_S
        return [
            incident
            for incident, sources in self._waiting.values()
            if (time_ns(incident["end"]) or 0) < limit_ns or any(self._corroborated(s) for s in sources)
        ]

    def forget(self, incident: str) -> None:
        """A person closed it: nothing more is done about it."""
        self._waiting.pop(incident, None)
        self._failed = {k: a for k, a in self._failed.items() if a["incident"] != incident}

    def decide(self, incident: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Records what the playbooks decide about an incident; returns the new or changed actions.

        Call it inside the transaction that saves the incident, and `submit` what it returned once that is
        committed.
        """
        context = DecisionContext(
            now_ns=self._clock(),
            mode=self._mode,
            max_action_age_s=self._max_action_age_s,
            earlier_blocks=self._served,
            blocked=self._blocked,
            corroborated=self._corroborated,
            last_action=self._last_action,
            acted_since=self._store.acted_since,
        )
        changed = []
        waits = False
        for decision in self._decisions(incident, context):
            if decision.action == "notify":
                continue
            action = self._action(incident, decision, context.now_ns)
            waits |= action["state"] == "waiting" and decision.approval == "none"
            known = self._store.action_state(action["id"])
            if known in OVER or known == action["state"] == "would":
                continue
            if action["state"] == "skipped" and known not in (None, "waiting"):
                continue
            if self._store.save_action(action):
                changed.append(action)
        self._remember(dict(incident), waits)
        return changed

    def _decisions(self, incident: Mapping[str, Any], context: DecisionContext) -> list[Decision]:
        """What the playbooks decide; none where one of them fails: the incident must be told all the same."""
        try:
            return self._engine.decide(incident, context)
        except (StoreError, sqlite3.Error):
            raise
        except Exception as error:
            self._say(
                f"incident {incident['id']}: no playbook was run, a fault: {type(error).__name__}: {error}"
            )
            return []

    def submit(self, actions: list[dict[str, Any]]) -> None:
        """Asks the enforcer for what is pending: the requests leave before this returns."""
        for action in actions:
            if action["state"] == "pending":
                self._begin(action)
        for block in self._doubted:
            self._begin(block)
        self._doubted.clear()

    async def run(self, finished: Callable[[dict[str, Any]], None]) -> None:
        """Gives each action to `finished` when its state is known, for as long as the task lives."""
        self._finished = finished
        early, self._early = self._early, []
        for action in early:
            self._begin(action)
        try:
            await asyncio.Event().wait()
        finally:
            self._finished = None
            if self._link is not None:
                self._link.close()

    def _begin(self, action: dict[str, Any]) -> None:
        if self._finished is None:
            self._early.append(action)
        elif self._link is None:
            # Not now: this may be inside the transaction that records the decision.
            asyncio.get_running_loop().call_soon(self._end, action, "failed", "no enforcer: it needs root")
        else:
            self._link.ask(_request(action)).add_done_callback(partial(self._answered, action))

    def _answered(self, action: dict[str, Any], answer: Answer) -> None:
        try:
            self._end(action, *_outcome(action, answer.result()))
        except RefusedError as error:
            self._end(action, "failed" if error.rail in PASSING_RAILS else "refused", str(error))
        except EnforcerError as error:
            # Whether a block still stands is not known then: it is taken to.
            known = (action["state"], action["why"]) if action["state"] == "done" else ("failed", str(error))
            self._end(action, *known)

    def _end(self, action: dict[str, Any], state: str, why: str) -> None:
        new = (state, why) != (action["state"], action["why"])
        action = action | {"state": state, "why": why}
        if new and state in ("done", "refused"):
            action["time_ns"] = self._clock()
        elif state == "failed" and len(self._failed) < MOST_WAITING:
            self._failed[action["id"]] = action  # with the time of the decision, by which it grows too old
        if new and self._finished is not None:
            self._finished(action)
            self._say(f"{action['action']} {action['target']}: {state}, {why}")

    def retry_failed(self) -> None:
        """Asks again for what failed (the enforcer was away), as long as it is not too old."""
        failed, self._failed = self._failed, {}
        for action in failed.values():
            if self._clock() - action["time_ns"] <= self._max_action_age_s * NS_PER_S:
                self._begin(action)

    def resume(self) -> None:
        """After a restart: what was decided and not yet carried out, and who waits."""
        since_ns = self._clock() - self._max_action_age_s * NS_PER_S
        for action in (*self._store.actions_in("pending"), *self._store.actions_in("failed")):
            if action["time_ns"] >= since_ns:
                self._begin(action)
        waiting = {a["incident"] for a in self._store.actions_in("waiting")}
        for name in sorted(waiting)[:MOST_WAITING]:
            for incident in self._store.incidents(incident=name, limit=1):
                self._remember(incident, True)

    def _action(self, incident: Mapping[str, Any], decision: Decision, now_ns: int) -> dict[str, Any]:
        # Counts those that an operator ended, too: each block is an action of its own in the books.
        earlier = self._store.times_blocked(decision.target) if decision.action == "block_source" else 0
        return {
            "id": finding_id(
                "action", incident["id"], decision.playbook, decision.action, decision.target, earlier
            ),
            "incident": incident["id"],
            "playbook": decision.playbook,
            "action": decision.action,
            "target": decision.target,
            "state": STATES[decision.state],
            "why": decision.why,
            "reason": printable(decision.reason)[:500],
            "time_ns": now_ns,
            "ttl_s": decision.ttl_s,
        }

    def _blocked(self, target: str, ttl_s: int) -> bool:
        """Whether a block that was made for at least so long is in force, as far as the books say.

        An operator may have ended it meanwhile: the enforcer is asked, and what comes later is decided by that.
        """
        now_ns = self._clock()
        found = [a for a in self._blocks(target) if _end_ns(a) > now_ns and a["ttl_s"] >= ttl_s]
        if self._link is not None:
            self._doubted += found
        return bool(found)

    def _served(self, target: str) -> int:
        """How many blocks of it ran their time: whoever is still blocked has not come back."""
        now_ns = self._clock()
        return sum(_end_ns(a) <= now_ns for a in self._blocks(target))

    def _blocks(self, target: str) -> list[dict[str, Any]]:
        actions = self._store.actions(target=target)
        return [a for a in actions if a["action"] == "block_source" and a["state"] == "done"]

    def _last_action(self, playbook: str, action: str, target: str) -> int | None:
        times = (
            a["time_ns"]
            for a in self._store.actions(target=target)
            if a["playbook"] == playbook and a["action"] == action and a["state"] == "done"
        )
        return max(times, default=None)

    def _remember(self, incident: dict[str, Any], waits: bool) -> None:
        if not waits:
            self._waiting.pop(incident["id"], None)
            return
        sources = [s for s in incident["blockable"] if not self._corroborated(s)]
        self._waiting[incident["id"]] = incident, sources
        if len(self._waiting) > MOST_WAITING:
            given_up = next(iter(self._waiting))
            del self._waiting[given_up]
            self._say(f"incident {given_up}: no longer waits for corroboration, too many do")


def _request(action: Mapping[str, Any]) -> dict[str, object]:
    """What is asked of the enforcer; of a block that is done, whether it still stands."""
    if action["state"] == "done":
        return {"request": "check", "address": action["target"]}
    if action["action"] == "kill_switch":
        return {"request": "kill", "endpoints": [action["target"]], "reason": action["reason"]}
    return {
        "request": "block",
        "address": action["target"],
        "ttl_s": action["ttl_s"],
        "reason": action["reason"],
        "incident": action["incident"],
        "playbook": action["playbook"],
    }


def _outcome(action: Mapping[str, Any], answer: Mapping[str, Any]) -> tuple[str, str]:
    if action["state"] == "done":
        return ("done", action["why"]) if answer["blocked"] else ("lifted", "ended before its time")
    if action["action"] == "kill_switch":
        return "done", "proven" if answer.get("proven") else "engaged, not proven"
    cut = f", {answer['cut']} connections cut" if answer.get("cut") else ""
    return "done", f"dropped in the kernel for {answer['ttl_s']} s{cut}"


def _end_ns(block: Mapping[str, Any]) -> int:
    return int(block["time_ns"] + block["ttl_s"] * NS_PER_S)
