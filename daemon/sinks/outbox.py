"""The analyser's end of the line to the shipper: committed documents go out, acknowledgements come back.

JSON objects, one a line, over a Unix stream socket. The shipper begins with `{"hello":"shipper","sinks":[names]}`;
then `{"sink":name,"id":n,"key":text,"document":{}}` goes to it, at most WINDOW rows a sink unacknowledged, and from
it come `{"ack":n,"sink":name}` (all of the sink's rows up to n are with the receiver), `{"dead":n,"sink":name,
"reason":text}` (and n never will be) and `{"error":text,"sink":name,"id":n}`. It must never serve another user, nor
let a fault of the shipper reach the analyser.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ..control import peer_uid
from ..errors import StoreError
from .contract import LARGEST_DOCUMENT, WINDOW

_LARGEST_LINE = 1 << 20  # bytes that the shipper may send as one message
_HELLO_S = 10.0
_ACCEPT_PAUSE_S = 0.5  # where descriptors have run out
_MOST_SINKS = 64
_WINDOW_BYTES = 4 << 20  # of documents that a sink was sent and has not acknowledged, beside the last
_AT_ONCE = 16


class OutboxRow(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def document(self) -> bytes: ...
    @property
    def recipient(self) -> str | None: ...


class OutboxStore(Protocol):
    def pending(self, sink: str, limit: int) -> Sequence[OutboxRow]:
        """The oldest rows that the sink has not acknowledged, in the order of their ids."""
        ...

    def acknowledge(self, sink: str, outbox_id: int, /) -> None:
        """The sink has every row up to this one."""
        ...

    def dead(self, sink: str, outbox_id: int, reason: str, /) -> None:
        """The sink will never take this row; it has every row before it."""
        ...


class _Hello(msgspec.Struct):
    hello: str
    sinks: list[str]


class _Message(msgspec.Struct):
    sink: str
    ack: int | None = None
    dead: int | None = None
    reason: str = ""
    error: str | None = None
    id: int | None = None


class _Outgoing(msgspec.Struct):
    sink: str
    id: int
    key: str
    document: msgspec.Raw


class _ProtocolError(Exception):
    pass


class OutboxServer:
    """Serves one shipper at a time; a later one takes the place of an earlier.

    `shipper_uid` is the only user, beside root, that may connect; None stands for the own. `problems` names the sinks
    that fail now, and why. `delivered(hook, key, problem)` is called for each document that was addressed to a hook:
    with None once the hook has it, or with the reason why it never will. It is called before that is written down, so
    after a crash it may be called again for the same document, and never too seldom; what it raises ends the session.
    """

    def __init__(
        self,
        store: OutboxStore,
        shipper_uid: int | None = None,
        say: Callable[[str], None] = lambda text: None,
        delivered: Callable[[str, str, str | None], None] | None = None,
    ) -> None:
        self.delivered = delivered
        self.problems: dict[str, str] = {}
        self._store = store
        self._allowed = {0, os.geteuid() if shipper_uid is None else shipper_uid}
        self._say = say
        self._committed: asyncio.Event | None = None
        self._connection: asyncio.Task[None] | None = None

    def notify(self) -> None:
        """Rows were committed. Cheap; called from the event loop that serves."""
        if self._committed is not None:
            self._committed.set()

    async def serve(self, listening: socket.socket) -> None:
        """Accepts on a listening Unix stream socket, which stays the caller's; ends by cancellation."""
        listening.setblocking(False)
        try:
            while True:
                await _knock(listening)
                try:
                    peer, _ = listening.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._say(f"outbox: cannot accept ({error.strerror})")
                    await asyncio.sleep(_ACCEPT_PAUSE_S)
                    continue
                if peer_uid(peer) not in self._allowed:
                    self._say(f"outbox: refused user {peer_uid(peer)}")
                    peer.close()
                    continue
                await self._drop()
                self._connection = asyncio.create_task(self._serve_one(peer))
        finally:
            await self._drop()

    async def _drop(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
            await asyncio.gather(self._connection, return_exceptions=True)
            self._connection = None

    async def _serve_one(self, peer: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=peer, limit=_LARGEST_LINE)
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = msgspec.json.decode(await reader.readuntil(b"\n"), type=_Hello)
            if hello.hello != "shipper" or len(hello.sinks) > _MOST_SINKS:
                raise _ProtocolError("did not say hello as a shipper does")
            await _Connection(self, self._store, hello.sinks, reader, writer).run()
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass  # It is gone, and will come again.
        except (asyncio.LimitOverrunError, msgspec.MsgspecError, _ProtocolError) as error:
            self._say(f"outbox: the shipper is sent away: {error}")
        except (StoreError, sqlite3.Error) as error:
            self._say(f"outbox: {error}")
        except Exception as error:  # what goes wrong here must not reach detection
            self._say(f"outbox: {type(error).__name__}: {error}")
        finally:
            writer.close()

    def _waker(self) -> asyncio.Event:
        self._committed = asyncio.Event()
        return self._committed

    def _problem(self, sink: str, text: str) -> None:
        if self.problems.get(sink) != text:
            self.problems[sink] = text
            self._say(f"sink {sink}: {text}")

    def _well(self, sink: str) -> None:
        if self.problems.pop(sink, None) is not None:
            self._say(f"sink {sink}: works again")


class _Connection:
    """One shipper's session: what was sent to each sink and not acknowledged."""

    def __init__(
        self,
        server: OutboxServer,
        store: OutboxStore,
        sinks: Sequence[str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server = server
        self._store = store
        self._sinks = list(dict.fromkeys(sinks))
        self._reader = reader
        self._writer = writer
        self._wake = server._waker()
        # Row -> bytes, in the order in which they were sent.
        self._flying: dict[str, dict[int, int]] = {sink: {} for sink in self._sinks}
        self._sent = dict.fromkeys(self._sinks, 0)
        # Row -> key, of those that are addressed to a hook.
        self._addressed: dict[str, dict[int, str]] = {sink: {} for sink in self._sinks}

    async def run(self) -> None:
        tasks = [asyncio.ensure_future(self._send()), asyncio.ensure_future(self._receive())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _send(self) -> None:
        while True:
            self._wake.clear()
            for sink in self._sinks:
                if len(self._flying[sink]) <= WINDOW // 2:
                    await self._send_to(sink)
            await self._wake.wait()

    async def _send_to(self, sink: str) -> None:
        flying = self._flying[sink]
        while len(flying) < WINDOW and sum(flying.values()) < _WINDOW_BYTES:
            # A few at a time, since each may be large.
            rows = [r for r in self._store.pending(sink, len(flying) + _AT_ONCE) if r.id > self._sent[sink]]
            if not rows:
                return
            for row in rows:
                if len(row.document) > LARGEST_DOCUMENT:
                    # Only once all before it are acknowledged: it moves the sink's place as an acknowledgement does.
                    if flying:
                        return
                    self._note(sink, row)
                    self._finish(sink, row.id, f"larger than {LARGEST_DOCUMENT} bytes")
                    self._sent[sink] = row.id
                    continue
                outgoing = _Outgoing(sink, row.id, row.key, msgspec.Raw(row.document))
                self._writer.write(msgspec.json.encode(outgoing).replace(b"\n", b" ") + b"\n")
                flying[row.id] = len(row.document)
                self._note(sink, row)
                self._sent[sink] = row.id
                await self._writer.drain()

    async def _receive(self) -> None:
        decoder = msgspec.json.Decoder(_Message)
        while True:
            message = decoder.decode(await self._reader.readuntil(b"\n"))
            flying = self._flying.get(message.sink)
            if flying is None:
                raise _ProtocolError("a message about a sink that it did not name")
            if message.error is not None:
                self._server._problem(message.sink, message.error[:1000])
                continue
            done = message.ack if message.ack is not None else message.dead
            if done is None or done not in flying:
                raise _ProtocolError(f"a message about row {done}, which it was not sent")
            if message.dead is not None:
                if next(iter(flying)) != done:
                    raise _ProtocolError(f"row {done} is dead while rows before it are not acknowledged")
                self._finish(message.sink, done, message.reason[:1000])
            else:
                self._finish(message.sink, done, None)
                self._server._well(message.sink)
            for row_id in [r for r in flying if r <= done]:
                del flying[row_id]
            self._wake.set()

    def _note(self, sink: str, row: OutboxRow) -> None:
        if row.recipient is not None:
            self._addressed[sink][row.id] = row.key

    def _finish(self, sink: str, done: int, dead: str | None) -> None:
        """All of the sink's rows up to `done` have arrived, or all but that one, which never will."""
        addressed = self._addressed[sink]
        for row_id in [r for r in addressed if r <= done]:
            if self._server.delivered is not None:
                self._server.delivered(sink, addressed[row_id], dead if row_id == done else None)
            del addressed[row_id]
        if dead is None:
            self._store.acknowledge(sink, done)
        else:
            self._store.dead(sink, done, dead)


async def _knock(listening: socket.socket) -> None:
    """Waits until somebody wants to connect. (A cancelled loop.sock_accept() can lose the one it has accepted.)"""
    loop = asyncio.get_running_loop()
    knocked = asyncio.Event()
    loop.add_reader(listening, knocked.set)
    try:
        await knocked.wait()
    finally:
        loop.remove_reader(listening)
