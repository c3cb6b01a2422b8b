"""`gatewatch config import`: what becomes of bans and ignore lists, and the command with a real fail2ban and enforcer."""

from __future__ import annotations

from ipaddress import collapse_addresses, ip_network
from typing import Any

import pytest
from gatewatch.config import imports
from gatewatch.config.imports import FOREVER_S, Found, pieces_of, plan
from gatewatch.daemon.enforcer.rails import PREFIXES, Limits, Rails
from hypothesis import given
from hypothesis import strategies as st

RAILS = Rails(management=(ip_network("192.0.2.0/24"),), never_block=(ip_network("203.0.113.70/32"),))

networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(12, 32)).map(lambda p: ip_network(p, strict=False)),
    st.tuples(st.integers(2**125, 2**126), st.integers(38, 128)).map(
        lambda p: ip_network((p[0].to_bytes(16, "big"), p[1]), strict=False)
    ),
)
limits = st.builds(
    Limits, smallest_prefix_ipv4=st.sampled_from([24, 32]), smallest_prefix_ipv6=st.sampled_from([48, 64])
)


@given(networks, limits)
def test_a_range_is_split_into_what_can_be_blocked_and_never_widened(network: Any, limits: Limits) -> None:
    pieces = list(pieces_of(network, RAILS._replace(limits=limits)))
    smallest = limits.smallest_prefix_ipv4 if network.version == 4 else limits.smallest_prefix_ipv6
    assert len(pieces) <= 256
    if pieces:
        assert list(collapse_addresses(pieces)) == [network]
        assert {p.prefixlen for p in pieces} <= set(PREFIXES[network.version])
        assert min(p.prefixlen for p in pieces) >= smallest
    else:
        wanted = min(p for p in PREFIXES[network.version] if p >= max(smallest, network.prefixlen))
        assert wanted - network.prefixlen > 8


def found_of(bans: dict[str, int], ignored: list[str]) -> Found:
    found = Found()
    for text, ttl_s in bans.items():
        found.ban(text, ttl_s, "ban")
    for text in ignored:
        found.ignore(text, "list")
    return found


def test_what_is_ignored_is_not_blocked_and_what_surrounds_it_waits_for_the_rails() -> None:
    found = found_of(
        {
            "198.51.100.7": 60,
            "198.51.100.0/24": 60,
            "203.0.113.70": 60,
            "203.0.113.0/24": 60,
            "2001:db8::/60": FOREVER_S,
            "10.0.0.0/8": 60,
        },
        [
            "198.51.100.7",
            "203.0.113.70",
            "0.0.0.0/0",
            "::/0",
            "0.0.0.0/1",
            "127.0.0.1/8",
            "fd00::/8",
            "198.51.100.7/32",
        ],
    )
    wanted = plan(found, RAILS)
    assert [str(i.network) for i in wanted.proposed] == ["fd00::/8", "198.51.100.7/32"]
    assert wanted.covered == 2
    assert wanted.permanent == 1
    assert [a for a, _ in wanted.blocks] == [
        "203.0.113.0/24",
        *map(str, ip_network("2001:db8::/60").subnets(new_prefix=64)),
    ]
    why = {r.value: r.why for r in found.remarks}
    assert why["198.51.100.7"] == why["203.0.113.70"] == "on the ignore list as well"
    assert why["198.51.100.0/24"] == "holds 198.51.100.7 of the ignore list, which the rails do not name yet"
    assert "too wide" in why["10.0.0.0/8"]
    assert {"0.0.0.0/0", "::/0", "0.0.0.0/1"} <= set(why)


@given(st.lists(networks, max_size=8), st.lists(networks, max_size=8))
def test_no_block_touches_what_is_ignored(bans: list[Any], ignored: list[Any]) -> None:
    found = found_of({str(n): 60 for n in bans}, [str(n) for n in ignored])
    wanted = plan(found, RAILS)
    for address, _ in wanted.blocks:
        block = ip_network(address)
        assert any(block.subnet_of(n) for n in bans if n.version == block.version)
        covered = [n for n, _ in RAILS.never()]
        mine = [n for n in ignored if not any(n.version == c.version and n.subnet_of(c) for c in covered)]
        assert not any(block.overlaps(n) for n in mine if n.version == block.version)
    for new in wanted.proposed:
        assert new.network in ignored


def test_remarks_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "MOST_REMARKS", 10)
    found = found_of(dict.fromkeys(map(str, range(25)), 60), [])
    assert (len(found.remarks), found.remarks_more) == (10, 15)
