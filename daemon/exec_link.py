"""The analyser's line to `gatewatch-exec`: a request leaves at once, its answer comes to the event loop.

Nothing here waits. Each request has a connection of its own, since one command may take minutes longer than the next.
A request whose answer was lost may be asked again under the same id: what succeeded is not run twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .commands.request import MOST_BYTES, encoded
from .errors import CommandError
from .link import Answer, opened

REMEDY = "name a [[command]] in rails.toml and start `gatewatch run` as root anew"


class FailedError(CommandError):
    """The helper said no, or the command failed; `answer` is what it said (`exit_code` and `output` if it ran)."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__(
            str(answer.get("error") or "the command failed"), remedy=str(answer.get("remedy") or "")
        )
        self.answer = dict(answer)


class ExecLink:
    """Requests to the helper that listens on the socket `path`.

    `timeout_s` bounds each answer: a command may wait for others, and then take five minutes itself.
    """

    def __init__(self, path: Path | str, timeout_s: float = 900.0) -> None:
        self.path = os.fspath(path)
        self._timeout_s = timeout_s
        self._asked: dict[socket.socket, Answer] = {}

    def ask(self, message: Mapping[str, object]) -> Answer:
        """Sends `message` now: `run`, `id`, and perhaps `undo`, `environment`, `input` (see `commands.request`).

        The future gives the answer of a command that succeeded: `exit_code`, `output`, `seconds`, and `already` where
        it was not run again; else FailedError, or CommandError where nobody answers.
        """
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        try:
            line = opened(self.path, encoded(message))
        except OSError as error:
            answer.set_exception(self._unreachable(error.strerror or str(error)))
            return answer
        self._asked[line] = answer
        loop.add_reader(line, self._receive, line)
        patience = loop.call_later(self._timeout_s, self._fail, answer, f"no answer in {self._timeout_s:g} s")
        answer.add_done_callback(partial(self._over, line, patience))
        return answer

    def close(self) -> None:
        for answer in list(self._asked.values()):
            self._fail(answer, "closed")

    def _over(self, line: socket.socket, patience: asyncio.TimerHandle, answer: Answer) -> None:
        """Answered, failed or no longer wanted."""
        patience.cancel()
        self._hang_up(line)

    def _hang_up(self, line: socket.socket) -> None:
        if self._asked.pop(line, None) is not None:
            asyncio.get_running_loop().remove_reader(line)
            line.close()

    def _receive(self, line: socket.socket) -> None:
        answer = self._asked[line]
        try:
            data = line.recv(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._hang_up(line)
            self._fail(answer, error.strerror or str(error))
            return
        self._hang_up(line)
        if answer.done():
            return
        if not data:
            self._fail(answer, "hung up")
            return
        try:
            said = json.loads(data)
            fine = said["ok"] is True
        except (ValueError, KeyError, TypeError, RecursionError):
            self._fail(answer, "gave an answer that is none")
            return
        if fine:
            answer.set_result(said)
        else:
            answer.set_exception(FailedError(said))

    def _fail(self, answer: Answer, why: str) -> None:
        if not answer.done():
            answer.set_exception(self._unreachable(why))

    def _unreachable(self, why: str) -> CommandError:
        return CommandError(f"gatewatch-exec at {self.path}: {why}", remedy=REMEDY)
