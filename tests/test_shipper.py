"""The line between analyser and shipper: what each end accepts, and that one sink never waits for another."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gatewatch.daemon.errors import ConfigError
from gatewatch.daemon.sinks.contract import LARGEST_DOCUMENT, WINDOW, RejectedError, Row, SinkError
from gatewatch.daemon.sinks.outbox import OutboxServer
from gatewatch.daemon.sinks.registry import make_sink
from gatewatch.daemon.sinks.shipper import Backoff, ship
from gatewatch.daemon.store import OutboxRow, Store
from hypothesis import given, settings
from hypothesis import strategies as st

LIMIT_S = 20.0


@dataclass
class Memory:
    """A sink that keeps what it is given, and fails when it is told to."""

    rows: list[Row] = field(default_factory=list)
    fails: int = 0
    refuses: set[int] = field(default_factory=set)
    gate: asyncio.Event | None = None
    closed: bool = False

    async def write(self, rows: Sequence[Row]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise SinkError("it is down", remedy="start it")
        for row in rows:
            if row.id in self.refuses:
                raise RejectedError(row.id, "it will not have it")
            self.rows.append(row)

    async def close(self) -> None:
        self.closed = True


class Line:
    """The store, the server and a shipper in one loop."""

    def __init__(self, folder: Path, **sinks: Memory) -> None:
        self.store = Store.open(folder / "gatewatch.db")
        self.path = folder / "outbox.sock"
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(self.path))
        self.listening.listen()
        self.said: list[str] = []
        self.server = OutboxServer(self.store, say=self.said.append)
        self.sinks = sinks
        self.count = 0

    def add(self, *documents: Any) -> None:
        with self.store.transaction():
            for document in documents:
                self.count += 1
                self.store.add_to_outbox(f"key-{self.count}", {"n": document}, 1)
        self.server.notify()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 - several tasks and the store bring it about
                await asyncio.sleep(0.001)

    def delivered(self, *names: str) -> bool:
        return not any(self.store.pending(name, 1) for name in names or self.sinks)


@asynccontextmanager
async def line(*, shipping: bool = True, **sinks: Memory) -> AsyncIterator[Line]:
    with tempfile.TemporaryDirectory() as folder:
        made = Line(Path(folder), **sinks)
        tasks = [asyncio.create_task(made.server.serve(made.listening))]
        if shipping:
            tasks.append(asyncio.create_task(ship(made.path, sinks, made.said.append, first_retry_s=0.01)))
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            made.listening.close()
            made.store.close()


def test_a_sink_that_fails_is_tried_again_in_order_and_its_problem_is_known() -> None:
    async def scenario() -> None:
        sink = Memory(fails=3)
        async with line(out=sink) as made:
            made.add(*range(10))
            await made.until(lambda: bool(made.server.problems))
            assert made.server.problems == {"out": "it is down; start it"}
            await made.until(made.delivered)
            assert [r.id for r in sink.rows] == list(range(1, 11))
            await made.until(lambda: not made.server.problems)
        assert sink.closed
        assert made.said.count("sink out: works again") == 2  # the server's, and the shipper's

    asyncio.run(scenario())


def test_one_sink_does_not_wait_for_another() -> None:
    async def scenario() -> None:
        slow, fast = Memory(gate=asyncio.Event()), Memory()
        async with line(slow=slow, fast=fast) as made:
            for _ in range(5):
                made.add(*range(2 * WINDOW))
                await made.until(lambda: made.delivered("fast"))
            assert not slow.rows
            assert slow.gate is not None
            slow.gate.set()
            await made.until(made.delivered)
        assert [r.id for r in slow.rows] == [r.id for r in fast.rows]

    asyncio.run(scenario())


def test_a_row_that_is_refused_for_good_is_put_aside_and_the_next_goes_on() -> None:
    async def scenario() -> None:
        sink = Memory(refuses={1, 4, 5})
        async with line(out=sink) as made:
            made.add(*range(8))
            await made.until(made.delivered)
            dead = made.store._db.execute("SELECT outbox_id, reason FROM dead ORDER BY outbox_id").fetchall()
        assert [r.id for r in sink.rows] == [2, 3, 6, 7, 8]
        assert dead == [(n, "it will not have it") for n in (1, 4, 5)]

    asyncio.run(scenario())


def test_a_document_that_is_too_large_is_put_aside_and_blocks_nothing() -> None:
    async def scenario() -> None:
        sink = Memory()
        async with line(out=sink) as made:
            made.add("a", "x" * LARGEST_DOCUMENT, "b")
            await made.until(made.delivered)
        assert [r.id for r in sink.rows] == [1, 3]

    asyncio.run(scenario())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 200), max_size=4),
    st.integers(0, 3),
    st.sets(st.integers(1, 300), max_size=5),
    st.sets(st.integers(0, 3)),
)
def test_every_row_arrives_once_and_in_order_whatever_fails(
    bursts: list[int], fails: int, refuses: set[int], cuts: set[int]
) -> None:
    async def scenario() -> None:
        sink = Memory(fails=fails, refuses=refuses)
        async with line(out=sink) as made:
            for number, burst in enumerate(bursts):
                made.add(*range(burst))
                if number in cuts:
                    await made.server._drop()
                await asyncio.sleep(0)
            await made.until(lambda: made.delivered("out"))
        first_seen = list(dict.fromkeys(r.id for r in sink.rows))
        assert first_seen == sorted(set(range(1, sum(bursts) + 1)) - refuses)
        assert cuts or len(sink.rows) == len(first_seen)

    asyncio.run(scenario())


def shake(path: Path, *messages: bytes) -> bytes:
    """What the server answers to a shipper that sends this; `b""` where it only closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(path))
        got = b""
        try:
            client.sendall(b"".join(messages))
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                got += data
        except ConnectionError:
            pass
        return got


