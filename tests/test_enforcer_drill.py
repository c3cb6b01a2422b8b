"""The drill with real packets: what it calls covered, what it does not, and that each packet counts once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from enforcer_echo import LIMIT_S, TCP, UDP, ask, client, echo, endpoint, silent
from gatewatch.daemon.enforcer.kernel import killtable
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.proof import drill
from gatewatch.daemon.enforcer.rails import Endpoint
from lab.lab import HOSTS, Lab

GATEWAY, CLIENT, FAR = HOSTS["gateway"], HOSTS["client"], HOSTS["balancer"]
FRONT, BACK, MANY = 8443, 8000, 5
ANY_TCP, ANY_UDP = f"*:{FRONT}/tcp", f"*:{FRONT}/udp"


@pytest.fixture
def nft(bare: Lab) -> Iterator[Nft]:
    with bare.inside("gateway"):
        nft = Nft()  # its netlink socket stays there
    nft.run("flush ruleset")
    yield nft
    nft.run("flush ruleset")


def drilled(nft: Nft, *endpoints: Endpoint) -> Any:
    """Begin a drill; what is returned ends it and gives the result by endpoint."""
    drill.start(nft, {e.name: e for e in endpoints})
    return lambda: {e["endpoint"]: e for e in drill.stop(nft)}


@pytest.mark.lab
@pytest.mark.parametrize("address", [GATEWAY.v4, GATEWAY.v6])
def test_a_request_with_its_answer_is_covered_and_a_silent_endpoint_is_not(
    bare: Lab, nft: Nft, address: str
) -> None:
    stop = drilled(
        nft, endpoint([ANY_TCP], [f"127.0.0.1:{BACK}/tcp"]), endpoint(["*:8600/tcp"], name="silent")
    )
    with echo(bare, "gateway", address, FRONT):
        ask(bare, "client", address, FRONT, times=MANY)
    found = stop()
    front, back = found["models"]["services"]
    assert found["models"]["covered"] is True
    assert (front["service"], front["part"], front["covered"]) == (ANY_TCP, "front", True)
    assert min(front["requests"], front["answers"]) >= MANY, "more where the machine is slow: sent again"
    assert found["models"]["packets"] == front["packets"] > 2 * MANY, "the handshake is traffic, too"
    assert back == {
        "service": f"127.0.0.1:{BACK}/tcp", "part": "back", "packets": 0, "requests": 0, "answers": 0,
        "covered": False,
    }  # fmt: skip
    assert found["silent"]["covered"] is False
    assert found["silent"]["packets"] == 0
    assert nft.table(killtable.DRILL) is None
    assert drill.stop(nft) == [], "no drill was running"


@pytest.mark.lab
@pytest.mark.parametrize("abort", [True, False], ids=["a port scan", "a health check"])
def test_a_connection_without_a_request_is_not_covered(bare: Lab, nft: Nft, abort: bool) -> None:
    stop = drilled(nft, endpoint([ANY_TCP]))
    with echo(bare, "gateway", GATEWAY.v4, FRONT), client(bare, "client", GATEWAY.v4, FRONT) as asking:
        if abort:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    (service,) = stop()["models"]["services"]
    assert service["packets"] >= 2
    assert (service["requests"], service["answers"], service["covered"]) == (0, 0, False)


@pytest.mark.lab
def test_a_request_that_nobody_answers_is_not_covered(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([ANY_TCP, ANY_UDP]))
    with bare.inside("gateway"):
        listener = socket.create_server((GATEWAY.v4, FRONT))
    with listener, client(bare, "client", GATEWAY.v4, FRONT) as asking:
        asking.sendall(b"request")
        server, _ = listener.accept()
        with server:
            server.settimeout(LIMIT_S)
            assert server.recv(100) == b"request"
    found = stop()["models"]
    assert found["covered"] is False
    assert [(s["requests"] > 0, s["answers"]) for s in found["services"]] == [(True, 0), (False, 0)]


@pytest.mark.lab
def test_a_greeting_that_nobody_asked_for_is_not_covered(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([ANY_TCP]))
    with bare.inside("gateway"):
        listener = socket.create_server((GATEWAY.v4, FRONT))
    with listener, client(bare, "client", GATEWAY.v4, FRONT) as asking:
        server, _ = listener.accept()
        with server:
            server.sendall(b"hello")
            assert asking.recv(100) == b"hello"
    (service,) = stop()["models"]["services"]
    assert (service["requests"], service["answers"] > 0, service["covered"]) == (0, True, False)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("host", "address"), [("client", GATEWAY.v4), ("client", GATEWAY.v6), ("gateway", "127.0.0.1")]
)
def test_a_packet_is_counted_once_wherever_it_comes_from(
    bare: Lab, nft: Nft, host: str, address: str
) -> None:
    stop = drilled(nft, endpoint([ANY_UDP, f"{f'[{address}]' if ':' in address else address}:{FRONT}/udp"]))
    with echo(bare, "gateway", address, FRONT, UDP):
        ask(bare, host, address, FRONT, UDP, MANY)
    found = stop()["models"]
    assert found["packets"] == 2 * MANY
    assert found["covered"] is True
    counts = [(s["packets"], s["requests"], s["answers"], s["covered"]) for s in found["services"]]
    assert counts == [(2 * MANY, MANY, MANY, True)] * 2, "each of two services that overlap is covered"


@pytest.mark.lab
@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_published_port_is_covered_where_its_back_is_named(
    bare: Lab, nft: Nft, kind: socket.SocketKind
) -> None:
    protocol = "tcp" if kind == TCP else "udp"
    nft.run(
        "table ip published { chain in { type nat hook prerouting priority -100;"
        f" {protocol} dport {FRONT} dnat to {FAR.v4}:{BACK}; }}\n"
        "chain out { type nat hook postrouting priority 100; ct status dnat masquerade; }\n}"
    )
    bare.run_in("gateway", ["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    front, back = f"{GATEWAY.v4}:{FRONT}/{protocol}", f"{FAR.v4}:{BACK}/{protocol}"
    try:
        stop = drilled(nft, endpoint([front], [back]), endpoint([front], name="half"))
        with echo(bare, "balancer", FAR.v4, BACK, kind):
            ask(bare, "client", GATEWAY.v4, FRONT, kind, MANY)
        found = stop()
    finally:
        bare.run_in("gateway", ["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    first, second = found["models"]["services"]
    assert (first["service"], first["answers"], first["covered"]) == (front, 0, True)
    assert (second["service"], second["covered"]) == (back, True)
    assert min(first["requests"], second["requests"], second["answers"]) >= MANY
    assert found["models"]["covered"] is True
    assert found["half"]["covered"] is False, "its answers leave by a port that nothing would drop"
    if kind == UDP:
        assert found["models"]["packets"] == 2 * MANY


@pytest.mark.lab
def test_answers_of_a_back_are_no_answers_of_a_front_that_serves_itself(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([ANY_UDP], [f"127.0.0.1:{BACK}/udp"]))
    with echo(bare, "gateway", "127.0.0.1", BACK, UDP):
        ask(bare, "gateway", "127.0.0.1", BACK, UDP)
    with bare.inside("gateway"):
        deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with deaf, client(bare, "client", GATEWAY.v4, FRONT, UDP) as asking:
        deaf.bind((GATEWAY.v4, FRONT))
        deaf.settimeout(LIMIT_S)
        asking.sendall(b"request")
        assert deaf.recv(100) == b"request"
    found = stop()["models"]
    assert [s["covered"] for s in found["services"]] == [False, True]
    assert found["covered"] is False, "clients arrive at the front"


@pytest.mark.lab
def test_what_it_calls_covered_the_kill_switch_stops(bare: Lab, nft: Nft) -> None:
    models = endpoint([ANY_UDP])
    stop = drilled(nft, models)
    with echo(bare, "gateway", GATEWAY.v4, FRONT, UDP):
        ask(bare, "client", GATEWAY.v4, FRONT, UDP)
        assert stop()["models"]["covered"] is True
        nft.run(killtable.render(killtable.KILL, {"models": models.services}))
        stop = drilled(nft, models)
        assert silent(bare, "client", GATEWAY.v4, FRONT)
        assert stop()["models"]["covered"] is False, "what is cut off already cannot be rehearsed"


@pytest.mark.lab
def test_what_others_put_into_its_table_counts_for_nothing(bare: Lab, nft: Nft) -> None:
    stop = drilled(nft, endpoint([ANY_UDP]))
    for comment in ("models", "models front x d data and more", "\\x00", "a b"):
        nft.run(f'add rule inet {killtable.DRILL} input counter comment "{comment}"')
        nft.run(f'add rule inet {killtable.DRILL} came_0 ip saddr 192.0.2.0/24 comment "{comment}"')
    nft.run(f"add chain inet {killtable.DRILL} led_7")
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
