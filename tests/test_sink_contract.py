"""What every sink guarantees, tried on each of the registry with the real shipper and the real store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest
from gatewatch.daemon.sinks.contract import RejectedError, Row, Sink, SinkError
from gatewatch.daemon.sinks.outbox import OutboxServer
from gatewatch.daemon.sinks.registry import SINKS, make_sink
from gatewatch.daemon.store import Store
from hook_site import Server, secret_file

LIMIT_S = 30.0


class Receiver(Protocol):
    """Where a sink writes to, seen from the other side."""

    addressed: bool  # whether it gets only what is addressed to it
    burst: int  # documents that it takes within a second

    def options(self) -> dict[str, Any]: ...

    def received(self) -> list[dict[str, Any]]:
        """The documents in the order in which they arrived, each with `key`."""
        ...


class JsonlReceiver:
    addressed = False
    burst = 700

    def __init__(self, folder: Path) -> None:
        self.path = folder / "alerts.jsonl"

    def options(self) -> dict[str, Any]:
        return {"type": "jsonl", "path": str(self.path)}

    def received(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


class WebhookReceiver:
    """Takes a document once by its `webhook-id`, as docs/hooks.md tells receivers to."""

    addressed = True
    burst = 60

    def __init__(self, folder: Path) -> None:
        self.server = Server()
        self._secret = secret_file(folder)

    def options(self) -> dict[str, Any]:
        return {"type": "webhook", "url": self.server.url, "secret_file": str(self._secret)}

    def received(self) -> list[dict[str, Any]]:
        found = {r.headers["webhook-id"]: r.body for r in list(self.server.requests)}
        return [json.loads(body) | {"key": key} for key, body in found.items()]

    def close(self) -> None:
        self.server.close()


RECEIVERS: dict[str, Callable[[Path], Receiver]] = {"jsonl": JsonlReceiver, "webhook": WebhookReceiver}


def test_every_sink_of_the_registry_is_tried() -> None:
    assert set(RECEIVERS) == set(SINKS)


@pytest.fixture(params=sorted(SINKS))
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    made = RECEIVERS[request.param](tmp_path)
    yield made
    if isinstance(made, WebhookReceiver):
        made.close()


def row(number: int, document: dict[str, Any] | None = None) -> Row:
    raw = msgspec.Raw(json.dumps(document or {"n": number}).encode())
    return Row("out", number, f"key-{number}", raw)


def write(sink: Sink, *rows: Row) -> None:
    asyncio.run(sink.write(rows))


def write_anew(receiver: Receiver, *rows: Row) -> None:
    """As a shipper that was started, and stopped again."""

    async def scenario() -> None:
        sink = make_sink("out", receiver.options())
        try:
            await sink.write(rows)
        finally:
            await sink.close()

    asyncio.run(scenario())


def keys(receiver: Receiver) -> list[str]:
    return [d["key"] for d in receiver.received()]


def test_rows_arrive_in_order_with_their_document(receiver: Receiver) -> None:
    async def scenario() -> None:
        sink = make_sink("out", receiver.options())
        await sink.write([row(1), row(2, {"text": "line\nbreak ☃", "deep": [{"a": None}]})])
        await sink.write([row(3)])
        await sink.close()

    asyncio.run(scenario())
    assert keys(receiver) == ["key-1", "key-2", "key-3"]
    assert receiver.received()[1]["text"] == "line\nbreak ☃"


def test_a_row_that_comes_again_is_not_doubled_by_a_sink_that_was_opened_anew(receiver: Receiver) -> None:
    write_anew(receiver, row(1), row(2))
    write_anew(receiver, row(1), row(2), row(3))
    assert keys(receiver) == ["key-1", "key-2", "key-3"]


def test_rows_of_a_store_that_began_anew_are_not_taken_for_old_ones(receiver: Receiver) -> None:
    write_anew(receiver, row(1), row(2))
    again = Row("out", 1, "other", msgspec.Raw(b"{}"))
    write_anew(receiver, again)
    assert keys(receiver) == ["key-1", "key-2", "other"]


def test_a_document_that_is_no_object_is_refused_after_those_before_it_were_written(
    receiver: Receiver,
) -> None:
    bad = Row("out", 2, "key-2", msgspec.Raw(b"[1]"))
    with pytest.raises(RejectedError) as caught:
        write_anew(receiver, row(1), bad, row(3))
    assert caught.value.row_id == 2
    assert keys(receiver) == ["key-1"]


class Deaf:
    """A store that hears no acknowledgement, as if the shipper was killed before each."""

    def __init__(self, store: Store) -> None:
        self.pending = store.pending

    def acknowledge(self, sink: str, outbox_id: int, /) -> None: ...

    def dead(self, sink: str, outbox_id: int, reason: str, /) -> None: ...


class Site:
    """A store, the analyser's end of the line in a thread of its own loop, and shippers as processes."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.receiver = receiver
        self.store = Store.open(folder / "gatewatch.db")
        self.recipient = "out" if receiver.addressed else None
        self.store.hooks = frozenset({"out"} if receiver.addressed else ())
        self.socket_path = folder / "outbox.sock"
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(str(self.socket_path))
        self.listening.listen()
        self.said: list[str] = []
        self.server = OutboxServer(self.store, say=self.said.append)
        self.count = 0

    def add(self, count: int) -> None:
        with self.store.transaction():
            for _ in range(count):
                self.count += 1
                self.store.add_to_outbox(
                    f"key-{self.count}", {"n": self.count, "pad": "x" * 300}, time.time_ns(), self.recipient
                )
        self.server.notify()

    def shipper(self, **options: Any) -> subprocess.Popen[bytes]:
        code = (
            "import json, sys; from gatewatch.daemon.sinks.shipper import run_shipper; "
            "run_shipper(sys.argv[1], {'out': json.loads(sys.argv[2])})"
        )
        command = [sys.executable, "-c", code, str(self.socket_path), json.dumps(self.receiver.options())]
        return subprocess.Popen(command, stderr=subprocess.PIPE, **options)

    def delivered(self) -> bool:
        return not self.store.pending("out", 1)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 - another process brings it about
                await asyncio.sleep(0.001)

    def close(self) -> None:
        self.listening.close()
        self.store.close()


