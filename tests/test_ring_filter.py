"""The kernel's packet filter, run here instruction by instruction."""

from __future__ import annotations

import socket
import struct
from typing import Any

import numpy as np
import pytest
from bpf_machine import run
from gatewatch.daemon.collectors.bpf import SESSION_STARTS, assemble, packet_filter
from gatewatch.daemon.collectors.ring import PacketRing
from gatewatch.daemon.collectors.weights import passes_by_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_wire import LIMIT_S, ipv4_packet, ipv6_packet, tcp_segment, udp_datagram, wire, within

SNAPLEN = 432
ONE_IN = 64
PROGRAM = packet_filter(SNAPLEN, ONE_IN)
DRAWN, NOT_DRAWN = 0, 0xFFFF_FFFF
V4: dict[str, Any] = {"source": "192.0.2.1", "destination": "198.51.100.9"}
V6: dict[str, Any] = {"source": "2001:db8::1", "destination": "2001:db8::9"}
ACK, PSH, SYN, FIN, RST = 0x10, 0x08, 0x02, 0x01, 0x04
BULK = bytes(100)


def verdict(
    packet: bytes, *, luck: int = NOT_DRAWN, protocol: int = 0, pkttype: int = 0, hatype: int = 1
) -> int:
    protocol = protocol or {4: 0x0800, 6: 0x86DD}[packet[0] >> 4]
    return run(PROGRAM, packet, {"proto": protocol, "pkttype": pkttype, "hatype": hatype, "random": luck})


def both(protocol: int, payload: bytes) -> list[bytes]:
    return [ipv4_packet(protocol, payload, **V4), ipv6_packet(protocol, payload, **V6)]


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK])
def test_segments_that_open_or_close_pass(flags: int) -> None:
    assert [verdict(packet) for packet in both(6, tcp_segment(flags))] == [SNAPLEN] * 2


@pytest.mark.parametrize("start", [*SESSION_STARTS, b"\x16\x03\x01\x02", b"\x16\x03\x03\x00"])
@pytest.mark.parametrize("options", [b"", bytes(12), bytes(40)])
def test_payload_that_begins_a_session_passes_whatever_the_tcp_options(start: bytes, options: bytes) -> None:
    segment = tcp_segment(ACK | PSH, start + BULK, options)
    assert [verdict(packet) for packet in both(6, segment)] == [SNAPLEN] * 2


def test_ipv4_options_move_the_transport_header() -> None:
    plain = ipv4_packet(6, bytes(8) + tcp_segment(ACK, b"SSH-2.0"), **V4)
    assert verdict(bytes([0x47]) + plain[1:]) == SNAPLEN


@pytest.mark.parametrize("payload", [b"", b"SSH", BULK, b"\x17\x03\x03\x00", b"xGET /"])
def test_other_segments_pass_only_when_drawn(payload: bytes) -> None:
    for packet in both(6, tcp_segment(ACK, payload)):
        assert (verdict(packet), verdict(packet, luck=DRAWN)) == (0, SNAPLEN)


def test_one_in_n_is_drawn() -> None:
    packet = ipv4_packet(6, tcp_segment(ACK, BULK), **V4)
    least_unlucky = (1 << 32) // ONE_IN
    assert verdict(packet, luck=least_unlucky - 1) == SNAPLEN
    assert verdict(packet, luck=least_unlucky) == 0
    everything = packet_filter(SNAPLEN, 1)
    told = {"proto": 0x0800, "pkttype": 0, "hatype": 1, "random": NOT_DRAWN}
    assert run(everything, packet, told) == SNAPLEN


@pytest.mark.parametrize("ports", [(53, 4000), (4000, 53), (53, 443), (443, 53), (5000, 5001)])
def test_datagrams_pass(ports: tuple[int, int]) -> None:
    assert [verdict(packet) for packet in both(17, udp_datagram(BULK, ports))] == [SNAPLEN] * 2


@pytest.mark.parametrize("ports", [(443, 5000), (5000, 443)])
def test_of_quic_only_what_opens_a_session_passes(ports: tuple[int, int]) -> None:
    for opening in (b"\xc0" + BULK, b""):
        assert [verdict(packet) for packet in both(17, udp_datagram(opening, ports))] == [SNAPLEN] * 2
    for packet in both(17, udp_datagram(b"\x40" + BULK, ports)):
        assert (verdict(packet), verdict(packet, luck=DRAWN)) == (0, SNAPLEN)


def test_icmp_of_either_family_and_later_fragments_pass() -> None:
    assert verdict(ipv4_packet(1, bytes(8), **V4)) == SNAPLEN
    assert verdict(ipv6_packet(58, bytes(8), **V6)) == SNAPLEN
    assert verdict(ipv4_packet(6, BULK, fragment=100, **V4)) == SNAPLEN
    assert verdict(ipv4_packet(6, tcp_segment(ACK, BULK), fragment=0x2000, **V4)) == 0


@pytest.mark.parametrize("extension", [0, 43, 44, 51, 60, 135, 139, 140])
def test_ipv6_with_extension_headers_passes(extension: int) -> None:
    assert verdict(ipv6_packet(extension, BULK, **V6)) == SNAPLEN


@pytest.mark.parametrize("protocol", [0x0806, 0x88CC, 0x0004])
def test_what_is_not_ip_is_never_copied(protocol: int) -> None:
    assert verdict(bytes(60), luck=DRAWN, protocol=protocol) == 0


