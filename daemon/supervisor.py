"""Keeps the processes running: forks or starts them, drops their privileges, and starts again what died.

Used where systemd does not do it. As root each process is forked after the imports and then drops to a user of
its own; the enforcer is a fresh interpreter that never sees the heavy libraries. As an ordinary user everything
runs as that user. The supervisor itself reads nothing hostile and opens no network connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import grp
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import GatewatchError

RESTART_S = (0.1, 0.5, 1.0, 2.0, 5.0)
"""How long to wait before starting a process again, by how often it died young in a row."""
YOUNG_S = 10.0
FIRST_FREE_UID = 61_901
"""Users without an account, from the range that systemd gives to dynamic users (61184 to 65519)."""
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Whom a process runs as. `uid` None: as whoever started the service."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] = ()


def identity(name: str, number: int, groups: Iterable[str] = ()) -> Identity:
    """The account `name` where it exists, else a user id without an account; as an ordinary user, no change."""
    if os.geteuid() != 0:
        return Identity(None, None)
    ids = []
    for group in groups:
        with contextlib.suppress(KeyError):
            ids.append(grp.getgrnam(group).gr_gid)
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        uid = FIRST_FREE_UID + number
        if uid in {entry.pw_uid for entry in pwd.getpwall()}:
            raise GatewatchError(
                f"user id {uid} is taken", remedy=f"make a system account named {name}"
            ) from None
        return Identity(uid, uid, tuple(ids))
    return Identity(account.pw_uid, account.pw_gid, tuple(ids))


def with_group(who: Identity, other: Identity) -> Identity:
    """`who`, who may also read what the group of `other` may."""
    if who.uid is None or other.gid is None:
        return who
    return dataclasses.replace(who, groups=(*who.groups, other.gid))


@dataclasses.dataclass(slots=True)
class Process:
    """One supervised process."""

    name: str
    start: Callable[[], int]  # returns its process id
    pid: int = 0
    started: float = 0.0
    young_deaths: int = 0
    due: float = 0.0  # when to start it, on the monotonic clock; 0 = running


def fork(work: Callable[[], int], name: str, close: Iterable[socket.socket] = ()) -> int:
    """Runs `work` in a child with default signal handling; an error becomes one line and exit code 1."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the supervisor, which then ends its processes in order
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for unused in close:
            unused.close()
        status = work()
    except GatewatchError as error:
        print(f"gatewatch {name}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
    except BaseException as error:  # the child must never return into its parent's code
        print(f"gatewatch {name}: {type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("GATEWATCH_TRACEBACK"):
            import traceback

            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class Supervisor:
    """The supervisor: `add` processes, then `run` until a signal says stop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._processes: list[Process] = []
        self._stopping = False
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def add(self, name: str, start: Callable[[], int]) -> Process:
        """Starts a process now and from then on whenever it has died."""
        process = Process(name, start)
        self._processes.append(process)
        self._start(process)
        return process

    def restart(self, process: Process) -> None:
        """Ends a process; it is started again as if it had died."""
        if process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    def run(self, on_reload: Callable[[], None], on_exit: Callable[[Process], None]) -> int:
        """Supervises until SIGTERM or SIGINT; returns the exit code.

        `on_exit` is called for a process that died, before it is started again; `on_reload` on SIGHUP.
        """
        try:
            while not self._stopping:
                self._wait(on_reload)
                self._reap(on_exit)
                now = time.monotonic()
                for process in self._processes:
                    if process.due and process.due <= now:
                        self._start(process)
        finally:
            self.stop()
        return 0

    def _start(self, process: Process) -> None:
        process.started = time.monotonic()
        try:
            process.pid = process.start()
        except OSError as error:  # no process, memory or descriptor left at this moment
            process.due = process.started + RESTART_S[-1]
            self._say(
                f"{process.name} cannot be started ({error.strerror}); tries again in {RESTART_S[-1]:g} s"
            )
        else:
            process.due = 0.0

    def _wait(self, on_reload: Callable[[], None]) -> None:
        dues = [p.due for p in self._processes if p.due]
        patience = max(0.0, min(dues) - time.monotonic()) if dues else 3600.0
        got = signal.sigtimedwait(SIGNALS, patience)
        if got is None:
            return
        if got.si_signo in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
        elif got.si_signo == signal.SIGHUP:
            on_reload()

    def _reap(self, on_exit: Callable[[Process], None]) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = next((p for p in self._processes if p.pid == pid), None)
            if process is None:
                continue
            process.pid = 0
            if self._stopping:
                continue
            young = time.monotonic() - process.started < YOUNG_S
            process.young_deaths = process.young_deaths + 1 if young else 0
            delay = RESTART_S[min(process.young_deaths, len(RESTART_S) - 1)]
            process.due = time.monotonic() + delay
            how = (
                f"was killed by {signal.Signals(-code).name}"
                if (code := os.waitstatus_to_exitcode(status)) < 0
                else f"ended with exit code {code}"
            )
            self._say(f"{process.name} {how}; it starts again in {delay:g} s")
            on_exit(process)

    def stop(self) -> None:
        """Ends the processes in reverse order of their start, so that each can still hand over to the next."""
        for process in reversed(self._processes):
            if not process.pid:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            if not _gone(process.pid, 5.0):
                self._say(f"{process.name} does not stop; it is killed")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                _gone(process.pid, 5.0)


def _gone(pid: int, patience_s: float) -> bool:
    """Waits for a child to end, and reaps it."""
    limit = time.monotonic() + patience_s
    while time.monotonic() < limit:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            return True
        signal.sigtimedwait((signal.SIGCHLD,), 0.05)
    return False


def make_folder(path: Path, owner: Identity, mode: int) -> None:
    """A folder with this owner and mode; made where it is missing. Raises GatewatchError naming it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if owner.uid is not None and owner.gid is not None:
            os.chown(path, owner.uid, owner.gid)
        path.chmod(mode)
    except OSError as error:
        raise GatewatchError(
            f"{path}: cannot be used as a state folder ({error.strerror})",
            remedy="name another one with --state or in the configuration",
        ) from error


def may_write(path: Path, who: Identity) -> bool:
    """Whether a process of `who` can reach and write this file or folder; asked by becoming it, in a child."""
    if who.uid is None or who.gid is None:
        return os.access(path, os.W_OK)
    pid = os.fork()
    if pid == 0:
        answer = 2
        try:
            os.setgroups(who.groups)
            os.setgid(who.gid)
            os.setuid(who.uid)
            answer = 0 if os.access(path, os.W_OK) else 1
        finally:
            os._exit(answer)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def lock(folder: Path, patience_s: float = 3.0) -> int:
    """Takes the folder for this service and its children; the descriptor holds it for as long as any of them lives.

    Waits a little for those of a service that was just killed. Raises GatewatchError where another one works here.
    """
    path = folder / "lock"
    limit = time.monotonic() + patience_s
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise GatewatchError(
            f"{path}: {error.strerror}", remedy="name another folder with --state"
        ) from error
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < limit:
                time.sleep(0.02)
                continue
            holder = os.pread(held, 20, 0).decode("ascii", "replace").strip()
            os.close(held)
            raise GatewatchError(
                f"{folder.parent}: another `gatewatch run` works here (process {holder})",
                remedy="stop it, or name another folder with --state",
            ) from None
        os.ftruncate(held, 0)
        os.pwrite(held, b"%d\n" % os.getpid(), 0)
        return held


def listen(path: Path, mode: int) -> socket.socket:
    """A listening Unix stream socket, made before privileges are dropped and handed to who serves it."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.bind(str(path))
    except OSError as error:
        raise GatewatchError(
            f"{path}: cannot listen here ({error.strerror or error})", remedy="choose a shorter --state path"
        ) from error
    path.chmod(mode)
    made.listen(64)
    made.setblocking(False)
    return made


def start_enforcer(state: Path, rails: Path, analyser: Identity, denied_gid: int | None = None) -> int:
    """The enforcer as a fresh interpreter; returns its process id. `denied_gid`: who may read the deny list."""
    words = ["--state", str(state), "--rails", str(rails)]
    if analyser.uid is not None:
        words += ["--analyser-uid", str(analyser.uid)]
    if denied_gid is not None:
        words += ["--denied-gid", str(denied_gid)]
    return _start_module("gatewatch.daemon.enforcer", words)


def start_cut_helper(state: Path, rails: Path) -> int:
    """The helper that ends connections inside namespaces; returns its process id."""
    words = ["--rails", str(rails), "--listen", str(state / "run" / "cut.sock")]
    return _start_module("gatewatch.daemon.enforcer.cut", words)


def start_exec_helper(state: Path, rails: Path, analyser: Identity, own: Identity) -> int:
    """The helper that runs the commands of the rails as the user `own`; returns its process id."""
    words = [
        "--rails",
        str(rails),
        "--listen",
        str(state / "run" / "exec.sock"),
        "--die-with",
        str(os.getpid()),
    ]
    words += ["--analyser", str(analyser.uid), "--uid", str(own.uid), "--gid", str(own.gid)]
    for group in own.groups:
        words += ["--group", str(group)]
    return _start_module("gatewatch.daemon.commands", words)


def start_authz(state: Path, sockets: list[socket.socket], settings: str, most: int, who: Identity) -> int:
    """The authorisation endpoint as a fresh interpreter, which answers on `sockets` and ends with this process;
    returns its process id. `settings`: JSON; `most`: connections."""
    numbers = [made.fileno() for made in sockets]
    words = ["--denied", str(state / "run" / "denied"), "--key-file", str(state / "authz" / "key")]
    words += [word for number in numbers for word in ("--socket", str(number))]
    words += ["--settings", settings, "--connections", str(most), "--parent", str(os.getpid())]
    if who.uid is not None and who.gid is not None:
        words += ["--user", str(who.uid), "--group", str(who.gid)]
    return _start_module("gatewatch.daemon.authz", words, numbers)


def start_accounts_helper(state: Path, rails: Path) -> int:
    """The helper that keeps denied Unix accounts out; returns its process id."""
    words = ["--state", str(state), "--rails", str(rails)]
    return _start_module("gatewatch.daemon.enforcer.accounts", words)


def _start_module(module: str, words: list[str], hand_over: Iterable[int] = ()) -> int:
    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    command = [sys.executable, "-m", module, *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=unblock, pass_fds=tuple(hand_over)
    ).pid


def notify_systemd(message: str) -> None:
    """Tells the service manager, where there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    target = "\0" + address[1:] if address[0] == "@" else address
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
        sender.sendto(message.encode(), target)
