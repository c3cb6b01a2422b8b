"""Two network namespaces joined by a veth pair, and capture processes that listen there."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
from gatewatch.daemon.collectors.shared import PacketSource
from gatewatch.daemon.collectors.worker import WorkerOptions, run_worker
from numpy.typing import NDArray

T = TypeVar("T")
CLONE_NEWNET = 0x4000_0000  # linux/sched.h
LIMIT_S = 20.0
NOBODY = 65534
_numbers = itertools.count()


def why_not() -> str:
    """Why this machine cannot build the wire; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    return "" if shutil.which("ip") else "needs iproute2"


def enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def within(namespace: str, work: Callable[[], T]) -> Future[T]:
    """Run `work` in a thread of its own that lives in a network namespace."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            enter(namespace)
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again; fails where it does not become true in time."""
    pause = threading.Event()
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until, "it did not become true in time"
        pause.wait(0.005)


@dataclass(frozen=True)
class Wire:
    """`near` and `far`, joined by the interfaces near0 and far0."""

    near: str
    far: str
    near_v4: str = "198.51.100.1"
    far_v4: str = "198.51.100.2"
    near_v6: str = "2001:db8::1"
    far_v6: str = "2001:db8::2"


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """Build it, and take it away again. Skips the test where this machine cannot."""
    if why := why_not():
        pytest.skip(why)
    mark = f"packets-{os.getpid()}-{next(_numbers)}"
    made = Wire(f"{mark}-near", f"{mark}-far")
    try:
        ip("netns", "add", made.near)
        ip("netns", "add", made.far)
        ip("-n", made.near, "link", "add", "near0", "type", "veth", "peer", "far0", "netns", made.far)
        for name, end, v4, v6 in (
            (made.near, "near0", made.near_v4, made.near_v6),
            (made.far, "far0", made.far_v4, made.far_v6),
        ):
            ip("-n", name, "addr", "add", f"{v4}/24", "dev", end)
            ip("-n", name, "addr", "add", f"{v6}/64", "dev", end, "nodad")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")
        yield made
    finally:
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class Worker:
    """A capture process in a namespace, and the analyser's end of it."""

    def __init__(self, namespace: str, options: WorkerOptions) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                ours.close()
                enter(namespace)
                code = run_worker(options, theirs)
            finally:
                os._exit(code)
        theirs.close()
        self.code: int | None = None
        self.closed = False
        try:
            self.source = PacketSource(ours)
        except BaseException:
            ours.close()
            self.wait()
            raise

    def rows_until(self, enough: Callable[[NDArray[np.void]], bool]) -> NDArray[np.void]:
        """Everything that came until there is enough; fails where it does not come in time."""
        rows = self.source.pull()
        poller = select.poll()
        poller.register(self.source.fileno(), select.POLLIN)
        until = time.monotonic() + LIMIT_S
        while not enough(rows):
            assert time.monotonic() < until, f"only {len(rows)} rows came: {rows[:20]}"
            poller.poll(100)
            rows = np.concatenate([rows, self.source.pull()])
        return rows

    def close(self) -> None:
        """Let go of it, as the analyser does."""
        if not self.closed:
            self.closed = True
            self.source.close()

    def wait(self) -> int:
        """The exit code, as `os.waitstatus_to_exitcode` tells it."""
        if self.code is None:
            descriptor = os.pidfd_open(self.pid)
            ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
            os.close(descriptor)
            assert ended, "the capture process did not end"
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


@contextlib.contextmanager
def worker(namespace: str, options: WorkerOptions) -> Iterator[Worker]:
    running = Worker(namespace, options)
    try:
        yield running
    finally:
        running.close()
        running.wait()


def transfer(wire: Wire, payload: bytes, times: int = 1, port: int = 8080, limit_s: float = LIMIT_S) -> int:
    """Send `payload` so many times over one TCP connection from far to near; the client's port."""
    server = within(wire.near, lambda: socket.create_server((wire.near_v4, port))).result(LIMIT_S)

    def swallow() -> None:
        connection, _ = server.accept()
        with connection:
            while connection.recv(1 << 20):
                pass

    def send() -> int:
        with socket.create_connection((wire.near_v4, port), timeout=LIMIT_S) as connection:
            for _ in range(times):
                connection.sendall(payload)
            return int(connection.getsockname()[1])

    swallowed = within(wire.near, swallow)
    client_port = within(wire.far, send).result(limit_s)
    swallowed.result(LIMIT_S)
    server.close()
    return client_port


def send_frame(namespace: str, interface: str, frame: bytes) -> None:
    """Put a whole Ethernet frame on an interface."""

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((interface, 0))
            raw.send(frame)

    within(namespace, send).result(LIMIT_S)


def ipv4_packet(protocol: int, payload: bytes, *, source: str, destination: str, fragment: int = 0) -> bytes:
    """An IPv4 header without options (RFC 791, 3.1) before `payload`; its checksum is left zero."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
        + addresses
        + payload
    )


def ipv6_packet(next_header: int, payload: bytes, *, source: str, destination: str) -> bytes:
    """A fixed IPv6 header (RFC 8200, 3) before `payload`."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 0x6000_0000, len(payload), next_header, 64) + addresses + payload


def tcp_segment(
    flags: int, payload: bytes = b"", options: bytes = b"", ports: tuple[int, int] = (4000, 80)
) -> bytes:
    """A TCP header (RFC 9293, 3.1) with sequence number 7; its checksum is left zero."""
    offset = (20 + len(options)) // 4 << 12
    return struct.pack("!HHIIHHHH", *ports, 7, 0, offset | flags, 1000, 0, 0) + options + payload


def udp_datagram(payload: bytes, ports: tuple[int, int]) -> bytes:
    """A UDP header (RFC 768); its checksum is left zero."""
    return struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