def test_on_loopback_the_copy_that_is_sent_is_left_out() -> None:
    packet = ipv4_packet(6, tcp_segment(SYN), **V4)
    assert verdict(packet, hatype=772, pkttype=4) == 0
    assert verdict(packet, hatype=772, pkttype=0) == SNAPLEN
    assert verdict(packet, hatype=1, pkttype=4) == SNAPLEN


@pytest.mark.parametrize("tag_type", [0x8100, 0x88A8])
def test_a_tag_inside_is_skipped(tag_type: int) -> None:
    for kind, packet in zip((0x0800, 0x86DD), both(6, tcp_segment(SYN)), strict=True):
        assert verdict(struct.pack("!HH", 0x4064, kind) + packet, protocol=tag_type) == SNAPLEN
        assert verdict(packet, protocol=tag_type) == SNAPLEN
    for kind, packet in zip((0x0800, 0x86DD), both(6, tcp_segment(ACK)), strict=True):
        assert verdict(struct.pack("!HH", 0x0064, kind) + packet, protocol=tag_type) == 0


@given(st.binary(max_size=200), st.sampled_from([0x0800, 0x86DD, 0x8100, 0x0806]))
def test_no_bytes_make_the_filter_fail(packet: bytes, protocol: int) -> None:
    assert verdict(packet, protocol=protocol, luck=DRAWN) in (0, SNAPLEN)


PORTS = st.tuples(st.sampled_from([53, 443, 80, 5000]), st.sampled_from([53, 443, 22, 6000]))
PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda start, rest: start + rest,
        st.sampled_from([*SESSION_STARTS, b"\x16\x03", b"SSH"]),
        st.binary(max_size=9),
    ),
)
TRANSPORTS = st.one_of(
    st.tuples(
        st.just(6),
        st.builds(
            tcp_segment, st.integers(0, 63), PAYLOADS, st.sampled_from([b"", bytes(12), bytes(40)]), PORTS
        ),
    ),
    st.tuples(st.just(17), st.builds(udp_datagram, PAYLOADS, PORTS)),
    st.tuples(st.integers(0, 255), st.binary(max_size=60)),
)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    protocol, transport = draw(TRANSPORTS)
    if draw(st.booleans()):
        whole = ipv6_packet(protocol, transport, **V6)
    else:
        words = draw(st.sampled_from([0, 0, 0, 1, 10]))
        fragment = draw(st.sampled_from([0, 0, 0, 0x2000, 0x4000, 0x2001]))
        whole = ipv4_packet(protocol, bytes(4 * words) + transport, fragment=fragment, **V4)
        whole = bytes([0x45 + words]) + whole[1:]
    at = draw(st.integers(0, len(whole) - 1))
    if draw(st.sampled_from([False, False, True])):
        whole = whole[:at] or whole
    elif at and draw(st.sampled_from([False, False, True])):
        whole = whole[:at] + draw(st.binary(min_size=1, max_size=1)) + whole[at + 1 :]
    return whole


@given(st.lists(packets(), min_size=1, max_size=20))
def test_the_weights_tell_exactly_what_the_filter_passed_by_rule(taken: list[bytes]) -> None:
    taken = [packet for packet in taken if verdict(packet, luck=DRAWN)]
    buffer = np.zeros((len(taken) + 1, 256), np.uint8)
    for row, packet in enumerate(taken):
        buffer[row, : len(packet)] = np.frombuffer(packet, np.uint8)
    lengths = np.array([len(packet) for packet in taken], np.uint32)
    starts = np.arange(len(taken), dtype=np.int64) * 256
    said = passes_by_rule(buffer, starts, lengths, lengths)
    assert said.tolist() == [verdict(packet, luck=NOT_DRAWN) != 0 for packet in taken]


@pytest.mark.lab
def test_the_kernel_passes_what_the_program_says() -> None:
    almost_nothing_drawn = (1 << 32) - 1
    with wire() as made:
        ring = within(made.near, lambda: PacketRing("near0", one_in=almost_nothing_drawn)).result(LIMIT_S)
        sender = within(made.far, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)).result(LIMIT_S)
        sender.bind(("far0", 0))

        @settings(max_examples=40, deadline=None)
        @given(st.lists(packets(), min_size=1, max_size=20))
        def compare(sent: list[bytes]) -> None:
            for packet in sent:
                kind = {4: 0x0800, 6: 0x86DD}[packet[0] >> 4]
                sender.send(b"\xff" * 6 + bytes(6) + struct.pack("!H", kind) + packet)
            frames = ring.take(ring.buffer.shape[0])
            flat = ring.buffer.reshape(-1)
            spans = zip(frames.starts.tolist(), frames.captured.tolist(), strict=True)
            came = [flat[start : start + length].tobytes() for start, length in spans]
            ring.release(len(came))
            expected = [packet for packet in sent if verdict(packet)]
            assert [packet for packet in came if packet in sent] == expected

        compare()
        sender.close()
        ring.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("jeq 1, nowhere\nret 0", "line 1.*nowhere"),
        ("back:\nld len\njmp back\nret 0", "line 3.*back"),
        ("jeq 1, far\n" + "ld len\n" * 256 + "far:\nret 0", "far"),
        ("fly 1\nret 0", "fly"),
        ("ld [nothing]\nret 0", "line 1"),
        ("", "instructions"),
    ],
)
def test_the_assembler_names_the_line_that_it_cannot_assemble(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        assemble(text)
