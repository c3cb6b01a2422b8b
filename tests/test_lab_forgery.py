"""Floods in the name of connected clients, forged by every way there is, get nobody blocked; a real attacker is."""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from gatewatch.daemon.denied import DenyList
from lab.forger import Forger
from lab.lab import HOSTS, Lab, Session, answers, wait_for
from lab.running import Gatewatch

pytestmark = pytest.mark.lab

GATEWAY = HOSTS["gateway"]
USER = HOSTS["client"].v4
"""Logged in by ssh all the while."""
CALLER = HOSTS["client"].more[0]
"""Nobody ever logged in from here, so that no history speaks for it: it asks over one connection, and over new ones."""
CALLER6 = HOSTS["client"].v6
NETWORK6 = "2001:db8:0:3::/64"
VICTIMS = (USER, CALLER, CALLER6)
ATTACKER = HOSTS["attacker"].v4
OUTSIDE = HOSTS["outside"].v4
BALANCER = HOSTS["balancer"].v4
FLOOD_S = 20.0
SCANNED = (22, 80, 8081, *range(100, 160))


class Caller:
    """A client that keeps a connection to nginx, and another to sshd on which it has said nothing yet."""

    def __init__(self, lab: Lab, source: str) -> None:
        self.lab, self.source = lab, source
        self.address = GATEWAY.v6 if ":" in source else GATEWAY.v4
        with lab.inside("client"):
            self._kept = http.client.HTTPConnection(self.address, 80, timeout=5, source_address=(source, 0))
            self._kept.connect()
            self._silent = socket.create_connection((self.address, 22), 5, (source, 0))
        self._own = self._kept.sock.getsockname()

    def ask(self) -> None:
        """Over the connection that is kept, and over a new one. Raises OSError where it is dropped."""
        self._kept.request("GET", "/health")
        answer = self._kept.getresponse()
        assert answer.status == 200 and answer.read()
        assert self._kept.sock.getsockname() == self._own
        with self.lab.inside("client"):
            assert answers(self.address, 80, 5.0, self.source)

    def close(self) -> None:
        self._kept.close()
        self._silent.close()


@contextmanager
def connected(lab: Lab) -> Iterator[tuple[Session, list[Caller]]]:
    with ExitStack() as stack:
        callers = [Caller(lab, source) for source in (CALLER, CALLER6)]
        for caller in callers:
            stack.callback(caller.close)
        key = lab.folder / "operator_ed25519"
        command = lab.ssh_command(GATEWAY.v4, "operator", "cat", key=key)
        pipe = subprocess.PIPE
        process = lab.popen_in("client", command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        session = Session(process)
        session.say("hello")
        yield session, callers


def denied(watch: Gatewatch) -> set[str]:
    """Whom the list refuses that the enforcer publishes."""
    listed = DenyList(watch.state / "run" / "denied")
    listed.refresh()
    assert listed.known, listed.problem
    return {name for _, name, _ in listed.entries()}


def accused(watch: Gatewatch, source: str) -> dict[str, Any]:
    """The first incident that names a source; empty where there is none."""
    told = (a for a in watch.alerts() if a["event"] == "incident")
    return next((incident for incident in told if source in incident["sources"]), {})


def states(watch: Gatewatch, target: str) -> set[str]:
    """What became of the actions against a source."""
    return {a["state"] for a in watch.alerts() if a["event"] == "action" and a["target"] == target}


def found_by(watch: Gatewatch, detector: str) -> list[dict[str, Any]]:
    told = [a for a in watch.alerts() if a["event"] == "incident"]
    return [f for incident in told for f in incident["findings"] if f["detector"] == detector]


def test_forged_floods_in_the_name_of_connected_clients_block_nobody_and_an_attacker_is_blocked(
    lab: Lab,
) -> None:
    lab.start_balancer()
    forger = Forger(lab)
    forger.serve_udp()
    with Gatewatch(lab) as watch, connected(lab) as (session, callers):
        until = time.monotonic() + FLOOD_S
        rounds = 0
        while time.monotonic() < until or rounds < 5:
            forger.by_logger(VICTIMS, 40)
            forger.by_udp(VICTIMS, 40)
            forger.by_syn((USER, CALLER), SCANNED)
            forger.by_syn((USER, CALLER), [22, 80] * 50)
            forger.by_header(VICTIMS, 10, BALANCER, "outside")
            rounds += 1
            assert watch.elements() == set()
            assert not denied(watch) & {USER, CALLER, CALLER6, NETWORK6, BALANCER}
            session.say(f"round {rounds}")
            for caller in callers:
                caller.ask()
        for victim in (USER, CALLER, NETWORK6):
            wait_for("the flood in the alerts", lambda victim=victim: accused(watch, victim))
            wait_for("its block, which waits", lambda victim=victim: states(watch, victim) == {"waiting"})
        scan = wait_for("the scan", lambda: found_by(watch, "port_scan"))
        assert all(finding["blockable"] == [] for finding in scan)
        assert not accused(watch, BALANCER)
        for _ in range(3):
            lab.fail(ATTACKER, 5)
        watch.wait_for_block(ATTACKER)
        assert watch.elements() == {ATTACKER}
        session.say("still here")
        for caller in callers:
            caller.ask()
        assert not denied(watch) & {USER, CALLER, CALLER6, NETWORK6, BALANCER}
