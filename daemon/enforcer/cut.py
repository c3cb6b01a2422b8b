"""The helper `gatewatch-cut`: ends the connections inside the network namespaces in which model endpoints serve.

A silent server in a container never hears of the kill switch, as its packets only go nowhere; when its sockets are
destroyed it stops at once. Which namespaces, the root-owned rails say and never the message; root alone may ask. It
must never touch the machine's own namespace, and each namespace is entered by a process that ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from ..errors import EnforcerError, GatewatchError, PrivilegeError, UsageError
from . import rails as rails_file
from .client import plain
from .kernel import host, sockets
from .kernel.sockets import Connection
from .rails import Address, Endpoint, Service

MOST_BYTES = 65_536
MOST_ENDPOINTS = 256
MOST_NAMESPACES = 64
_MOST_PATH = 160
_MOST_ANSWER = 1 << 18  # with every name and path as long as it may be
_LIMIT_S = 1.5  # for all namespaces together
_HEAR_S = 0.3  # for a message, once connected
_IDLE_S = 60.0
_ROUNDS = 3
_MEMORY_BYTES = 1 << 28  # of each process that lists sockets: how many there are is not ours to say
_CLONE_NEWNET = 0x4000_0000  # linux/sched.h
_UNCONNECTED = 7  # TCP_CLOSE: a UDP socket that takes from anyone
_REMEDY = "see whether gatewatch-cut runs (cut_helper in rails.toml)"


class Place(NamedTuple):
    """One namespace of one endpoint: how many connections were there and are; what went wrong, in words."""

    path: str
    endpoint: str
    before: int
    after: int
    error: str


def ask(path: str, endpoints: Sequence[str], limit_s: float) -> list[Place]:
    """Have the helper at the socket `path` end what the endpoints' namespaces hold, within `limit_s` seconds.

    Raises EnforcerError where it does not answer, or refuses.
    """
    until = time.monotonic() + limit_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(limit_s)
            connection.connect(path)
            connection.send(json.dumps({"endpoints": list(endpoints)}).encode("ascii"))
            connection.settimeout(max(0.001, until - time.monotonic()))
            answer = json.loads(connection.recv(_MOST_ANSWER))
        if answer["ok"]:
            return [Place(**place) for place in answer["namespaces"]]
    except OSError as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else error.strerror
        raise EnforcerError(f"cut helper at {path}: {why}", remedy=_REMEDY) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EnforcerError(f"cut helper at {path}: gave an answer that is none", remedy=_REMEDY) from None
    raise EnforcerError(f"cut helper: {answer.get('error', 'it failed')}", remedy=answer.get("remedy", ""))


def main(arguments: list[str]) -> int:
    """Serve until a signal comes, or until nobody has asked for a minute where the socket was handed over."""
    try:
        rails, listener, handed_over = _options(arguments)
        if os.geteuid() != 0:
            raise PrivilegeError("the cut helper enters namespaces", remedy="start it as root")
    except GatewatchError as error:
        _say(str(error))
        return error.exit_code
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # a flood that keeps every CPU busy must not hold it up
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with listener, contextlib.suppress(KeyboardInterrupt):
        listener.settimeout(_IDLE_S if handed_over else None)
        while True:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                break
            with client:
                _serve(client, rails)
    return 0


def _serve(client: socket.socket, rails: str) -> None:
    """One message, one answer; whoever is not root is not read, and told so."""
    try:
        _, uid, _ = struct.unpack("=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != 0:
            raise EnforcerError(f"uid {uid} is not root")
        client.settimeout(_HEAR_S)
        data, _, flags, _ = client.recvmsg(MOST_BYTES)
        if flags & socket.MSG_TRUNC:
            raise EnforcerError(f"message longer than {MOST_BYTES} bytes")
        names = _names(data)
        answer: dict[str, object] = {"ok": True, "namespaces": [p._asdict() for p in cut(names, rails)]}
    except GatewatchError as error:
        answer = {"ok": False, "error": error.message, "remedy": error.remedy}
    except OSError:
        return
    with contextlib.suppress(OSError):
        client.send(json.dumps(answer).encode("ascii"))


def _names(data: bytes) -> list[str]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    names = message["endpoints"] if type(message) is dict and message.keys() == {"endpoints"} else None
    if (
        type(names) is not list
        or len(names) > MOST_ENDPOINTS
        or not all(type(name) is str and name.isascii() and 0 < len(name) <= 64 for name in names)
    ):
        raise EnforcerError('message is not {"endpoints": [names]}')
    return list(dict.fromkeys(names))


def cut(names: Sequence[str], path: str) -> list[Place]:
    """End the connections in the namespaces that the rails at `path` give the named endpoints, within two seconds.

    Raises ConfigError for wrong rails, EnforcerError where they do not allow it at all.
    """
    rails = rails_file.load(path)
    if not rails.cut_helper:
        raise EnforcerError("the rails do not allow the cut helper", remedy=f"cut_helper = true in {path}")
    own = os.stat("/proc/self/ns/net")
    places: list[Place] = []
    running: dict[int, tuple[int, str, str]] = {}  # by the end of a pipe: process, path and endpoint
    poll = select.poll()
    for name in names:
        endpoint = rails.endpoint(name)
        if endpoint is None or not endpoint.kill_switch:
            why = "the rails keep the kill switch from it" if endpoint else "the rails name no such endpoint"
            places.append(Place("", name, 0, 0, why))
            continue
        entered = {own.st_ino}
        for where in _paths(endpoint):
            if len(running) >= MOST_NAMESPACES:
                places.append(Place(where, name, 0, 0, f"more than {MOST_NAMESPACES}: the rest is not cut"))
                break
            try:
                with _opened(where, own.st_dev) as namespace:
                    number = os.fstat(namespace.fileno()).st_ino
                    if number == own.st_ino and where in endpoint.namespaces:
                        raise OSError(
                            errno.EINVAL, "the namespace of this machine, which the helper never enters"
                        )
                    if number not in entered:
                        entered.add(number)
                        process, answer = _enter(namespace.fileno(), endpoint.services)
                        running[answer] = (process, where, name)
                        poll.register(answer, select.POLLIN)
            except OSError as error:
                places.append(Place(where, name, 0, 0, error.strerror or str(error)))
    until = time.monotonic() + _LIMIT_S
    while running:
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, until - time.monotonic()) * 1e3)]
        for answer in ready or list(running):
            poll.unregister(answer)
            process, where, name = running.pop(answer)
            places.append(Place(where, name, *_outcome(process, answer, in_time=bool(ready))))
    return [place._replace(path=plain(place.path)[:_MOST_PATH]) for place in places]


def _paths(endpoint: Endpoint) -> Iterator[str]:
    """Each path, and what each pattern matches; a pattern without any match stands for itself."""
    import glob

    for path in endpoint.namespaces:
        yield from (sorted(glob.glob(path)) if glob.has_magic(path) else ()) or (path,)


def _opened(path: str, device: int) -> BinaryIO:
    """The namespace at `path`, which is looked at before it is opened. Raises OSError for any other file."""
    looked = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if os.fstat(looked).st_dev != device:  # every namespace is a file of nsfs
            raise OSError(errno.EINVAL, "no namespace")
        return open(f"/proc/self/fd/{looked}", "rb", buffering=0)
    finally:
        os.close(looked)


def _enter(namespace: int, services: Sequence[Service]) -> tuple[int, int]:
    """Start the process that ends the connections there; its id, and where its outcome is read."""
    answer, told = os.pipe2(os.O_CLOEXEC)
    process = os.fork()
    if process == 0:
        try:
            os.write(told, json.dumps(_attempt(namespace, services)).encode("ascii"))
        except BaseException:  # whatever it is, this process must not go on as a second helper
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(told)
    return process, answer


def _attempt(namespace: int, services: Sequence[Service]) -> tuple[int, int, str]:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        return (*_end(namespace, services), "")
    except MemoryError:
        return 0, 0, "more sockets than there is memory to list"
    except OSError as error:
        return 0, 0, error.strerror or str(error)


def _outcome(process: int, answer: int, *, in_time: bool) -> tuple[int, int, str]:
    """How many connections there were and are, and what went wrong."""
    if not in_time:
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with open(answer, "rb") as told:
        said = told.read()
    if not said:
        return 0, 0, "it failed" if in_time else f"not done within {_LIMIT_S} s"
    before, after, error = json.loads(said)
    return before, after, error


def _end(namespace: int, services: Sequence[Service]) -> tuple[int, int]:
    """Enter for good, and end every connection of a listener or a service; how many there were and are."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, "no network namespace" if code == errno.EINVAL else os.strerror(code))
    own = frozenset(host.own_addresses())
    found = _served(services, own)
    before = after = sockets.pairs(found)
    for _ in range(_ROUNDS):
        if not found:
            break
        sockets.destroy(found)
        found = _served(services, own)
        after = sockets.pairs(found)
    return before, after


