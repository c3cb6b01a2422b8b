"""The responder where people or hooks have a part: what is filed, what the journal says of it, who hears of the end."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.errors import CommandError, GatewatchError, StoreError
from gatewatch.daemon.events import rfc3339
from gatewatch.daemon.response import Carriers, Responder
from gatewatch.daemon.store import Store
from gatewatch.playbooks.breaker import Breaker
from gatewatch.playbooks.engine import Engine
from gatewatch.playbooks.schema import Playbook
from test_response import SECOND, Answering, carried_out, incident

SOURCE = "203.0.113.7"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "gatewatch.db")


def compromise(**more: Any) -> dict[str, Any]:
    finding = {
        "blockable": [SOURCE],
        "blockable_users": ["account:bob"],
        "sources": [SOURCE],
        "provenance": 2,
    }
    return (
        incident(
            kind="account_compromise", users=["bob"], blockable_users=["account:bob"], findings=[finding]
        )
        | more
    )


def responder(
    store: Store, *steps: dict[str, Any], carriers: Carriers | None = None, **more: Any
) -> Responder:
    book = Playbook.model_validate({"name": "mine", "then": list(steps), "cooldown": "0s"})
    values: dict[str, Any] = {
        "mode": "enforce",
        "max_action_age_s": 600,
        "corroborated": lambda source, incident, accused: True,
        "say": lambda text: None,
    }
    return Responder(Engine([book]), store, carriers or Carriers(), **(values | more))


def asking(folder: Path, *answers: dict[str, Any], hooks: frozenset[str] = frozenset()) -> Carriers:
    return Carriers(enforcer=Answering(folder, *answers).link(), hooks=hooks)


BLOCK_USER = {"action": "block_user", "ttl": "1h"}
TWO = {"action": "block_source", "approval": "two"}


def filed(store: Store, folder: Path) -> tuple[Responder, dict[str, Any]]:
    """A block that two people must agree to, as the enforcer filed it."""
    made = responder(store, TWO, carriers=asking(folder, {"pending": "A12", "needs": 2, "expires_s": 900}))
    assert carried_out(made, store, made.decide(incident()), 1) == ["waiting"]
    [action] = store.actions(target=SOURCE)
    return made, action


def test_a_block_that_two_people_must_agree_to_is_filed_and_says_how_to_grant_it(
    store: Store, tmp_path: Path
) -> None:
    _, action = filed(store, tmp_path)
    assert action["detail"]["approval"] == "A12"
    assert action["why"] == "asks two different people: gatewatch approvals grant A12"


def test_the_enforcer_is_told_how_many_must_agree_and_whom_it_hits(store: Store, tmp_path: Path) -> None:
    enforcer = Answering(tmp_path, {"pending": "A12", "needs": 2, "expires_s": 900})
    good = Breaker(clients={SOURCE: 1, "198.51.100.9": 1}, share=1.0)
    made = responder(store, TWO, carriers=Carriers(enforcer=enforcer.link()), breaker=lambda books: good)
    carried_out(made, store, made.decide(incident()), 1)
    assert enforcer.asked[0]["approval"] == 2
    assert enforcer.asked[0]["hits"] == f"hits {SOURCE}, who lately succeeded"


def test_what_is_filed_is_not_asked_for_again_with_each_revision(store: Store, tmp_path: Path) -> None:
    made, _ = filed(store, tmp_path)
    assert made.decide(incident(end=rfc3339(time.time_ns()))) == []


@pytest.mark.parametrize(
    ("entry", "state", "why"),
    [
        ({"do": "block", "approval": "A12", "by": "uid 1000"}, "done", "granted: by uid 1000"),
        ({"do": "deny", "id": "A12", "by": "uid 1000"}, "refused", "denied by uid 1000"),
        ({"do": "expired", "id": "A12"}, "refused", "nobody agreed in time"),
    ],
)
def test_the_journal_says_what_became_of_it(
    store: Store, tmp_path: Path, entry: dict[str, Any], state: str, why: str
) -> None:
    made, _ = filed(store, tmp_path)
    [action] = made.heard(entry)
    assert (action["state"], action["why"]) == (state, why)
    assert store.action_state(action["id"]) == state
    assert made.heard(entry) == []


def test_a_grant_that_is_refused_leaves_it_waiting_and_one_that_the_rails_refuse_does_not(
    store: Store, tmp_path: Path
) -> None:
    made, _ = filed(store, tmp_path)
    refused = {"do": "refused", "asked": {"request": "grant", "id": "A12"}, "why": "another person is needed"}
    assert made.heard(refused) == []
    assert made.heard({"do": "grant", "id": "A12", "by": "uid 1000"}) == []
    [action] = made.heard(refused | {"why": "203.0.113.7 is never blocked"})
    assert (action["state"], action["why"]) == ("refused", "granted, but 203.0.113.7 is never blocked")


def test_a_restart_still_knows_what_waits_for_people(store: Store, tmp_path: Path) -> None:
    filed(store, tmp_path)
    after = responder(store, TWO)
    after.resume()
    [action] = after.heard({"do": "deny", "id": "A12", "by": "uid 1000"})
    assert action["state"] == "refused"


def test_an_operator_who_unblocks_is_heard(store: Store, tmp_path: Path) -> None:
    made = responder(store, {"action": "block_source"}, carriers=asking(tmp_path, {}))
    carried_out(made, store, made.decide(incident()), 1)
    [action] = made.heard({"do": "unblock", "address": SOURCE, "by": "uid 0"})
    assert (action["state"], action["why"]) == ("lifted", "ended by uid 0")


def hook_rows(store: Store) -> list[tuple[str, dict[str, Any]]]:
    return [(row.key.partition(":")[2], json.loads(row.document)) for row in store.pending("idp", 100)]


def test_a_hook_hears_of_a_users_block_and_of_its_end(store: Store, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    store.hooks = frozenset({"idp"})
    said = compromise()
    store.save_incident(said, {}, 1, now_ns, now_ns)
    step = BLOCK_USER | {"hooks": ["idp", "gone"]}
    carriers = asking(tmp_path, {"ttl_s": 3600}, hooks=frozenset({"idp"}))
    made = responder(store, step, carriers=carriers, clock=lambda: now_ns)
    assert carried_out(made, store, made.decide(said), 1) == ["done"]
    [action] = store.actions(target="account:bob")
    assert action["detail"]["hooks"] == {"idp": "told", "gone": "there is no such hook"}
    [(key, document)] = hook_rows(store)
    assert (key, document["do"], document["user"]) == ("idp:block_user", "block_user", "account:bob")
    assert document["incident"]["id"] == said["id"]
    [action] = made.delivered(f"{action['id']}:idp:block_user", None)
    assert action["detail"]["hooks"]["idp"] == "delivered"

    assert made.tend() == []
    now_ns += 3601 * SECOND
    [action] = made.tend()
    assert action["detail"]["hooks"]["idp"] == "released"
    assert [key for key, _ in hook_rows(store)] == ["idp:block_user", "idp:unblock_user"]
    assert made.tend() == []


def test_a_hook_that_never_takes_it_is_in_the_books_and_the_block_stays(store: Store, tmp_path: Path) -> None:
    store.hooks = frozenset({"idp"})
    carriers = asking(tmp_path, {"ttl_s": 3600}, hooks=frozenset({"idp"}))
    made = responder(store, BLOCK_USER | {"hooks": ["idp"]}, carriers=carriers)
    carried_out(made, store, made.decide(compromise()), 1)
    [action] = store.actions(target="account:bob")
    [action] = made.delivered(f"{action['id']}:idp:block_user", "answered 403")
    assert (action["state"], action["detail"]["hooks"]) == ("done", {"idp": "failed: answered 403"})


def test_a_user_whom_the_rails_protect_is_not_disabled_elsewhere(store: Store, tmp_path: Path) -> None:
    store.hooks = frozenset({"idp"})
    refused = {"ok": False, "refused": "bob is never blocked", "rail": "never_block_users"}
    carriers = asking(tmp_path, refused, hooks=frozenset({"idp"}))
    made = responder(store, BLOCK_USER | {"hooks": ["idp"]}, carriers=carriers)
    assert carried_out(made, store, made.decide(compromise()), 1) == ["refused"]
    assert hook_rows(store) == []


def test_failures_alone_block_no_user(store: Store, tmp_path: Path) -> None:
    made = responder(store, BLOCK_USER, carriers=asking(tmp_path, {}))
    [action] = made.decide(incident(users=["root"] * 1000))
    assert action["state"] == "skipped"
    assert "failures alone never block a user" in action["why"]


def test_a_command_that_no_helper_runs_is_refused_with_the_reason(store: Store) -> None:
    made = responder(store, {"action": "exec", "command": "page"})
    assert carried_out(made, store, made.decide(incident()), 1) == ["refused"]
    [action] = store.actions(target="page")
    assert action["why"] == "no command can be run: the rails file names none"


def test_a_command_gets_the_incident_and_its_exit_code_is_kept(store: Store) -> None:
    class Helper:
        def __init__(self) -> None:
            self.asked: dict[str, Any] = {}

        def ask(self, message: Any) -> asyncio.Future[dict[str, Any]]:
            self.asked = dict(message)
            answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            answer.set_result({"ok": True, "exit_code": 0, "output": "paged"})
            return answer

    helper, said = Helper(), incident()
    store.save_incident(said, {}, 1, 2, 3)
    made = responder(store, {"action": "exec", "command": "page"}, carriers=Carriers(commands=helper))
    assert carried_out(made, store, made.decide(said), 1) == ["done"]
    assert helper.asked["run"] == "page"
    assert helper.asked["environment"]["GATEWATCH_KIND"] == "brute_force"
    assert json.loads(helper.asked["input"])["id"] == said["id"]
    assert store.actions(target="page")[0]["why"] == "exit code 0: paged"


def test_undoing_what_is_not_done_or_cannot_be_undone_says_why(store: Store) -> None:
    made = responder(store, {"action": "block_source"})
    with pytest.raises(GatewatchError, match="there is no action nonesuch"):
        made.undo("nonesuch")
    made.decide(incident())
    [action] = store.actions(target=SOURCE)
    with pytest.raises(GatewatchError, match="pending: there is nothing to take back"):
        made.undo(action["id"])


def test_an_entry_that_could_not_be_committed_comes_again_and_is_heard(store: Store, tmp_path: Path) -> None:
    made, _ = filed(store, tmp_path)
    denied = {"do": "deny", "id": "A12", "by": "uid 1000"}
    with pytest.raises(StoreError), store.transaction():
        assert made.heard(denied)
        raise sqlite3.OperationalError("database or disk is full")
    [action] = made.heard(denied)
    assert (action["state"], store.action_state(action["id"])) == ("refused", "refused")


def test_a_restart_between_a_grant_and_the_rails_refusal_loses_neither(store: Store, tmp_path: Path) -> None:
    made, _ = filed(store, tmp_path)
    made.heard({"do": "grant", "id": "A12", "by": "uid 1000"})
    after = responder(store, TWO)
    after.resume()
    [action] = after.heard(
        {"do": "refused", "asked": {"request": "grant", "id": "A12"}, "why": "never blocked"}
    )
    assert action["why"] == "granted, but never blocked"


def test_a_restart_between_the_request_and_its_answer_files_it_under_the_same_name(
    store: Store, tmp_path: Path
) -> None:
    responder(store, TWO).decide(incident())
    after = responder(store, TWO, carriers=asking(tmp_path, {"pending": "A12", "needs": 2, "expires_s": 900}))
    after.resume()
    assert carried_out(after, store, [], 1) == ["waiting"]
    assert after.heard({"do": "block", "approval": "A12", "by": "uid 1000"})[0]["state"] == "done"


def test_two_incidents_that_ask_for_one_kill_switch_both_hear_of_it(store: Store, tmp_path: Path) -> None:
    carriers = asking(tmp_path, {"pending": "A12", "needs": 1, "expires_s": 900, "ttl_s": 0})
    made = responder(store, {"action": "restrict_endpoint", "endpoint": "models"}, carriers=carriers)
    actions = made.decide(incident()) + made.decide(incident(id="1" * 16))
    assert carried_out(made, store, actions, 2) == ["waiting", "waiting"]
    assert len(made.heard({"do": "deny", "id": "A12", "by": "uid 1000"})) == 2


def test_what_was_filed_with_a_journal_that_is_gone_does_not_wait_for_ever(
    store: Store, tmp_path: Path
) -> None:
    now_ns = time.time_ns()
    answers = asking(tmp_path, {"pending": "A12", "needs": 2, "expires_s": 900})
    made = responder(store, TWO, carriers=answers, clock=lambda: now_ns)
    carried_out(made, store, made.decide(incident()), 1)
    assert made.tend() == []
    now_ns += 3601 * SECOND
    [action] = made.tend()
    assert (action["state"], action["why"]) == (
        "refused",
        "the enforcer's journal never told what became of it",
    )


class Helper:
    """The exec helper's line: remembers what it was asked, and answers so."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answer = answer

    def ask(self, message: Any) -> asyncio.Future[dict[str, Any]]:
        self.asked.append(dict(message))
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if isinstance(self._answer, Exception):
            answer.set_exception(self._answer)
        else:
            answer.set_result(self._answer)
        return answer


