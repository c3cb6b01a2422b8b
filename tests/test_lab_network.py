"""Traffic off the allow-list is an incident with both ends and its bytes, and the kill switch does what it says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from lab.lab import HOSTS, Lab, answers, wait_for
from lab.running import Gatewatch
from lab.stream import Stream

pytestmark = pytest.mark.lab

GATEWAY = HOSTS["gateway"]
OUTSIDE = HOSTS["outside"]
PORT = 4433
ALLOWLIST = {
    "egress": [{"networks": ["192.0.2.0/24", "198.51.100.0/24", "2001:db8:0:2::/64", "2001:db8:0:3::/64"]}],
    "ingress": None,
}
LIMIT_S = 5.0
"""Generous: the benchmark measures the kill switch, tests do not."""


@contextlib.contextmanager
def listener(lab: Lab, address: str, answer: bytes) -> Iterator[None]:
    """Takes one connection on the outside host, reads it to its end and answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.inside("outside"):
        waiting = socket.create_server((address, PORT), family=family)

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = waiting.accept()
            with connection:
                while connection.recv(65536):
                    pass
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        waiting.close()
        thread.join(5)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_an_upload_off_the_allow_list_is_told_with_both_ends_and_every_byte(lab: Lab, family: str) -> None:
    source, destination = getattr(GATEWAY, family), getattr(OUTSIDE, family)
    sent, answered = 1_234_567, 4_321
    with Gatewatch(lab, allowlist=ALLOWLIST) as watch:
        with (
            listener(lab, destination, b"y" * answered),
            lab.inside("gateway"),
            socket.create_connection((destination, PORT), timeout=5) as connection,
        ):
            own_port = connection.getsockname()[1]
            connection.sendall(b"x" * sent)
            connection.shutdown(socket.SHUT_WR)
            got = 0
            while data := connection.recv(65536):
                got += len(data)
            assert got == answered

        def counted() -> bool:
            listed = watch.listing("incidents", "list")
            figures = [finding["figures"] for incident in listed for finding in incident["findings"]]
            return [(f["bytes_out"], f["bytes_in"]) for f in figures] == [(sent, answered)]

        watch.wait_for_incident("off_allowlist_egress")
        wait_for("every byte in the incident", counted)
        (incident,) = watch.incidents("off_allowlist_egress")
        assert incident["sources"] == [source]
        place = f"[{destination}]" if ":" in destination else destination
        assert incident["targets"] == [f"{place}:{PORT}/tcp"]
        figures = incident["findings"][0]["figures"]
        assert (figures["source_port"], figures["port"]) == (own_port, PORT)
        assert watch.elements() == set()


def test_what_the_allow_list_names_is_no_incident(lab: Lab) -> None:
    with Gatewatch(lab, allowlist=ALLOWLIST) as watch:
        with lab.inside("gateway"):
            answers(HOSTS["client"].v4, 9)
        with listener(lab, OUTSIDE.v4, b""), lab.inside("gateway"):
            assert answers(OUTSIDE.v4, PORT)
        incident = watch.wait_for_incident("off_allowlist_egress")
        assert incident["targets"] == [f"{OUTSIDE.v4}:{PORT}/tcp"]


def test_the_kill_switch_stops_a_running_answer_and_spares_management(lab: Lab) -> None:
    with Gatewatch(lab) as watch, Stream(lab) as stream:
        session = lab.management_session()
        wait_for("the stream", stream.flows)
        said = watch.kill_switch("engage", "--endpoint", "chat", "--reason", "test")
        wait_for("silence", lambda: stream.quiet_for_s() > 0.3, LIMIT_S)
        came = stream.bytes
        for host in ("client", "attacker", "outside"):
            with lab.inside(host):
                assert not answers(GATEWAY.v4, 80, 0.3)
                assert not answers(GATEWAY.v6, 80, 0.3)
        with lab.inside("client"):
            assert answers(GATEWAY.v4, 8081), "the other endpoint serves on"
        session.say("still here")
        assert stream.bytes == came
        assert said.returncode == 0
        assert "chat" in watch.kill_switch("status").stdout
        watch.kill_switch("release", "--endpoint", "chat", "--reason", "test")
        with Stream(lab) as again:
            wait_for("the stream after the release", again.flows)


def test_the_kill_switch_works_without_the_analyser(lab: Lab) -> None:
    with Gatewatch(lab) as watch, Stream(lab) as stream:
        wait_for("the stream", stream.flows)
        watch.kill("supervisor", "analyser")
        watch.kill_switch("engage", "--reason", "test")
        wait_for("silence", lambda: stream.quiet_for_s() > 0.3, LIMIT_S)
        for port in (80, 8081):
            with lab.inside("client"):
                assert not answers(GATEWAY.v4, port, 0.3)
        watch.kill_switch("release", "--reason", "test")
        with lab.inside("client"):
            assert answers(GATEWAY.v4, 80)


def test_the_kill_switch_and_blocks_stand_when_everything_is_stopped_and_come_back_with_it(lab: Lab) -> None:
    with Gatewatch(lab) as watch:
        watch.kill_switch("engage", "--endpoint", "embeddings", "--reason", "test")
        for _ in range(2):
            lab.fail(HOSTS["attacker"].v4, 5)
        watch.wait_for_block(HOSTS["attacker"].v4)
        for signal_name in ("stop", "start"):
            getattr(watch, signal_name)()
            with lab.inside("attacker"):
                assert not answers(GATEWAY.v4, 22, 0.5)
            with lab.inside("client"):
                assert not answers(GATEWAY.v4, 8081, 0.5)
                assert answers(GATEWAY.v4, 80)


def test_a_scan_is_an_incident(lab: Lab) -> None:
    with Gatewatch(lab) as watch:
        with lab.inside("attacker"):
            for port in range(100, 220):
                answers(GATEWAY.v4, port, 0.2)
        incident = watch.wait_for_incident("port_scan", HOSTS["attacker"].v4)
        assert "T1046" in incident["techniques"] or "T1595.001" in incident["techniques"]
