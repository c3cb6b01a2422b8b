"""The kill switch on a gateway at work: fifty answers stream by four ways, and one command ends them all.

The figures (how soon after the transaction the last byte leaves) belong to benchmarks/kill_switch.py; here the limit is
generous, and beyond it not one byte may leave.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext

import pytest
from enforcer_rig import GATEWAY, Rig
from lab import published
from lab.lab import HOSTS, MODEL_PORTS, Lab, Session, answers, unmet, wait_for
from lab.load import busy_cpus, syn_flood
from lab.published import ModelServer, Published, ends_of
from lab.stream import Crowd
from lab.tap import Tap, Transactions

pytestmark = pytest.mark.lab

CHAT, CHAT_BACK = MODEL_PORTS["chat"]
DIRECT = 8443
MONITORED = 9100
LIMIT_NS = 1_000_000_000
WATCHED_S = 2.5  # after the pull: by then a stalled sender has sent again several times
CROWD = (
    (12, GATEWAY.v4, CHAT),
    (10, GATEWAY.v4, DIRECT),
    (10, GATEWAY.v6, DIRECT),
    (10, GATEWAY.v4, published.FRONT),
    (8, GATEWAY.v6, published.FRONT),
)
ENDPOINT_PORTS = {CHAT, DIRECT, published.FRONT, published.BACK}
"""What leaves from one of these is an answer; from the last one where nobody translates it back any more."""

RESET = {"ECONNRESET", "EPIPE", "ECONNABORTED"}
RAILS = f"""
management = ["{HOSTS["management"].v4}/32"]
[[endpoint]]
name = "chat"
fronts = ["*:{CHAT}/tcp"]
backs = ["127.0.0.1:{CHAT_BACK}/tcp"]
[[endpoint]]
name = "direct"
fronts = ["*:{DIRECT}/tcp"]
[[endpoint]]
name = "published"
fronts = ["*:{published.FRONT}/tcp"]
"""


class Site:
    """The lab's gateway with all that it serves, and everything that watches it."""

    def __init__(self, lab: Lab, rig: Rig, stack: ExitStack) -> None:
        self.lab, self.rig = lab, rig
        self.published = stack.enter_context(Published(lab))
        self.direct = stack.enter_context(ModelServer(lab, "gateway", "::", DIRECT))
        self.tap = stack.enter_context(Tap(lab, "gateway", "eth0"))
        self.transactions = stack.enter_context(Transactions(lab, "gatewatch_kill"))

    def ends(self) -> Counter[str]:
        """How the model servers' answers ended, with the server's port."""
        ports = {CHAT_BACK: self.rig.output, DIRECT: self.direct.output}
        ports[published.BACK] = self.published.server.output
        return Counter(f"{port} {end}" for port, output in ports.items() for end in ends_of(output, port))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Lab]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab() as lab:
        yield lab


@pytest.fixture
def site(gateway: Lab) -> Iterator[Site]:
    with Rig(gateway, RAILS) as rig, ExitStack() as stack:
        yield Site(gateway, rig, stack)


class Poller:
    """A monitoring host that asks a port of the gateway again and again."""

    def __init__(self, lab: Lab, port: int) -> None:
        self._lab, self._port = lab, port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self.answered = self.missed = 0

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        with self._lab.inside("outside"):
            while not self._stop.wait(0.02):
                if answers(GATEWAY.v4, self._port, 5):
                    self.answered += 1
                else:
                    self.missed += 1


@contextlib.contextmanager
def watched(site: Site) -> Iterator[tuple[Session, Poller]]:
    """A management session and a monitoring host, which both have to live through what happens inside."""
    session = site.lab.management_session()
    try:
        with site.rig.serving(MONITORED), Poller(site.lab, MONITORED) as poller:
            wait_for("the monitoring host", lambda: poller.answered)
            yield session, poller
            session.say("still here")
            before = poller.answered
            wait_for("the monitoring host", lambda: poller.answered > before)
            assert poller.missed == 0
    finally:
        session.process.kill()


def load(name: str, lab: Lab) -> AbstractContextManager[None]:
    if name == "idle":
        return nullcontext()
    return busy_cpus() if name == "busy" else syn_flood(lab, [CHAT, DIRECT, published.FRONT])


@pytest.mark.parametrize("day", ["idle", "busy", "flood"])
def test_fifty_streams_by_four_ways_are_cut_and_nothing_else_is(site: Site, day: str) -> None:
    before = site.ends()
    with watched(site), Crowd(site.lab) as crowd:
        for count, address, port in CROWD:
            crowd.join(count, address, port)
        wait_for("fifty streams", crowd.flows, 30)
        with load(day, site.lab):
            wait_for("the streams under load", crowd.flows, 30)
            site.tap.read()
            site.transactions.read()
            code, receipt = site.rig.command("engage", "--reason", "test")
            threading.Event().wait(WATCHED_S)
            cut_ns = site.transactions.read()[0]
            sent = [p for p in site.tap.read() if p.port in ENDPOINT_PORTS]
        late = [p for p in sent if p.ns > cut_ns + LIMIT_NS]
        print(f"last payload {(max(p.ns for p in sent) - cut_ns) / 1e6:.1f} ms after the transaction")
        assert late == []
        assert receipt["engaged"] == ["chat", "direct", "published"]
        assert code == 0, receipt
        heard = list(crowd.bytes)
        wait_for("the servers' hearing of it", lambda: (site.ends() - before).total() >= 50)
        assert {end.split()[1] for end in site.ends() - before} <= RESET
        assert crowd.grown(heard) == []
        with site.lab.inside("client"):
            for address, port in {(address, port) for _, address, port in CROWD}:
                assert not answers(address, port, 0.5)
        assert site.rig.command("release", "--reason", "over")[0] == 0
        with Crowd(site.lab) as after:
            for _, address, port in CROWD:
                after.join(1, address, port)
            wait_for("service for new connections", after.flows, 30)
