"""What the enforcer notes becomes alerts: each at least once under one name, whatever is killed or full meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from enforcer_rig import ANALYSER_UID, Rig
from gatewatch.daemon import news as news_module
from gatewatch.daemon.audit import SEVERITIES, entry_document
from gatewatch.daemon.enforcer.chain import GENESIS, seal, verify
from gatewatch.daemon.enforcer.protocol import parse
from gatewatch.daemon.errors import StoreError
from gatewatch.daemon.events import NS_PER_S
from gatewatch.daemon.news import MOST_REFUSALS, NOTE, News
from gatewatch.daemon.store import Store
from gatewatch.daemon.supervisor import identity
from hypothesis import given, settings
from hypothesis import strategies as st
from lab.lab import HOSTS, Lab, unmet, wait_for
from lab.running import Gatewatch

LIMIT_S = 30.0
WALL = 1_764_000_000 * NS_PER_S
REFUSED = {
    "do": "refused",
    "asked": {"request": "block", "address": "0.0.0.0/0", "ttl_s": 60},
    "by": "analyser",
    "rail": "prefix",
    "why": "an IPv4 block is a /32 or a /24",
}


class Following:
    """An enforcer that knows `follow` alone: a journal with real seals, and who reads it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "enforcer.sock"
        self.entries: list[tuple[dict[str, Any], str]] = []
        self.oldest = 1
        self.asked: list[int] = []
        self._head = GENESIS
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """As a kill of the enforcer: the file stays, nobody listens."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.drop()

    def restart(self) -> None:
        self.close()
        self.path.unlink()
        self.open()

    def replace(self) -> None:
        """Another journal in the place of this one."""
        with self._lock:
            self.entries, self._head = [], GENESIS

    def drop(self) -> None:
        with self._lock:
            for client in self._clients:
                client.close()
            self._clients.clear()

    def note(self, *entries: dict[str, Any]) -> None:
        for entry in entries:
            with self._lock:
                made = {"seq": len(self.entries) + 1, "wall": WALL, **entry}
                _, self._head = seal(made, self._head)
                self.entries.append((made, self._head))
                self._send(self._message(made, self._head))

    def send(self, data: bytes) -> None:
        with self._lock:
            self._send(data)

    def _send(self, data: bytes) -> None:
        for client in list(self._clients):
            try:
                client.send(data)
            except OSError:  # it is gone
                self._clients.remove(client)
                client.close()

    @staticmethod
    def _message(entry: dict[str, Any], head: str) -> bytes:
        return json.dumps({"entry": entry, "head": head}).encode()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            message = json.loads(client.recv(65536))
            assert message["request"] == "follow"
            client.setblocking(False)  # who does not read is dropped
            with self._lock:
                self.asked.append(message["after"])
                at = [head for entry, head in self.entries if entry["seq"] == message["after"]]
                answer = {
                    "ok": True, "sequence": len(self.entries), "head": self._head, "oldest": self.oldest,
                    "seal": at[0] if at else "",
                }  # fmt: skip
                past = [
                    self._message(entry, head)
                    for entry, head in self.entries
                    if entry["seq"] > message["after"] and entry["seq"] >= self.oldest
                ]
                try:
                    for data in (json.dumps(answer).encode(), *past):
                        client.send(data)
                except OSError:
                    client.close()
                    continue
                self._clients.append(client)


@pytest.fixture
def enforcer(tmp_path: Path) -> Iterator[Following]:
    made = Following(tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "gatewatch.db")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_module, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(news_module, "LONGEST_PAUSE_S", 0.1)


class Reader:
    """The analyser's part around `News`."""

    def __init__(self, path: Path, store: Store) -> None:
        self.store = store
        self.said: list[str] = []
        self.complaints: list[StoreError] = []
        self.committed = 0
        self.news = News(
            path, store, committed=self._count, complain=self.complaints.append, say=self.said.append
        )

    def _count(self) -> None:
        self.committed += 1

    def told(self) -> list[dict[str, Any]]:
        return told(self.store)


