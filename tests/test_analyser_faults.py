"""The analyser in bad times: a full disk, a state of another version, a closed incident, an impossible ring."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewatch.config.loader import load
from gatewatch.daemon.analyser import Analyser
from gatewatch.daemon.errors import InputError
from gatewatch.daemon.parts import LogSource, Parts
from gatewatch.detectors.finding import Finding, finding_id
from gatewatch.playbooks.loader import load_playbooks

SECOND = 1_000_000_000


def finding(source: str = "203.0.113.7", kind: str = "brute_force", **more: Any) -> Finding:
    now_ns = time.time_ns() // SECOND * SECOND
    values: dict[str, Any] = {
        "id": finding_id(kind, source),
        "detector": kind,
        "kind": kind,
        "entity_type": "source",
        "entity": source,
        "time_ns": now_ns,
        "start_ns": now_ns - 60 * SECOND,
        "end_ns": now_ns,
        "severity": 50,
        "confidence": 0.9,
        "sources": (source,),
        "targets": ("sshd@gateway",),
        "figures": {"attempts": 10},
        "blockable": (source,),
    }
    return Finding(**(values | more))


class Rig:
    """Analysers, one after the other, on one state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.said: list[str] = []
        self.sockets: list[socket.socket] = []
        self.log = state / "auth.log"
        self.log.touch()

    def analyser(self) -> Analyser:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sockets += pair
        return Analyser(
            Parts(
                config=load(),
                rails=None,
                state=self.state,
                mode="observe",
                playbooks=tuple(load_playbooks()),
                logs=(LogSource(self.log, "sshd"),),
                journal_units=(),
                local=(),
                control=pair[1],
                commands=pair[1],
                outbox=pair[1],
                shipper_uid=os.geteuid(),
                watches_packets=False,
                enforces=False,
                say=self.said.append,
            )
        )


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    for opened in made.sockets:
        opened.close()


def fill(analyser: Analyser) -> None:
    """The disk is full: the database cannot grow by a page."""
    db = analyser.store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")


def make_room(analyser: Analyser) -> None:
    analyser.store._db.execute("PRAGMA max_page_count = 1000000")


def told(analyser: Analyser) -> list[tuple[str, int]]:
    rows = [json.loads(row.document) for row in analyser.store.pending("nobody", 1000)]
    return [(d["id"], d["revision"]) for d in rows if d["event"] == "incident"]


LONG = {"samples": ("x" * 200_000,)}


