"""The store: what is committed together, what survives, and what is said when it cannot be used."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gatewatch.daemon.errors import StoreError
from gatewatch.daemon.store import Store, pack, unpack
from hypothesis import given
from hypothesis import strategies as st

DOCUMENT: dict[str, Any] = {"id": "abc123", "priority": "high", "title": "t"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "analyser" / "gatewatch.db")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_any_plain_state_comes_back_as_it_was(state: Any) -> None:
    assert unpack(pack(state)) == state


def test_arrays_come_back_with_shape_and_type_and_can_be_written() -> None:
    table = np.arange(12, dtype=np.uint64).reshape(3, 4)
    structured = np.zeros(2, np.dtype([("a", "<i8"), ("b", "<u2", (2,))]))
    again = unpack(pack({"table": table, "empty": np.zeros((0, 2), np.int32), "structured": structured}))
    assert np.array_equal(again["table"], table)
    assert again["table"].dtype == table.dtype
    assert again["empty"].shape == (0, 2)
    again["table"][0, 0] = 7


def test_a_damaged_snapshot_is_said_to_be_one() -> None:
    blob = bytearray(pack({"a": list(range(1000))}))
    blob[len(blob) // 2] ^= 0xFF
    with pytest.raises(StoreError, match="damaged"):
        unpack(bytes(blob))


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.note_batch("log", {"start": 0}, 1)
        store.add_to_outbox("k", DOCUMENT, 1)
        raise RuntimeError
    assert store.batches() == []
    assert store.pending("alerts", 10) == []


def test_a_snapshot_takes_the_place_of_the_batches_before_it(store: Store) -> None:
    with store.transaction():
        store.note_batch("log", {"start": 0, "end": 5}, 17)
    assert [b.range["end"] for b in store.batches()] == [5]
    with store.transaction():
        store.save_snapshot({"detection": {"x": 1}}, {"log": {"offset": 5}}, 18)
    assert store.batches() == []
    assert store.snapshot() == {"detection": {"x": 1}}
    assert store.checkpoints() == {"log": {"offset": 5}}


def test_the_same_alert_again_is_one_row(store: Store) -> None:
    assert store.add_to_outbox("abc:1", DOCUMENT, 1)
    assert not store.add_to_outbox("abc:1", DOCUMENT, 2)
    assert len(store.pending("alerts", 10)) == 1


def test_each_sink_goes_at_its_own_pace(store: Store) -> None:
    for n in range(5):
        store.add_to_outbox(f"k{n}", DOCUMENT, n)
    first = store.pending("fast", 10)
    store.acknowledge("fast", first[3].id)
    store.dead("slow", first[0].id, "rejected")
    assert [r.key for r in store.pending("fast", 10)] == ["k4"]
    assert [r.key for r in store.pending("slow", 2)] == ["k1", "k2"]
    assert store.lags(["fast", "slow", "new"]) == {"fast": 1, "slow": 4, "new": 5}


def test_an_older_acknowledgement_takes_nothing_back(store: Store) -> None:
    for n in range(3):
        store.add_to_outbox(f"k{n}", DOCUMENT, n)
    ids = [r.id for r in store.pending("s", 10)]
    store.acknowledge("s", ids[2])
    store.acknowledge("s", ids[0])
    assert store.pending("s", 10) == []


def test_an_incident_keeps_its_status_when_it_grows(store: Store) -> None:
    store.save_incident(DOCUMENT, {}, 1, 2, 3)
    assert store.set_status("abc123", "acknowledged", "ours")
    store.save_incident({**DOCUMENT, "title": "grown"}, {}, 1, 5, 6)
    [found] = store.incidents(incident="abc")
    assert (found["status"], found["title"], found["note"]) == ("acknowledged", "grown", "ours")
    assert not store.set_status("none", "closed", "")


def test_pruning_keeps_what_a_sink_still_lacks(store: Store) -> None:
    for n in range(4):
        store.add_to_outbox(f"k{n}", DOCUMENT, n)
    store.acknowledge("s", store.pending("s", 10)[1].id)
    store.prune(1000, ["s"])
    assert [r.key for r in store.pending("s", 10)] == ["k2", "k3"]


def test_a_flood_of_lesser_incidents_does_not_push_out_a_grave_one(store: Store) -> None:
    for n, priority in enumerate(["critical", "low", "medium", "low", "low"]):
        store.save_incident({"id": str(n), "priority": priority}, {}, n, n, n)
    assert [i["id"] for i in store.incidents(limit=3, gravest_first=True)] == ["0", "2", "4"]
    assert [i["id"] for i in store.incidents(limit=2)] == ["4", "3"]
    assert store.open_by_priority() == {"critical": 1, "medium": 1, "low": 3}


def test_pruning_without_a_sink_forgets_what_nobody_will_fetch(store: Store) -> None:
    store.add_to_outbox("old", DOCUMENT, 1)
    store.add_to_outbox("new", DOCUMENT, 2000)
    store.save_action(action())
    store.dead("gone", 1, "refused")
    store.prune(1000, [])
    assert [r.key for r in store.pending("s", 10)] == ["new"]
    assert store.actions() == []


def action(**more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": "a", "incident": "abc123", "playbook": "p", "action": "block_source", "target": "203.0.113.7",
        "state": "done", "why": "", "reason": "", "time_ns": 1, "ttl_s": 60,
    }  # fmt: skip
    return values | more


def test_actions_are_found_without_reading_all_of_them(store: Store) -> None:
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    store.actions(incident="abc123")
    store.actions(target="203.0.113.7")
    store.acted_since("p", 5)
    store._db.set_trace_callback(None)
    for query in asked:
        [plan] = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}") if "actions" in row[3]]
        assert plan.startswith("SEARCH"), plan


def test_what_is_about_to_be_done_counts_against_a_limit(store: Store) -> None:
    for state in ("pending", "done", "would", "skipped", "refused"):
        store.save_action(action(id=state, state=state, time_ns=5))
    assert store.acted_since("p", 5) == 3


def test_a_full_disk_is_said_and_leaves_what_was_there(store: Store) -> None:
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="disk"):
        store.put("health", {"text": "x" * 100_000})
    assert store.get("health") is None


def test_what_was_committed_outlives_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.db"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        store = Store.open(path)
        with store.transaction():
            store.note_batch("log", {"end": 9}, 1)
            store.add_to_outbox("kept", DOCUMENT, 1)
        store._db.execute("BEGIN IMMEDIATE")
        store.add_to_outbox("uncommitted", DOCUMENT, 1)
        os.write(write, b"x")
        signal.pause()
    os.read(read, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    store = Store.open(path)
    assert [r.key for r in store.pending("s", 10)] == ["kept"]
    assert len(store.batches()) == 1


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.db"
    path.write_bytes(os.urandom(8192))
    with pytest.raises(StoreError, match=r"gatewatch\.db"):
        Store.open(path)


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.db"
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer"):
        Store.open(path)


def test_a_reader_sees_the_store_and_cannot_change_it(store: Store) -> None:
    store.save_incident(DOCUMENT, {}, 1, 2, 3)
    reader = Store.open_readonly(store.path)
    assert len(reader.incidents()) == 1
    with pytest.raises((StoreError, sqlite3.OperationalError)):
        reader.save_incident(DOCUMENT, {}, 1, 2, 3)


def test_a_reader_without_a_store_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="gatewatch run"):
        Store.open_readonly(tmp_path / "none.db")


def test_a_hook_gets_what_is_addressed_to_it_and_a_sink_all_else(store: Store) -> None:
    store.hooks = frozenset({"idp", "pager"})
    for key, hook in (("a", None), ("b", "idp"), ("c", "pager"), ("d", "idp"), ("e", None)):
        assert store.add_to_outbox(key, DOCUMENT, 1, hook)
    keys = {name: [r.key for r in store.pending(name, 10)] for name in ("alerts", "idp", "pager", "gone")}
    assert keys == {"alerts": ["a", "e"], "idp": ["b", "d"], "pager": ["c"], "gone": ["a", "e"]}
    assert [r.recipient for r in store.pending("idp", 1)] == ["idp"]
    assert store.lags(["alerts", "idp", "pager"]) == {"alerts": 2, "idp": 2, "pager": 1}
    store.acknowledge("alerts", 1)
    store.dead("idp", 2, "nobody of that name")
    assert store.lags(["alerts", "idp", "pager"]) == {"alerts": 1, "idp": 1, "pager": 1}
    assert store.dead_letters("idp")[0][1] == "nobody of that name"


def test_pruning_keeps_what_a_hook_lacks_and_not_what_no_hook_will_fetch(store: Store) -> None:
    store.hooks = frozenset({"idp", "pager"})
    for number, hook in enumerate([None, "idp", "idp", "pager", "removed", None], 1):
        store.add_to_outbox(f"k{number}", DOCUMENT, number, hook)
    store.acknowledge("alerts", 6)
    store.acknowledge("idp", 2)
    store.prune(1000, ["alerts", "idp"])
    left = {row[0] for row in store._db.execute("SELECT key FROM outbox")}
    assert left == {"k3", "k4"}
    assert store.lags(["alerts", "idp", "pager"]) == {"alerts": 0, "idp": 1, "pager": 1}


def test_a_hook_among_a_hundred_thousand_alerts_is_found_without_reading_them(store: Store) -> None:
    store.hooks = frozenset({"idp"})
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    store.pending("idp", 10)
    store.lags(["idp", "alerts"])
    store._db.set_trace_callback(None)
    for query in [q for q in asked if "recipient" in q and "IS NULL" not in q]:
        plan = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert any("outbox_by_recipient" in step for step in plan), plan


def test_a_store_from_before_there_were_hooks_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "gatewatch.db"
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE outbox "
            "(id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, time_ns INTEGER, document BLOB)"
        )
        db.execute("INSERT INTO outbox (key, time_ns, document) VALUES ('old', 1, '{}')")
        db.execute("PRAGMA user_version = 1")
    db.close()
    for _ in range(2):
        store = Store.open(path)
        store.hooks = frozenset({"idp"})
        store.add_to_outbox("new", DOCUMENT, 2, "idp")
        assert [r.key for r in store.pending("alerts", 10)] == ["old"]
        assert [r.key for r in store.pending("idp", 10)] == ["new"]
        store.close()


def test_the_hash_key_is_made_once(store: Store) -> None:
    key = store.hash_key()
    assert len(key) == 16
    assert Store.open(store.path).hash_key() == key
