"""HTTP/1.1 for the authorisation endpoint: many kept connections, small requests, one answer to each.

llhttp (by httptools) parses. A peer that is slow, silent, too large or too many costs itself its connection and
nobody else an answer: what is read at a time, the size of a request, the time it may take and the number of
connections are bounded, and a newcomer takes the place of the connection that has done nothing for longest.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple, cast

import httptools

from ..denied import CHUNK_BYTES, DenyList
from .decision import PASSED, Decider, Headers
from .health import Health

PREFIX = b"/authz/"
_READ_BYTES = 8192  # of one connection, before the others have their turn
_REFRESH_BYTES = CHUNK_BYTES // 4  # of a new deny list, before the next requests are answered
_MOST_ENDPOINT = 64
_TOO_LARGE = b"431 Request Header Fields Too Large", "too large"


class Limits(NamedTuple):
    """Bounds on what peers may take."""

    connections: int = 512
    request_bytes: int = 65_536
    headers: int = 256
    request_s: float = 5.0
    idle_s: float = 90.0  # longer than gateways keep idle connections, so that they close first


class Endpoint:
    """What all connections share. Made and used inside a running event loop."""

    def __init__(self, denied: DenyList, decider: Decider, headers: Headers, limits: Limits) -> None:
        self.denied = denied
        self.decider = decider
        self.limits = limits
        self.health = Health(denied)
        self.table = headers.table()
        self.buffer = bytearray(_READ_BYTES)
        """Of every connection in turn: what is read is parsed at once."""
        self.view = memoryview(self.buffer)
        self._key_id = headers.key_id.encode("ascii")
        self._reason = headers.reason.encode("ascii")
        self._silent: dict[Connection, None] = {}
        self._proven: dict[Connection, None] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: asyncio.Handle | None = None
        self._watched = -1

    def start(self) -> None:
        """Reads the deny list, and from then on whenever it changes."""
        self.denied.refresh()
        try:
            self._watched = self.denied.fileno()
            self._loop.add_reader(self._watched, self.read_denied)
        except OSError:
            pass  # it is asked every second anyhow
        self._tasks.append(asyncio.create_task(self._every_second()))

    async def stop(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in [*self._silent, *self._proven]:
            connection.end()

    def read_denied(self) -> None:
        """A part of what is new in the deny list; the rest after those who wait for an answer."""
        self.denied.refresh(_REFRESH_BYTES)
        if self.denied.behind and self._reading is None:
            self._reading = self._loop.call_later(0.001, self._read_on)

    def _read_on(self) -> None:
        self._reading = None
        self.read_denied()

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.read_denied()
            now = time.monotonic()
            for connection in [*self._silent, *self._proven]:
                connection.check(now)

    def opened(self, connection: Connection) -> None:
        if len(self._silent) + len(self._proven) >= self.limits.connections:
            oldest = next(iter(self._silent or self._proven))
            self.health.trouble["too many connections"] += 1
            oldest.end()
            self.closed(oldest)
        self._silent[connection] = None
        self._count()

    def asked(self, connection: Connection) -> None:
        """`connection` has sent a whole request: of all it goes last."""
        self._silent.pop(connection, None)
        self._proven.pop(connection, None)
        self._proven[connection] = None

    def closed(self, connection: Connection) -> None:
        self._silent.pop(connection, None)
        self._proven.pop(connection, None)
        self._count()

    def _count(self) -> None:
        self.health.connections = len(self._silent) + len(self._proven)

    def answer(self, url: bytes, said: list[tuple[int, bytes]], closing: bytes) -> bytes:
        """The whole answer to one request. `closing`: header lines about the connection."""
        if not url.startswith(PREFIX):
            if url.partition(b"?")[0] == b"/healthz":
                head, body = self.health.response()
                return b"%s%s\r\n%s" % (head, closing, body)
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n%s\r\n" % closing
        name = url[len(PREFIX) :].partition(b"?")[0].partition(b"/")[0]
        if not 0 < len(name) <= _MOST_ENDPOINT:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n%s\r\n" % closing
        endpoint = name.decode("ascii", "replace")
        answer = self.decider.decide(endpoint, said)
        self.health.count(endpoint, answer)
        told = answer.reason or ("unknown" if answer.unknown else PASSED)
        lines = b"Content-Length: 0\r\n"
        if self._key_id:
            lines += b"%s: %s\r\n" % (self._key_id, answer.key_id.encode("ascii"))
        if self._reason:
            lines += b"%s: %s\r\n" % (self._reason, told.encode("ascii"))
        status = b"403 Forbidden" if answer.reason else b"200 OK"
        return b"HTTP/1.1 %s\r\n%s%s\r\n" % (status, lines, closing)


class Connection(asyncio.BufferedProtocol):
    """One peer: parses its requests, answers them in their order."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        self._answers: list[bytes] = []
        self._url = b""
        self._said: list[tuple[int, bytes]] = []
        self._headers = 0
        self._closes = False  # after what was answered
        self._bytes = 0
        self._begun = 0.0  # when the request that is not finished began; 0: there is none
        self._last = time.monotonic()
        self._stuck = 0.0  # since when we wait for the peer to take its answers; 0: we do not

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)
        self._endpoint.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._endpoint.closed(self)
        self._parser = self._transport = None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._endpoint.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._parser is None or self._transport is None or self._transport.is_closing():
            return
        self._bytes += nbytes
        try:
            self._parser.feed_data(self._endpoint.view[:nbytes])
        except httptools.HttpParserUpgrade:
            pass  # it was answered; the connection ends
        except httptools.HttpParserError:  # of data after the last answer nobody wants to hear
            if not self._closes:
                too_many = self._headers > self._endpoint.limits.headers
                self._refuse(*(_TOO_LARGE if too_many else (b"400 Bad Request", "no HTTP")))
                return
        if self._bytes > self._endpoint.limits.request_bytes and not self._closes:
            self._refuse(*_TOO_LARGE)
            return
        self._send()
        if self._closes:
            self._close()

    def pause_writing(self) -> None:
        self._stuck = time.monotonic()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._stuck = 0.0
            self._transport.resume_reading()

    def on_message_begin(self) -> None:
        self._url = b""
        self._said = []
        self._headers = 0
        self._begun = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers > self._endpoint.limits.headers:
            raise ValueError("too many headers")
        what = self._endpoint.table.get(name.lower())
        if what is not None:
            self._said.append((what, value))

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self._bytes = 0
        self._begun = 0.0
        self._last = time.monotonic()
        kept = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        closing = b"" if kept else b"Connection: close\r\n"
        if kept and self._parser.get_http_version() == "1.0":
            closing = b"Connection: keep-alive\r\n"
        self._answers.append(self._endpoint.answer(self._url, self._said, closing))
        self._closes = not kept
        self._endpoint.asked(self)

    def check(self, now: float) -> None:
        """Ends a connection that takes too long."""
        limits = self._endpoint.limits
        if self._stuck:
            if now - self._stuck > limits.request_s:
                self._endpoint.health.trouble["does not read"] += 1
                self.end()
        elif self._begun and now - self._begun > limits.request_s:
            self._refuse(b"408 Request Timeout", "slow")
        elif now - self._last > limits.idle_s:
            self._endpoint.health.trouble["idle"] += 1
            self.end()

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        if self._answers and self._transport is not None:
            self._transport.write(b"".join(self._answers))
        self._answers.clear()

    def _refuse(self, status: bytes, why: str) -> None:
        self._endpoint.health.trouble[why] += 1
        if self._transport is not None:
            self._answers.append(b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
            self._send()
            self._close()
        self._parser = None

    def _close(self) -> None:
        """Ends the connection once the peer has taken its answers, for which it has not long."""
        if self._transport is not None:
            self._stuck = self._stuck or time.monotonic()
            self._transport.close()