def test_what_a_full_disk_kept_back_is_told_once_there_is_room(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        fill(analyser)
        for _ in range(3):
            analyser._settle([finding(**LONG)])
        assert told(analyser) == []
        assert sum("not saved" in line for line in rig.said) == 1
        make_room(analyser)
        analyser._save_dirty()
        [(incident, revision)] = told(analyser)
        assert revision == 1
        assert analyser.store.incidents(incident=incident)[0]["actions"]
        analyser._save_dirty()
        assert len(told(analyser)) == 1

    asyncio.run(work())


def test_after_a_full_disk_no_range_of_input_is_left_out(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        note = {"start": 0, "end": 1, "padding": "x" * 200_000}
        analyser._settle([], ("log", {"start": 0, "end": 1}, 1))
        fill(analyser)
        analyser._settle([], ("log", note, 2))
        make_room(analyser)
        analyser._settle([], ("log", {"start": 2, "end": 3}, 3))
        assert [b.receive_ns for b in analyser.store.batches()] == [1]
        analyser._snapshot()
        analyser._settle([], ("log", {"start": 3, "end": 4}, 4))
        assert [b.receive_ns for b in analyser.store.batches()] == [4]

    asyncio.run(work())


def test_what_grew_while_the_disk_was_full_is_saved_later(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        analyser._settle([finding()])
        fill(analyser)
        analyser._settle([finding(figures={"attempts": 11}, **LONG)])
        for _ in range(2):
            with pytest.raises(Exception, match="disk"):
                analyser._save_dirty()
        make_room(analyser)
        analyser._save_dirty()
        [incident] = analyser.store.incidents()
        assert incident["findings"][0]["figures"]["attempts"] == 11

    asyncio.run(work())


def test_an_old_incident_goes_on_with_its_revisions_after_a_restart(rig: Rig) -> None:
    """Its events lie days back, as in a log that was there already."""
    days = 10 * 86_400 * SECOND
    old = {"time_ns": days, "start_ns": days, "end_ns": days}

    async def work() -> None:
        analyser = rig.analyser()
        analyser._settle([finding(**old)])
        analyser.store.close()
        analyser = rig.analyser()
        analyser._recover()
        analyser._settle([finding(figures={"attempts": 40}, **old)])
        assert [revision for _, revision in told(analyser)] == [1, 2]

    asyncio.run(work())


def test_an_incident_that_memory_had_no_room_for_goes_on_with_its_revisions(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        analyser._settle([finding()])
        analyser._correlator._most_open = 0
        analyser._correlator.expire()
        analyser._settle([finding(figures={"attempts": 40})])
        assert [revision for _, revision in told(analyser)] == [1, 2]

    asyncio.run(work())


def test_playbooks_leave_a_closed_incident_alone_and_a_new_attack_is_not_hidden_in_it(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        analyser._settle([finding(confidence=0.5)])
        [incident] = analyser.store.incidents()
        assert analyser._desk.answer({"do": "close", "incident": incident["id"]})["ok"]
        analyser._settle([finding()])
        [incident] = analyser.store.incidents()
        assert (incident["status"], incident["actions"]) == ("closed", [])
        analyser._snapshot()
        analyser.store.close()
        analyser = rig.analyser()
        analyser._recover()
        analyser._settle([finding(kind="password_spray")])
        assert {i["status"] for i in analyser.store.incidents()} == {"open", "closed"}

    asyncio.run(work())


def test_what_was_closed_as_benign_stays_so_over_a_restart_is_told_and_can_be_taken_back(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        analyser._settle([finding(users=("ada",))])
        [incident] = analyser.store.incidents()
        request = {
            "do": "close",
            "incident": incident["id"],
            "note": "our job",
            "by": "eve\x1b",
            "benign_s": 86_400,
        }
        answer = analyser._desk.answer(request)
        [made] = answer["exceptions"]
        assert (made["kind"], made["entity"], made["users"]) == ("brute_force", "203.0.113.7", ["ada"])
        assert (made["by"], made["note"], made["state"]) == ("eve", "our job", "in force")
        analyser._settle([finding(id="another", users=("ada",))])
        analyser.store.close()

        analyser = rig.analyser()
        analyser._recover()
        analyser._settle([finding(id="another", users=("ada",)), finding(id="one more", users=("ada",))])
        assert [i["status"] for i in analyser.store.incidents()] == ["closed"]
        assert [e["suppressed"] for e in analyser.store.exceptions()] == [2]
        analyser._settle([finding(id="not his", users=("bob",))])
        assert sorted(i["status"] for i in analyser.store.incidents()) == ["closed", "open"]

        removal = {"do": "remove_exception", "exception": made["id"], "by": "eve"}
        assert analyser._desk.answer(removal)["exception"]["state"] == "removed"
        assert not analyser._desk.answer(removal)["ok"]
        told_of = [json.loads(row.document) for row in analyser.store.pending("nobody", 100)]
        said = [(d["state"], d["by"]) for d in told_of if d["event"] == "exception"]
        assert said == [("in force", "eve"), ("removed", "eve")]
        [status] = [d for d in told_of if d["event"] == "status"]
        assert status["exceptions"] == [made["id"]]
        analyser.store.close()

    asyncio.run(work())


@pytest.mark.parametrize("lasting", [0, -1, 10**12, "1d", 1.5, True])
def test_an_exception_without_an_end_is_refused_and_nothing_is_closed(rig: Rig, lasting: Any) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        analyser._settle([finding()])
        [incident] = analyser.store.incidents()
        answer = analyser._desk.answer({"do": "close", "incident": incident["id"], "benign_s": lasting})
        assert not answer["ok"]
        assert "lasts" in answer["error"]
        assert not analyser._desk.answer({"do": "close", "incident": "none", "benign_s": 60})["ok"]
        assert [i["status"] for i in analyser.store.incidents()] == ["open"]
        assert analyser.store.exceptions() == []

    asyncio.run(work())


def test_exceptions_of_another_version_keep_nothing_from_starting(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        with analyser.store.transaction():
            analyser.store.save_exception({"id": "x", "created_ns": 1, "removed_ns": 0, "expires_ns": 2})
        analyser.store.close()
        rig.analyser()
        assert any("1 exceptions of another version" in line for line in rig.said)

    asyncio.run(work())


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"detection": 7, "feeds": {}},
        {"detection": {"login": {}, "network": {}}, "feeds": {}},
        {"detection": [], "feeds": []},
    ],
)
def test_a_snapshot_that_cannot_be_used_costs_memory_alone(rig: Rig, state: Any) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        with analyser.store.transaction():
            analyser.store.save_snapshot(state, {str(rig.log): {"what": 1}}, 1)
            analyser.store.note_batch(str(rig.log), {"wrong": 1}, 1)
            analyser.store.save_incident({"id": "a", "priority": "high"}, {"wrong": 1}, 1, 2, time.time_ns())
        analyser.store.close()
        analyser = rig.analyser()
        analyser._recover()
        analyser._settle([finding()])
        assert len(told(analyser)) == 1
        assert "start afresh" in rig.said[0]

    asyncio.run(work())


def test_a_ring_that_was_corrupted_is_left(rig: Rig) -> None:
    class Corrupted:
        closed = False

        def fileno(self) -> int:
            return rig.sockets[0].fileno()

        def pull(self, limit: int) -> None:
            raise InputError("the shared packet ring was corrupted by the capture process")

        def close(self) -> None:
            self.closed = True

    async def work() -> None:
        analyser = rig.analyser()
        ring: Any = Corrupted()
        analyser._packets = ring
        analyser._take_packets()
        assert ring.closed
        assert analyser._packets is None
        assert "corrupted" in rig.said[-1]

    asyncio.run(work())


def test_what_is_older_than_the_retention_is_forgotten_soon_after_the_start(rig: Rig) -> None:
    async def work() -> None:
        analyser = rig.analyser()
        kept_ns = analyser.parts.config.store.retention_days * 86_400 * SECOND
        with analyser.store.transaction():
            for name, age_ns in (("old", kept_ns + 60 * SECOND), ("new", kept_ns - 60 * SECOND)):
                changed_ns = time.time_ns() - age_ns
                analyser.store.save_incident(
                    {"id": name, "priority": "high"}, {}, changed_ns, changed_ns, changed_ns
                )
        tick = asyncio.ensure_future(analyser._tick())
        async with asyncio.timeout(30):
            while len(analyser.store.incidents()) > 1:
                await asyncio.wait([tick], timeout=0.05)
        tick.cancel()
        assert [i["id"] for i in analyser.store.incidents()] == ["new"]

    asyncio.run(work())
