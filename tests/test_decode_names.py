"""Names in payloads: ClientHellos in any number of segments and records, DNS questions, and bytes that are neither."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from gatewatch.daemon.collectors.dissect import (
    MOST_PENDING,
    ClientHello,
    Hellos,
    Incomplete,
    client_hello,
    hello_message,
    query_name,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def server_name(name: bytes) -> bytes:
    return extension(0, struct.pack("!HBH", len(name) + 3, 0, len(name)) + name)


def alpn(name: bytes) -> bytes:
    return extension(16, struct.pack("!HB", len(name) + 1, len(name)) + name)


def body(ciphers: Sequence[int], extensions: bytes, version: int = 0x0303) -> bytes:
    listed = struct.pack(f"!{len(ciphers)}H", *ciphers)
    head = struct.pack("!H", version) + bytes(32) + b"\x20" + bytes(32)
    return (
        head
        + struct.pack("!H", len(listed))
        + listed
        + b"\1\0"
        + struct.pack("!H", len(extensions))
        + extensions
    )


def records(message: bytes, *cuts: int) -> bytes:
    """A handshake message in one record, or divided at `cuts` into several."""
    whole = b"\1" + len(message).to_bytes(3, "big") + message
    ends = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [whole[a:b] for a, b in pairwise(ends) if b > a]
    return b"".join(b"\x16\3\1" + struct.pack("!H", len(part)) + part for part in parts)


GREASE = 0x2A2A
HELLO = body(
    [GREASE, 0x1301, 0x1302, 0xC02B],
    extension(GREASE, b"\0")
    + server_name(b"model.example.com")
    + alpn(b"h2")
    + extension(43, b"\6" + struct.pack("!3H", GREASE, 0x0304, 0x0303))
    + extension(13, struct.pack("!HHH", 4, 0x0403, 0x0804)),
)
STREAM = records(HELLO)
FOUND = client_hello(STREAM)


def test_a_client_hello_gives_its_server_name_and_ja4_without_grease() -> None:
    assert FOUND is not None
    assert FOUND.server_name == "model.example.com"
    assert FOUND.ja4.startswith("t13d0304h2_")
    assert len(FOUND.ja4) == 36


@pytest.mark.parametrize(
    ("name", "ends"), [(b"http/1.1", "h1"), (b"\xab\xcd", "ad"), (b"x", "xx"), (b"-a", "21"), (b"", "00")]
)
def test_the_first_protocol_is_told_by_its_ends(name: bytes, ends: str) -> None:
    found = hello_message(body([0x1301], alpn(name)), "t")
    assert found is not None
    assert found.ja4.split("_")[0] == f"t12i0101{ends}"


def test_a_hello_without_extensions_or_ciphers_has_digests_of_zeros() -> None:
    assert hello_message(body([], b""), "q") == ClientHello("", "q12i000000_000000000000_000000000000")


def test_many_ciphers_count_as_ninety_nine() -> None:
    found = hello_message(body(range(0x0100, 0x0200), b""), "t")
    assert found is not None
    assert found.ja4.startswith("t12i9900")


@given(st.lists(st.integers(1, len(HELLO) + 3), max_size=5))
def test_a_hello_may_be_divided_into_records_anyhow(cuts: list[int]) -> None:
    assert client_hello(records(HELLO, *cuts)) == FOUND


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=7, unique=True), st.integers(0, 2**32 - 1))
def test_a_hello_may_be_divided_into_eight_segments_anyhow(cuts: list[int], sequence: int) -> None:
    hellos = Hellos()
    ends = [0, *sorted(cuts), len(STREAM)]
    found = []
    for start, end in pairwise(ends):
        found.append(hellos.feed("stream", (sequence + start) % 2**32, memoryview(STREAM[start:end])))
    assert found == [None] * (len(ends) - 2) + [FOUND]


def test_a_segment_out_of_order_or_sent_again_does_no_harm() -> None:
    hellos = Hellos()
    first, second = memoryview(STREAM[:50]), memoryview(STREAM[50:])
    assert hellos.feed("a", 1000, first) is None
    assert hellos.feed("a", 1060, second[10:]) is None
    assert hellos.feed("a", 1050, second) == FOUND
    assert hellos.feed("a", 1000, first) is None
    assert hellos.feed("a", 1000, first) is None
    assert hellos.feed("a", 1050, second) == FOUND


def test_the_second_hello_after_a_retry_is_read_past_the_change_of_cipher() -> None:
    retried = b"\x14\3\3\0\1\1" + STREAM
    assert client_hello(retried) == FOUND
    assert Hellos().feed("a", 1, memoryview(retried)) == FOUND


def test_what_waits_is_bounded() -> None:
    hellos = Hellos()
    for stream in range(5 * MOST_PENDING):
        hellos.feed(stream, 1, memoryview(STREAM[:50]))
    assert len(hellos._pending) == MOST_PENDING
    assert hellos.feed(0, 51, memoryview(STREAM[50:])) is None
    assert hellos.feed(5 * MOST_PENDING - 1, 51, memoryview(STREAM[50:])) == FOUND
    endless = b"\x16\3\1\x40\0\1\xff\xff\xff" + bytes(0x4000 - 4)
    for number in range(8):
        assert hellos.feed("endless", number * len(endless), memoryview(endless)) is None
    assert "endless" not in hellos._pending


@settings(max_examples=600)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(st.integers(0, len(STREAM) - 1), st.integers(0, 255)).map(
            lambda c: STREAM[: c[0]] + bytes([c[1]]) + STREAM[c[0] + 1 :]
        ),
        st.integers(0, len(STREAM)).map(lambda n: STREAM[:n]),
        st.binary(max_size=200).map(lambda b: records(b)),
    )
)
def test_no_bytes_raise_anything_but_that_more_is_needed(stream: bytes) -> None:
    try:
        found = client_hello(stream)
    except Incomplete:
        found = None
    assert found is None or found.ja4[0] == "t"
    Hellos().feed("a", 1, memoryview(stream))
    hello_message(stream, "d")
    query_name(stream)


def question(*labels: bytes, count: int = 1) -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!6H", 7, 0x0100, count, 0, 0, 0) + name + b"\0\1\0\1"


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (question(b"www", b"Example", b"com"), "www.Example.com"),
        (question(), "."),
        (question(b"a.b", b"c\\d", b"\xff \0"), "a\\.b.c\\\\d.\\255\\032\\000"),
        (question(b"_ldap", b"x-y"), "_ldap.x-y"),
        (question(*[b"x" * 63] * 3, b"y" * 61), ".".join([*["x" * 63] * 3, "y" * 61])),
        (question(*[b"x" * 63] * 4), None),
        (question(b"www", count=0), None),
        (question(b"www", b"example")[:-5], None),
        (question()[:12] + b"\xc0\x0c\0\1\0\1", None),
        (b"", None),
    ],
)
def test_the_first_question_of_a_dns_message_is_its_name(message: bytes, name: str | None) -> None:
    assert query_name(message) == name