def _served(services: Sequence[Service], own: frozenset[Address]) -> list[Connection]:
    """The sockets that a listener took, and both ends of connections to a service. Listeners are none of them."""
    found: list[Connection] = []
    for name, protocol, listening in (
        ("tcp", socket.IPPROTO_TCP, sockets.LISTEN),
        ("udp", socket.IPPROTO_UDP, _UNCONNECTED),
    ):
        wanted = {(s.address, s.port) for s in services if s.protocol == name}
        every = sockets.connections(
            protocol, sockets.OPEN | 1 << listening
        )  # one walk: each takes a millisecond
        ports = {c.local_port for c in every if c.state == listening}
        found += [
            c
            for c in every
            if c.state != listening
            and c.remote_port
            and (c.local_port in ports or sockets._serves(c, wanted, own))
        ]
    return found


def _options(arguments: Sequence[str]) -> tuple[str, socket.socket, bool]:
    """The rails, the listening socket, and whether it was handed over. Raises UsageError."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="gatewatch-cut", description="Ends connections inside the namespaces that the rails name."
    )
    parser.add_argument("--rails", required=True, help="the root-owned rails.toml")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--listen", metavar="PATH", help="make this socket")
    where.add_argument("--socket", metavar="FD", type=int, help="a listening socket that was handed over")
    given = parser.parse_args(arguments)
    if given.listen:
        return given.rails, _listen(given.listen), False
    descriptor = given.socket
    if descriptor is None and os.environ.get("LISTEN_PID") == str(os.getpid()):  # sd_listen_fds(3)
        descriptor = 3 if os.environ.get("LISTEN_FDS") == "1" else None
    if descriptor is None:
        raise UsageError(
            "no socket", remedy="--listen PATH, --socket FD, or start it by gatewatch-cut.socket"
        )
    try:
        listener = socket.socket(fileno=descriptor)
        if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise UsageError(f"descriptor {descriptor} is no Unix socket that keeps messages whole")
    except OSError as error:
        raise UsageError(f"descriptor {descriptor}: {error.strerror}") from None
    listener.set_inheritable(False)
    return given.rails, listener, True


def _listen(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    former = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        raise UsageError(f"--listen {path}: {error.strerror}") from None
    finally:
        os.umask(former)
    listener.listen()
    return listener


def _say(what: str) -> None:
    with contextlib.suppress(OSError):
        print(f"gatewatch-cut: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
