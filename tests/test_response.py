"""The responder: what is decided, what is done about it, and that nothing is done twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.enforcer.client import Enforcer
from gatewatch.daemon.events import rfc3339
from gatewatch.daemon.response import Responder
from gatewatch.daemon.store import Store
from gatewatch.playbooks.engine import Engine
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


def responder(store: Store, enforcer: Enforcer | None = None, **more: Any) -> Responder:
    values: dict[str, Any] = {
        "mode": "observe",
        "max_action_age_s": 600,
        "corroborated": lambda source: True,
        "say": lambda text: None,
    }
    return Responder(Engine(load_playbooks()), store, enforcer, **(values | more))


def test_observe_mode_writes_down_what_it_would_have_done(store: Store) -> None:
    [action] = responder(store).decide(incident())
    assert (action["action"], action["target"], action["state"]) == ("block_source", "203.0.113.7", "would")
    assert store.actions(incident=action["incident"])[0]["why"] == "observe mode: nothing is done"


def test_the_same_incident_again_asks_for_nothing_new(store: Store) -> None:
    made = responder(store, mode="enforce")
    assert len(made.decide(incident())) == 1
    assert made.decide(incident(end=rfc3339(time.time_ns()))) == []


def test_a_source_that_may_be_forged_waits_until_it_shook_hands(store: Store) -> None:
    seen: set[str] = set()
    made = responder(store, mode="enforce", corroborated=lambda source: source in seen)
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


def test_an_enforcer_that_is_away_is_asked_again(store: Store, tmp_path: Path) -> None:
    made = responder(store, Enforcer(tmp_path / "no.sock"), mode="enforce")
    finished: list[dict[str, Any]] = []

    async def work() -> None:
        results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        task = asyncio.ensure_future(made.run(results.put_nowait))
        made.submit(made.decide(incident()))
        async with asyncio.timeout(10):
            finished.append(await results.get())
            made.retry_failed()
            finished.append(await results.get())
        task.cancel()

    asyncio.run(work())
    assert [a["state"] for a in finished] == ["failed", "failed"]
    assert "is gatewatch-enforcer running?" in finished[0]["why"]
    made.close()


def test_too_many_waiting_incidents_give_up_the_oldest_and_say_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatewatch.daemon.response.MOST_WAITING", 2)
    said: list[str] = []
    made = responder(store, mode="enforce", corroborated=lambda source: False, say=said.append)
    for n in range(3):
        made.decide(incident(id=f"{n:016x}"))
    assert [i["id"] for i in made.waiting] == [f"{1:016x}", f"{2:016x}"]
    assert len(said) == 1