def running(made: Responder, work: Any) -> list[dict[str, Any]]:
    """Does `work` while the responder runs, and lets all that it began come to an end; what finished."""
    finished: list[dict[str, Any]] = []

    async def run() -> None:
        task = asyncio.ensure_future(made.run(finished.append))
        await asyncio.sleep(0)
        work()
        for _ in range(20):
            await asyncio.sleep(0)
        made.retry_failed()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    return finished


def test_a_command_gets_an_incident_that_is_saved_after_the_decision(store: Store) -> None:
    helper, said = Helper({"ok": True, "exit_code": 0, "output": ""}), incident()
    made = responder(store, {"action": "exec", "command": "page"}, carriers=Carriers(commands=helper))

    def work() -> None:
        with store.transaction():
            made.submit(made.decide(said))
            store.save_incident(said, {}, 1, 2, 3)

    assert [a["state"] for a in running(made, work)] == ["done"]
    assert json.loads(helper.asked[0]["input"])["id"] == said["id"]
    assert helper.asked[0]["environment"]["GATEWATCH_KIND"] == "brute_force"


def test_a_command_is_not_run_for_a_decision_that_was_not_committed(store: Store) -> None:
    helper = Helper({"ok": True, "exit_code": 0, "output": ""})
    made = responder(store, {"action": "exec", "command": "page"}, carriers=Carriers(commands=helper))

    def work() -> None:
        with pytest.raises(StoreError), store.transaction():
            made.submit(made.decide(incident()))
            raise sqlite3.OperationalError("database or disk is full")

    assert running(made, work) == []
    assert helper.asked == []


