"""A restriction on a gateway at work: known clients stream on by every way, others are cut and kept out.

Behind nginx, on the gateway itself and behind DNAT, by IPv4 and IPv6. The limit is generous, and beyond it not one
byte may reach who is not allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from enforcer_rig import Rig
from lab import published
from lab.lab import HOSTS, Lab, answers, unmet, wait_for
from lab.site import CHAT, CHAT_BACK, CROWD, DIRECT, ENDPOINTS, GATEWAY, Site
from lab.stream import Crowd

pytestmark = pytest.mark.lab

LIMIT_S = 2.0
WATCHED_S = 3.0  # after the limit: by then a stalled sender has sent again
ALLOWED = 'allowed = ["198.51.100.0/25", "2001:db8:0:3::/64"]\n'
WAYS = sorted({(address, port) for _, address, port in CROWD})
RAILS = f"""
management = ["{HOSTS["management"].v4}/32"]
[[endpoint]]
name = "chat"
fronts = ["*:{CHAT}/tcp"]
backs = ["127.0.0.1:{CHAT_BACK}/tcp"]
{ALLOWED}
{ENDPOINTS.replace("[[endpoint]]", ALLOWED + "[[endpoint]]").replace(ALLOWED, "", 1)}
{ALLOWED}
"""
EVERY = ["chat", "direct", "published"]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Lab]:
    why = unmet()
    if why:
        pytest.skip(why)
    with Lab() as lab:
        yield lab


@pytest.fixture
def rig(gateway: Lab) -> Iterator[Rig]:
    gateway.run_in("gateway", ["conntrack", "-F"], check=False)
    with Rig(gateway, RAILS) as rig:
        yield rig


@pytest.fixture
def site(rig: Rig) -> Iterator[Site]:
    with Site(rig.lab) as site:
        yield site


def fill(crowd: Crowd, host: str) -> None:
    """Two streams by each way."""
    for address, port in WAYS:
        crowd.join(2, address, port, host)
    wait_for(f"the streams of {host}", crowd.flows, 30)


def reached(lab: Lab, host: str, limit_s: float) -> list[bool]:
    with lab.inside(host):
        return [answers(address, port, limit_s) for address, port in WAYS]


def test_known_clients_stream_on_by_every_way_and_others_are_cut_within_two_seconds(
    rig: Rig, site: Site
) -> None:
    session = rig.lab.management_session()
    try:
        with Crowd(rig.lab) as known, Crowd(rig.lab) as others:
            fill(known, "client")
            fill(others, "attacker")
            before = site.ends(rig.output)
            answer = rig.enforcer().restrict(EVERY, "leak")
            assert answer["proven"], answer
            assert answer["cut"] == 2 * len(WAYS)
            threading.Event().wait(LIMIT_S)
            cut, kept = list(others.bytes), list(known.bytes)
            session.say("in the middle of it")
            threading.Event().wait(WATCHED_S)
            assert others.grown(cut) == []
            assert known.grown(kept) == list(range(2 * len(WAYS)))
            wait_for("the servers' hearing of it", lambda: (site.ends(rig.output) - before).total() >= 10)
            assert (site.ends(rig.output) - before).total() == 10
            assert reached(rig.lab, "client", 10) == [True] * len(WAYS)
            assert reached(rig.lab, "attacker", 0.5) == [False] * len(WAYS)
            assert reached(rig.lab, "management", 10)[0]
        session.say("still here")
    finally:
        session.process.kill()


def test_the_kill_switch_on_top_cuts_everybody_and_its_release_leaves_the_restriction(
    rig: Rig, site: Site
) -> None:
    with Crowd(rig.lab) as known:
        fill(known, "client")
        rig.enforcer().restrict(EVERY, "leak")
        code, receipt = rig.command("engage", "--reason", "worse")
        assert code == 0, receipt
        threading.Event().wait(LIMIT_S)
        silent = list(known.bytes)
        assert reached(rig.lab, "client", 0.5) == [False] * len(WAYS)
        assert known.grown(silent) == []
    assert rig.command("release", "--reason", "better")[0] == 0
    assert reached(rig.lab, "client", 10) == [True] * len(WAYS)
    assert reached(rig.lab, "attacker", 0.5) == [False] * len(WAYS)


def test_its_end_comes_by_itself_and_lets_everybody_in(rig: Rig, site: Site) -> None:
    assert rig.enforcer().restrict(EVERY, "leak", ttl_s=3)["proven"]
    assert reached(rig.lab, "attacker", 0.2) == [False] * len(WAYS)
    wait_for("the end", lambda: not rig.enforcer().status()["restrictions"])
    assert reached(rig.lab, "attacker", 10) == [True] * len(WAYS)


def test_a_firewall_that_flushes_everything_lets_nobody_in_and_cuts_no_known_client(
    rig: Rig, site: Site
) -> None:
    rig.enforcer().restrict(EVERY, "leak")
    with Crowd(rig.lab) as known:
        known.join(4, GATEWAY.v4, DIRECT)
        wait_for("the streams", known.flows, 30)
        rig.nft("flush ruleset")
        site.published.publish()
        wait_for("the mending", lambda: any(e["do"] == "healed" for e in rig.journal()))
        wait_for("the rules", lambda: all(r["kernel"] for r in rig.enforcer().status()["restrictions"]))
        assert reached(rig.lab, "attacker", 0.5) == [False] * len(WAYS)
        assert reached(rig.lab, "client", 10) == [True] * len(WAYS)
        assert known.flows()


def test_a_server_that_comes_back_elsewhere_is_closed_there_too(rig: Rig, site: Site) -> None:
    rig.enforcer().restrict(["published"], "leak")
    assert f":{published.BACK}/tcp" in str(rig.enforcer().status()["restrictions"][0]["services"])
    rig.nft("flush table inet published")
    moved = published.DNAT.replace(published.V4, "192.0.2.77")
    rig.lab.run_in("gateway", ["nft", "-f", "-"], input=moved)
    wait_for(
        "the new place",
        lambda: f"192.0.2.77:{published.BACK}/tcp" in rig.enforcer().status()["restrictions"][0]["services"],
    )
    (said,) = rig.enforcer().status()["restrictions"]
    assert said["kernel"]
    assert f"{published.V4}:{published.BACK}/tcp" in said["services"]


def test_a_cut_ends_what_is_forwarded_too_and_new_connections_are_taken(rig: Rig, site: Site) -> None:
    with Crowd(rig.lab) as known, Crowd(rig.lab) as others:
        for crowd, host in ((known, "client"), (others, "attacker")):
            for address in (GATEWAY.v4, GATEWAY.v6):
                crowd.join(8, address, published.FRONT, host)
            wait_for(f"the streams of {host}", lambda crowd=crowd: all(crowd.bytes), 30)
        before = site.ends(rig.output)
        ended = [rig.enforcer().cut(getattr(HOSTS["attacker"], f), "test") for f in ("v4", "v6")]
        assert all(answer["forgotten"] >= 8 for answer in ended), ended
        wait_for("the servers' hearing of it", lambda: (site.ends(rig.output) - before).total() >= 16)
        cut, kept = list(others.bytes), list(known.bytes)
        with rig.lab.inside("attacker"):
            assert answers(GATEWAY.v4, published.FRONT, 10)
            assert answers(GATEWAY.v6, published.FRONT, 10)
        wait_for("the known", lambda: len(known.grown(kept)) == 16)
        assert others.grown(cut) == []
        assert (site.ends(rig.output) - before).total() == 16
