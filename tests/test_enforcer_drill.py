"""The drill with real packets: what it calls covered, what it does not, and that each packet counts once."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from gatewatch.daemon.enforcer import drill, killtable
from gatewatch.daemon.enforcer.nft import Nft
from gatewatch.daemon.enforcer.rails import Endpoint, service_of
from lab.lab import HOSTS, Lab, unmet

GATEWAY, CLIENT, FAR = HOSTS["gateway"], HOSTS["client"], HOSTS["balancer"]
FRONT, BACK, MANY = 8443, 8000, 5
LIMIT_S = 10.0
TCP, UDP = f"*:{FRONT}/tcp", f"*:{FRONT}/udp"


def endpoint(fronts: list[str], backs: list[str] | None = None, name: str = "models") -> Endpoint:
    made = (tuple(map(service_of, fronts)), tuple(map(service_of, backs or [])))
    return Endpoint(name, "high", *made, kill_switch=True, kill_without_person=False)


@pytest.fixture(scope="module")
def bare() -> Iterator[Lab]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab(services=False) as lab:
        yield lab


@pytest.fixture
def nft(bare: Lab) -> Iterator[Nft]:
    with bare.inside("gateway"):
        nft = Nft()  # its netlink socket stays there
    nft.run("flush ruleset")
    yield nft
    nft.run("flush ruleset")


@contextlib.contextmanager
def echo(
    lab: Lab, address: str, port: int, host: str = "gateway", kind: int = socket.SOCK_STREAM
) -> Iterator[None]:
    """A server that sends back what it gets; one connection after the other."""
    with lab.inside(host):
        served = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        served.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        served.bind((address, port))
    served.settimeout(0.02)
    if kind == socket.SOCK_STREAM:
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


def _echo(served: socket.socket, stop: threading.Event, kind: int) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            if kind == socket.SOCK_DGRAM:
                data, sender = served.recvfrom(2048)
                served.sendto(data, sender)
                continue
            client, _ = served.accept()
            client.settimeout(LIMIT_S)
            with client, contextlib.suppress(OSError):
                while data := client.recv(2048):
                    client.sendall(data)


def ask(
    lab: Lab, address: str, port: int, host: str = "client", kind: int = socket.SOCK_STREAM, times: int = 1
) -> None:
    """Send so many requests, each answered before the next."""
    with lab.inside(host):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    with client:
        client.settimeout(LIMIT_S)
        client.connect((address, port))
        for _ in range(times):
            client.sendall(b"request")
            assert client.recv(2048) == b"request"


def drilled(nft: Nft, *endpoints: Endpoint) -> Any:
    """Begin a drill; what is returned ends it and gives the result by endpoint."""
    drill.start(nft, {e.name: e for e in endpoints})
    return lambda: {e["endpoint"]: e for e in drill.stop(nft)}


@pytest.mark.lab
@pytest.mark.parametrize("address", [GATEWAY.v4, GATEWAY.v6])
def test_a_request_with_its_answer_is_covered_and_a_silent_endpoint_is_not(
    bare: Lab, nft: Nft, address: str
) -> None:
    stop = drilled(nft, endpoint([TCP], [f"127.0.0.1:{BACK}/tcp"]), endpoint(["*:8600/tcp"], name="silent"))
    with echo(bare, address, FRONT):
        ask(bare, address, FRONT, times=MANY)
    found = stop()
    front, back = found["models"]["services"]
    assert found["models"]["covered"] is True
    assert (front["service"], front["part"], front["covered"]) == (TCP, "front", True)
    assert front["requests"] == front["answers"] == MANY
    assert found["models"]["packets"] == front["packets"] > 2 * MANY, "the handshake is traffic, too"
    assert back == {
        "service": f"127.0.0.1:{BACK}/tcp", "part": "back", "packets": 0, "requests": 0, "answers": 0,
        "covered": False,
    }  # fmt: skip
    assert found["silent"]["covered"] is False
    assert found["silent"]["packets"] == 0
    assert nft.table(drill.DRILL) is None
    assert drill.stop(nft) == [], "no drill was running"


@pytest.mark.lab
@pytest.mark.parametrize("abort", [True, False], ids=["a port scan", "a health check"])
def test_a_connection_without_a_request_is_not_covered(bare: Lab, nft: Nft, abort: bool) -> None:
    stop = drilled(nft, endpoint([TCP]))
    with echo(bare, GATEWAY.v4, FRONT), bare.inside("client"):
        client = socket.create_connection((GATEWAY.v4, FRONT), timeout=LIMIT_S)
        if abort:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        closed = socket.socket()
        with closed, pytest.raises(ConnectionRefusedError):
            closed.connect((GATEWAY.v4, FRONT + 1))
    (service,) = stop()["models"]["services"]
    assert service["packets"] >= 3
    assert (service["requests"], service["answers"], service["covered"]) == (0, 0, False)


@pytest.mark.lab
def test_a_request_that_nobody_answers_is_not_covered(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([TCP, UDP]))
    with bare.inside("gateway"):
        listener = socket.create_server((GATEWAY.v4, FRONT))
    with (
        listener,
        bare.inside("client"),
        socket.create_connection((GATEWAY.v4, FRONT), timeout=LIMIT_S) as client,
    ):
        client.sendall(b"request")
        server, _ = listener.accept()
        with server:
            server.settimeout(LIMIT_S)
            assert server.recv(100) == b"request"
    found = stop()["models"]
    assert found["covered"] is False
    assert [(s["requests"], s["answers"]) for s in found["services"]] == [(1, 0), (0, 0)]


@pytest.mark.lab
@pytest.mark.parametrize(
    ("host", "address"), [("client", GATEWAY.v4), ("client", GATEWAY.v6), ("gateway", "127.0.0.1")]
)
def test_a_packet_is_counted_once_wherever_it_comes_from(
    bare: Lab, nft: Nft, host: str, address: str
) -> None:
    stop = drilled(nft, endpoint([UDP, f"{f'[{address}]' if ':' in address else address}:{FRONT}/udp"]))
    with echo(bare, address, FRONT, kind=socket.SOCK_DGRAM):
        ask(bare, address, FRONT, host, socket.SOCK_DGRAM, MANY)
    found = stop()["models"]
    assert found["packets"] == 2 * MANY
    assert found["covered"] is True
    counts = [(s["packets"], s["requests"], s["answers"], s["covered"]) for s in found["services"]]
    assert counts == [(2 * MANY, MANY, MANY, True)] * 2, "each of two services that overlap is covered"


@pytest.mark.lab
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_published_port_is_covered_where_its_back_is_named(bare: Lab, nft: Nft, kind: int) -> None:
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    nft.run(
        "table ip published { chain in { type nat hook prerouting priority -100;"
        f" {protocol} dport {FRONT} dnat to {FAR.v4}:{BACK}; }}\n"
        "chain out { type nat hook postrouting priority 100; ct status dnat masquerade; }\n}"
    )
    bare.run_in("gateway", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    front, back = f"{GATEWAY.v4}:{FRONT}/{protocol}", f"{FAR.v4}:{BACK}/{protocol}"
    try:
        stop = drilled(nft, endpoint([front], [back]), endpoint([front], name="half"))
        with echo(bare, FAR.v4, BACK, "balancer", kind):
            ask(bare, GATEWAY.v4, FRONT, kind=kind, times=MANY)
        found = stop()
    finally:
        bare.run_in("gateway", ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    seen = {s["service"]: (s["requests"], s["answers"], s["covered"]) for s in found["models"]["services"]}
    assert seen == {front: (MANY, 0, True), back: (MANY, MANY, True)}
    assert found["models"]["covered"] is True
    assert found["half"]["covered"] is False, "its answers leave by a port that nothing would drop"
    if kind == socket.SOCK_DGRAM:
        assert found["models"]["packets"] == 2 * MANY


@pytest.mark.lab
def test_answers_of_a_back_are_no_answers_of_a_front_that_serves_itself(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([UDP], [f"127.0.0.1:{BACK}/udp"]))
    with echo(bare, "127.0.0.1", BACK, kind=socket.SOCK_DGRAM):
        ask(bare, "127.0.0.1", BACK, "gateway", socket.SOCK_DGRAM)
    with bare.inside("gateway"):
        deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with deaf, bare.inside("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        deaf.bind((GATEWAY.v4, FRONT))
        deaf.settimeout(LIMIT_S)
        client.sendto(b"request", (GATEWAY.v4, FRONT))
        assert deaf.recv(100) == b"request"
    found = stop()["models"]
    assert [s["covered"] for s in found["services"]] == [False, True]
    assert found["covered"] is False, "clients arrive at the front"


@pytest.mark.lab
def test_what_it_calls_covered_the_kill_switch_stops(bare: Lab, nft: Nft) -> None:
    models = endpoint([UDP])
    stop = drilled(nft, models)
    with echo(bare, GATEWAY.v4, FRONT, kind=socket.SOCK_DGRAM):
        ask(bare, GATEWAY.v4, FRONT, kind=socket.SOCK_DGRAM)
        assert stop()["models"]["covered"] is True
        nft.run(killtable.render(killtable.KILL, {"models": models.services}))
        stop = drilled(nft, models)
        with bare.inside("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.7)
            client.sendto(b"request", (GATEWAY.v4, FRONT))
            with pytest.raises(TimeoutError):
                client.recv(100)
        assert stop()["models"]["covered"] is False, "what is cut off already cannot be rehearsed"


@pytest.mark.lab
def test_what_others_put_into_its_table_counts_for_nothing(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([UDP]))
    for comment in ("models", "models front x d data and more", "\\x00", "a b"):
        nft.run(f'add rule inet {drill.DRILL} input counter comment "{comment}"')
        nft.run(f'add rule inet {drill.DRILL} came0 ip saddr 192.0.2.0/24 comment "{comment}"')
    nft.run(f"add chain inet {drill.DRILL} led7")
    found = stop()
    assert found["models"]["packets"] == 0
    assert found["models"]["covered"] is False


@pytest.mark.lab
def test_a_drill_of_very_many_endpoints_with_long_names_is_within_what_nftables_takes(
    bare: Lab, nft: Nft
) -> None:
    address = "[2001:db8:1111:2222:3333:4444:5555:6666]"
    many = [endpoint([f"{address}:{60_000 + n}/tcp"], name=f"{n:064}") for n in range(256)]
    stop = drilled(nft, *many)
    assert list(stop()) == [e.name for e in many]