def told(store: Store) -> list[dict[str, Any]]:
    rows = store.pending("nobody", 100_000)
    documents = [json.loads(row.document) for row in rows]
    assert [row.key for row in rows] == [d["id"] for d in documents]
    return documents


@contextlib.asynccontextmanager
async def reading(path: Path, store: Store) -> AsyncIterator[Reader]:
    reader = Reader(path, store)
    task = asyncio.ensure_future(reader.news.run())
    try:
        yield reader
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {LIMIT_S} s: {what}")


def test_what_was_noted_before_and_what_is_noted_now_is_told_with_its_seal(
    enforcer: Following, store: Store
) -> None:
    async def work() -> None:
        enforcer.note({"do": "start", "pid": 7}, REFUSED)
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 2, "past entries")
            enforcer.note(
                {"do": "kill", "endpoints": {"models": ["*:443/tcp"]}, "by": "uid 0", "reason": "x"}
            )
            started, refused, kill = await until(
                lambda: len(reader.told()) == 3 and reader.told(), "the new one"
            )
            assert reader.news.health()["following"]
            assert reader.news.health()["head"] == kill["head"] == enforcer.entries[-1][1]
        assert [d["sequence"] for d in (started, refused, kill)] == [1, 2, 3]
        assert [d["head"] for d in (started, refused, kill)] == [head for _, head in enforcer.entries]
        assert refused == {
            "event": "audit",
            "id": f"enforcer-2-{enforcer.entries[1][1][:12]}",
            "time": "2025-11-24T16:00:00Z",
            "priority": "high",
            "severity": SEVERITIES["high"],
            "title": "refused: block 0.0.0.0/0 by analyser: an IPv4 block is a /32 or a /24 (rail prefix)",
            "action": "block",
            "outcome": "refused",
            "by": "analyser",
            "reason": "an IPv4 block is a /32 or a /24",
            "rail": "prefix",
            "target": "0.0.0.0/0",
            "what": ["ttl_s: 60"],
            "sequence": 2,
            "head": enforcer.entries[1][1],
        }
        assert (kill["action"], kill["target"], kill["priority"]) == ("kill", "models", "high")
        assert started["priority"] == "info"
        assert reader.committed >= 2
        assert any("0.0.0.0/0" in line for line in reader.said)

    asyncio.run(work())


def test_a_restart_of_either_side_loses_and_doubles_nothing(enforcer: Following, store: Store) -> None:
    async def work() -> None:
        for round_ in range(4):
            async with reading(enforcer.path, store) as reader:
                enforcer.note({"do": "healed", "what": [f"table {round_}"]})
                await until(lambda: len(reader.told()) == 3 * round_ + 1, "the first")  # noqa: B023
                enforcer.restart()
                enforcer.note({"do": "healed", "what": ["while nobody read"]})
                await until(lambda: len(reader.told()) == 3 * round_ + 2, "the second")  # noqa: B023
            enforcer.note({"do": "release", "endpoints": ["models"], "by": "uid 0", "reason": "over"})
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 12, "the last")
        assert [d["sequence"] for d in told(store)] == list(range(1, 13))

    asyncio.run(work())


def test_while_the_store_is_full_the_place_stays_and_all_is_told_later(
    enforcer: Following, store: Store
) -> None:
    async def work() -> None:
        enforcer.note({"do": "start"})
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 1, "the first")
            pages = store._db.execute("PRAGMA page_count").fetchone()[0]
            store._db.execute(f"PRAGMA max_page_count = {pages}")
            many = [{"do": "healed", "what": ["x" * 400] * 30} for _ in range(20)]
            enforcer.note(*many)
            await until(lambda: len(reader.complaints) >= 2, "complaints, again and again")
            assert reader.news.kept_back
            before = store.get(NOTE)["sequence"]
            assert before == len(reader.told()) < 21
            store._db.execute("PRAGMA max_page_count = 1000000")
            await until(lambda: len(reader.told()) == 21, "the rest")
            await until(lambda: not reader.news.kept_back, "all saved")
        assert [d["sequence"] for d in told(store)] == list(range(1, 22))

    asyncio.run(work())


