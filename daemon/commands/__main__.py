"""`python -m gatewatch.daemon.commands`: make the socket, read the rails, give up root for good, then serve.

Started as root with `--uid` it makes the socket `--listen` for the analyser alone. Started as the user it is to be
(by systemd) it is handed the socket. It never serves as root and never as the analyser: what it runs could else do
what they may.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import sandbox
from ..errors import GatewatchError, PrivilegeError, UsageError
from .server import MOST_CLIENTS, Server, say

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_MOST_PROCESSES = 128  # of the helper's user, with all that its commands start
LIMITS = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_NPROC, _MOST_PROCESSES),
    (resource.RLIMIT_NOFILE, 256),
    (resource.RLIMIT_FSIZE, 64 << 20),
)
_OOM_ADJUSTMENT = b"800"  # proc(5): the kernel ends this and its commands before the rest of the gateway


class Options(NamedTuple):
    rails: str
    listen: str
    socket: int
    analyser: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    parent: int


def main(arguments: list[str]) -> int:
    """Exit code 0 after a signal, 1 where it cannot work, 2 for a wrong option or wrong rails."""
    try:
        options = _options(arguments)
        listener = _listener(options)
        server = Server(listener, options.rails, options.analyser)  # the rails may be root's alone to read
        _give_up(options)
        server.serve()
    except GatewatchError as error:
        say(str(error))
        return error.exit_code
    return 0


def _give_up(options: Options) -> None:
    """Everything but a user of its own, for good and for all that is started. Raises PrivilegeError."""
    os.chdir("/")
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(_OOM_ADJUSTMENT)
    for what, most in LIMITS:
        hard = resource.getrlimit(what)[1]
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (lower, lower))
    if os.geteuid() == 0:
        sandbox.drop_to(options.uid, options.gid, options.groups)
    if os.geteuid() == options.analyser:
        raise PrivilegeError(
            f"user {options.analyser} is the analyser's: a command could act as it",
            remedy="make a system account named gatewatch-exec",
        )
    sandbox.drop_capabilities()
    sandbox.no_new_privileges()
    if options.parent:
        sandbox.die_with_parent(options.parent)
    # Its commands are of the same user: none of them can look into it or trace it.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *(ctypes.c_ulong(0) for _ in range(4)))


def _options(arguments: Sequence[str]) -> Options:
    """Raises UsageError."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="gatewatch-exec", description="Runs the commands that the rails name, as a user of its own."
    )
    parser.add_argument("--rails", required=True, help="the root-owned rails.toml")
    parser.add_argument("--analyser", required=True, help="the user who may ask: name or number")
    parser.add_argument("--uid", type=int, default=-1, help="the user to become, where root starts it")
    parser.add_argument("--gid", type=int, default=-1, help="its group; else the number of the user")
    parser.add_argument("--group", type=int, action="append", default=[], help="another group of that user")
    parser.add_argument("--die-with", type=int, default=0, metavar="PID", help="end with this parent")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--listen", metavar="PATH", default="", help="make this socket")
    where.add_argument(
        "--socket", metavar="FD", type=int, default=-1, help="a listening socket that was handed over"
    )
    given = parser.parse_args(arguments)
    analyser = _user(given.analyser)
    if analyser == 0:
        raise UsageError("--analyser: a user that is not root is wanted")
    if os.geteuid() == 0 and given.uid <= 0:
        raise UsageError("--uid: started as root, it needs a user to become; it runs nothing as root")
    gid = given.gid if given.gid > 0 else given.uid
    return Options(
        given.rails, given.listen, given.socket, analyser, given.uid, gid, tuple(given.group), given.die_with
    )


def _user(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise UsageError(f"--analyser: no user {text}", remedy="make that system account") from None


def _listener(options: Options) -> socket.socket:
    """The socket made here, or handed over. Raises UsageError."""
    if options.listen:
        return _listen(options.listen, options.analyser)
    descriptor = options.socket
    if descriptor < 0 and os.environ.get("LISTEN_PID") == str(os.getpid()):  # sd_listen_fds(3)
        descriptor = 3 if os.environ.get("LISTEN_FDS") == "1" else -1
    if descriptor < 0:
        raise UsageError(
            "no socket", remedy="--listen PATH, --socket FD, or start it by gatewatch-exec.socket"
        )
    try:
        listener = socket.socket(fileno=descriptor)
        if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise UsageError(f"descriptor {descriptor} is no Unix socket that keeps messages whole")
    except OSError as error:
        raise UsageError(f"descriptor {descriptor}: {error.strerror}") from None
    listener.set_inheritable(False)
    return listener


def _listen(path: str, analyser: int) -> socket.socket:
    """A socket that the analyser, and root, alone can reach."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    former = os.umask(0o177)
    try:
        listener.bind(path)
        if os.geteuid() == 0:
            os.chown(path, analyser, -1)
    except OSError as error:
        raise UsageError(f"--listen {path}: {error.strerror or error}") from None
    finally:
        os.umask(former)
    listener.listen(2 * MOST_CLIENTS)
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
