"""Echo servers in the lab's namespaces, and requests to them: what passes, and what is cut off, shows at once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from gatewatch.daemon.enforcer.rails import Endpoint, service_of
from lab.lab import Lab

LIMIT_S = 10.0  # where an answer has to come
SILENCE_S = 0.7  # where none may
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


def endpoint(fronts: list[str], backs: list[str] | None = None, name: str = "models") -> Endpoint:
    made = (tuple(map(service_of, fronts)), tuple(map(service_of, backs or [])))
    return Endpoint(name, "high", *made, kill_switch=True, kill_without_person=False)


@contextlib.contextmanager
def echo(lab: Lab, host: str, address: str, port: int, kind: socket.SocketKind = TCP) -> Iterator[None]:
    """A server that sends back what it gets; one connection after the other."""
    with lab.inside(host):
        served = socket.socket(_family(address), kind)
        served.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        served.bind((address, port))
    served.settimeout(0.02)
    if kind == TCP:
        served.listen()
    stop = threading.Event()
    thread = threading.Thread(target=_echo, args=(served, stop, kind))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        served.close()


def client(lab: Lab, host: str, address: str, port: int, kind: socket.SocketKind = TCP) -> socket.socket:
    """A connected socket on `host`."""
    with lab.inside(host):
        made = socket.socket(_family(address), kind)
    try:
        made.settimeout(LIMIT_S)
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


def ask(lab: Lab, host: str, address: str, port: int, kind: socket.SocketKind = TCP, times: int = 1) -> None:
    """Send so many requests, each answered before the next. Raises OSError where one is not."""
    with client(lab, host, address, port, kind) as asking:
        for _ in range(times):
            asking.sendall(b"request")
            assert asking.recv(2048) == b"request"


def silent(lab: Lab, host: str, address: str, port: int) -> bool:
    """Whether a datagram from `host` brings no answer for some time."""
    with client(lab, host, address, port, UDP) as asking:
        asking.settimeout(SILENCE_S)
        asking.sendall(b"request")
        try:
            return not asking.recv(2048)
        except OSError:
            return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _echo(served: socket.socket, stop: threading.Event, kind: socket.SocketKind) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            if kind == UDP:
                data, sender = served.recvfrom(2048)
                served.sendto(data, sender)
                continue
            client, _ = served.accept()
            client.settimeout(LIMIT_S)
            with client, contextlib.suppress(OSError):
                while data := client.recv(2048):
                    client.sendall(data)
