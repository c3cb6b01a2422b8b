"""Decoding of frames: every layer, what lies about its length, and bytes that are no frame at all."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from frames import decode_one, ethernet, ipv4, ipv6, tcp, udp, uncompiled
from gatewatch.daemon.collectors import decode as decoding
from gatewatch.daemon.collectors import decode_layers
from gatewatch.daemon.collectors.decode import (
    ARP,
    CUT_SHORT,
    FIRST_FRAGMENT,
    FRAGMENT,
    LINK_TYPES,
    MALFORMED,
    MOST_TUNNELS,
    PACKET,
    TUNNEL,
    TUNNEL_KINDS,
    TUNNELLED,
    decode,
)
from gatewatch.daemon.events import address_columns, address_text
from hypothesis import given, settings
from hypothesis import strategies as st

A, B, C, D = "192.0.2.1", "198.51.100.2", "10.0.0.3", "10.0.0.4"
A6, B6 = "2001:db8::1", "2001:db8:ffff::2"
SEGMENT = tcp(40000, 443, 0x18, b"hello", sequence=7, acknowledgement=9)
PACKET4 = ipv4(A, B, 6, SEGMENT)
PACKET6 = ipv6(A6, B6, 6, SEGMENT)
INNER = ipv4(C, D, 6, SEGMENT)


def summary(row: np.ndarray) -> tuple[str, str, int, int, int, int]:
    """(source, destination, ports, protocol, flags)."""
    (one,) = row
    family = int(one["family"])
    return (
        address_text(family, *one["source"].tolist()),
        address_text(family, *one["destination"].tolist()),
        int(one["source_port"]),
        int(one["destination_port"]),
        int(one["protocol"]),
        int(one["flags"]),
    )


def test_a_segment_gives_every_column() -> None:
    frame = ethernet(PACKET4, vlans=(7, 42)) + bytes(6)
    (row,) = decode_one(frame)
    assert row["time_ns"] == 1
    assert row["frame"] == 1
    assert (int(row["family"]), *row["source"].tolist()) == address_columns(A)
    assert (int(row["family"]), *row["destination"].tolist()) == address_columns(B)
    assert (row["sequence"], row["acknowledgement"], row["tcp_flags"]) == (7, 9, 0x18)
    assert (row["payload"], row["length"], row["weight"]) == (5, len(frame), 1)
    assert frame[row["payload_at"] : row["payload_at"] + row["payload"]] == b"hello"
    assert (row["source_port"], row["destination_port"], row["vlan"], row["protocol"]) == (40000, 443, 42, 6)
    assert row["flags"] == 0


@pytest.mark.parametrize(
    ("link_type", "head"),
    [
        (1, b"\x02" * 12 + b"\x08\x00"),
        (1, b"\x02" * 12 + b"\x00\x64\xaa\xaa\x03\0\0\0\x08\x00"),
        (1, b"\x02" * 12 + b"\x88\xa8\0\7\x81\0\0\x08\x08\0"),
        (1, b"\x02" * 12 + b"\x88\x47" + struct.pack("!II", 16 << 12, 17 << 12 | 1 << 8)),
        (1, b"\x02" * 12 + b"\x88\x64\x11\0\0\1\0\0\0\x21"),
        (0, b"\2\0\0\0"),
        (0, b"\0\0\0\2"),
        (108, b"\0\0\0\2"),
        (101, b""),
        (12, b""),
        (228, b""),
        (113, bytes(14) + b"\x08\0"),
        (276, b"\x08\0" + bytes(18)),
        (9, b"\xff\x03\0\x21"),
        (9, b"\x21"),
        (51, b"\x11\0\0\1\0\0\0\x21"),
    ],
)
def test_every_link_layer_leads_to_the_packet(link_type: int, head: bytes) -> None:
    assert summary(decode_one(head + PACKET4, link_type)) == (A, B, 40000, 443, 6, 0)


def gre(kind: int, payload: bytes, flags: int = 0, extra: bytes = b"") -> bytes:
    return struct.pack("!HH", flags, kind) + extra + payload


@pytest.mark.parametrize(
    ("kind", "packet"),
    [
        ("ip", ipv4(A, B, 4, INNER)),
        ("gre", ipv4(A, B, 47, gre(0x0800, INNER))),
        ("gre", ipv4(A, B, 47, gre(0x0800, INNER, 0xB000, bytes(12)))),
        ("gre", ipv4(A, B, 47, gre(0x6558, ethernet(INNER, vlans=(3,))))),
        ("erspan", ipv4(A, B, 47, gre(0x88BE, bytes(8) + ethernet(INNER), 0x1000, bytes(4)))),
        ("erspan", ipv4(A, B, 47, gre(0x88BE, ethernet(INNER)))),
        ("erspan", ipv4(A, B, 47, gre(0x22EB, bytes(12) + ethernet(INNER), 0x1000, bytes(4)))),
        (
            "erspan",
            ipv4(A, B, 47, gre(0x22EB, bytes(11) + b"\1" + bytes(8) + ethernet(INNER), 0x1000, bytes(4))),
        ),
        ("vxlan", ipv4(A, B, 17, udp(5, 4789, b"\x08\0\0\0\0\0\7\0" + ethernet(INNER)))),
        ("vxlan", ipv4(A, B, 17, udp(5, 4790, b"\x0c\0\0\1\0\0\7\0" + INNER))),
        ("geneve", ipv4(A, B, 17, udp(5, 6081, b"\1\0\x65\x58\0\0\7\0" + bytes(4) + ethernet(INNER)))),
        ("geneve", ipv4(A, B, 17, udp(5, 6081, b"\0\0\x08\0\0\0\7\0" + INNER))),
    ],
)
def test_the_innermost_addresses_of_a_tunnel_win_and_the_outer_ones_are_kept(
    kind: str, packet: bytes
) -> None:
    tunnels = np.zeros((1, MOST_TUNNELS), TUNNEL)
    row = decode_one(ethernet(packet), tunnels=tunnels)
    assert summary(row) == (C, D, 40000, 443, 6, TUNNELLED)
    assert row["payload"][0] == 5
    assert TUNNEL_KINDS[tunnels[0, 0]["kind"]] == kind
    assert address_text(4, *tunnels[0, 0]["source"].tolist()) == A
    assert tunnels[0, 1]["kind"] == 0


@pytest.mark.parametrize("prefix", [b"", b"\0\1\0\0" + bytes(9), b"\0\0" + bytes(6), b"\0\1\0\0" + bytes(17)])
def test_teredo_is_followed_past_its_indications(prefix: bytes) -> None:
    row = decode_one(ethernet(ipv4(A, B, 17, udp(3544, 5, prefix + PACKET6))))
    assert summary(row) == (A6, B6, 40000, 443, 6, TUNNELLED)


@pytest.mark.parametrize("port", [4789, 4790, 6081, 3544])
@pytest.mark.parametrize(
    "payload", [b"", b"x", b"\x08", b"hello, this is no tunnel at all, only bytes", b"\0" * 70]
)
def test_what_only_goes_to_a_tunnels_port_stays_udp(port: int, payload: bytes) -> None:
    row = decode_one(ethernet(ipv4(A, B, 17, udp(5, port, payload))))
    assert summary(row)[:5] == (A, B, 5, port, 17)


@pytest.mark.parametrize(
    "chain",
    [
        [(0, bytes(6))],
        [(60, bytes(14)[:6]), (43, b"\0" * 6), (60, b"\0" * 6)],
        [(0, bytes(6)), (135, bytes(6))],
    ],
)
def test_extension_headers_are_walked(chain: list[tuple[int, bytes]]) -> None:
    following, payload = 6, SEGMENT
    for kind, body in reversed(chain):
        payload = struct.pack("!BB", following, (len(body) + 2) // 8 - 1) + body + payload
        following = kind
    assert summary(decode_one(ethernet(ipv6(A6, B6, following, payload), 0x86DD))) == (
        A6,
        B6,
        40000,
        443,
        6,
        0,
    )


def test_an_authentication_header_is_passed_in_both_families() -> None:
    header = struct.pack("!BBHII", 6, 4, 0, 1, 1) + bytes(12)
    assert summary(decode_one(ethernet(ipv4(A, B, 51, header + SEGMENT))))[2:5] == (40000, 443, 6)
    assert summary(decode_one(ethernet(ipv6(A6, B6, 51, header + SEGMENT), 0x86DD)))[2:5] == (40000, 443, 6)


@pytest.mark.parametrize("fragment", [1, 0x2000 | 5])
def test_later_fragments_have_no_ports(fragment: int) -> None:
    row = decode_one(ethernet(ipv4(A, B, 6, SEGMENT, fragment=fragment)))
    assert summary(row) == (A, B, 0, 0, 6, FRAGMENT)
    header = struct.pack("!BBHI", 6, 0, (fragment & 0x1FFF) << 3, 1)
    row = decode_one(ethernet(ipv6(A6, B6, 44, header + SEGMENT), 0x86DD))
    assert summary(row) == (A6, B6, 0, 0, 6, FRAGMENT)


def test_a_first_fragment_has_ports_and_is_not_malformed_though_its_length_tells_of_the_rest() -> None:
    row = decode_one(ethernet(ipv4(A, B, 17, udp(5, 53, bytes(16), length=3000), fragment=0x2000)))
    assert summary(row) == (A, B, 5, 53, 17, FIRST_FRAGMENT)
    row = decode_one(ethernet(ipv4(A, B, 6, SEGMENT[:8], fragment=0x2000)))
    assert summary(row) == (A, B, 40000, 443, 6, FIRST_FRAGMENT)


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(A, B, 6, SEGMENT, total=len(PACKET4) + 1),
        ipv4(A, B, 6, SEGMENT, total=19),
        ipv4(A, B, 6, SEGMENT[:19]),
        ipv4(A, B, 6, tcp(1, 2, 2, offset=4)),
        ipv4(A, B, 6, tcp(1, 2, 2, offset=6)),
        ipv4(A, B, 6, SEGMENT, options=b"\x07\x00\0\0"),
        ipv4(A, B, 6, SEGMENT, options=b"\x01\x01\x07\x09"),
        ipv4(A, B, 17, udp(1, 2, b"x", length=7)),
        ipv4(A, B, 17, udp(1, 2, b"x", length=10)),
        b"\x44" + PACKET4[1:],
        b"\x65" + PACKET4[1:],
        PACKET4[:19],
    ],
)
def test_a_frame_that_contradicts_itself_is_flagged(packet: bytes) -> None:
    assert decode_one(ethernet(packet))["flags"][0] & MALFORMED


@pytest.mark.parametrize("captured", range(60))
def test_what_the_capture_cut_off_is_no_contradiction(captured: int) -> None:
    frame = ethernet(PACKET4)
    row = decode_one(frame[:captured], wire=len(frame))
    assert row["flags"][0] == (CUT_SHORT if captured < len(frame) else 0)
    assert row["payload"][0] == (5 if captured >= 54 else 0)
    assert row["payload_at"][0] == (54 if captured > 54 else 0)


def test_arp_has_no_addresses_and_says_so() -> None:
    body = b"\0\1\x08\0\6\4\0\1" + bytes(20)
    assert summary(decode_one(ethernet(body, 0x0806))) == ("", "", 0, 0, ARP, 0)
    assert decode_one(ethernet(body[:20], 0x0806))["flags"][0] & MALFORMED


def test_a_length_of_zero_stands_for_what_the_card_cuts_later() -> None:
    row = decode_one(ethernet(ipv4(A, B, 6, SEGMENT + bytes(70000), total=0)))
    assert summary(row) == (A, B, 40000, 443, 6, 0)
    assert row["payload"][0] == 70005


def test_layers_are_followed_to_a_bound() -> None:
    packet = INNER
    for _ in range(30):
        packet = ipv4(A, B, 4, packet)
    tunnels = np.zeros((1, MOST_TUNNELS), TUNNEL)
    row = decode_one(ethernet(packet), tunnels=tunnels)
    assert row["flags"][0] == MALFORMED | TUNNELLED
    assert (tunnels["kind"] == 1).all()
    many = b"\x02" * 12 + b"\x81\0\0\1" * 200 + b"\x08\0" + PACKET4
    assert decode_one(many)["flags"][0] & MALFORMED


def test_a_ring_is_decoded_as_it_lies() -> None:
    ring = np.zeros((3, 256), np.uint8)
    frame = ethernet(PACKET4)
    ring[:, 66 : 66 + len(frame)] = np.frombuffer(frame, np.uint8)
    sizes = np.full(3, len(frame), np.uint32)
    rows = decode(ring, np.arange(3) * 256 + 66, sizes, sizes, np.zeros(3, np.int64), 0, 1)
    assert rows["source_port"].tolist() == [40000] * 3
    assert rows["frame"].tolist() == [0] * 3


def test_columns_that_do_not_fit_are_refused() -> None:
    one, none = np.ones(1, np.uint32), np.zeros(0, np.uint32)
    buffer, zero = np.zeros(4, np.uint8), np.zeros(1, np.int64)
    for arguments in [
        (buffer, zero, none, one, zero, 1, 1),
        (buffer, zero + 4, one, one, zero, 1, 1),
        (buffer, zero - 1, one, one, zero, 1, 1),
        (buffer, zero, one, one, zero, 1, 1, np.zeros((1, 2), TUNNEL)),
    ]:
        with pytest.raises(ValueError):
            decode(*arguments)
    assert len(decode(buffer, zero[:0], none, none, zero[:0], 1, 1)) == 0


def loose4(protocol: int, options: bytes = b"", fragment: int = 0) -> bytes:
    return ipv4(A, B, protocol, b"", total=0, options=options, fragment=fragment)


MACS = b"\x02" * 12
KINDS = {4: "v4", 41: "v6", 6: "tcp", 17: "udp", 47: "gre", 51: "ah", 1: "any", 58: "any", 132: "any"}
TYPES = {
    b"\x08\0": "v4", b"\x86\xdd": "v6", b"\x81\0": "tag", b"\x88\x47": "mpls", b"\x88\x64": "pppoe",
    b"\x08\x06": "any", b"\0\x40": "snap", b"\x65\x58": "link",
}  # fmt: skip
GRAMMAR: dict[str, list[tuple[bytes, str]]] = {
    "link": [(MACS + kind, then) for kind, then in TYPES.items()],
    "tag": [(b"\0\7" + kind, then) for kind, then in TYPES.items()],
    "snap": [(b"\xaa\xaa\3\0\0\0" + kind, then) for kind, then in TYPES.items()],
    "mpls": [(bytes(4), "mpls"), (b"\0\0\1\0", "v4"), (b"\0\0\1\0", "v6"), (b"\0\0\1\0\0\0\0\0", "link")],
    "pppoe": [(b"\x11\0\0\1\0\0", "ppp")],
    "ppp": [(b"\0\x21", "v4"), (b"\x21", "v4"), (b"\xff\3\0\x57", "v6"), (b"\xff\3\x57", "v6")],
    "v4": [(loose4(n), then) for n, then in KINDS.items()]
    + [(loose4(n, b"\1\7\3\0"), then) for n, then in KINDS.items()]
    + [
        (loose4(17, fragment=0x2000), "udp"),
        (loose4(6, fragment=0x2000), "tcp"),
        (loose4(6, b"\x82\2\7\2"), "any"),
    ],
    "v6": [(ipv6(A6, B6, n, b""), then) for n, then in KINDS.items()]
    + [(ipv6(A6, B6, n, b""), f"ext{n}") for n in (0, 43, 44, 60, 135)],
    "ah": [
        (struct.pack("!BB", n, size) + bytes(4 * size + 6), then)
        for n, then in KINDS.items()
        for size in (1, 4)
    ],
    "udp": [
        (udp(1, port, b"", length=0), then)
        for port, then in [(4789, "vxlan"), (4790, "gpe"), (6081, "geneve"), (3544, "teredo"), (53, "any")]
    ],
    "tcp": [(tcp(1, 2, 18), "any"), (tcp(1, 2, 18, offset=15), "any"), (tcp(1, 2, 18, offset=4), "any")],
    "vxlan": [(b"\x08" + bytes(7), "link")],
    "gpe": [(b"\x0c\0\0" + bytes([n]) + bytes(4), then) for n, then in [(1, "v4"), (2, "v6"), (3, "link")]],
    "geneve": [(b"\0\0" + kind + bytes(4), then) for kind, then in TYPES.items()]
    + [(b"\2\0" + kind + bytes(12), then) for kind, then in TYPES.items()],
    "teredo": [(b"", "v6"), (b"\0\1\1\2" + bytes(12), "teredo"), (bytes(8), "teredo")],
    "gre": [
        (struct.pack("!H", flags) + kind + bytes(4 * (flags & 0xF000).bit_count()), then)
        for flags in (0, 0x1000, 0x2000, 0x8000, 0xB000, 0x3081)
        for kind, then in [
            *TYPES.items(),
            (b"\x88\xbe", "erspan"),
            (b"\x22\xeb", "erspan3"),
            (b"\x88\x0b", "ppp"),
        ]
    ]
    + [(b"\x40\0\x08\0" + bytes(4) + b"\0\0\0\4" + bytes(4), "routes")],
    "routes": [(b"\0\0\0\4" + bytes(4), "routes"), (bytes(4), "v4")],
    "erspan": [(b"", "link"), (bytes(8), "link")],
    "erspan3": [(bytes(12), "link"), (bytes(11) + b"\1" + bytes(8), "link")],
    "any": [(b"", "any")],
}
for _n in (0, 43, 60, 135):
    GRAMMAR[f"ext{_n}"] = [
        (bytes([n, size]) + bytes(6 + 8 * size), then) for n, then in KINDS.items() for size in (0, 2)
    ]
    GRAMMAR[f"ext{_n}"] += [(bytes([n, 0]) + bytes(6), f"ext{n}") for n in (0, 43, 44, 60, 135)]
GRAMMAR["ext44"] = [
    (bytes([n, 0, 0, more]) + bytes(4), then) for n, then in KINDS.items() for more in (0, 1, 8)
]


def grow(made: np.random.Generator) -> bytes:
    """Layers that follow each other as they may."""
    frame, state = bytearray(), "link"
    for _ in range(int(made.integers(1, 9))):
        part, state = GRAMMAR[state][int(made.integers(len(GRAMMAR[state])))]
        frame += part
    return bytes(frame + made.bytes(int(made.integers(0, 50))))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Grown frames of which some bytes are changed and some cut off; or any bytes."""
    made = np.random.default_rng(draw(st.integers(0, 2**40)))
    if made.random() < 0.05:
        return draw(st.binary(max_size=200))
    frame = bytearray(grow(made))
    for _ in range(int(made.integers(1, 5))):
        frame[int(made.integers(len(frame)))] = int(made.integers(256))
    return bytes(frame[: int(made.integers(len(frame) + 1))])