def test_a_replaced_journal_is_a_critical_alert_and_is_followed_from_its_beginning(
    enforcer: Following, store: Store
) -> None:
    async def work() -> None:
        enforcer.note(*[{"do": "start", "pid": n} for n in range(5)])
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 5, "five")
            enforcer.replace()
            enforcer.note({"do": "start", "pid": 99})
            before = len(reader.told())
            enforcer.drop()
            replaced, again = (
                await until(lambda: len(reader.told()) == before + 2 and reader.told(), "the new journal")
            )[-2:]
        assert (replaced["priority"], replaced["action"], replaced["sequence"]) == ("critical", "replaced", 1)
        assert again["sequence"] == 1
        assert len({d["id"] for d in told(store)}) == 7

    asyncio.run(work())


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_journal_as_long_or_longer_with_another_seal_was_replaced_too(
    enforcer: Following, store: Store, more: int
) -> None:
    async def work() -> None:
        enforcer.note({"do": "start", "pid": 1}, {"do": "start", "pid": 2})
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 2, "two")
        enforcer.replace()
        enforcer.note({"do": "start", "pid": 1}, {"do": "start", "pid": 3}, *[{"do": "stop"}] * more)
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 4 + more, "the alert and the entries that differ")
        assert [d["action"] for d in told(store)] == ["start", "start", "replaced", "start"] + ["stop"] * more

    asyncio.run(work())


def test_entries_that_are_not_at_hand_any_more_are_told_once_as_a_gap(
    enforcer: Following, store: Store
) -> None:
    async def work() -> None:
        enforcer.note({"do": "start", "pid": 0})
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 1, "one")
        enforcer.note(*[{"do": "start", "pid": n} for n in range(9)])
        enforcer.oldest = 8
        for _ in range(2):
            async with reading(enforcer.path, store) as reader:
                await until(lambda: len(reader.told()) == 5, "the gap and three entries")
        documents = told(store)
        assert [d["action"] for d in documents] == ["start", "gap", "start", "start", "start"]
        assert documents[1]["title"].startswith("entries 2 to 7 ")
        assert documents[1]["priority"] == "medium"
        assert [d["sequence"] for d in documents[2:]] == [8, 9, 10]

    asyncio.run(work())


def test_a_journal_that_is_shorter_than_a_gap_was_replaced(enforcer: Following, store: Store) -> None:
    """There no seal is known to tell it by."""

    async def work() -> None:
        enforcer.note(*[{"do": "start"}] * 9)
        enforcer.oldest = 10
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 1, "the gap")
        enforcer.replace()
        enforcer.oldest = 1
        enforcer.note({"do": "start"})
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == 3, "the alert and the entry")
        assert [d["action"] for d in told(store)] == ["gap", "replaced", "start"]
        assert told(store)[0]["priority"] == "info"  # nothing had been followed before

    asyncio.run(work())


