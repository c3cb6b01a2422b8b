"""Finds the processes of an account's login sessions, and ends them; what merely runs as that user is left alone.

A login session is what a login program (sshd, login) opened for the account: the programs below it, whatever user
they have become, and those that were left behind by it (tmux, nohup), which the kernel's audit session, the session's
control group, or else their environment still tells. Services, jobs of cron and at, and the account's own service
manager are none. Whoever is root in such a session could hide from this: it is for accounts, not for a lost machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

LOGIN_PROGRAMS = frozenset(
    (
        "sshd",
        "sshd-session",
        "dropbear",
        "login",
        "cockpit-session",
        "lightdm",
        "sddm-helper",
        "gdm-session-wor",
    )
)
"""The privileged processes that open a login session for somebody, as comm(5) names them (15 characters)."""

JOB_PROGRAMS = frozenset(("cron", "crond", "atd", "anacron", "fcron"))

LOGIN_UNITS = frozenset(
    ("ssh", "sshd", "dropbear", "getty", "serial-getty", "console-getty", "container-getty")
)
"""The units in which login programs run, and all that they open where pam_systemd moves nobody out of them."""

LOGINCTL = "/usr/bin/loginctl"
LOGIND = "/run/systemd/seats"
"""There as soon as systemd-logind has started."""

NOBODY = 0xFFFF_FFFF
"""A login uid or an audit session that was never set (linux/audit.h)."""

_LOGINCTL_LIMIT_S = 3.0
_ROUNDS = 10
_ROUND_S = 0.05
_MOST_ENVIRONMENT = 1 << 17


class Process(NamedTuple):
    """One process, as /proc (proc(5)) has it. `start`: clock ticks since boot, which with the id names it for good."""

    pid: int
    parent: int
    start: int
    uid: int
    name: str
    login_uid: int
    audit_session: int


class Account(NamedTuple):
    name: str
    uid: int


class Look(NamedTuple):
    """What is asked about a single process only where it matters."""

    group: Callable[[int], str]  # path of its control group; "" where there is none
    environment: Callable[[int], Collection[bytes]]
    is_here: Callable[[int], bool]  # whether its account file is this machine's


def processes() -> dict[int, Process]:
    """Every process by its id."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _process(int(name))) is not None:
            found[process.pid] = process
    return found


def of_account(
    account: Account,
    every: Mapping[int, Process],
    first_uid: int,
    spared: Collection[int] = (),
    look: Look | None = None,
) -> dict[int, int]:
    """The processes of the account's login sessions, each with a number for its session.

    `first_uid`: the least uid of a person's account. `spared` are never among them. A login program is not either:
    when what it opened has ended, it closes the session in good order.
    """
    look = LOOK if look is None else look
    openers = [p for p in every.values() if p.uid == 0 and p.name in LOGIN_PROGRAMS | JOB_PROGRAMS]
    logins = {p.pid for p in openers if p.name in LOGIN_PROGRAMS and look.is_here(p.pid)}
    not_logins = {p.audit_session for p in openers if p.pid not in logins} - {NOBODY}
    left = {1, *spared, *(p.pid for p in openers)}
    children: dict[int, list[Process]] = {}
    for process in every.values():
        children.setdefault(process.parent, []).append(process)
    found: dict[int, int] = {}

    def take(process: Process, session: int) -> None:
        waiting = [process]
        while waiting:
            process = waiting.pop()
            if process.pid not in found and process.pid not in left:
                found[process.pid] = session
                waiting += children.get(process.pid, ())

    for process in every.values():
        if process.uid == account.uid and process.parent in logins:
            take(process, _number(process))
    for process in every.values():
        if (
            process.pid not in found
            and process.pid not in left
            and process.audit_session not in not_logins
            and _left_behind(process, account, first_uid, look)
        ):
            take(process, _number(process))
    return found


def _number(process: Process) -> int:
    return process.audit_session if process.audit_session != NOBODY else -process.pid