CHECKED = uncompiled(decode_layers)
SAID_BY_BYTES = [n for n in PACKET.names or () if n not in ("time_ns", "frame", "length", "weight")]


def assert_alike(frame: bytes, link_type: int, wire: int) -> None:
    """Both loops say the same of a frame; the uncompiled one checks every index against the frame's own bytes."""
    tunnels = np.zeros((1, MOST_TUNNELS), TUNNEL)
    row = decode_one(frame, link_type, wire, tunnels)
    assert row["payload_at"][0] <= len(frame)
    again, outer = np.zeros(1, PACKET), np.zeros(MOST_TUNNELS, TUNNEL)
    sizes = np.array([len(frame)], np.uint32), np.array([wire], np.uint32)
    CHECKED.run(
        memoryview(frame), memoryview(np.zeros(1, np.int64)), *map(memoryview, sizes),
        memoryview(np.array([link_type], np.uint16)), again, outer, MOST_TUNNELS,
    )  # fmt: skip
    assert again[SAID_BY_BYTES] == row[SAID_BY_BYTES]
    assert outer.tobytes() == tunnels.tobytes()


@settings(max_examples=1000, deadline=None)
@given(
    frames(),
    st.sampled_from([1] * 30 + [*sorted(LINK_TYPES), 147]),
    st.one_of(st.just(0), st.integers(0, 2**32 - 1 - 600)),
)
def test_any_bytes_give_a_row_and_no_byte_outside_of_them_is_read(
    frame: bytes, link_type: int, more: int
) -> None:
    assert_alike(frame, link_type, len(frame) + more)


def test_a_frame_may_end_anywhere_or_be_cut_anywhere() -> None:
    made = np.random.default_rng(1)
    for _ in range(400):
        frame = grow(made)
        for size in range(len(frame) + 1):
            assert_alike(frame[:size], 1, size)
            assert_alike(frame[:size], 1, len(frame))


def test_the_names_of_the_flags_are_those_of_the_loop() -> None:
    names = ("MALFORMED", "FRAGMENT", "TUNNELLED", "CUT_SHORT", "FIRST_FRAGMENT", "ARP")
    assert [getattr(decoding, n) for n in names] == [getattr(CHECKED, n) for n in names]
    kinds = ("DIRECT", "IP_IN_IP", "GRE", "ERSPAN", "VXLAN", "GENEVE", "TEREDO")
    assert [getattr(CHECKED, n) for n in kinds] == list(range(len(TUNNEL_KINDS)))