def test_a_flood_of_refusals_is_told_as_sixty_and_one_count(
    enforcer: Following, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count outlives a restart, and what is no refusal is told singly all the same."""

    async def work() -> None:
        enforcer.note(*[REFUSED] * 70, {"do": "release", "endpoints": ["models"], "by": "uid 0"})
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == MOST_REFUSALS + 1, "sixty and the release")
            enforcer.note({"do": "refusals", "count": 1000})
            await until(lambda: store.get(NOTE)["sequence"] == 72, "the count of more")
            assert len(reader.told()) == MOST_REFUSALS + 1
        monkeypatch.setattr(news_module, "MINUTE_S", 0.1)
        async with reading(enforcer.path, store) as reader:
            await until(lambda: len(reader.told()) == MOST_REFUSALS + 2, "the count")
        count = told(store)[-1]
        assert (count["count"], count["priority"], count["outcome"]) == (1010, "high", "refused")
        assert count["what"] == ["analyser, rail prefix: 10", "unknown, rail unknown: 1000"]
        assert "between entries 61 and 72" in count["reason"]
        assert store.get(NOTE)["counted"] is None

    asyncio.run(work())


@pytest.mark.parametrize(
    "nonsense",
    [b"x", b"[]", b'{"entry": {}, "head": ""}', b'{"entry": {"seq": 7}, "head": "\\ud800"}', b"[" * 60_000],
)
def test_a_message_that_is_none_is_said_and_what_came_before_it_is_kept(
    enforcer: Following, store: Store, nonsense: bytes
) -> None:
    async def work() -> None:
        async with reading(enforcer.path, store) as reader:
            await until(lambda: enforcer.asked, "a reader")
            enforcer.note({"do": "start"})
            await until(lambda: len(reader.told()) == 1, "the entry")
            enforcer.send(nonsense)
            await until(lambda: reader.said, "a word")
            assert "an entry of its journal that is none" in reader.said[0]
            enforcer.note({"do": "stop"})
            await until(lambda: len(reader.told()) == 2, "the next entry, on a new line")
            await until(lambda: reader.news.problem == "", "the problem forgotten")

    asyncio.run(work())


def test_where_no_enforcer_ever_was_nothing_is_said(tmp_path: Path, store: Store) -> None:
    async def work() -> None:
        async with reading(tmp_path / "none.sock", store) as reader:
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert reader.said == []
            assert not reader.news.health()["following"]

    asyncio.run(work())


def test_an_enforcer_that_is_gone_is_said_once(enforcer: Following, store: Store) -> None:
    async def work() -> None:
        async with reading(enforcer.path, store) as reader:
            await until(lambda: reader.news.following, "a line")
            enforcer.close()
            enforcer.path.unlink()
            await until(lambda: len(reader.said) == 2, "a word")
            assert "hung up" in reader.said[0]
            enforcer.open()
            await until(lambda: reader.news.following, "a new line")
            assert reader.said[-1] == "the enforcer's journal is followed again"

    asyncio.run(work())


def test_the_request_is_one_that_the_enforcer_takes() -> None:
    assert parse(news_module.encode({"request": "follow", "after": 7})) == {"request": "follow", "after": 7}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"do": "refused", "asked": {"request": "release", "endpoints": ["a", "b"]}, "by": "analyser",
          "rail": "release", "why": "only a person"}, ("release", "refused", "high", "a, b")),
        ({"do": "refused", "asked": {"request": "block", "address": "192.0.2.1"}, "by": "analyser",
          "rail": "most_blocks", "why": "50 blocks are in force"}, ("block", "refused", "medium", "192.0.2.1")),
        ({"do": "refused", "asked": {"request": "block", "address": "192.0.2.1"}, "by": "uid 1000", "rail": "ttl"},
         ("block", "refused", "medium", "192.0.2.1")),
        ({"do": "refusals", "count": 7}, ("refusals", "refused", "high", "")),
        ({"do": "block", "address": "192.0.2.1", "ttl_s": 60, "by": "uid 0", "reason": "x"},
         ("block", "done", "info", "192.0.2.1")),
        ({"do": "healed", "what": ["table inet gatewatch was missing"]}, ("healed", "done", "medium", "")),
        ({"do": "torn", "bytes": 12}, ("torn", "done", "medium", "")),
        ({"do": "damaged", "what": "the chain is broken after entry 7"}, ("damaged", "done", "critical", "")),
        ({"do": "proof", "endpoints": ["models"], "by": "uid 0", "not_proven": [], "probes": []},
         ("proof", "done", "info", "models")),
        ({"do": "proof", "endpoints": ["models"], "by": "uid 0", "not_proven": ["a probe reached it"]},
         ("proof", "done", "high", "models")),
        ({"do": "grow", "endpoints": {"models": ["10.0.0.2:80/tcp"]}}, ("grow", "done", "medium", "models")),
        ({"do": "rails", "path": "rails.toml", "sha256": "ab"}, ("rails", "done", "info", "")),
        ({"do": "ask", "id": "1a", "asked": {"request": "release", "endpoints": ["models"]}, "by": "uid 1"},
         ("ask", "done", "medium", "models")),
        ({"do": "import", "blocks": [["192.0.2.1", 60]] * 3, "by": "uid 0", "reason": "y"},
         ("import", "done", "info", "")),
        ({"do": "something new", "by": "uid 0"}, ("something new", "done", "medium", "")),
    ],
)  # fmt: skip
def test_each_kind_of_entry_says_what_was_done_by_whom_and_how_grave_it_is(
    entry: dict[str, Any], said: tuple[str, str, str, str]
) -> None:
    document = entry_document(entry, 7, "ab" * 32)
    assert tuple(document[name] for name in ("action", "outcome", "priority", "target")) == said
    assert document["title"]


def test_what_has_no_field_of_its_own_is_listed() -> None:
    blocks = [["192.0.2.1", 60]] * 3
    assert entry_document({"do": "import", "blocks": blocks}, 7, "")["what"] == ["blocks: 3"]
    asked = {"request": "release", "endpoints": ["models"]}
    ask = {"do": "ask", "id": "1a", "asked": asked}
    assert entry_document(ask, 7, "")["what"] == ["for: release", "id: 1a"]
    proof = {"do": "proof", "not_proven": ["one", "two"], "probes": [], "what": "said"}
    assert entry_document(proof, 7, "")["what"] == ["said", "not_proven: one", "not_proven: two"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["do", "by", "asked", "why", "rail", "wall", "what", "address", "endpoints", "count", "x"]
)


@settings(deadline=None)
@given(st.dictionaries(names, values), st.integers(1), st.text(st.characters(codec=None), max_size=64))
def test_an_entry_of_any_shape_gives_a_document_that_can_be_stored(
    entry: dict[str, Any], sequence: int, head: str
) -> None:
    document = entry_document(entry, sequence, head)
    assert document["priority"] in SEVERITIES
    assert all(isinstance(document[n], str) for n in ("title", "action", "by", "reason", "rail", "target"))
    json.dumps({**document, "head": "", "id": ""}, ensure_ascii=False).encode()


@pytest.fixture
def rig() -> Iterator[Rig]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab(services=False) as lab, Rig(lab) as rig:
        yield rig


def notable(rig: Rig) -> list[tuple[int, str]]:
    """What the journal itself has of it, by number and seal."""
    return [
        (e["seq"], e["hash"])
        for e in rig.journal()
        if e["do"] not in ("tick", "state", "restore")
        and not (e.get("by") == "analyser" and e["do"] in ("block", "unblock"))
    ]


@pytest.mark.lab
def test_each_notable_entry_of_a_real_journal_is_told_once_through_kills_of_the_enforcer(
    rig: Rig, store: Store
) -> None:
    lies = [
        {"request": "block", "address": "0.0.0.0/0", "ttl_s": 60, "reason": "a lie"},
        {"request": "block", "address": HOSTS["management"].v4, "ttl_s": 60, "reason": "a lie"},
        {"request": "block", "address": HOSTS["balancer"].v4, "ttl_s": 60, "reason": "a lie"},
        {"request": "release", "reason": "a lie"},
        b"no message",
    ]
    own = {"request": "block", "address": "203.0.113.9", "ttl_s": 60, "reason": "its own"}
    path = rig.state / "run" / "enforcer.sock"

    async def work() -> None:
        async with reading(path, store) as reader:
            await until(lambda: reader.news.following, "a line")
            rig.ask_as(ANALYSER_UID, *lies, own)
            await until(lambda: sum(d["outcome"] == "refused" for d in reader.told()) == 5, "the refusals")
            for round_ in range(4):
                rig.stop(signal.SIGKILL)
                rig.start()
                rig.enforcer().block(f"203.0.113.{20 + round_}", ttl_s=60, reason="by a person")
                rig.nft("delete table inet gatewatch")
                await until(
                    lambda: sum(d["action"] == "healed" for d in reader.told()) == round_ + 1,  # noqa: B023
                    "the healed table",
                )
            rig.enforcer().kill(["models"], "a test")
            rig.enforcer().release(["models"], "over")
            await until(lambda: notable(rig)[-1][0] == reader.news.health()["sequence"], "all of it")
            assert [(d["sequence"], d["head"]) for d in reader.told()] == notable(rig)
            assert verify(rig.state / "enforcer" / "journal").head == reader.told()[-1]["head"]

    asyncio.run(work())
    documents = told(store)
    refused = [d for d in documents if d["outcome"] == "refused"]
    assert {d["priority"] for d in refused} == {"high"}
    assert [d["target"] for d in refused][:3] == ["0.0.0.0/0", HOSTS["management"].v4, HOSTS["balancer"].v4]
    assert {"kill", "release", "healed", "block", "start"} < {d["action"] for d in documents}
    assert all(d["by"] != "analyser" for d in documents if d["action"] == "block" and d["outcome"] == "done")


@pytest.mark.lab
def test_another_journal_under_a_real_enforcer_is_a_critical_alert(rig: Rig, store: Store) -> None:
    path = rig.state / "run" / "enforcer.sock"

    async def work() -> None:
        async with reading(path, store) as reader:
            for n in range(5):
                rig.enforcer().block(f"203.0.113.{n}", ttl_s=60, reason="x")
            await until(lambda: len(reader.told()) >= 7, "the entries")
            rig.stop()
            shutil.rmtree(rig.state / "enforcer")
            rig.start()
            for n in range(20):
                rig.enforcer().block(f"203.0.113.{n}", ttl_s=60, reason="x")  # the new one grows longer
            await until(lambda: "replaced" in {d["action"] for d in reader.told()}, "the alert")
            wanted = notable(rig)
            await until(
                lambda: [(d["sequence"], d["head"]) for d in reader.told()][-len(wanted) :] == wanted,
                "all of it",
            )

    asyncio.run(work())
    [replaced] = [d for d in told(store) if d["action"] == "replaced"]
    assert replaced["priority"] == "critical"


@pytest.mark.lab
def test_a_lie_with_the_analysers_credentials_is_an_alert_though_analyser_and_shipper_are_killed(
    lab: Lab,
) -> None:
    lie = {"request": "block", "address": "0.0.0.0/0", "ttl_s": 60, "reason": "a lie"}
    with Gatewatch(lab, observe=True) as watch:
        analyser = identity("gatewatch", 0).uid
        assert analyser is not None

        def alerts(action: str) -> list[dict[str, Any]]:
            return [a for a in watch.alerts() if a["event"] == "audit" and a["action"] == action]

        Rig.ask_as(watch, analyser, lie)  # type: ignore[arg-type]
        [refused] = wait_for("the alert", lambda: alerts("block"))
        assert (refused["outcome"], refused["priority"], refused["target"]) == (
            "refused",
            "high",
            "0.0.0.0/0",
        )
        watch.kill("analyser", "shipper")
        watch.kill_switch("engage", "--endpoint", "chat", "--reason", "a test")
        watch.kill_switch("release", "--endpoint", "chat", "--reason", "over")
        [kill] = wait_for("the kill", lambda: alerts("kill"), 30)
        [release] = wait_for("the release", lambda: alerts("release"), 30)
        assert kill["target"] == release["target"] == "chat"
        told = [a for a in watch.alerts() if a["event"] == "audit"]
        assert len({a["key"] for a in told}) == len(told)
        assert all(a["key"] == a["id"] for a in told)
        verified = watch.listing("audit", "verify")[0]
        assert verified["sequence"] >= release["sequence"]
