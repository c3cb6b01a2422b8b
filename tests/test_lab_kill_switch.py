"""The kill switch on a gateway at work: fifty answers stream by four ways, and one command ends them all.

The figures (how soon after the transaction the last byte leaves) belong to benchmarks/kill_switch.py; here the limit is
generous, and beyond it not one byte may leave.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
from enforcer_rig import Rig
from lab import published
from lab.lab import HOSTS, Lab, Session, answers, unmet, wait_for
from lab.load import busy_cpus, syn_flood
from lab.site import CHAT, CHAT_BACK, CROWD, DIRECT, ENDPOINTS, GATEWAY, Site
from lab.stream import Crowd

pytestmark = pytest.mark.lab

MONITORED = 9100
LIMIT_NS = 2_000_000_000
WATCHED_S = 4.0  # after the pull: by then a stalled sender has sent again several times
RESET = {"ECONNRESET", "EPIPE", "ECONNABORTED"}
RAILS = f"""
management = ["{HOSTS["management"].v4}/32"]
[[endpoint]]
name = "chat"
fronts = ["*:{CHAT}/tcp"]
backs = ["127.0.0.1:{CHAT_BACK}/tcp"]
{ENDPOINTS}
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[Lab]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab() as lab:
        yield lab


@pytest.fixture
def rig(gateway: Lab) -> Iterator[Rig]:
    gateway.run_in("gateway", ["conntrack", "-F"], check=False)  # where ports lead it has to find out anew
    with Rig(gateway, RAILS) as rig:
        yield rig


@pytest.fixture
def site(rig: Rig) -> Iterator[Site]:
    with Site(rig.lab) as site:
        yield site


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
def watched(rig: Rig) -> Iterator[Session]:
    """A management session and a monitoring host, which both have to live through what happens inside."""
    session = rig.lab.management_session()
    try:
        with rig.serving(MONITORED), Poller(rig.lab, MONITORED) as poller:
            wait_for("the monitoring host", lambda: poller.answered)
            yield session
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
def test_fifty_streams_by_four_ways_are_cut_and_nothing_else_is(rig: Rig, site: Site, day: str) -> None:
    before = site.ends(rig.output)
    with watched(rig) as session, Crowd(rig.lab) as crowd:
        site.fill(crowd)
        with load(day, rig.lab):
            wait_for("the streams under load", crowd.flows, 30)
            site.listen()
            code, receipt = rig.command("engage", "--reason", "test")
            session.say("in the middle of it")
            threading.Event().wait(WATCHED_S)
            cut_ns = site.transactions()[0]
            sent = site.answers()
        print(f"last payload {(max(p.ns for p in sent) - cut_ns) / 1e6:.1f} ms after the transaction")
        assert [p for p in sent if p.ns > cut_ns + LIMIT_NS] == []
        assert receipt["engaged"] == ["chat", "direct", "published"]
        assert code == 0, receipt
        heard = list(crowd.bytes)
        wait_for("the servers' hearing of it", lambda: (site.ends(rig.output) - before).total() >= 50)
        assert {end.split()[1] for end in site.ends(rig.output) - before} <= RESET
        assert crowd.grown(heard) == []
        with rig.lab.inside("client"):
            for address, port in {(address, port) for _, address, port in CROWD}:
                assert not answers(address, port, 0.5)
        assert rig.command("release", "--reason", "over")[0] == 0
        with Crowd(rig.lab) as after:
            site.fill(after)


@pytest.mark.parametrize("named", ["chat", "direct", "published"])
def test_one_endpoint_is_cut_and_the_others_stream_on(rig: Rig, site: Site, named: str) -> None:
    port = {"chat": CHAT, "direct": DIRECT, "published": published.FRONT}[named]
    with Crowd(rig.lab) as crowd:
        site.fill(crowd)
        asked = [at for count, _, at in CROWD for _ in range(count)]
        others = {client for client, at in enumerate(asked) if at != port}
        code, receipt = rig.command("engage", "--endpoint", named, "--reason", "test")
        assert (code, receipt["engaged"]) == (0, [named])
        before = list(crowd.bytes)
        wait_for("the others", lambda: set(crowd.grown(before)) >= others)
        assert set(crowd.grown(before)) == others
        rig.command("release", "--reason", "over")


def test_a_port_that_is_published_meanwhile_is_known_before_the_switch_is_pulled(
    rig: Rig, site: Site
) -> None:
    glass = rig.state / "enforcer" / "break-glass.nft"  # which is written anew when another way is found
    wait_for("the ways", lambda: published.V4 in glass.read_text() and published.V6 in glass.read_text())
    assert f"dport {published.BACK}" in glass.read_text()
