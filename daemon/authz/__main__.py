"""`python -m gatewatch.daemon.authz`: the authorisation endpoint as a process of its own.

Started as root it reads its secret, then becomes the user that it is told and gives up everything else, before it
has read anything that came over a socket.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import signal
import socket
import sys
from typing import NamedTuple

from .. import sandbox
from ..denied import DenyList
from ..errors import GatewatchError, UsageError
from .decision import Decider, Settings
from .keys import read_secret
from .listening import listen
from .server import Connection, Endpoint, Limits

_PRIORITY = -5  # every request of every client waits for it
_SPARE_DESCRIPTORS = 64


class Options(NamedTuple):
    denied: str
    secret: bytes
    sockets: tuple[socket.socket, ...]
    settings: Settings
    limits: Limits


def main(arguments: list[str]) -> int:
    """Exit code 0 after SIGTERM, 1 where it cannot work, 2 for a wrong option or setting."""
    try:
        options = _prepare(arguments)
        asyncio.run(serve(options))
    except GatewatchError as error:
        print(f"gatewatch authz: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


async def serve(options: Options) -> None:
    """Answers until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    denied = DenyList(options.denied)
    decider = Decider(denied, options.secret, options.settings)
    endpoint = Endpoint(denied, decider, options.settings.headers, options.limits)
    endpoint.start()
    gc.freeze()  # what is in force need not be walked in the search for garbage
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    servers = []
    for made in options.sockets:
        create = loop.create_unix_server if made.family == socket.AF_UNIX else loop.create_server
        servers.append(await create(lambda: Connection(endpoint), sock=made))
    if not denied.known:
        print(f"gatewatch authz: the deny list is unknown: {denied.problem}", file=sys.stderr, flush=True)
    await stopped.wait()
    for server in servers:
        server.close()
    await endpoint.stop()
    denied.close()


def _prepare(arguments: list[str]) -> Options:
    given = _parser().parse_args(arguments)
    try:
        document = json.loads(given.settings)
        if type(document) is not dict:
            raise ValueError("an object is wanted")
    except ValueError as error:
        raise UsageError(f"--settings: {error}") from None
    settings = Settings.of(document)
    sockets = [_handed(number) for number in given.socket] + [listen(text) for text in given.listen]
    if not sockets:
        raise UsageError("--listen or --socket: one at least is wanted")
    secret = read_secret(given.key_file)
    if os.geteuid() == 0 and os.getpriority(os.PRIO_PROCESS, 0) > _PRIORITY:
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    limits = Limits(connections=given.connections)
    _allow_descriptors(limits.connections + _SPARE_DESCRIPTORS)
    if given.user is not None:
        sandbox.drop_to(given.user, given.user if given.group is None else given.group)
        sandbox.drop_capabilities()
    sandbox.no_new_privileges()
    if given.parent is not None:
        sandbox.die_with_parent(given.parent)
    return Options(given.denied, secret, tuple(sockets), settings, limits)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gatewatch-authz", description="Answers gateways whether a request may pass."
    )
    parser.add_argument("--denied", required=True, help="the deny list that the enforcer publishes")
    parser.add_argument("--key-file", required=True, help="the secret by which API keys are hashed")
    parser.add_argument("--listen", action="append", default=[], help="ADDRESS:PORT or unix:PATH; repeatable")
    parser.add_argument(
        "--socket", action="append", default=[], type=int, help="a listening socket handed over"
    )
    parser.add_argument("--settings", default="{}", help="endpoints, proxies and headers as JSON")
    parser.add_argument("--connections", default=512, type=int, help="the most connections at once")
    parser.add_argument("--user", type=int, help="the user to become")
    parser.add_argument("--group", type=int, help="the group to become; default: that of the same number")
    parser.add_argument("--parent", type=int, help="the process with which it ends")
    return parser


def _handed(descriptor: int) -> socket.socket:
    try:
        made = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"--socket {descriptor}: {error.strerror}") from None
    made.setblocking(False)
    return made


def _allow_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
