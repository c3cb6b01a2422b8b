"""The enforcer's process: listens, asks the kernel who speaks, answers one message after the other.

A plain poll loop. The socket's file may be opened by anyone, since analyser and operators have no group in
common; what counts is what the kernel says of the peer, and whoever is neither is sent away at once. When it
ends, by a signal or a crash, the kernel's state stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from ..errors import GatewatchError
from . import rails as rails_file
from .authority import Authority
from .callers import Caller
from .kernel.monitor import Monitor
from .killswitch import Later
from .protocol import MOST_BYTES, SOCKET, MalformedError, parse
from .rails import Refusal

_TICK_S = 60.0
_HEAL_S = 0.05  # at the soonest after the last one: who changes our tables again and again gets no more of us
_LOOK_S = 2.0  # the same for a look at where NAT leads now, when others have changed a rule
_END_S = 1.0  # the same for a release that comes by itself and fails
_FINISH_S = 0.05  # what nobody waits for is done when nobody asks, but no later
_QUIET_S = 0.002  # who asks one thing after the other has asked again by then
_SAMPLE_S = 0.1  # while a drill runs
_NEVER = float("inf")
_MOST_CLIENTS = 64
_MOST_WAITING = 64
_MOST_OF_ONE = 16  # connections of one user, so that no one keeps the others out
_SO_PEERGROUPS = 59  # asm-generic/socket.h


class Options(NamedTuple):
    state: str
    rails: str
    analyser_uid: int
    socket: int = -1  # a listening socket that was handed over; -1: make one
    restore_only: bool = False
    denied_gid: int = 0  # the group that may read the published deny list


class Server:
    """Serves `authority` until a signal comes."""

    def __init__(self, options: Options, authority: Authority) -> None:
        self._options = options
        self._authority = authority
        self._operators = -1
        self._poll = select.poll()
        self._clients: dict[int, tuple[socket.socket, Caller]] = {}
        self._later: dict[int, tuple[int, Later]] = {}  # by what is polled: who waits, for what
        self._followers: dict[int, int] = {}  # by client: the last sequence that it was told
        self._fed = 0
        self._running = True
        self._reload = False
        self._monitor = Monitor()  # from here on nothing that others change is missed

    def load_rails(self) -> None:
        """Read the rails and use them. Raises ConfigError, and then the former ones hold."""
        loaded = rails_file.load(self._options.rails)
        changed = loaded.text != self._authority.rails.text
        self._authority.use(loaded)
        self._operators = _group(loaded.operators)
        self._attempt(self._authority.follow)
        self._attempt(lambda: self._keep_copy(loaded.text))
        if changed:
            digest = sha256(loaded.text.encode()).hexdigest()
            self._attempt(lambda: self._authority.note("rails", path=loaded.path, sha256=digest))

    def _keep_copy(self, text: str) -> None:
        """For the command, on the day when this process is gone and the file is wrong."""
        copy = f"{self._options.state}/enforcer/rails.toml"
        if os.path.realpath(copy) != os.path.realpath(self._options.rails):
            descriptor = os.open(f"{copy}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(f"{copy}.new", copy)

    def serve(self) -> None:
        """Answer until SIGTERM or SIGINT; SIGHUP reads the rails anew."""
        listener = self._listen()
        wake, woken = socket.socketpair()
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        for waited in (listener, wake, self._monitor):
            self._poll.register(waited.fileno(), select.POLLIN)
        say("ready")
        now = time.monotonic()
        next_tick, heal_at, finish_at, healed, ended = now + _TICK_S, _NEVER, _NEVER, 0.0, 0.0
        look_at, looked = _NEVER, 0.0
        while self._running:
            if self._authority.unfinished:
                finish_at = min(finish_at, now + _FINISH_S)
            end_at = max(ended + _END_S, now + self._authority.next_end_s())
            idle_s = max(0.0, min(next_tick, heal_at, look_at, end_at) - now)
            if self._authority.killswitch.drilling:
                idle_s = min(idle_s, _SAMPLE_S)
                self._attempt(self._authority.killswitch.sample)
            if finish_at < _NEVER:
                idle_s = min(idle_s, _QUIET_S)
            events = self._poll.poll(idle_s * 1e3 + 1)
            for descriptor, event in events:
                if descriptor == listener.fileno():
                    self._accept(listener)
                elif descriptor == wake.fileno():
                    wake.recv(64)
                elif descriptor == self._monitor.fileno():
                    if self._monitor.changed_by_others():
                        heal_at = min(heal_at, max(time.monotonic(), healed + _HEAL_S))
                    if self._monitor.ruled:
                        self._monitor.ruled = False
                        look_at = min(look_at, max(time.monotonic(), looked + _LOOK_S))
                elif descriptor in self._later:
                    self._finish(descriptor)
                elif descriptor in self._clients:  # else it went away a moment ago
                    self._answer(descriptor, event)
            now = time.monotonic()
            if now >= heal_at:
                heal_at = _NEVER
                self._attempt(self._heal)
                healed = now
            if now >= look_at:
                look_at, looked = _NEVER, now
                self._attempt(self._authority.look_around)
            if now >= end_at:
                ended = now
                self._attempt(self._end)
            if finish_at < _NEVER and (not events or now >= finish_at):
                finish_at = _NEVER
                self._attempt(self._authority.finish)
            if self._reload:
                self._reload = False
                self._attempt(self.load_rails)
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._attempt(self._tick)
            self._feed()
        for pending in list(self._later):
            self._finish(pending)
        say("stopped; what is blocked and cut off stays so")

    def _listen(self) -> socket.socket:
        if self._options.socket >= 0:
            listener = socket.socket(fileno=self._options.socket)
        else:
            path = f"{self._options.state}/{SOCKET}"
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            listener.bind(path)
            os.chmod(path, 0o666)
            listener.listen(_MOST_WAITING)
        listener.setblocking(False)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        """Let in whoever waits, many at a time: who knocks without end does not keep the others waiting."""
        for _ in range(_MOST_WAITING):
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._let_in(client)

    def _let_in(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            caller = self._caller(client)
        except OSError:
            client.close()
            return
        own = sum(other.uid == caller.uid for _, other in self._clients.values())
        full = len(self._clients) >= _MOST_CLIENTS or (own >= _MOST_OF_ONE and caller.uid != 0)
        if caller.role == "stranger" or full:
            stranger = caller.role == "stranger"
            why = "neither an operator nor the analyser" if stranger else "too many connections"
            _send(client, self._authority.refuse(Refusal(why, "authority"), {}, caller))
            client.close()
            return
        self._clients[client.fileno()] = (client, caller)
        self._poll.register(client.fileno(), select.POLLIN)

    def _answer(self, descriptor: int, event: int) -> None:
        client, caller = self._clients[descriptor]
        if descriptor in self._followers:
            self._feed_one(descriptor) if event == select.POLLOUT else self._drop(descriptor)
            return
        try:
            data, _, flags, _ = client.recvmsg(MOST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, flags = b"", 0
        if not data:
            self._drop(descriptor)
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise MalformedError(f"message longer than {MOST_BYTES} bytes")
            ask = parse(data)
            follows = ask["request"] == "follow"
            answer = (
                self._follow(descriptor, ask["after"]) if follows else self._authority.handle(ask, caller)
            )
        except MalformedError as error:
            answer = self._authority.refuse(Refusal(str(error), "protocol"), {}, caller)
        except Exception as error:  # a fault of ours must not take the kill switch from everyone else
            traceback.print_exc()
            answer = {"ok": False, "error": f"internal error: {error}", "remedy": "see the enforcer's log"}
        if isinstance(answer, Later):
            self._poll.unregister(descriptor)  # nothing more of this client until it has its answer
            self._poll.register(answer.fileno(), select.POLLIN)
            self._later[answer.fileno()] = (descriptor, answer)
        elif not _send(client, answer):
            self._drop(descriptor)

    def _finish(self, waited: int) -> None:
        """Send an answer that has come."""
        descriptor, later = self._later.pop(waited)
        self._poll.unregister(waited)
        self._poll.register(descriptor, select.POLLIN)
        try:
            answer = later.finish()
        except (GatewatchError, OSError) as error:
            answer = {"ok": False, "error": str(error), "remedy": "see the enforcer's log"}
        if not _send(self._clients[descriptor][0], answer):
            self._drop(descriptor)

    def _follow(self, descriptor: int, after: int) -> dict[str, object]:
        """From now on this client is told what is noted. It asks nothing else."""
        journal = self._authority.journal
        full = len(journal.remembered) == journal.remembered.maxlen
        held = journal.remembered[0][0]["seq"] if journal.remembered else journal.first
        oldest = held if full else min(held, journal.first)  # before what a new file begins with, too
        self._followers[descriptor] = after
        self._fed = 0
        seal = next((head for entry, head in journal.remembered if entry["seq"] == after), "")
        return {
            "ok": True, "sequence": journal.sequence, "head": journal.head, "oldest": oldest, "seal": seal,
        }  # fmt: skip

    def _feed(self) -> None:
        """Tell those who follow what is new."""
        if self._fed != self._authority.journal.sequence:
            self._fed = self._authority.journal.sequence
            for descriptor in list(self._followers):
                self._feed_one(descriptor)

    def _feed_one(self, descriptor: int) -> None:
        client, _ = self._clients[descriptor]
        news: list[tuple[dict[str, object], str]] = []
        for entry, head in reversed(self._authority.journal.remembered):
            if entry["seq"] <= self._followers[descriptor]:
                break
            news.append((entry, head))
        for entry, head in reversed(news):
            data = _told(entry, head)
            try:
                client.send(data)
            except BlockingIOError:
                self._poll.modify(descriptor, select.POLLIN | select.POLLOUT)
                return
            except OSError:
                self._drop(descriptor)
                return
            self._followers[descriptor] = int(str(entry["seq"]))
        self._poll.modify(descriptor, select.POLLIN)

    def _caller(self, client: socket.socket) -> Caller:
        pid, uid, gid = struct.unpack("=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        groups = {gid}
        with contextlib.suppress(OSError):  # more groups than fit: its first one counts alone
            packed = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
            groups.update(struct.unpack(f"={len(packed) // 4}I", packed))
        if uid == 0:
            return Caller("operator", uid, pid)
        if (
            uid == self._options.analyser_uid
        ):  # first: it gains nothing by being put into the operators' group
            return Caller("analyser", uid, pid)
        return Caller("operator" if self._operators in groups else "stranger", uid, pid)

    def _drop(self, descriptor: int) -> None:
        client, _ = self._clients.pop(descriptor)
        self._followers.pop(descriptor, None)
        self._poll.unregister(descriptor)
        client.close()

    def _heal(self) -> None:
        for what in self._authority.heal():
            say(f"mended: {what}")

    def _tick(self) -> None:
        for what in self._authority.tick():
            say(f"mended: {what}")

    def _end(self) -> None:
        for what in self._authority.end_due():
            say(f"{what}: its time is over")

    @staticmethod
    def _attempt(what: Callable[[], object]) -> None:
        """A failure is said and the serving goes on: an enforcer that gave up would serve nobody."""
        try:
            what()
        except (GatewatchError, OSError) as error:
            say(str(error))

    def _stop(self, *_: object) -> None:
        self._running = False

    def _hang_up(self, *_: object) -> None:
        self._reload = True


def _send(client: socket.socket, answer: dict[str, object]) -> bool:
    try:
        client.send(json.dumps(answer, separators=(",", ":")).encode("ascii"))
    except OSError:
        return False  # gone, or it does not read: its matter
    return True


def _told(entry: dict[str, object], head: str) -> bytes:
    """An entry as those who follow are sent it: of endpoints the names alone where it would be too long to send."""
    data = json.dumps({"entry": entry, "head": head}).encode("ascii")
    if len(data) > MOST_BYTES and isinstance(endpoints := entry.get("endpoints"), dict):
        data = json.dumps({"entry": {**entry, "endpoints": list(endpoints)}, "head": head}).encode("ascii")
    return data


def _group(name: str) -> int:
    import grp

    if not name:
        return -1
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        say(f"group {name} does not exist: root is the only operator")
        return -1


def say(what: str) -> None:
    """One line for the log."""
    with contextlib.suppress(OSError):  # the disk that the log is on may be full
        print(f"gatewatch-enforcer: {what}", file=sys.stderr, flush=True)
