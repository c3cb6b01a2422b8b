"""Clients in the lab that read a model's answers as they stream, and know when each piece came."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
from types import TracebackType

from .lab import HOSTS, KEYS, MODEL_PORTS, Lab

LONGEST = 10_000_000


def ask(lab: Lab, address: str, port: int, tokens_per_second: float, host: str = "client") -> socket.socket:
    """A blocking connection from `host` on which an endless answer was asked for."""
    body = json.dumps({"max_tokens": LONGEST, "tokens_per_second": tokens_per_second})
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: lab\r\nAuthorization: Bearer {KEYS['alice']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with lab.inside(host):
        connection = socket.create_connection((address, port), timeout=10)
    connection.settimeout(None)
    connection.sendall((head + body).encode())
    return connection


class Stream:
    """`with Stream(lab) as stream:` asks for an endless answer and reads it in a thread.

    `bytes` and `last_ns` (CLOCK_MONOTONIC) tell how much came and when the last piece did; `ended` is why the
    connection is over, `""` while it is not.
    """

    def __init__(
        self, lab: Lab, *, tokens_per_second: float = 1000, port: int = MODEL_PORTS["chat"][0]
    ) -> None:
        self.bytes = 0
        self.last_ns = 0
        self.ended = ""
        self._connection = ask(lab, HOSTS["gateway"].v4, port, tokens_per_second)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := self._connection.recv(65536):
                self.bytes += len(data)
                self.last_ns = time.monotonic_ns()
            self.ended = "closed"
        except OSError as error:
            self.ended = error.strerror or str(error)

    def quiet_for_s(self) -> float:
        """How long ago the last piece came."""
        return (time.monotonic_ns() - self.last_ns) / 1e9

    def flows(self, least: int = 10_000) -> bool:
        """Whether at least so many bytes came, the last of them just now."""
        return self.bytes >= least and not self.ended and self.quiet_for_s() < 0.1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Crowd:
    """`with Crowd(lab) as crowd:` many such clients, all read by one thread.

    `bytes` tells how much came, client by client, in the order in which they joined.
    """

    def __init__(self, lab: Lab, *, tokens_per_second: float = 50) -> None:
        self.lab = lab
        self.tokens_per_second = tokens_per_second
        self.bytes: list[int] = []
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def join(self, count: int, address: str, port: int, host: str = "client") -> None:
        """So many more on `host` that ask that address and port of the gateway. Raises OSError where it takes none."""
        for _ in range(count):
            connection = ask(self.lab, address, port, self.tokens_per_second, host)
            connection.setblocking(False)
            self.bytes.append(0)
            self._selector.register(connection, selectors.EVENT_READ, len(self.bytes) - 1)

    def grown(self, since: list[int]) -> list[int]:
        """Which clients were sent something since `bytes` was like that."""
        return [i for i, (then, now) in enumerate(zip(since, list(self.bytes), strict=True)) if now > then]

    def flows(self) -> bool:
        """Whether every one of them is being answered just now; waits a moment for it."""
        before = list(self.bytes)
        self._stop.wait(4 / self.tokens_per_second)
        return len(self.grown(before)) == len(before)

    def _read(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    data = key.fileobj.recv(65_536)
                except OSError:
                    data = b""
                if data:
                    self.bytes[key.data] += len(data)
                else:
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
