"""Carries out what playbooks decide: keeps the books of every action, and asks whoever carries it out.

Decisions are recorded in the transaction that holds the incident, and the enforcer is asked at once: a block waits
neither for the commit nor for the disk. Should the commit fail, the same lines give the same request again, which
changes nothing. What could not be done yet (no corroboration, no enforcer) is tried again. What needs people is filed
with the enforcer, whose journal then says what became of it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from ..detectors.finding import finding_id
from ..playbooks.actions.registry import ACTIONS
from ..playbooks.breaker import Breaker
from ..playbooks.decisions import PEOPLE, Decision, DecisionContext, time_ns
from ..playbooks.engine import Engine
from .books import BLOCKS, Books, end_ns
from .cli.output import printable
from .errors import EnforcerError, GatewatchError, RefusedError, StoreError
from .events import NS_PER_S
from .evidence import Evidence
from .exec_link import FailedError
from .filing import Filed
from .hooking import HookBox
from .link import Answer, EnforcerLink
from .store import Store
from .telling import mail_text

MOST_WAITING = 1000
"""How many incidents wait for corroboration or for the enforcer; the oldest is given up, and said so."""
STATES = {"act": "pending", "would": "would", "wait": "waiting", "skip": "skipped"}
OVER = ("done", "refused", "pending", "undone")
"""States after which the same action is not asked for again."""
PASSING_RAILS = ("most_new_per_minute", "most_blocks", "most_users", "most_waiting")
"""Limits of the enforcer that a later request may find lifted."""
MOST_INPUT = 60_000
"""Characters that a command gets on its standard input."""
TAKEN_BACK = ("unblock", "unblock_user", "lift")


class Commands(Protocol):
    """The helper that runs the commands of the rails file."""

    def ask(self, message: Mapping[str, Any]) -> asyncio.Future[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Carriers:
    """Who carries actions out; None where there is none, and the action then says so."""

    enforcer: EnforcerLink | None = None
    commands: Commands | None = None
    evidence: Evidence | None = None
    hooks: frozenset[str] = frozenset()
    geography: Callable[[str], list[str] | None] = lambda source: None


class Responder:
    """Decides, records and acts.

    Parameters
    ----------
    carriers : who carries actions out. In observe mode the enforcer is not asked.
    corroborated : whether a source proved, in front of the packet collector, that what the incident says of it is real.
    say : one line for a person about what was done.
    breaker : who succeeded lately, for one decision; None = nobody is known.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        carriers: Carriers,
        *,
        mode: Literal["observe", "enforce"],
        max_action_age_s: int,
        corroborated: Callable[[str, Mapping[str, Any], str], bool],
        say: Callable[[str], None],
        clock: Callable[[], int] = time.time_ns,
        breaker: Callable[[Books], Breaker | None] = lambda books: None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._carriers = carriers
        self._mode = mode
        self._max_action_age_s = max_action_age_s
        self._corroborated = corroborated
        self._say = say
        self._clock = clock
        self._breaker = breaker
        self.books = Books(store, mode, clock)
        self._finished: Callable[[dict[str, Any]], None] | None = None
        self._early: dict[str, dict[str, Any]] = {}  # what was submitted before `run`
        self._waiting: dict[str, tuple[dict[str, Any], list[str]]] = {}  # and whom it waits for
        self._failed: dict[str, dict[str, Any]] = {}
        self._doubted: list[dict[str, Any]] = []
        self._filed = Filed(store, clock)
        self._hooks = HookBox(store, carriers.hooks, clock, say)
        self.trips: list[tuple[dict[str, Any], Decision]] = []
        """What the circuit breaker stopped and nobody has been told of yet."""

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
            if (time_ns(incident["end"]) or 0) < limit_ns
            or any(self._proves_more(s, incident) for s in sources)
        ]

    def forget(self, incident: str) -> None:
        """A person closed it: nothing more is done about it."""
        self._waiting.pop(incident, None)
        self._failed = {k: a for k, a in self._failed.items() if a["incident"] != incident}

    def decide(self, incident: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Records what the playbooks decide about an incident; returns the new or changed actions.

        Call it inside the transaction that saves the incident, and `submit` what it returned.
        """
        context = DecisionContext(
            now_ns=self._clock(),
            mode=self._mode,
            max_action_age_s=self._max_action_age_s,
            earlier_blocks=self.books.served,
            earlier_inside=self.books.inside,
            blocked=self._blocked,
            corroborated=lambda source, accused: self._corroborated(source, incident, accused),
            last_action=self.books.last_action,
            acted_since=self._store.acted_since,
            asn_networks=self._carriers.geography,
            breaker=self._breaker(self.books),
        )
        changed = []
        waits = False
        for decision in self._decisions(incident, context):
            if decision.action == "notify" and decision.target == "sinks":
                continue
            action = self._action(incident, decision, context.now_ns)
            waits |= action["state"] == "waiting" and decision.approval == "none"
            known = self._store.action_state(action["id"])
            if known in OVER or known == action["state"] == "would" or action["id"] in self._filed:
                continue
            if known == "failed" and ACTIONS[action["action"]].carried_by(action) == "hook":
                continue  # the shipper has tried for long
            if action["state"] == "skipped" and known not in (None, "waiting"):
                continue
            if decision.tripped:
                self.trips.append((dict(incident), decision))
            if self._store.save_action(action):
                self.books.note(action)
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
        """Asks for what is pending, and files what people must agree to: the requests leave before this returns."""
        for action in actions:
            if action["state"] == "pending" or to_be_filed(action):
                self._begin(action)
        for block in self._doubted:
            self._begin(block)
        self._doubted.clear()

    async def run(self, finished: Callable[[dict[str, Any]], None]) -> None:
        """Gives each action to `finished` when its state is known, for as long as the task lives."""
        self._finished = finished
        early, self._early = self._early, {}
        for action in early.values():
            self._begin(action)
        try:
            await asyncio.Event().wait()
        finally:
            self._finished = None
            if self._carriers.enforcer is not None:
                self._carriers.enforcer.close()

    def _begin(self, action: dict[str, Any], undo: bool = False) -> None:
        """Asks the carrier of an action to do it, or to take it back."""
        if self._finished is None:
            self._early[action["id"]] = action
            return
        step = ACTIONS[action["action"]]
        request = step.undo(action) if undo else step.request(action)
        if action["state"] == "done" and not undo:
            request = step.check(action) or {}
        if isinstance(request, str):
            self._soon(action, action["state"], request)
            return
        if step.carried_by(action) == "enforcer":
            self._ask_enforcer(action, request, undo)
        else:  # these need the incident as it is saved: after the transaction that this may be inside of
            asyncio.get_running_loop().call_soon(self._carry, action, request, undo)

    def _carry(self, action: dict[str, Any], request: dict[str, Any], undo: bool) -> None:
        """Whatever is not the enforcer's."""
        try:
            if self._store.action_state(action["id"]) is None:
                return  # what decided it was not committed, and is decided again
            incident = next(iter(self._store.incidents(incident=action["incident"], limit=1)), {})
            match ACTIONS[action["action"]].carried_by(action):
                case "command":
                    self._ask_command(action, request | _for_command(action, incident), undo)
                case "hook":
                    hook = str(action["target"]).partition(":")[2]
                    if not self._hooks.send(action, hook, "notify"):
                        self._end(action, "refused", f"the configuration names no hook {hook}")
                case "evidence":
                    loop = asyncio.get_running_loop()
                    work = loop.run_in_executor(None, self._evidence, dict(request), incident)
                    work.add_done_callback(partial(self._answered, action, undo))
                case _:
                    self._end(action, "done", "every sink is told")
        except sqlite3.Error as error:
            self._failed_to(action, undo, f"the store cannot be used: {error}")

    def _soon(self, action: dict[str, Any], state: str, why: str) -> None:
        # Not now: this may be inside the transaction that records the decision.
        asyncio.get_running_loop().call_soon(self._end, action, state, why)

    def _ask_enforcer(self, action: dict[str, Any], request: dict[str, Any], undo: bool) -> None:
        if self._carriers.enforcer is None:
            asyncio.get_running_loop().call_soon(
                self._failed_to, action, undo, "no enforcer: it needs root and enforce mode"
            )
        else:
            answer = self._carriers.enforcer.ask(request)
            answer.add_done_callback(partial(self._answered, action, undo))

    def _ask_command(self, action: dict[str, Any], request: dict[str, Any], undo: bool) -> None:
        if self._carriers.commands is None:
            why = "no command can be run: the rails file names none"
            self._failed_to(action, undo, why, "refused")
            return
        answer = self._carriers.commands.ask(request)
        answer.add_done_callback(partial(self._answered, action, undo))

    def _evidence(self, request: dict[str, Any], incident: dict[str, Any]) -> dict[str, Any]:
        """In a thread of its own, as it writes files; it must not touch the store."""
        if self._carriers.evidence is None:
            raise GatewatchError("there is no folder for evidence")
        if "drop" in request:
            self._carriers.evidence.drop(str(request["drop"]))
            return {"folder": "", "files": 0}
        return self._carriers.evidence.keep(incident)

    def _answered(self, action: dict[str, Any], undo: bool, answer: Answer) -> None:
        try:
            outcome = self._outcome(action, undo, answer.result())
        except asyncio.CancelledError:
            return
        except RefusedError as error:
            passing = error.rail in PASSING_RAILS
            self._failed_to(action, undo, str(error), "failed" if passing else "refused")
        except FailedError as error:  # the command was run: doing so again is for a person to decide
            self._failed_to(action, undo, f"the command failed: {error}", "refused")
        except GatewatchError as error:
            if action["state"] == "done" and not undo and isinstance(error, EnforcerError):
                return  # whether a block still stands is not known then: it is taken to
            self._failed_to(action, undo, str(error))
        except Exception as error:  # whatever it was, the action must not stay pending
            self._failed_to(action, undo, f"a fault: {type(error).__name__}: {error}", "refused")
        else:
            self._end(action, *outcome)
            if undo:
                self._doubt_others(action)

    def _failed_to(self, action: dict[str, Any], undo: bool, why: str, state: str = "failed") -> None:
        """It was not done; or not taken back, and is then what it was before."""
        if undo:
            self._say(f"{action['action']} {action['target']}: not taken back, {why}")
        else:
            self._end(action, state, why)

    def _doubt_others(self, action: Mapping[str, Any]) -> None:
        """What was taken back may have been what other actions asked for as well."""
        if action["action"] in BLOCKS:
            for other in self.books.standing(str(action["target"]), 0):
                if other["id"] != action["id"] and other["state"] == "done":
                    self._begin(other)

    def _outcome(self, action: dict[str, Any], undo: bool, answer: Mapping[str, Any]) -> tuple[str, str]:
        """State and why."""
        if undo:
            return "undone", "taken back"
        if action["state"] == "done":
            return ("done", action["why"]) if answer["blocked"] else ("lifted", "ended before its time")
        if "pending" in answer:
            name = str(answer["pending"])
            action["detail"] = {**(action.get("detail") or {}), "approval": name}
            self._filed.note(action["id"], name)
            return "waiting", _asks(action, name)
        return "done", ACTIONS[action["action"]].outcome(action, answer)

    def _end(self, action: dict[str, Any], state: str, why: str) -> None:
        new = (state, why) != (action["state"], action["why"])
        action = action | {"state": state, "why": why}
        if new and state in ("done", "refused"):
            action["time_ns"] = self._clock()
        elif state == "failed" and len(self._failed) < MOST_WAITING:
            self._failed[action["id"]] = action  # with the time of the decision, by which it grows too old
        try:
            if state == "done" and new:
                self._hooks.tell(action)
            elif state in ("lifted", "undone"):
                self._hooks.release(action)
            self.books.note(action)
        except sqlite3.Error as error:  # a full disk
            self._hooks.postpone(action)
            self._say(f"hooks of {action['action']} {action['target']} are told later: {error}")
        if new and self._finished is not None:
            self._finished(action)
            self._say(f"{action['action']} {action['target']}: {state}, {why}")

    def heard(self, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the enforcer's journal says of an action that waits for people, or of one that somebody took back.

        Returns the actions that changed. Call it inside the transaction that notes how far the journal was read.
        """
        settled = self._filed.heard(entry)
        if settled:
            return [self._changed(action) for action in settled]
        if entry.get("do") in TAKEN_BACK and entry.get("by") != "analyser":
            return self._lifted(entry, f"by {entry.get('by', 'somebody')}")
        return []

    def _lifted(self, entry: Mapping[str, Any], by: str) -> list[dict[str, Any]]:
        if entry["do"] == "unblock_user":
            targets = [f"{entry.get('kind', 'any')}:{entry.get('user')}"]
        else:
            targets = [str(t) for t in entry.get("endpoints") or [entry.get("address")]]
        changed = []
        for target in targets:
            changed += [
                self._changed(action | {"state": "lifted", "why": f"ended {by}"})
                for action in self._store.actions(target=target)
                if action["state"] == "done" and end_ns(action) > self._clock()
            ]
        return changed

    def _changed(self, action: dict[str, Any]) -> dict[str, Any]:
        if action["state"] == "done":
            self._hooks.tell(action)
        elif action["state"] == "lifted":
            self._hooks.release(action)
        self._store.save_action(action)
        self.books.note(action)
        return action

    def undo(self, action: str, two_people: frozenset[str] = frozenset()) -> str:
        """Takes back one action by its id; what happens, in words. Raises GatewatchError.

        What the rails want two people for, one person must not have the analyser do.
        """
        found = self._store.action(action)
        if found is None:
            raise GatewatchError(f"there is no action {action}", remedy="`gatewatch actions list` shows them")
        if found["state"] != "done":
            raise GatewatchError(f"{action} is {found['state']}: there is nothing to take back")
        way = ACTIONS[found["action"]].undo(found)
        if isinstance(way, str):
            raise GatewatchError(f"{found['action']} cannot be taken back here: {way}")
        if way.get("request") in two_people:
            raise GatewatchError(
                f"{found['action']} {found['target']}: to take it back needs two people, by the rails",
                remedy=f"ask for it with `gatewatch {str(way['request']).partition('_')[0]}`",
            )
        if self._finished is None:
            raise GatewatchError("Gatewatch is starting", remedy="ask again in a moment")
        self._begin(found, undo=True)
        return f"{found['action']} {found['target']} is taken back"

    def tend(self) -> list[dict[str, Any]]:
        """Tells the hooks of blocks whose time is over, and gives up what was filed and never heard of again.

        Returns the actions that changed. Call it inside a transaction.
        """
        return [*self._hooks.tend(), *(self._changed(action) for action in self._filed.overdue())]

    def delivered(self, key: str, problem: str | None) -> list[dict[str, Any]]:
        """A hook took a row of the outbox, or never will (`problem`); returns the action that changed."""
        return self._hooks.delivered(key, problem)

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
        waiting = self._store.actions_in("waiting")
        self._filed.resume(waiting)
        for action in filter(
            to_be_filed, waiting
        ):  # the enforcer may have filed it: it gives the same name again
            self._begin(action)
        self._hooks.resume()
        unseen = {a["incident"] for a in waiting if not a["detail"].get("needs")}
        for name in sorted(unseen)[:MOST_WAITING]:
            for incident in self._store.incidents(incident=name, limit=1):
                self._remember(incident, True)

    def _action(self, incident: Mapping[str, Any], decision: Decision, now_ns: int) -> dict[str, Any]:
        # Each block is an action of its own in the books; while one is in force, the same again is that one.
        blocks = decision.action in ("block_source", "block_user")
        earlier = self.books.ended(decision.target) if blocks else 0
        detail = dict(decision.detail)
        if decision.hits:
            detail |= {"hits": list(decision.hits), "hit_count": decision.hit_count}
        if PEOPLE[decision.approval]:
            detail["needs"] = PEOPLE[decision.approval]
            detail["hits_text"] = _hits_text(decision)
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
            "detail": detail,
        }

    def _proves_more(self, source: str, incident: Mapping[str, Any]) -> bool:
        """Whether a source has been seen enough for anything that the incident accuses it, or users, of."""
        users = incident.get("blockable_users", ())
        return any(self._corroborated(source, incident, accused) for accused in (source, *users))

    def _blocked(self, target: str, ttl_s: int) -> bool:
        """Whether a block that was made for at least so long is in force, as far as the books say.

        An operator may have ended it meanwhile: the enforcer is asked, and what comes later is decided by that.
        """
        found = self.books.standing(target, ttl_s)
        if self._carriers.enforcer is not None and self._mode == "enforce":
            self._doubted += [a for a in found if a["state"] == "done"]
        return bool(found)

    def _remember(self, incident: dict[str, Any], waits: bool) -> None:
        if not waits:
            self._waiting.pop(incident["id"], None)
            return
        accused = [*incident["blockable"], *incident.get("refusable", ())]
        if incident.get("blockable_users"):
            accused += incident["sources"]
        sources = [s for s in dict.fromkeys(accused) if not self._proves_more(s, incident)]
        self._waiting[incident["id"]] = incident, sources
        if len(self._waiting) > MOST_WAITING:
            given_up = next(iter(self._waiting))
            del self._waiting[given_up]
            self._say(f"incident {given_up}: no longer waits for corroboration, too many do")


def to_be_filed(action: Mapping[str, Any]) -> bool:
    """Whether people must agree and nobody has asked them yet."""
    detail = action.get("detail") or {}
    return action["state"] == "waiting" and bool(detail.get("needs")) and not detail.get("approval")


def _asks(action: Mapping[str, Any], name: str) -> str:
    needs = (action.get("detail") or {}).get("needs", 1)
    people = "two different people" if needs == 2 else "a person"
    why = f"{action['why']}; " if action["why"].startswith("circuit breaker") else ""
    return f"{why}asks {people}: gatewatch approvals grant {name}"


def _hits_text(decision: Decision) -> str:
    more = decision.hit_count - len(decision.hits)
    named = ", ".join(decision.hits) + (f" and {more} more" if more > 0 else "")
    who = f"hits {named}, who lately succeeded" if named else "hits nobody who lately succeeded"
    return f"{decision.tripped}; {who}" if decision.tripped else who


def _for_command(action: Mapping[str, Any], incident: Mapping[str, Any]) -> dict[str, Any]:
    """What a command is told beside its name."""
    environment = {
        "GATEWATCH_INCIDENT": str(action["incident"]),
        "GATEWATCH_KIND": str(incident.get("kind", "")),
        "GATEWATCH_PRIORITY": str(incident.get("priority", "")),
        "GATEWATCH_PLAYBOOK": str(action["playbook"]),
        "GATEWATCH_TITLE": printable(str(incident.get("title", "")))[:1000],
    }
    as_json = action["action"] == "exec"
    said = _json_within(incident, MOST_INPUT) if as_json else mail_text(incident)
    return {"id": action["id"], "environment": environment, "input": said}


def _json_within(incident: Mapping[str, Any], most: int) -> str:
    """An incident as JSON of at most so many characters: of one that is larger, its lists are shortened."""
    for longest in (None, 32, 4, 0):
        kept = {k: v[:longest] if isinstance(v, list) else v for k, v in incident.items()}
        if longest is not None:
            kept |= {"findings": [], "shortened": True}
        said = json.dumps(kept, ensure_ascii=True)
        if len(said) <= most:
            return said
    return json.dumps({"id": str(incident.get("id", "")), "shortened": True})
