"""The analyser's line to the enforcer: a request leaves at once, its answer comes to the event loop.

Nothing here waits: a block must not wait for a disk, a thread or an answer to the request before it. Answers come
in the order of the requests. What cannot be sent, or is not answered in time, fails; whoever asked may ask again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .enforcer.client import REMEDY, UnreachableError, judged
from .enforcer.protocol import MOST_BYTES, encode
from .errors import GatewatchError

Answer = asyncio.Future[dict[str, Any]]


def opened(path: str, data: bytes) -> socket.socket:
    """A new line to the enforcer, which does not block, with the request `data` sent. Raises OSError."""
    fresh = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        fresh.setblocking(False)
        fresh.connect(path)
        fresh.send(data)
    except OSError:
        fresh.close()
        raise
    return fresh


class EnforcerLink:
    """Requests to the enforcer that listens on the socket `path`; `timeout_s` for each answer."""

    def __init__(self, path: Path | str, timeout_s: float = 5.0) -> None:
        self.path = os.fspath(path)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._asked: deque[Answer] = deque()

    def ask(self, message: Mapping[str, object]) -> Answer:
        """Sends `message` (see `protocol.REQUESTS`) now; the future gives the answer or an EnforcerError."""
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        try:
            self._send(encode(message))
        except OSError as error:
            answer.set_exception(self._unreachable(error.strerror or str(error)))
            return answer
        self._asked.append(answer)
        patience = loop.call_later(self._timeout_s, self._lose, f"no answer in {self._timeout_s:g} s")
        answer.add_done_callback(lambda done: patience.cancel())
        return answer

    def close(self) -> None:
        self._lose("closed")

    def _send(self, data: bytes) -> None:
        """Raises OSError. A connection that went away since the last request is opened anew, once."""
        if self._socket is not None:
            try:
                self._socket.send(data)
                return
            except OSError:
                self._lose("hung up")
        self._socket = opened(self.path, data)
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if not data:
            self._lose("hung up")
            return
        if not self._asked:
            return
        answer = self._asked.popleft()
        if answer.done():
            return
        try:
            answer.set_result(judged(data))
        except GatewatchError as error:
            answer.set_exception(error)

    def _lose(self, why: str) -> None:
        """The line is gone, and with it the answers that were still to come."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        lost, self._asked = self._asked, deque()
        for answer in lost:
            if not answer.done():
                answer.set_exception(self._unreachable(why))

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(f"enforcer at {self.path}: {why}", remedy=REMEDY)
