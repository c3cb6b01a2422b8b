"""Elements of nftables' sets by our own messages: in a real kernel, in the namespace of the lab's gateway."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from gatewatch.daemon.enforcer.authority import Authority
from gatewatch.daemon.enforcer.callers import Caller
from gatewatch.daemon.enforcer.journal import Journal
from gatewatch.daemon.enforcer.kernel import blocktable, conntrack
from gatewatch.daemon.enforcer.kernel.elements import Elements, MissingError, read
from gatewatch.daemon.enforcer.kernel.monitor import Monitor
from gatewatch.daemon.enforcer.kernel.netlink import REQUEST, Netlink, attribute
from gatewatch.daemon.enforcer.kernel.nft import Nft
from gatewatch.daemon.enforcer.rails import PREFIXES, Network, Rails, address_text, parse
from gatewatch.daemon.enforcer.state import clocks
from gatewatch.daemon.errors import EnforcerError
from hypothesis import given
from hypothesis import strategies as st
from lab.lab import Lab

TABLE = blocktable.TABLE
ONE, OTHER = ip_network("198.18.0.1/32"), ip_network("198.18.0.2/32")
WIDE, SIX = ip_network("198.18.1.0/24"), ip_network("2001:db8:5::/48")
NEVER = [ip_network("203.0.113.70/32"), ip_network("192.0.2.0/24"), ip_network("2001:db8::1/128")]


@pytest.fixture
def nft(bare: Lab) -> Iterator[Nft]:
    """With the table in force and nothing blocked; this thread is on the gateway."""
    with bare.inside("gateway"):
        nft = Nft()
        blocktable.replace(nft, NEVER, Rails(), [])
        yield nft
        nft.run("flush ruleset")


def blocked(nft: Nft) -> frozenset[str]:
    there = blocktable.held(nft)
    assert there is not None
    return there.blocked


def timeout_ms(nft: Nft, network: Network) -> int:
    return dict(nft.elements.dump(TABLE, blocktable.name_of(network)))[network.network_address.packed]


@pytest.mark.lab
@pytest.mark.parametrize(
    "network", [ONE, WIDE, SIX, ip_network("2001:db8::7/128"), ip_network("::7:0:0/128")]
)
def test_a_block_lasts_as_long_as_was_said_last(nft: Nft, network: Network) -> None:
    for seconds in (600, 1200, 60):
        blocktable.add(nft, network, seconds)
        assert seconds - 30 < timeout_ms(nft, network) / 1000 <= seconds
        assert blocked(nft) == {address_text(network)}


@pytest.mark.lab
def test_ending_a_block_that_is_not_there_is_no_error_and_ends_no_other(nft: Nft) -> None:
    blocktable.add_many(nft, [(ONE, 60), (OTHER, 60)])
    for _ in range(2):
        blocktable.remove(nft, ONE)
        assert blocked(nft) == {address_text(OTHER)}


@pytest.mark.lab
def test_many_come_in_one_transaction_or_none(nft: Nft) -> None:
    many = [(ip_network(f"198.18.{n >> 8}.{n & 255}/32"), 600.0) for n in range(4000)]
    blocktable.add_many(nft, [*many, (WIDE, 600), (SIX, 600)])
    assert blocked(nft) == {address_text(n) for n, _ in many} | {address_text(WIDE), address_text(SIX)}
    with pytest.raises(EnforcerError, match="Invalid argument"):
        nft.elements.put(
            TABLE, {"block4_24": {b"\xc6\x33\x64\0": 1000}, "block4_32": {b"wrong length": 1000}}
        )
    assert "198.51.100.0/24" not in blocked(nft)
    blocktable.add_many(nft, [])


@pytest.mark.lab
def test_where_the_table_is_gone_that_is_said_and_the_next_one_succeeds(nft: Nft) -> None:
    nft.run(f"delete table inet {TABLE}")
    assert blocktable.held(nft) is None
    for change in (lambda: blocktable.add(nft, ONE, 60), lambda: blocktable.remove(nft, ONE)):
        with pytest.raises(MissingError, match=f"table inet {TABLE}: No such file"):
            change()
    blocktable.replace(nft, NEVER, Rails(), [])
    blocktable.add(nft, ONE, 60)
    assert blocked(nft) == {address_text(ONE)}


@pytest.mark.lab
def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(nft: Nft) -> None:
    netlink = nft.elements._netlink
    wrong = attribute(1, b"nowhere\0") + attribute(2, b"nothing\0")
    for _ in range(3):
        netlink._send([((10 << 8) | 13, REQUEST, struct.pack("!BBH", 1, 0, 0) + wrong)])  # NFT_MSG_GETSETELEM
    blocktable.add(nft, ONE, 60)
    netlink._send([((10 << 8) | 13, REQUEST, struct.pack("!BBH", 1, 0, 0) + wrong)])
    assert blocked(nft) == {address_text(ONE)}


@pytest.mark.lab
def test_without_privilege_it_says_so(bare: Lab) -> None:
    program = (
        "import os; from gatewatch.daemon.enforcer.kernel.elements import Elements; os.setresuid(65534, 65534, 65534); "
        f"Elements().put({TABLE!r}, {{'block4_32': {{bytes(4): 1000}}}})"
    )
    done = bare.run_in("gateway", [sys.executable, "-c", program], check=False)
    assert "Operation not permitted; run as root" in done.stderr


@pytest.mark.lab
def test_elements_of_any_kind_are_read(nft: Nft) -> None:
    place = f"add element inet {TABLE} block4_32"
    nft.run(f'{place} {{ 198.18.0.1 comment "without an end", 198.18.0.2 timeout 60s comment "x" }}')
    nft.run(f"{place} {{ 198.18.0.3 }}; {place} {{ 198.18.0.4 timeout 60s }}")
    found = {str(ip_address(k)): ms for k, ms in nft.elements.dump(TABLE, "block4_32")}
    assert found.keys() == {f"198.18.0.{n}" for n in (1, 2, 3, 4)}
    assert [found[f"198.18.0.{n}"] > 0 for n in (1, 2, 3, 4)] == [False, True, False, True]
    assert nft.elements.dump(TABLE, "block6_48") == []


@pytest.mark.lab
def test_the_monitor_knows_our_changes_from_those_of_others(nft: Nft, bare: Lab) -> None:
    monitor = Monitor()
    blocktable.add(nft, ONE, 60)
    blocktable.add(nft, ONE, 90)
    blocktable.remove(nft, ONE)
    assert not monitor.changed_by_others()
    bare.run_in("gateway", ["nft", f"add element inet {TABLE} block4_32 {{ {ONE.network_address} }}"])
    assert monitor.changed_by_others()


@pytest.mark.lab
@pytest.mark.parametrize(
    "change",
    [
        f"add element inet {TABLE} never4 {{ 198.18.0.1 }}",
        f"delete element inet {TABLE} never6 {{ 2001:db8::1 }}",
        f"flush set inet {TABLE} never4",
        f"insert rule inet {TABLE} from_source accept",
        f"flush chain inet {TABLE} to_source",
        f"add chain inet {TABLE} more",
        f"add set inet {TABLE} more {{ type ipv4_addr; }}",
        f"add counter inet {TABLE} more",
        f"add table inet {TABLE} {{ flags dormant; }}",
        f"add chain inet {TABLE} from_source {{ policy drop; }}",
    ],
)
def test_whatever_changes_the_tables_shape_shows(nft: Nft, change: str) -> None:
    before = blocktable.held(nft)
    nft.run(change)
    after = blocktable.held(nft)
    assert before and after
    assert after.shape != before.shape


@pytest.mark.lab
def test_a_table_with_flags_is_not_listed_by_a_library_that_breaks_on_it(nft: Nft) -> None:
    nft.run("add table ip theirs; add chain ip theirs c; add table inet ours; add chain inet ours c")
    assert nft.ruleset() and nft.table("ours")
    assert nft.elements.flagged() == set()
    nft.run("add table inet ours { flags dormant; }; add table ip theirs { flags dormant; }")
    assert nft.elements.flagged() == {(2, "theirs"), (1, "ours")}
    for _ in range(200):
        assert nft.ruleset() == [] == nft.table("ours")
    assert nft.table("nowhere") is None
    assert nft.table(TABLE)


@pytest.mark.lab
def test_the_order_of_the_rules_belongs_to_the_shape(nft: Nft, bare: Lab) -> None:
    before = blocktable.held(nft)
    listed = bare.run_in("gateway", ["nft", "-a", "list", "chain", "inet", TABLE, "from_source"]).stdout
    rule, handle = re.findall(r"(ip saddr @never4 accept) # handle (\d+)", listed)[0]
    nft.run(f"delete rule inet {TABLE} from_source handle {handle}; add rule inet {TABLE} from_source {rule}")
    after = blocktable.held(nft)
    assert before and after
    assert after.shape != before.shape


@pytest.mark.lab
def test_blocks_and_tables_of_others_do_not_belong_to_the_shape(nft: Nft) -> None:
    before = blocktable.held(nft)
    blocktable.add(nft, ONE, 60)
    nft.run(
        "add table inet theirs; add chain inet theirs from_source; add rule inet theirs from_source accept"
    )
    nft.run(f"add table ip {TABLE}; add set ip {TABLE} block4_32 {{ type ipv4_addr; }}")
    after = blocktable.held(nft)
    assert before and after
    assert after.shape == before.shape
    assert after.blocked == {address_text(ONE)}


@pytest.mark.lab
def test_what_others_add_and_delete_among_the_blocks_shows(nft: Nft) -> None:
    blocktable.add_many(nft, [(ONE, 60), (SIX, 60)])
    nft.run(f"add element inet {TABLE} block4_32 {{ {OTHER.network_address} }}")
    nft.run(f"delete element inet {TABLE} block6_48 {{ {SIX.network_address} }}")
    assert blocked(nft) == {address_text(ONE), address_text(OTHER)}


@pytest.fixture
def authority(nft: Nft, tmp_path: Path) -> Iterator[Authority]:
    now = clocks()
    journal = Journal(str(tmp_path), now)
    authority = Authority(journal, nft, now)
    authority.use(parse('management = ["192.0.2.130/32"]'))
    authority.restore()
    yield authority
    journal.close()


def ask(authority: Authority, request: str, **fields: object) -> None:
    answer = authority.handle({"request": request, "reason": "test", **fields}, Caller("operator", 0, 1))
    assert isinstance(answer, dict) and answer["ok"], answer


@pytest.mark.lab
def test_a_block_brings_back_a_table_that_was_taken_away_this_moment(nft: Nft, authority: Authority) -> None:
    ask(authority, "block", address="198.18.0.1")
    changes: list[tuple[str, dict[str, object], set[str]]] = [
        ("block", {"address": "198.18.0.2"}, {"198.18.0.1", "198.18.0.2"}),
        ("unblock", {"address": "198.18.0.2"}, {"198.18.0.1"}),
        ("import", {"blocks": [["198.18.1.0/24", 60]]}, {"198.18.0.1", "198.18.1.0/24"}),
    ]
    for request, fields, left in changes:
        nft.run(f"delete table inet {TABLE}")
        ask(authority, request, **fields)
        assert blocked(nft) == left


@pytest.mark.lab
def test_a_block_that_was_passed_over_once_is_not_missing_and_twice_it_is(
    nft: Nft, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(authority, "block", address="198.18.0.1")
    right = blocktable.held(nft)
    assert right
    seen = [right._replace(blocked=frozenset()), right]
    monkeypatch.setattr(blocktable, "held", lambda nft: seen.pop(0))
    assert authority.heal() == []
    seen += [right._replace(blocked=frozenset())] * 2
    assert authority.heal() == ["1 blocks were missing and 0 foreign in the kernel"]


@pytest.mark.lab
@pytest.mark.parametrize("most_read", [20_000, 0])
def test_connection_tracking_forgets_many_networks_at_once_and_spares_others(
    bare: Lab, most_read: int
) -> None:
    sources = [
        "198.18.0.1",
        "198.18.0.2",
        "198.18.0.3",
        "198.18.1.1",
        "198.18.1.2",
        "2001:db8:5::1",
        "2001:db8:6::1",
    ]
    for source in sources:
        far = "2001:db8::1" if ":" in source else "192.0.2.2"
        ends = ["-s", source, "-d", far, "--sport", "1", "--dport", "2"]
        bare.run_in("gateway", ["conntrack", "-I", "-p", "udp", "-t", "600", *ends])
    with bare.inside("gateway"):
        gone = conntrack.forget_networks(
            [ONE, OTHER, WIDE, SIX], [ip_network("198.18.1.2/31"), OTHER], most_read
        )
        left = set(re.findall(r"src=(\S+) dst=(?:192.0.2.2|2001:db8::1) ", conntrack_list(bare)))
        if most_read:
            assert (gone, left) == (3, {"198.18.0.2", "198.18.0.3", "198.18.1.2", "2001:db8:6::1"})
        else:
            assert (gone, left) == (1, set(sources) - {"198.18.0.1"}), (
                "in a large table, single addresses alone"
            )
        assert conntrack.forget_networks([]) == 0
    bare.run_in("gateway", ["conntrack", "-F"])


def conntrack_list(lab: Lab) -> str:
    return "".join(lab.run_in("gateway", ["conntrack", "-L", "-f", f]).stdout for f in ("ipv4", "ipv6"))


def element(key: bytes, remains_ms: int, order: tuple[int, ...] = (1, 4, 5)) -> bytes:
    """As the kernel lists one (NFTA_SET_ELEM_KEY, _TIMEOUT, _EXPIRATION), in any order and with any of them."""
    parts = {
        1: attribute(1, attribute(1, key)),
        4: attribute(4, struct.pack("!Q", 3_600_000)),
        5: attribute(5, struct.pack("!Q", remains_ms)),
        6: attribute(6, b"a comment"),
    }
    return attribute(1, b"".join(parts[kind] for kind in order))


@given(
    st.lists(
        st.tuples(
            st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
            st.integers(1, 2**63),
            st.sampled_from([(1, 4, 5), (1, 5, 4), (4, 5, 1), (1, 4, 5, 6), (6, 1, 5)]),
        )
    )
)
def test_the_layout_of_an_element_does_not_matter(wanted: list[tuple[bytes, int, tuple[int, ...]]]) -> None:
    data = b"".join(element(key, ms, order) for key, ms, order in wanted)
    assert list(read(data)) == [(key, ms) for key, ms, _ in wanted]


@given(st.binary(max_size=200), st.lists(st.integers(0, 40), max_size=3))
def test_no_list_of_elements_is_too_strange_to_be_read(noise: bytes, cut: list[int]) -> None:
    list(read(noise))
    data = bytearray(element(b"abcd", 7) * 3)
    for at in cut:
        data[at : at + 1] = noise[:1]
    list(read(bytes(data)))


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16), st.integers(0, 16))
def test_a_block_is_called_the_same_from_the_kernel_and_from_the_journal(
    four: bytes, six: bytes, zeros: int
) -> None:
    six = bytes(zeros) + six[zeros:]
    for version, lengths in PREFIXES.items():
        address = IPv4Address(four) if version == 4 else IPv6Address(six)
        for length in lengths:
            network = ip_network((address, length), strict=False)
            key = network.network_address.packed
            assert list(blocktable.texts(version, length, [key])) == [address_text(network)]


def test_a_kernel_that_does_not_answer_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> int:
        raise TimeoutError("timed out")

    elements = Elements()
    monkeypatch.setattr(Netlink, "together", silent)
    with pytest.raises(EnforcerError, match="the kernel did not answer"):
        elements.remove(TABLE, "block4_32", bytes(4))
