"""A client in the lab that reads a model's answer as it streams, and knows when each piece came."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from types import TracebackType

from .lab import HOSTS, KEYS, MODEL_PORTS, Lab

LONGEST = 10_000_000


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
        address = HOSTS["gateway"].v4
        body = json.dumps({"max_tokens": LONGEST, "tokens_per_second": tokens_per_second})
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {KEYS['alice']}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with lab.inside("client"):
            self._connection = socket.create_connection((address, port), timeout=5)
        self._connection.settimeout(None)
        self._connection.sendall((head + body).encode())
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
