"""Where published ports lead, by real NAT rules and real connection tracking, and that the kill switch follows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from enforcer_rig import FRONT, GATEWAY, Rig
from gatewatch.daemon.enforcer.kernel import conntrack, dnat
from gatewatch.daemon.enforcer.kernel.host import own_addresses
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.rails import service_of
from lab.lab import Lab, wait_for
from lab.published import BACK, V4, Published

NAT = "table inet theirs { chain p { type nat hook prerouting priority dstnat; RULE; }; }"


@pytest.fixture
def rig(bare: Lab) -> Iterator[Rig]:
    with Rig(bare) as rig:
        yield rig


@pytest.mark.lab
@pytest.mark.parametrize(
    ("rule", "led"),
    [
        ("tcp dport 8443 dnat ip to 192.0.2.66:9000", {"192.0.2.66:9000/tcp"}),
        ("tcp dport 8443 dnat ip to 192.0.2.66", {"192.0.2.66:8443/tcp"}),
        ("meta nfproto ipv6 tcp dport 8443 dnat ip6 to [2001:db8::66]:9000", {"[2001:db8::66]:9000/tcp"}),
        ("tcp dport { 80, 8443 } dnat ip to 192.0.2.66:9000", {"192.0.2.66:9000/tcp"}),
        ("tcp dport 8000-8500 dnat ip to 192.0.2.66:9000", {"192.0.2.66:9000/tcp"}),
        (f"ip daddr {GATEWAY.v4} tcp dport 8443 dnat ip to 192.0.2.66:9000", {"192.0.2.66:9000/tcp"}),
        ("udp dport 8443 dnat ip to 192.0.2.66:9000", set()),
        ("tcp dport 8444 dnat ip to 192.0.2.66:9000", set()),
        ("ip daddr 198.51.100.9 tcp dport 8443 dnat ip to 192.0.2.66:9000", set()),
        ("tcp dport 8443 accept", set()),
        ("dnat ip to tcp dport map { 8443 : 192.0.2.66, 80 : 192.0.2.67 }", {"192.0.2.66:8443/tcp"}),
        ("dnat ip to tcp dport map { 8443 : 192.0.2.66 . 9000 }", {"192.0.2.66:9000/tcp"}),
    ],
)
def test_nat_rules_say_where_a_front_leads(bare: Lab, rule: str, led: set[str]) -> None:
    bare.run_in("gateway", ["nft", "flush ruleset"])
    bare.run_in("gateway", ["nft", NAT.replace("RULE", rule)])
    front = service_of("*:8443/tcp")
    with bare.inside("gateway"):
        found = dnat.behind(Nft(), [front], frozenset(own_addresses()))
    assert {str(s) for s in found.get(front, set())} == led


@pytest.mark.lab
def test_what_a_rule_leads_to_is_cut_off_and_followed_to_its_next_address(rig: Rig) -> None:
    rig.nft(NAT.replace("RULE", f"tcp dport {FRONT} dnat ip to 192.0.2.66:9000"))
    _, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    assert receipt["proven"], receipt
    rules = rig.nft("list table inet gatewatch_kill")
    assert "ip daddr 192.0.2.66 tcp dport 9000" in rules
    rig.nft("delete table inet theirs")
    rig.nft(NAT.replace("RULE", f"tcp dport {FRONT} dnat ip to 192.0.2.67:9000"))
    rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    assert "ip daddr 192.0.2.67 tcp dport 9000" in rig.nft("list table inet gatewatch_kill")
    assert "192.0.2.67:9000/tcp" in rig.command("status")[1]["kills"][0]["services"]


@pytest.mark.lab
def test_connection_tracking_knows_what_no_readable_rule_says(rig: Rig) -> None:
    """By a named map, whose contents the rule does not show."""
    with Published(rig.lab):
        rig.nft(
            "table inet theirs { map m { type inet_service : ipv4_addr . inet_service; elements = { "
            f"{FRONT} : {V4} . {BACK} }}; }}; "
            "chain p { type nat hook prerouting priority dstnat; dnat ip to tcp dport map @m; }; }"
        )
        front = service_of(f"*:{FRONT}/tcp")
        with rig.connect(FRONT), rig.lab.inside("gateway"):
            assert dnat.behind(Nft(), [front], frozenset(own_addresses())) == {}
            (flow,) = conntrack.flows([front])
            assert (str(flow.asked), str(flow.served)) == (f"{GATEWAY.v4}:{FRONT}/tcp", f"{V4}:{BACK}/tcp")
            every = [front, service_of(f"{V4}:{BACK}/tcp")]  # the lab asked the server itself, and closes
            wait_for("the lab's own end", lambda: sum(f.open for f in conntrack.flows(every)) == 1)
            _, receipt = rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
        assert (receipt["connections_before"], receipt["connections_after"]) == (1, 0)
        assert f"{V4}:{BACK}/tcp" in rig.command("status")[1]["kills"][0]["services"]
        assert f"ip daddr {V4} tcp dport {BACK}" in rig.nft("list table inet gatewatch_kill")


@pytest.mark.lab
def test_the_way_for_management_is_not_cut_off_though_a_front_leads_there(rig: Rig) -> None:
    rig.nft(NAT.replace("RULE", f"tcp dport {FRONT} redirect to :22"))
    rig.nft(f"add rule inet theirs p tcp dport {FRONT} dnat ip to {GATEWAY.v4}:22")
    rig.command("engage", "--endpoint", "models", "--reason", "test", "--no-probe")
    assert "dport 22" not in rig.nft("list table inet gatewatch_kill")
