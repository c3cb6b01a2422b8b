"""The responder: what is decided, what is done about it, and that nothing is done twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.enforcer import protocol
from gatewatch.daemon.events import rfc3339
from gatewatch.daemon.link import EnforcerLink
from gatewatch.daemon.response import Carriers, Responder
from gatewatch.daemon.store import Store
from gatewatch.playbooks.breaker import Breaker
from gatewatch.playbooks.engine import Decision, DecisionContext, Engine
from gatewatch.playbooks.loader import load_playbooks

SECOND = 1_000_000_000


def incident(**more: Any) -> dict[str, Any]:
    now_ns = time.time_ns()
    values: dict[str, Any] = {
        "id": "0123456789abcdef",
        "kind": "brute_force",
        "priority": "medium",
        "severity": 50,
        "confidence": 0.9,
        "title": "Password guessing from 203.0.113.7",
        "start": rfc3339(now_ns - SECOND),
        "end": rfc3339(now_ns),
        "sources": ["203.0.113.7"],
        "blockable": ["203.0.113.7"],
        "users": ["root"],
        "targets": ["sshd@gateway"],
        "findings": [{"blockable": ["203.0.113.7"], "provenance": 1}],
    }
    return values | more


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "gatewatch.db")


def responder(store: Store, link: EnforcerLink | None = None, **more: Any) -> Responder:
    values: dict[str, Any] = {
        "mode": "observe",
        "max_action_age_s": 600,
        "corroborated": lambda source, incident, accused: True,
        "say": lambda text: None,
    }
    return Responder(Engine(load_playbooks()), store, Carriers(enforcer=link), **(values | more))


def test_observe_mode_writes_down_what_it_would_have_done(store: Store) -> None:
    [action] = responder(store).decide(incident())
    assert (action["action"], action["target"], action["state"]) == ("block_source", "203.0.113.7", "would")
    assert store.actions(incident=action["incident"])[0]["why"] == "observe mode: nothing is done"


def test_the_same_incident_again_asks_for_nothing_new(store: Store) -> None:
    made = responder(store, mode="enforce")
    assert len(made.decide(incident())) == 1
    assert made.decide(incident(end=rfc3339(time.time_ns()))) == []


def test_what_was_only_observed_is_done_once_enforcing_is_on(store: Store) -> None:
    assert responder(store).decide(incident())[0]["state"] == "would"
    assert responder(store).decide(incident()) == []
    [action] = responder(store, mode="enforce").decide(incident())
    assert action["state"] == "pending"


def test_a_source_that_may_be_forged_waits_until_it_shook_hands(store: Store) -> None:
    seen: set[str] = set()
    made = responder(store, mode="enforce", corroborated=lambda source, incident, accused: source in seen)
    [action] = made.decide(incident())
    assert action["state"] == "waiting"
    assert [i["id"] for i in made.waiting] == ["0123456789abcdef"]
    seen.add("203.0.113.7")
    [action] = made.decide(made.waiting[0])
    assert action["state"] == "pending"
    assert made.waiting == []


def test_a_source_that_is_not_blockable_is_left_alone(store: Store) -> None:
    [action] = responder(store, mode="enforce").decide(incident(blockable=[]))
    assert action["state"] == "skipped"


def test_what_happened_long_ago_is_not_acted_on(store: Store) -> None:
    old = rfc3339(time.time_ns() - 3600 * SECOND)
    [action] = responder(store, mode="enforce").decide(incident(start=old, end=old))
    assert action["state"] == "skipped"
    assert "old" in action["why"]


class Answering:
    """An enforcer's socket that gives the next of the answers it was told, the last one again and again."""

    def __init__(self, folder: Path, *answers: dict[str, Any]) -> None:
        self.path = folder / "enforcer.sock"
        self.answers = list(answers)
        self.blocked: tuple[str, ...] = ("203.0.113.7",)
        self.asked: list[dict[str, Any]] = []
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(self.path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def link(self) -> EnforcerLink:
        return EnforcerLink(self.path)

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            with connection, contextlib.suppress(OSError):  # whoever asked may be gone already
                while data := connection.recv(65_536):
                    request = protocol.parse(data)
                    self.asked.append(request)
                    connection.send(json.dumps(self._answer(request)).encode())

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["request"] == "check":
            blocked = [{"address": a} for a in self.blocked if a == request["address"]]
            return {"ok": True, "blocked": blocked}
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return {
            "ok": True,
            "address": request.get("address", ""),
            "ttl_s": request["ttl_s"],
            "already": False,
        } | answer


def carried_out(made: Responder, store: Store, actions: list[dict[str, Any]], news: int) -> list[str]:
    """The states that these actions get, until there were so many."""
    states = []

    async def work() -> None:
        results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = asyncio.ensure_future(made.run(results.put_nowait))
        made.submit(actions)
        async with asyncio.timeout(10):
            while len(states) < news:
                with contextlib.suppress(TimeoutError):
                    action = await asyncio.wait_for(results.get(), 0.1)
                    store.save_action(action)
                    states.append(action["state"])
                made.retry_failed()
        task.cancel()

    asyncio.run(work())
    return states


def test_a_block_that_a_passing_limit_refused_is_asked_for_again(store: Store, tmp_path: Path) -> None:
    full = {"ok": False, "refused": "more than 60 blocks a minute", "rail": "most_new_per_minute"}
    made = responder(store, Answering(tmp_path, full, {}).link(), mode="enforce")
    assert carried_out(made, store, made.decide(incident()), 2) == ["failed", "done"]


def test_a_block_that_another_rail_refused_is_not(store: Store, tmp_path: Path) -> None:
    never = {"ok": False, "refused": "203.0.113.7 is never blocked", "rail": "never_block"}
    made = responder(store, Answering(tmp_path, never).link(), mode="enforce")
    assert carried_out(made, store, made.decide(incident()), 1) == ["refused"]
    assert made.decide(incident()) == []


def test_a_compromise_lengthens_the_block_that_guessing_earned(store: Store, tmp_path: Path) -> None:
    made = responder(store, Answering(tmp_path, {}).link(), mode="enforce")
    carried_out(made, store, made.decide(incident()), 1)
    graver = incident(kind="account_compromise", priority="critical", confidence=0.95)
    [action] = [a for a in made.decide(graver) if a["state"] == "pending" and a["action"] == "block_source"]
    assert (action["playbook"], action["ttl_s"]) == ("account-compromise", 86_400)


def test_whoever_is_blocked_has_not_come_back(store: Store, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    made = responder(store, Answering(tmp_path, {}).link(), mode="enforce", clock=lambda: now_ns)
    carried_out(made, store, made.decide(incident()), 1)
    now_ns += 400 * SECOND  # past the playbook's cool-down, within the block
    assert not [a for a in made.decide(incident(id="1" * 16)) if a["state"] == "pending"]
    now_ns += 4000 * SECOND
    [action] = made.decide(incident(id="2" * 16, end=rfc3339(now_ns)))
    assert (action["state"], action["ttl_s"]) == ("pending", 7200)


def test_a_source_that_an_operator_unblocked_is_blocked_anew_when_it_goes_on(
    store: Store, tmp_path: Path
) -> None:
    now_ns = time.time_ns()
    enforcer = Answering(tmp_path, {})
    made = responder(store, enforcer.link(), mode="enforce", clock=lambda: now_ns)
    carried_out(made, store, made.decide(incident()), 1)
    now_ns += 400 * SECOND
    assert carried_out(made, store, made.decide(incident()), 0) == []
    enforcer.blocked = ()
    assert made.decide(incident(end=rfc3339(now_ns))) == []
    assert carried_out(made, store, [], 1) == ["lifted"]
    [action] = made.decide(incident(end=rfc3339(now_ns)))
    assert (action["state"], action["ttl_s"]) == ("pending", 3600)
    assert carried_out(made, store, [action], 1) == ["done"]
    assert [a["state"] for a in store.actions(target="203.0.113.7")] == ["lifted", "done"]


def test_after_a_restart_it_waits_on_and_what_failed_is_asked_again(store: Store, tmp_path: Path) -> None:
    seen: set[str] = set()
    asking: dict[str, Any] = {
        "mode": "enforce",
        "corroborated": lambda source, incident, accused: source in seen,
    }
    said = incident()
    store.save_incident(said, {}, 1, 2, 3)
    responder(store, **asking).decide(said)
    made = responder(store, **asking)
    made.resume()
    assert made.due() == []
    seen.add("203.0.113.7")
    [again] = made.due()
    assert made.decide(again)[0]["state"] == "pending"
    after = responder(store, Answering(tmp_path, {}).link(), **asking)
    after.resume()
    assert carried_out(after, store, [], 1) == ["done"]


def test_only_whom_it_waits_for_makes_an_incident_due(store: Store) -> None:
    two = ["203.0.113.7", "203.0.113.8"]
    said = incident(sources=two, blockable=two, findings=[{"blockable": two, "provenance": 1}])
    made = responder(store, mode="enforce", corroborated=lambda source, incident, accused: source == two[0])
    assert [a["state"] for a in made.decide(said)] == ["pending", "waiting"]
    assert made.due() == []


def test_what_waited_too_long_is_given_up_and_says_why(store: Store) -> None:
    now_ns = time.time_ns()
    made = responder(
        store, mode="enforce", corroborated=lambda source, incident, accused: False, clock=lambda: now_ns
    )
    made.decide(incident())
    now_ns += 700 * SECOND
    [action] = made.decide(made.due()[0])
    assert action["state"] == "skipped"
    assert "old" in action["why"]
    assert made.waiting == []


def test_about_a_closed_incident_nothing_is_done(store: Store) -> None:
    made = responder(store, mode="enforce", corroborated=lambda source, incident, accused: False)
    made.decide(incident())
    made.forget(incident()["id"])
    assert made.waiting == []
    assert made.decide(incident(status="closed")) == []


def test_an_enforcer_that_is_away_is_asked_again(store: Store, tmp_path: Path) -> None:
    made = responder(store, EnforcerLink(tmp_path / "enforcer.sock"), mode="enforce")
    finished: list[dict[str, Any]] = []

    async def work() -> None:
        results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = asyncio.ensure_future(made.run(results.put_nowait))
        await asyncio.sleep(0)
        made.submit(made.decide(incident()))
        async with asyncio.timeout(10):
            finished.append(await results.get())
            for _ in range(3):
                made.retry_failed()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert results.empty()  # the same answer again is no news
            Answering(tmp_path, {})
            made.retry_failed()
            finished.append(await results.get())
        task.cancel()

    asyncio.run(work())
    assert [a["state"] for a in finished] == ["failed", "done"]
    assert "started as root" in finished[0]["why"]


def test_an_enforcer_that_hangs_holds_nobody_up(store: Store, tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(tmp_path / "enforcer.sock"))
    listening.listen()
    made = responder(store, EnforcerLink(tmp_path / "enforcer.sock", timeout_s=0.2), mode="enforce")
    assert carried_out(made, store, made.decide(incident()), 1) == ["failed"]


def test_what_a_log_says_cannot_make_a_request_that_is_refused(store: Store, tmp_path: Path) -> None:
    enforcer = Answering(tmp_path, {})
    made = responder(store, enforcer.link(), mode="enforce")
    assert carried_out(made, store, made.decide(incident(title="of ro\x1b[2Jot\n" * 100)), 1) == ["done"]
    assert enforcer.asked[0]["request"] == "block"


def test_too_many_waiting_incidents_give_up_the_oldest_and_say_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewatch.daemon.response.MOST_WAITING", 2)
    said: list[str] = []
    made = responder(
        store, mode="enforce", corroborated=lambda source, incident, accused: False, say=said.append
    )
    for n in range(3):
        made.decide(incident(id=f"{n:016x}"))
    assert [i["id"] for i in made.waiting] == [f"{1:016x}", f"{2:016x}"]
    assert len(said) == 1


class FailingEngine(Engine):
    """What an engine with a fault in it does."""

    def decide(self, incident: Mapping[str, Any], context: DecisionContext) -> list[Decision]:
        raise ZeroDivisionError("a fault")


def test_a_fault_in_the_engine_does_not_silence_the_incident(store: Store) -> None:
    said: list[str] = []
    made = Responder(
        FailingEngine([]),
        store,
        Carriers(),
        mode="observe",
        max_action_age_s=600,
        corroborated=lambda source, incident, accused: True,
        say=said.append,
    )
    assert made.decide(incident()) == []
    assert said == ["incident 0123456789abcdef: no playbook was run, a fault: ZeroDivisionError: a fault"]


def test_books_know_a_block_of_any_width_and_one_that_a_refused_longer_one_does_not_end(store: Store) -> None:
    made = responder(store, mode="enforce").books
    now_ns = time.time_ns()
    block = {
        "id": "a",
        "action": "block_source",
        "target": "198.51.96.0/20",
        "state": "done",
        "time_ns": now_ns,
    }
    rest = {"incident": "i", "playbook": "p", "why": "", "reason": "", "detail": {}, "ttl_s": 3600}
    store.save_action(block | rest)
    made.note(block | rest)
    assert made.covers("198.51.100.7")
    longer = block | rest | {"id": "b", "ttl_s": 7200}
    made.note(longer | {"state": "pending"})
    made.note(longer | {"state": "refused"})
    assert made.covers("198.51.100.7")
    made.note(block | rest | {"state": "lifted"})
    assert not made.covers("198.51.100.7")


def test_observe_mode_waits_for_the_wire_as_enforcing_does(store: Store) -> None:
    seen: set[str] = set()
    made = responder(store, corroborated=lambda source, incident, accused: source in seen)
    assert [a["state"] for a in made.decide(incident())] == ["waiting"]
    seen.add("203.0.113.7")
    assert [a["state"] for a in made.decide(made.due()[0])] == ["would"]


def test_observe_mode_counts_nothing_for_which_people_would_have_been_asked(store: Store) -> None:
    good = Breaker(clients={"203.0.113.7": 1}, share=0.1, spared=0)
    made = responder(store, breaker=lambda books: good)
    [action] = made.decide(incident())
    assert (action["state"], action["detail"]["needs"]) == ("would", 1)
    assert not made.books.in_force("203.0.113.7")
    assert store.acted_since("login-burst", 0) == 0
    assert made.books.last_action("login-burst", "block_source", "203.0.113.7") is None


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_both_modes_keep_the_same_books_of_an_attacker_who_comes_back(mode: str, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    store = Store.open(tmp_path / "gatewatch.db")
    made = responder(store, mode=mode, clock=lambda: now_ns)
    for _ in range(40):
        for action in made.decide(incident(end=rfc3339(now_ns))):
            if action["state"] == "pending":  # an enforcer that grants everything
                store.save_action(action | {"state": "done"})
                made.books.note(action | {"state": "done"})
        now_ns += 900 * SECOND
    blocks = [a for a in store.actions(target="203.0.113.7") if a["state"] in ("done", "would")]
    assert [a["ttl_s"] for a in blocks] == [3600, 7200, 14_400, 28_800]
    assert [a["state"] for a in blocks] == ["would" if mode == "observe" else "done"] * 4
