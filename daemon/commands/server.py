"""The loop of `gatewatch-exec`: the kernel says who asks, the rails what may be run, and little runs at once.

One connection carries one request and its answer. A request that is repeated while it runs waits for the same answer;
after it succeeded it is answered from memory for an hour. Doing and undoing of one action never overlap.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..enforcer import rails as rails_file
from ..enforcer.rails import Command
from ..errors import CommandError, ConfigError, GatewatchError
from . import safety
from .request import MOST_BYTES, MalformedError, Request, parse
from .run import Run

MOST_AT_ONCE = 4
MOST_QUEUED = 32
MOST_A_MINUTE = 60
MOST_CLIENTS = 64
HEAR_S = 5.0  # for the request, once connected
REMEMBERED_S = 3600.0
ENDS = "the helper ends"
_MINUTE_S = 60.0

Key = tuple[str, str, bool]  # the action, the command, and whether it is undone


class Job(NamedTuple):
    """A request that was taken, and who waits for its answer: a connection, and whether another one asked before."""

    request: Request
    command: Command
    waiting: list[tuple[socket.socket, bool]]

    @property
    def line(self) -> tuple[str, ...]:
        return self.command.undo if self.request.undo else self.command.run


class Server:
    """Serves the commands of the rails at the path `rails` on `listener` until a signal comes.

    `analyser` is the user that may ask besides root. Raises ConfigError where the rails are wrong at the start.
    """

    def __init__(self, listener: socket.socket, rails: str, analyser: int) -> None:
        self._listener = listener
        self._rails = rails
        self._analyser = analyser
        self._commands: dict[str, Command] = {}
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, float] = {}  # until when each has to have asked
        self._queue: deque[Job] = deque()
        self._running: dict[Run, Job] = {}
        self._taken: deque[float] = deque()
        self._done: dict[Key, tuple[float, dict[str, object]]] = {}  # oldest first
        self._stopping = False
        self._reload = False
        self.load()

    def load(self) -> None:
        """Read the rails and use their commands. Raises ConfigError, and then the former ones hold."""
        loaded = rails_file.load(self._rails)
        if (owner := Path(self._rails).stat().st_uid) != 0:
            raise ConfigError(
                f"rails {self._rails}: owned by uid {owner}", remedy=f"chown root {self._rails}"
            )
        self._commands = {command.name: command for command in loaded.commands}
        for command in loaded.commands:
            for line in filter(None, (command.run, command.undo)):
                with complained(f"command {command.name} is not run as it is: "):
                    safety.check(line[0])
        say(f"commands: {', '.join(self._commands) or 'none'}")

    def serve(self) -> None:
        """Answer until SIGTERM or SIGINT; SIGHUP reads the rails anew. What runs then is ended, and said so."""
        wake, woken = socket.socketpair()
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        for number, act in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._hang_up),
        ):
            signal.signal(number, act)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(wake, selectors.EVENT_READ, partial(wake.recv, 64))
        say("ready")
        while not self._stopping:
            self._turn()
            if self._reload:
                self._reload = False
                with complained("rails not read anew, the former hold: "):
                    self.load()
        self._finish()

    def _finish(self) -> None:
        """Take nothing more, tell everyone who waits, and end what runs."""
        self._selector.unregister(self._listener)
        for client in list(self._clients):
            self._forget(client)
            refuse(client, wrong(ENDS))
        for job in self._queue:
            self._answer(job, wrong(ENDS))
        self._queue.clear()
        for run in self._running:
            run.end(ENDS)
        limit = time.monotonic() + 2.0
        while self._running and time.monotonic() < limit:
            self._turn()

    def _turn(self) -> None:
        """Wait for what is next, and do it."""
        dues = [run.deadline for run in self._running] + list(self._clients.values())
        patience = max(0.0, min(dues) - time.monotonic()) if dues else None
        if patience is not None:
            patience = min(patience, 3600.0)
        for key, _ in self._selector.select(patience):
            key.data()
        now = time.monotonic()
        for run in [r for r in self._running if r.deadline <= now]:
            run.end(f"not done within {self._running[run].command.timeout_s} s, and killed")
        for client in [c for c, until in self._clients.items() if until <= now]:
            self._forget(client)
            client.close()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _hang_up(self, number: int, frame: object) -> None:
        self._reload = True

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it went away, or there is no descriptor left at this moment
            return
        client.setblocking(False)
        _, uid, _ = struct.unpack("=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        waiting = sum(len(job.waiting) for job in (*self._queue, *self._running.values()))
        if uid not in (0, self._analyser):
            refuse(client, wrong(f"uid {uid} is neither root nor the analyser"))
        elif len(self._clients) + waiting >= MOST_CLIENTS:
            refuse(client, wrong(f"{MOST_CLIENTS} ask already", "ask again later"))
        else:
            self._clients[client] = time.monotonic() + HEAR_S
            self._selector.register(client, selectors.EVENT_READ, partial(self._hear, client))

    def _forget(self, client: socket.socket) -> None:
        """It has asked, or did not: it is not listened to any longer."""
        del self._clients[client]
        self._selector.unregister(client)

    def _hear(self, client: socket.socket) -> None:
        if client not in self._clients:
            return
        try:
            data, _, flags, _ = client.recvmsg(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, flags = b"", 0
        self._forget(client)
        if not data:
            client.close()
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise MalformedError(f"message longer than {MOST_BYTES} bytes")
            self._take(parse(data), client)
        except MalformedError as error:
            reply(client, wrong(f"message: {error}"))
        except CommandError as error:
            reply(client, wrong(error.message, error.remedy))

    def _take(self, request: Request, client: socket.socket) -> None:
        """Answer from memory, wait with whoever asked the same, or have it run. Raises CommandError."""
        now = time.monotonic()
        key = (request.id, request.run, request.undo)
        self._tidy(now)
        if key in self._done:
            reply(client, {**self._done[key][1], "already": True})
            return
        for job in (*self._queue, *self._running.values()):
            if key == (job.request.id, job.request.run, job.request.undo):
                job.waiting.append((client, True))
                return
        command = self._commands.get(request.run)
        if command is None:
            raise CommandError(
                f"command {request.run}: the rails name none of this name",
                remedy=f"add it to {self._rails} and send SIGHUP",
            )
        if request.undo and not command.undo:
            raise CommandError(
                f"command {request.run}: cannot be undone", remedy=f"give it `undo` in {self._rails}"
            )
        if len(self._taken) >= MOST_A_MINUTE:
            raise CommandError(
                f"command {request.run}: {MOST_A_MINUTE} in a minute are enough", remedy="ask again later"
            )
        if len(self._queue) >= MOST_QUEUED:
            raise CommandError(f"command {request.run}: {MOST_QUEUED} wait already", remedy="ask again later")
        self._taken.append(now)
        self._queue.append(Job(request, command, [(client, False)]))
        self._start()

    def _tidy(self, now: float) -> None:
        while self._taken and self._taken[0] <= now - _MINUTE_S:
            self._taken.popleft()
        while self._done and next(iter(self._done.values()))[0] <= now - REMEMBERED_S:
            del self._done[next(iter(self._done))]

    def _start(self) -> None:
        """Start what waits, in order, and no other than one of one action and command at a time."""
        busy = {(job.request.id, job.request.run) for job in self._running.values()}
        for job in list(self._queue):
            if len(self._running) >= MOST_AT_ONCE:
                return
            same = (job.request.id, job.request.run)
            if same in busy:
                continue
            busy.add(same)
            self._queue.remove(job)
            try:
                run = Run(job.line, job.command.timeout_s, job.request, self._selector, self._ended)
            except CommandError as error:
                self._answer(job, wrong(error.message, error.remedy))
            else:
                self._running[run] = job

    def _ended(self, run: Run) -> None:
        job = self._running.pop(run)
        if run.answer["ok"]:
            self._done[(job.request.id, job.request.run, job.request.undo)] = (time.monotonic(), run.answer)
        self._answer(job, run.answer)
        if not self._stopping:
            self._start()

    def _answer(self, job: Job, answer: dict[str, object]) -> None:
        undo = ", undo" if job.request.undo else ""
        how = f"ok after {answer['seconds']} s" if answer["ok"] else answer["error"]
        say(f"{job.request.run} (action {job.request.id}{undo}): {how}")
        for client, already in job.waiting:
            reply(client, {**answer, "already": True} if already else answer)


def wrong(error: str, remedy: str = "") -> dict[str, object]:
    return {"ok": False, "error": error, "remedy": remedy}


def reply(client: socket.socket, answer: dict[str, object]) -> None:
    """The one answer of a connection. Whoever went away, or does not read, goes without."""
    with client, contextlib.suppress(OSError):
        client.send(json.dumps(answer).encode("ascii"))


def refuse(client: socket.socket, answer: dict[str, object]) -> None:
    """The same to one who is not listened to. What is unread when a socket is closed would destroy the answer."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RD)
        client.recv(1)
    reply(client, answer)


@contextlib.contextmanager
def complained(about: str) -> Iterator[None]:
    """What goes wrong is said and stops nothing."""
    try:
        yield
    except GatewatchError as error:
        say(f"{about}{error}")


def say(what: str) -> None:
    with contextlib.suppress(OSError):
        print(f"gatewatch-exec: {what}", file=sys.stderr, flush=True)