HELLO = b'{"hello":"shipper","sinks":["out"]}\n'


@pytest.mark.parametrize(
    "messages",
    [
        [b"\n"],
        [b"garbage\n"],
        [b'{"hello":"else","sinks":[]}\n'],
        [b'{"hello":"shipper","sinks":[1]}\n'],
        [b'{"hello":"shipper","sinks":' + json.dumps([str(n) for n in range(100)]).encode() + b"}\n"],
        [b"x" * (3 << 20)],
        [HELLO, b'{"ack":99,"sink":"out"}\n'],
        [HELLO, b'{"ack":"1","sink":"out"}\n'],
        [HELLO, b'{"ack":1,"sink":"other"}\n'],
        [HELLO, b'{"sink":"out"}\n'],
        [HELLO, b"[" * 100_000 + b"\n"],
    ],
)
def test_a_shipper_that_talks_nonsense_is_sent_away_and_changes_nothing(messages: list[bytes]) -> None:
    async def scenario() -> None:
        async with line(shipping=False) as made:
            made.add(1, 2)
            await asyncio.to_thread(shake, made.path, *messages)
            await made.until(lambda: any("sent away" in said for said in made.said))
            assert len(made.store.pending("out", 10)) == 2
            answer = await asyncio.to_thread(shake, made.path, HELLO)
            assert [json.loads(text)["id"] for text in answer.splitlines()] in ([], [1], [1, 2])

    asyncio.run(scenario())


def test_a_later_shipper_takes_the_place_of_an_earlier() -> None:
    async def scenario() -> None:
        async with line(shipping=False) as made:
            made.add(1)
            first_reader, first = await asyncio.open_unix_connection(made.path)
            first.write(HELLO)
            assert json.loads(await first_reader.readline())["id"] == 1
            second_reader, second = await asyncio.open_unix_connection(made.path)
            second.write(HELLO)
            assert json.loads(await second_reader.readline())["id"] == 1
            assert await first_reader.read() == b""
            second.write(b'{"ack":1,"sink":"out"}\n')
            await made.until(lambda: made.delivered("out"))
            first.close()
            second.close()

    asyncio.run(scenario())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_is_refused() -> None:
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); os.setgid(65534); os.setuid(65534)\n"
        "s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()); print(s.recv(100))\n"
    )

    async def scenario() -> None:
        async with line(shipping=False) as made:
            made.add(1)
            made.path.parent.chmod(0o755)
            made.path.chmod(0o666)
            command = [sys.executable, "-c", code, str(made.path), HELLO.decode()]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=LIMIT_S)
            assert b"{" not in done.stdout
            assert made.said == ["outbox: refused user 65534"]

    asyncio.run(scenario())


def test_a_store_that_fails_costs_the_connection_and_not_the_analyser() -> None:
    class Failing:
        def __init__(self) -> None:
            self.calls = 0

        def pending(self, sink: str, limit: int) -> list[OutboxRow]:
            self.calls += 1
            if self.calls == 1:
                raise ValueError("unexpected")
            return [OutboxRow(1, "k", b"{}")]

        def acknowledge(self, sink: str, outbox_id: int, /) -> None: ...

        def dead(self, sink: str, outbox_id: int, reason: str, /) -> None: ...

    async def scenario() -> None:
        async with line(shipping=False) as made:
            made.server._store = Failing()
            assert await asyncio.to_thread(shake, made.path, HELLO) == b""
            assert any("unexpected" in said for said in made.said)
            reader, writer = await asyncio.open_unix_connection(made.path)
            writer.write(HELLO)
            assert json.loads(await reader.readline())["id"] == 1
            writer.close()

    asyncio.run(scenario())


def test_pauses_grow_to_a_limit_and_are_shortened_by_chance() -> None:
    backoff = Backoff(1.0, 8.0)
    pauses = [backoff.next_s() for _ in range(10)]
    assert all(
        most / 2 <= pause <= most for pause, most in zip(pauses, [1, 2, 4, 8, 8, 8, 8, 8, 8, 8], strict=True)
    )
    backoff.reset()
    assert backoff.next_s() <= 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "pigeon"}, r"sinks\.out\.type: no sink is called 'pigeon'; use one of"),
        ({"type": "jsonl", "path": "x", "colour": 1}, r"sinks\.out: .*colour.*; see docs/sinks\.md"),
    ],
)
def test_a_wrong_sink_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sink("out", options)