def test_an_undo_that_fails_neither_runs_the_command_again_nor_changes_the_books(store: Store) -> None:
    helper = Helper({"ok": True, "exit_code": 0, "output": ""})
    said: list[str] = []
    made = responder(
        store, {"action": "exec", "command": "page"}, carriers=Carriers(commands=helper), say=said.append
    )
    for action in running(made, lambda: made.submit(made.decide(incident()))):
        store.save_action(action)
    [action] = store.actions(target="page")
    helper._answer = CommandError("gatewatch-exec: hung up")
    assert running(made, lambda: made.undo(action["id"])) == []
    assert [asked["undo"] for asked in helper.asked] == [0, 1]
    assert said[-1] == "exec page: not taken back, gatewatch-exec: hung up"


def test_a_fault_of_a_carrier_leaves_nothing_pending(store: Store) -> None:
    helper = Helper(ValueError("a fault"))
    made = responder(store, {"action": "exec", "command": "page"}, carriers=Carriers(commands=helper))
    [action] = running(made, lambda: made.submit(made.decide(incident())))
    assert (action["state"], action["why"]) == ("refused", "a fault: ValueError: a fault")


def test_a_hook_does_not_enable_a_user_for_whom_another_block_lasts(store: Store, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    store.hooks = frozenset({"idp"})
    carriers = asking(tmp_path, {"ttl_s": 3600}, hooks=frozenset({"idp"}))
    step = BLOCK_USER | {"hooks": ["idp"]}
    made = responder(store, step, carriers=carriers, clock=lambda: now_ns)
    long = {**made.decide(compromise())[0], "id": "b" * 16, "ttl_s": 7200}
    carried_out(made, store, [*store.actions(target="account:bob"), long], 2)
    now_ns += 3601 * SECOND
    made.tend()
    assert [key for key, _ in hook_rows(store)] == ["idp:block_user"] * 2
    now_ns += 3600 * SECOND
    made.tend()
    assert [key for key, _ in hook_rows(store)] == ["idp:block_user"] * 2 + ["idp:unblock_user"]


def test_a_full_disk_at_the_end_of_a_users_block_loses_no_release(store: Store, tmp_path: Path) -> None:
    now_ns = time.time_ns()
    store.hooks = frozenset({"idp"})
    carriers = asking(tmp_path, {"ttl_s": 3600}, hooks=frozenset({"idp"}))
    made = responder(store, BLOCK_USER | {"hooks": ["idp"]}, carriers=carriers, clock=lambda: now_ns)
    carried_out(made, store, made.decide(compromise()), 1)
    now_ns += 3601 * SECOND
    with pytest.raises(StoreError), store.transaction():
        assert made.tend()
        raise sqlite3.OperationalError("database or disk is full")
    [action] = made.tend()
    assert action["detail"]["hooks"] == {"idp": "released"}
    assert [key for key, _ in hook_rows(store)] == ["idp:block_user", "idp:unblock_user"]


def test_a_message_that_a_hook_never_takes_is_not_pending_again_with_the_next_revision(store: Store) -> None:
    store.hooks = frozenset({"chat"})
    carriers = Carriers(hooks=frozenset({"chat"}))
    made = responder(store, {"action": "notify", "hooks": ["chat"]}, carriers=carriers)
    running(made, lambda: made.submit(made.decide(incident())))
    [action] = store.actions(target="hook:chat")
    made.delivered(f"{action['id']}:chat:notify", "answered 403")
    assert made.decide(incident(end=rfc3339(time.time_ns()))) == []
    assert store.action_state(action["id"]) == "failed"


def test_a_command_gets_whole_json_of_an_incident_of_any_size(store: Store) -> None:
    helper = Helper({"ok": True, "exit_code": 0, "output": ""})
    said = incident(sources=[f"2001:db8::{n:x}" for n in range(10_000)], title="\x1b\u202e" * 30_000)
    store.save_incident(said, {}, 1, 2, 3)
    made = responder(store, {"action": "exec", "command": "page"}, carriers=Carriers(commands=helper))
    running(made, lambda: made.submit(made.decide(said)))
    assert json.loads(helper.asked[0]["input"]) == {"id": said["id"], "shortened": True}


def test_one_person_does_not_take_back_alone_what_needs_two(store: Store, tmp_path: Path) -> None:
    made = responder(store, {"action": "block_source"}, carriers=asking(tmp_path, {}))
    carried_out(made, store, made.decide(incident()), 1)
    [action] = store.actions(target=SOURCE)
    with pytest.raises(GatewatchError, match="needs two people"):
        made.undo(action["id"], frozenset({"unblock"}))
