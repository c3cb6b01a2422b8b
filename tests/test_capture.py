"""Stored captures: both formats in every byte order and resolution, whole, compressed, cut short or made up."""

from __future__ import annotations

import gzip
import os
import struct
import threading
from pathlib import Path

import pytest
from frames import block, enhanced, ethernet, interface, ipv4, pcap, section, udp
from gatewatch.daemon.collectors.capture import Capture, is_capture, parse_rows
from gatewatch.daemon.errors import InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FRAME = ethernet(ipv4("192.0.2.1", "198.51.100.2", 17, udp(40000, 53, b"hello")))


def written(folder: Path, content: bytes, name: str = "capture") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def times(path: Path) -> list[int]:
    with Capture(path) as capture:
        return [t for batch in capture.batches(3) for t in batch.packets["time_ns"].tolist()]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("magic", "extra", "fraction", "tick"),
    [(0xA1B2C3D4, b"", 999_999, 1000), (0xA1B23C4D, b"", 999_999_999, 1), (0xA1B2CD34, bytes(8), 7, 1000)],
)
def test_every_kind_of_pcap_gives_its_times_to_the_nanosecond(
    tmp_path: Path, order: str, magic: int, extra: bytes, fraction: int, tick: int
) -> None:
    path = written(tmp_path, pcap([FRAME] * 7, order=order, magic=magic, fraction=fraction, extra=extra))
    assert times(path) == [second * 10**9 + fraction * tick for second in range(7)]
    assert [row["source_port"] for row in parse_rows(path)] == [40000] * 7


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "ticks", "expected"),
    [
        (b"\x06", 1_700_000_000_123_456, 1_700_000_000_123_456_000),
        (b"\x09", 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (b"\x00", 1_700_000_000, 1_700_000_000_000_000_000),
        (b"\x0c", 17_000_123_456_789_012_345, 17_000_123_456_789_012),
        (b"\x94", 3 << 20 | 1 << 19, 3_500_000_000),
        (b"\xa8", 5 << 40 | 1 << 38, 5_250_000_000),
    ],
)
def test_every_resolution_of_pcapng_is_understood(
    tmp_path: Path, order: str, resolution: bytes, ticks: int, expected: int
) -> None:
    content = section(order) + interface(1, order, [(9, resolution)]) + enhanced(FRAME, ticks, 0, order)
    assert times(written(tmp_path, content)) == [expected]


def test_an_interface_may_shift_its_times(tmp_path: Path) -> None:
    options = [(14, struct.pack("<q", -2))]
    content = section() + interface(1, "<", options) + enhanced(FRAME, 5_000_000)
    assert times(written(tmp_path, content)) == [3 * 10**9]


def test_sections_have_their_own_byte_order_and_interfaces(tmp_path: Path) -> None:
    raw = FRAME[14:]
    content = section("<") + interface(1, "<") + enhanced(FRAME, 1_000_000)
    content += (
        interface(101, "<", [(9, b"\x09")]) + enhanced(raw, 2_000_000_000, 1) + enhanced(FRAME, 3_000_000)
    )
    content += section(">") + interface(101, ">") + enhanced(raw, 4_000_000, 0, ">")
    path = written(tmp_path, content)
    assert times(path) == [1 * 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9]
    assert [row["destination_port"] for row in parse_rows(path)] == [53] * 4


def test_simple_and_obsolete_packet_blocks_are_frames_and_unknown_blocks_are_skipped(tmp_path: Path) -> None:
    content = section() + block(0x0BAD, b"whatever") + interface()
    content += block(3, struct.pack("<I", len(FRAME)) + FRAME)
    content += block(2, struct.pack("<HHIIII", 0, 0, 0, 7_000_000, len(FRAME), len(FRAME)) + FRAME)
    content += block(4, bytes(4)) + block(0x80000001, b"x" * 1000) + enhanced(FRAME, 8_000_000)
    path = written(tmp_path, content)
    assert times(path) == [0, 7 * 10**9, 8 * 10**9]
    assert [row["frame"] for row in parse_rows(path)] == [1, 2, 3]


@pytest.mark.parametrize("content", [pcap([FRAME] * 300), section() + interface() + enhanced(FRAME, 1) * 300])
def test_a_compressed_capture_reads_as_the_plain_one(tmp_path: Path, content: bytes) -> None:
    plain = list(parse_rows(written(tmp_path, content)))
    half = len(content) // 2
    members = gzip.compress(content[:half]) + gzip.compress(content[half:])
    assert list(parse_rows(written(tmp_path, members, "capture.gz"))) == plain
    assert len(plain) == 300


def test_a_capture_longer_than_the_window_is_read_whole_and_frames_keep_their_bytes(tmp_path: Path) -> None:
    frame = ethernet(ipv4("192.0.2.1", "198.51.100.2", 17, udp(40000, 53, bytes(1400))))
    path = written(tmp_path, gzip.compress(pcap([frame] * 7000), 1))
    with Capture(path) as capture:
        batches = list(capture.batches())
        assert capture.truncated is None
        assert capture.bytes_done == capture.bytes_total == path.stat().st_size
    assert sum(len(batch.packets) for batch in batches) == 7000
    assert len(batches) > 1
    assert all(
        bytes(batch.frame_bytes(row)) == frame for batch in batches for row in (0, len(batch.packets) - 1)
    )