@pytest.fixture
def site(tmp_path: Path, receiver: Receiver) -> Iterator[Site]:
    made = Site(tmp_path, receiver)
    yield made
    made.close()


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def expected(site: Site) -> list[str]:
    return [f"key-{n}" for n in range(1, site.count + 1)]


def test_what_is_committed_arrives_and_is_acknowledged(site: Site, receiver: Receiver) -> None:
    async def scenario() -> None:
        serving = asyncio.create_task(site.server.serve(site.listening))
        site.add(300)
        with running(site.shipper()) as shipper:
            await site.until(site.delivered)
            site.add(1)
            await site.until(site.delivered)
            shipper.send_signal(signal.SIGTERM)
            await asyncio.to_thread(shipper.wait, LIMIT_S)
            assert shipper.returncode == 0
        serving.cancel()

    asyncio.run(scenario())
    assert keys(receiver) == expected(site)


def test_nothing_is_lost_or_doubled_when_the_shipper_is_killed_at_any_moment(
    site: Site, receiver: Receiver
) -> None:
    chance = random.Random(7)

    async def scenario() -> None:
        serving = asyncio.create_task(site.server.serve(site.listening))
        for _ in range(12):
            with running(site.shipper()) as shipper:
                before = len(receiver.received())
                site.add(receiver.burst)
                # In the midst of its work: as soon as something arrived, or a moment later.
                await site.until(lambda before=before: len(receiver.received()) > before)
                await asyncio.sleep(chance.choice([0.0, 0.001, 0.01]))
                shipper.kill()
        with running(site.shipper()):
            await site.until(site.delivered)
        serving.cancel()

    asyncio.run(scenario())
    assert keys(receiver) == expected(site)


def test_what_was_written_and_not_acknowledged_is_not_doubled_after_a_kill(
    site: Site, receiver: Receiver
) -> None:
    async def scenario() -> None:
        serving = asyncio.create_task(OutboxServer(Deaf(site.store)).serve(site.listening))
        site.add(50)
        with running(site.shipper()):
            await site.until(lambda: len(receiver.received()) == 50)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert len(site.store.pending("out", 100)) == 50
        serving = asyncio.create_task(site.server.serve(site.listening))
        site.add(1)
        with running(site.shipper()):
            await site.until(site.delivered)
        serving.cancel()

    asyncio.run(scenario())
    assert keys(receiver) == expected(site)


def test_the_shipper_connects_again_when_the_analyser_was_gone(site: Site, receiver: Receiver) -> None:
    async def scenario() -> None:
        with running(site.shipper()):
            for _ in range(3):
                serving = asyncio.create_task(site.server.serve(site.listening))
                site.add(min(200, receiver.burst))
                await asyncio.sleep(0.02)
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)
            serving = asyncio.create_task(site.server.serve(site.listening))
            await site.until(site.delivered)
            serving.cancel()

    asyncio.run(scenario())
    assert keys(receiver) == expected(site)


@pytest.mark.parametrize("receiver", ["jsonl"], indirect=True)
def test_a_disk_that_is_full_is_reported_and_delivery_goes_on_when_it_is_not(
    site: Site, receiver: JsonlReceiver
) -> None:
    """RLIMIT_FSIZE makes every write beyond it fail, as a full disk does, in the midst of a line too."""

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    async def scenario() -> None:
        serving = asyncio.create_task(site.server.serve(site.listening))
        site.add(100)
        with running(site.shipper(preexec_fn=limit_file_size)) as shipper:
            await site.until(lambda: bool(site.server.problems))
            assert "free space" in site.server.problems["out"]
            assert not site.delivered()
            assert receiver.path.read_bytes().endswith((b"\n", b""))
            site.add(100)
            resource.prlimit(
                shipper.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            await site.until(site.delivered)
            await site.until(lambda: not site.server.problems)
        serving.cancel()

    asyncio.run(scenario())
    assert keys(receiver) == expected(site)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.lab
def test_a_file_system_that_is_full_tears_no_line(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        receiver = JsonlReceiver(small)
        sink = make_sink("out", receiver.options())
        rows = [row(n, {"pad": "x" * 1000}) for n in range(1, 101)]
        with pytest.raises(SinkError, match="No space left"):
            write(sink, *rows)
        data = receiver.path.read_bytes()
        assert data in (b"", data[: data.rfind(b"\n") + 1])
        subprocess.run(["mount", "-o", "remount,size=1m", str(small)], check=True)
        write(sink, *rows)
        asyncio.run(sink.close())
        assert keys(receiver) == [r.key for r in rows]
    finally:
        subprocess.run(["umount", str(small)], check=True)