def _left_behind(process: Process, account: Account, first_uid: int, look: Look) -> bool:
    """Whether a process that no login program has above it comes from a login session of the account."""
    if process.login_uid not in (account.uid, NOBODY) or (
        process.login_uid == NOBODY and process.uid != account.uid
    ):
        return False
    names = look.group(process.pid).split("/")
    unit = names[-1]
    if f"user-{account.uid}.slice" in names and unit.startswith("session-") and unit.endswith(".scope"):
        return True
    if any(name.startswith("user@") for name in names):
        return False
    if unit.endswith(".service") and unit.removesuffix(".service").partition("@")[0] not in LOGIN_UNITS:
        return False
    if process.login_uid == account.uid and process.audit_session != NOBODY:
        return (
            process.uid >= first_uid
        )  # a service that somebody started by hand from a session runs as another
    if process.uid != account.uid:
        return False
    environment = look.environment(process.pid)
    return b"LOGNAME=" + os.fsencode(account.name) in environment and any(
        word.startswith((b"SSH_CONNECTION=", b"SSH_CLIENT=", b"XDG_SESSION_ID=")) for word in environment
    )


def own(every: Mapping[int, Process]) -> set[int]:
    """This process, those of root above it, and its siblings, where one process started them all."""
    me = every.get(os.getpid())
    spared = {os.getpid()}
    while me is not None and me.parent > 1:
        if me.pid == os.getpid():
            spared |= {
                p.pid for p in every.values() if p.parent == me.parent and p.name not in LOGIN_PROGRAMS
            }
        me = every.get(me.parent)
        if me is None or me.uid != 0 or me.name in LOGIN_PROGRAMS:
            break
        spared.add(me.pid)
    return spared


def tell(found: Iterable[int], every: Mapping[int, Process], *signals: signal.Signals) -> int:
    """Send the signals to each process that still is who it was; how many got them."""
    told = 0
    for pid in found:
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            try:
                now = _process(pid)
                if now is not None and now.start == every[pid].start:
                    for number in signals:
                        signal.pidfd_send_signal(descriptor, number)
                    told += 1
            finally:
                os.close(descriptor)
    return told


def kill(account: Account, first_uid: int) -> set[int]:
    """Kill what is left of the account's sessions, again and again while more appears; the sessions that stay."""
    left: dict[int, int] = {}
    for _ in range(_ROUNDS):
        every = processes()
        left = of_account(account, every, first_uid, own(every))
        if not left:
            break
        tell(left, every, signal.SIGKILL)
        time.sleep(_ROUND_S)
    return set(left.values())


def by_logind(account: Account) -> int:
    """Have systemd-logind end the account's sessions, where it runs; how many it was asked to end."""
    sessions = _loginctl("show-user", str(account.uid), "--property=Sessions", "--value").split()
    ended = 0
    for session in sessions:
        if _loginctl("show-session", session, "--property=Class", "--value").strip().startswith("user"):
            _loginctl("terminate-session", session)
            ended += 1
    return ended


def _loginctl(*words: str) -> str:
    if not os.path.isdir(LOGIND):
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [LOGINCTL, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_LOGINCTL_LIMIT_S,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
        ).stdout
    return ""


def _process(pid: int) -> Process | None:
    """None where there is none (any more), or where it has ended and only waits to be noticed."""
    try:
        name, _, rest = _read(pid, "stat").partition(b"(")[2].rpartition(b")")
        fields = rest.split()
        status = _read(pid, "status")
        uid = int(status.partition(b"\nUid:")[2].split(None, 1)[0])
        if fields[0] in b"ZX":
            return None
        return Process(
            pid,
            int(fields[1]),
            int(fields[19]),
            uid,
            os.fsdecode(name),
            _audit(pid, "loginuid"),
            _audit(pid, "sessionid"),
        )
    except (OSError, ValueError, IndexError):
        return None


def _audit(pid: int, name: str) -> int:
    """As the kernel's audit has it; unset where it was built without."""
    try:
        return int(_read(pid, name))
    except (FileNotFoundError, ValueError):
        return NOBODY


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.read(_MOST_ENVIRONMENT) or b""


def _group(pid: int) -> str:
    """The path in the unified hierarchy, or in systemd's own (cgroups(7))."""
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in os.fsdecode(_read(pid, "cgroup")).splitlines()]
        paths = {controllers: path for _, controllers, path in lines}
        return max(paths.get("name=systemd", ""), paths.get("", ""), key=len)
    return ""


def _environment(pid: int) -> Collection[bytes]:
    with contextlib.suppress(OSError):
        return frozenset(_read(pid, "environ").split(b"\0"))
    return ()


def _is_here(pid: int) -> bool:
    """A container's login program has the container's accounts, whose numbers mean others."""
    try:
        theirs, ours = os.stat(f"/proc/{pid}/root/etc/passwd"), os.stat("/etc/passwd")
    except PermissionError:
        return True
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


LOOK = Look(_group, _environment, _is_here)