def test_a_capture_may_come_through_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(pcap([FRAME] * 9)))
    writer.start()
    rows = list(parse_rows(fifo))
    writer.join(20)
    assert len(rows) == 9


@pytest.mark.parametrize(
    ("content", "offset", "left"),
    [
        (pcap([FRAME, FRAME])[:-5], 24 + 16 + len(FRAME), 16 + len(FRAME) - 5),
        (pcap([FRAME])[:-5], 24, 16 + len(FRAME) - 5),
        (pcap([FRAME]) + b"\0\0\0", 24 + 16 + len(FRAME), 3),
        (section() + interface() + enhanced(FRAME, 1)[:-4], 28 + 24, len(enhanced(FRAME, 1)) - 4),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_ends_within_a_record_says_where_and_gives_what_is_whole(
    tmp_path: Path, content: bytes, offset: int, left: int, compressed: bool
) -> None:
    path = written(tmp_path, gzip.compress(content) if compressed else content)
    with Capture(path) as capture:
        rows = list(parse_rows(capture))
        assert capture.truncated is not None
        assert capture.truncated.startswith(f"offset {offset}: ")
        assert capture.truncated.endswith(f", {left} are left")
    assert len(rows) == (1 if offset > 60 else 0)


def test_a_damaged_compressed_stream_gives_what_was_whole_and_says_so(tmp_path: Path) -> None:
    content = gzip.compress(pcap([FRAME, os.urandom(4000)] * 4000))
    path = written(tmp_path, content[: len(content) // 2])
    with Capture(path) as capture:
        count = sum(len(batch.packets) for batch in capture.batches())
        assert capture.truncated is not None
        assert "reading stopped" in capture.truncated
    assert 0 < count < 8000


def test_a_record_that_claims_gigabytes_is_damage_and_no_reason_to_read_them(tmp_path: Path) -> None:
    content = pcap([FRAME]) + struct.pack("<IIII", 1, 1, 0xFFFFFF00, 0xFFFFFF00) + bytes(100)
    with Capture(written(tmp_path, gzip.compress(content))) as capture:
        assert sum(len(batch.packets) for batch in capture.batches()) == 1
        assert capture.truncated is not None
        assert "record says 4294967056 bytes" in capture.truncated


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "offset 0: neither pcap nor pcapng"),
        (b"Nov 24 08:00:00 gw sshd[1]: hello\n", "offset 0: neither pcap nor pcapng"),
        (gzip.compress(b"a log\n"), "offset 0: neither pcap nor pcapng"),
        (pcap([])[:20], "offset 0: the pcap header needs 24 bytes, 20 are there"),
        (pcap([], link_type=147), "offset 20: link type 147 is not known"),
        (section()[:20], "offset 0: "),
        (section() + interface(147) + enhanced(FRAME, 1), "offset 28: link type 147 of interface 0"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_file_and_offset(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        list(parse_rows(path))
    assert caught.value.message.startswith(f"{path}: {said}")
    assert caught.value.remedy


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        Capture(tmp_path / "missing.pcap")


def test_an_empty_capture_has_no_frames_and_is_whole(tmp_path: Path) -> None:
    with Capture(written(tmp_path, pcap([]))) as capture:
        assert list(capture.batches()) == []
        assert capture.truncated is None


@pytest.mark.parametrize("content", [pcap([FRAME]), section(), gzip.compress(pcap([FRAME]))])
def test_a_capture_is_known_by_how_it_begins(content: bytes) -> None:
    assert is_capture(content[:512])
    assert not is_capture(content[1:512])
    assert not is_capture(gzip.compress(b"log"))
    assert not is_capture(b"")


@pytest.mark.parametrize("size", [1, 2, 7, 65536])
def test_the_size_of_batches_changes_no_row(tmp_path: Path, size: int) -> None:
    frames = [FRAME[:n] for n in range(len(FRAME))]
    with Capture(written(tmp_path, pcap(frames))) as capture:
        rows = b"".join(batch.packets.tobytes() for batch in capture.batches(size))
    with Capture(written(tmp_path, pcap(frames))) as capture:
        (whole,) = capture.batches()
    assert rows == whole.packets.tobytes()


WHOLE = st.sampled_from(
    [
        pcap([FRAME] * 3),
        pcap([FRAME] * 3, order=">", magic=0xA1B23C4D),
        section() + interface() + enhanced(FRAME, 1) * 3 + interface(101) + enhanced(FRAME[14:], 9, 1),
        section(">") + interface(1, ">") + block(3, struct.pack(">I", len(FRAME)) + FRAME, ">"),
        gzip.compress(pcap([FRAME] * 3)),
    ]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A capture with some bytes changed, and perhaps cut; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=400))
    content = bytearray(draw(WHOLE))
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))]) if draw(st.booleans()) else bytes(content)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged(), st.integers(1, 5))
def test_no_file_raises_anything_but_an_input_error(tmp_path: Path, content: bytes, size: int) -> None:
    path = written(tmp_path, content)
    try:
        with Capture(path) as capture:
            for batch in capture.batches(size, tunnels=True):
                assert 0 < len(batch.packets) <= size
            rows = list(parse_rows(path))
    except InputError as error:
        assert str(path) in error.message
    else:
        assert all(row["time"].endswith("Z") for row in rows)
