"""HTTP of the authorisation endpoint: kept connections, pipelines, and peers that are slow, many or hostile."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from authz_rig import Authz, ask, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REQUEST = b"GET /authz/chat HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def authz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authz]:
    with Authz(tmp_path_factory.mktemp("authz"), {}, "--connections", "40") as authz:
        yield authz


def connect(authz: Authz) -> socket.socket:
    return socket.create_connection(("127.0.0.1", authz.port), timeout=30)


def read_until(peer: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    data = b""
    while not enough(data):
        more = peer.recv(1 << 16)
        if not more:
            break
        data += more
    return data


def to_end(peer: socket.socket) -> bytes:
    try:
        return read_until(peer, lambda data: False)
    except ConnectionResetError:
        return b"reset"


def test_one_connection_is_kept_for_many_requests_in_any_pieces(authz: Authz) -> None:
    with connect(authz) as peer:
        for _ in range(3):
            for byte in REQUEST:
                peer.sendall(bytes([byte]))
            assert b"200 OK" in read_until(peer, lambda data: data.endswith(b"\r\n\r\n"))


def test_a_pipeline_is_answered_in_its_order(authz: Authz) -> None:
    keys = [f"k{number}" for number in range(500)]
    requests = [f"GET /authz/chat HTTP/1.1\r\nX-API-Key: {key}\r\n\r\n".encode() for key in keys]
    with connect(authz) as peer:
        peer.sendall(b"".join(requests))
        data = read_until(peer, lambda data: data.count(b"\r\n\r\n") >= len(keys))
    ids = [
        line.split(b": ")[1].decode()
        for line in data.split(b"\r\n")
        if line.startswith(b"X-Gatewatch-Key-Id")
    ]
    assert ids == [authz.key_id(key) for key in keys]


def test_the_unix_socket_answers_as_the_port_does(authz: Authz) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(str(authz.path))
        peer.sendall(REQUEST)
        assert b"200 OK" in read_until(peer, lambda data: data.endswith(b"\r\n\r\n"))


@pytest.mark.parametrize(
    ("request_bytes", "has"),
    [
        (b"GET /authz/chat HTTP/1.1\r\nConnection: close\r\n\r\n", b"Connection: close"),
        (b"GET /authz/chat HTTP/1.0\r\n\r\n", b"Connection: close"),
        (
            b"GET /authz/chat HTTP/1.1\r\nConnection: close\r\n\r\n" + REQUEST,
            b"Connection: close",
        ),
        (
            b"GET /authz/chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nxyz",
            b"Connection: close",
        ),
    ],
)
def test_a_connection_that_is_to_end_ends_after_one_answer(
    authz: Authz, request_bytes: bytes, has: bytes
) -> None:
    with connect(authz) as peer:
        peer.sendall(request_bytes)
        data = to_end(peer)
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert has in data
    assert data.count(b"HTTP/1.1") == 1


def test_a_kept_connection_of_http_1_0_is_kept(authz: Authz) -> None:
    with connect(authz) as peer:
        for _ in range(2):
            peer.sendall(b"GET /authz/chat HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"Connection: keep-alive" in read_until(peer, lambda data: data.endswith(b"\r\n\r\n"))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (
            b"GET /authz/chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            b"400",
        ),
        (b"GET /authz/chat HTTP/1.1\r\nA b: c\r\n\r\n", b"400"),
        (b"GET /authz/chat HTTP/1.1\r\nA: " + b"x" * 100_000, b"431"),
        (b"GET /" + b"x" * 100_000, b"431"),
        (b"GET /authz/chat HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n", b"431"),
        (b"POST /authz/chat HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000, b"431"),
        (b"\r\n" * 60_000, b""),
    ],
)
def test_what_is_no_request_or_too_large_costs_its_sender_the_connection(
    authz: Authz, sent: bytes, status: bytes
) -> None:
    with connect(authz) as peer:
        try:
            peer.sendall(sent)
        except (ConnectionResetError, BrokenPipeError):
            pass
        data = to_end(peer)
    assert data == b"reset" or data.startswith(b"HTTP/1.1 " + status)
    assert authz.ask().status == 200


def test_silent_connections_give_way_and_never_those_that_ask(authz: Authz) -> None:
    with connect(authz) as asking:
        asking.sendall(REQUEST)
        read_until(asking, lambda data: data.endswith(b"\r\n\r\n"))
        silent = [connect(authz) for _ in range(120)]
        for number in range(50):
            silent.append(connect(authz))
            if number % 10 == 0:
                asking.sendall(REQUEST)
                assert b"200 OK" in read_until(asking, lambda data: data.endswith(b"\r\n\r\n"))
        assert authz.ask().status == 200
        health = authz.health()
        assert health["connections"] <= 40
        assert health["ended"]["too many connections"] >= 100
        for peer in silent:
            peer.close()


def test_a_request_that_never_ends_is_ended(authz: Authz) -> None:
    with connect(authz) as peer:
        peer.sendall(b"GET /authz/chat HTTP/1.1\r\nA: b")
        assert to_end(peer).startswith(b"HTTP/1.1 408")
    assert authz.health()["ended"]["slow"] >= 1


def test_a_peer_that_does_not_read_is_ended_and_the_others_are_answered(authz: Authz) -> None:
    with connect(authz) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        ended = False

        def fill() -> bool:
            nonlocal ended
            try:
                peer.send(REQUEST * 1000)
            except BlockingIOError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                ended = True
            assert authz.ask().status == 200
            return ended

        wait_for(fill)
    assert authz.health()["ended"]["does not read"] >= 1


def test_a_flood_of_pipelined_requests_does_not_stop_the_others(authz: Authz) -> None:
    floods = [connect(authz) for _ in range(8)]
    try:
        for _ in range(20):
            for flood in floods:
                flood.setblocking(False)
                try:
                    flood.send(REQUEST * 500)
                    flood.recv(1 << 20)
                except BlockingIOError:
                    pass
            assert authz.ask().status == 200
    finally:
        for flood in floods:
            flood.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from(
                [
                    b"GET /authz/chat HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"Content-Length: 5\r\n",
                    b"Transfer-Encoding: chunked\r\n", b"Authorization: Bearer \xff\xfe\r\n",
                    b"X-Gatewatch-Client: \x00\r\n", b"X-Forwarded-For: ,,,,[::\r\n", b"X-Gatewatch-Subject: \xc3\r\n",
                    b"Connection: close\r\n",
                ]
            ),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_no_bytes_stop_it(authz: Authz, parts: list[bytes]) -> None:
    with connect(authz) as peer:
        try:
            for part in parts:
                peer.sendall(part)
            peer.shutdown(socket.SHUT_WR)
            to_end(peer)
        except OSError:
            pass  # it has ended the connection
    assert ask(authz.port).status == 200


def test_it_ends_at_once_on_sigterm_with_open_connections(tmp_path: Path) -> None:
    with Authz(tmp_path) as own, connect(own) as peer:
        peer.sendall(REQUEST)
        read_until(peer, lambda data: data.endswith(b"\r\n\r\n"))
        assert own.process is not None
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(30) == 0
        assert to_end(peer) in (b"", b"reset")


def test_a_long_new_deny_list_does_not_hold_up_answers(tmp_path: Path) -> None:
    with Authz(tmp_path) as own:
        entries = [["+", "key", f"k-{number:016x}", 0] for number in range(60_000)]
        own.denied.replace(*entries, ["+", "subject", "last", 0])
        answered = 0
        while own.ask(x_gatewatch_subject="last").status == 200:
            answered += 1
        assert answered > 3
        assert own.ask(x_gatewatch_subject="last").status == 403


def test_a_kept_connection_sees_a_change_of_the_list(tmp_path: Path) -> None:
    request = b"GET /authz/chat HTTP/1.1\r\nX-Gatewatch-Subject: alice\r\n\r\n"
    with Authz(tmp_path) as own, connect(own) as peer:

        def status() -> bytes:
            peer.sendall(request)
            return read_until(peer, lambda data: data.endswith(b"\r\n\r\n"))[9:12]

        assert status() == b"200"
        own.denied.add("subject", "alice")
        wait_for(lambda: status() == b"403")
        assert not select.select([peer], [], [], 0)[0]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs proc(5)")
def test_ended_connections_leave_no_descriptor(authz: Authz) -> None:
    assert authz.process is not None
    folder = Path(f"/proc/{authz.process.pid}/fd")
    authz.ask()
    for _ in range(30):
        with connect(authz) as peer:
            peer.sendall(REQUEST)
    wait_for(lambda: len(list(folder.iterdir())) < 20)
