"""The names in the few packets that open a session: server name and JA4 of a TLS ClientHello, name of a DNS query.

It works on one payload at a time and is never on the path of every packet. Whatever the bytes are, nothing here
raises because of them; what cannot be read is None.

Sources: RFC 8446 and 6066 (TLS, server_name), 7301 (ALPN), 8701 (GREASE), 1035 and 4343 (DNS names), and the
technical details of JA4 (TLS client fingerprinting) by FoxIO, which is under the BSD 3-clause licence.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass

DNS_PORTS = frozenset({53, 5353, 5355})
"""DNS, multicast DNS (RFC 6762) and LLMNR (RFC 4795), which share the form of the message."""

CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01"
MOST_HELLO = 1 << 16
MOST_SEGMENTS = 8
MOST_PENDING = 1024

SERVER_NAME, SUPPORTED_GROUPS, SIGNATURE_ALGORITHMS, ALPN, SUPPORTED_VERSIONS = 0, 10, 13, 16, 43

JA4_VERSIONS = {
    0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3", 0x0002: "s2",
    0xFEFF: "d1", 0xFEFD: "d2", 0xFEFC: "d3",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`server_name` is "" where the client named none."""

    server_name: str
    ja4: str


class Incomplete(Exception):
    """The bytes so far are the beginning of a ClientHello."""


def client_hello(stream: bytes | memoryview) -> ClientHello | None:
    """The ClientHello that a TCP stream begins with; None where it begins with something else.

    Raises Incomplete where `stream` ends within it.
    """
    stream = bytes(stream[:MOST_HELLO])
    message = bytearray()
    at = 0
    while True:
        head = stream[at : at + 5]
        if head == CHANGE_CIPHER_SPEC and stream[at + 5 : at + 6] in (b"", b"\x01") and not message:
            at += 6  # before the second ClientHello that a HelloRetryRequest asked for
            continue
        if head[:1] not in (b"", b"\x14", b"\x16") or head[1:2] not in (b"", b"\x03"):
            return None
        if len(head) < 5:
            raise Incomplete
        size = int.from_bytes(head[3:5], "big")
        if head[0] != 0x16 or not 0 < size <= 16384 + 256:
            return None
        message += stream[at + 5 : at + 5 + size]
        if message and message[0] != 1:
            return None
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4], "big"):
            return hello_message(bytes(message[4 : 4 + int.from_bytes(message[1:4], "big")]), "t")
        at += 5 + size
        if at > len(stream) or at >= MOST_HELLO:
            if len(stream) >= MOST_HELLO:
                return None
            raise Incomplete


def hello_message(body: bytes, transport: str) -> ClientHello | None:
    """What the body of a ClientHello says; `transport` is JA4's letter: t for TCP, q for QUIC, d for DTLS."""
    try:
        version = int.from_bytes(body[:2], "big")
        at = 34 + 1 + body[34]
        if transport == "d":
            at += 1 + body[at]
        size = int.from_bytes(body[at : at + 2], "big")
        ciphers = _words(body[at + 2 : at + 2 + size])
        at += 2 + size
        at += 1 + body[at]
        if at > len(body):
            return None
        extensions = _extensions(body[at + 2 : at + 2 + int.from_bytes(body[at : at + 2], "big")])
        return ClientHello(
            _server_name(dict(extensions).get(SERVER_NAME, b"")),
            _ja4(transport, version, ciphers, extensions),
        )
    except (IndexError, struct.error):
        return None


def _words(data: bytes) -> list[int]:
    """The 16-bit numbers of a list, without those of GREASE."""
    words = struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2])
    return [w for w in words if not _is_grease(w)]


def _is_grease(word: int) -> bool:
    return word & 0x0F0F == 0x0A0A and word >> 8 == word & 0xFF


def _extensions(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 4 <= len(data):
        kind, size = struct.unpack_from("!HH", data, at)
        if not _is_grease(kind):
            found.append((kind, data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def _server_name(data: bytes) -> str:
    at = 2
    while at + 3 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 3], "big")
        if data[at] == 0:
            return data[at + 3 : at + 3 + size].decode("utf-8", "backslashreplace")
        at += 3 + size
    return ""


def _ja4(transport: str, version: int, ciphers: list[int], extensions: list[tuple[int, bytes]]) -> str:
    said = dict(extensions)
    if SUPPORTED_VERSIONS in said:
        version = max(_words(said[SUPPORTED_VERSIONS][1:]), default=version)
    signatures = [f"{w:04x}" for w in _words(said.get(SIGNATURE_ALGORITHMS, b"")[2:])]
    kinds = sorted(f"{kind:04x}" for kind, _ in extensions if kind not in (SERVER_NAME, ALPN))
    listed = ",".join(kinds) + ("_" + ",".join(signatures) if signatures else "")
    named = "d" if SERVER_NAME in said else "i"
    counts = f"{min(len(ciphers), 99):02d}{min(len(extensions), 99):02d}"
    return "_".join(
        (
            f"{transport}{JA4_VERSIONS.get(version, '00')}{named}{counts}{_ja4_protocol(said.get(ALPN, b''))}",
            _digest(",".join(sorted(f"{c:04x}" for c in ciphers))),
            _digest(listed if kinds else ""),
        )
    )


def _digest(listed: str) -> str:
    return hashlib.sha256(listed.encode()).hexdigest()[:12] if listed else "0" * 12


def _ja4_protocol(data: bytes) -> str:
    """First and last character of the first protocol that the client offers, or of its hexadecimal digits."""
    name = data[3 : 3 + data[2]] if len(data) > 3 else b""
    if not name:
        return "00"
    ends = name[:1] + name[-1:]
    if ends.isalnum():
        return ends.decode("ascii")
    return f"{name[0]:02x}"[0] + f"{name[-1]:02x}"[1]


def query_name(message: bytes | memoryview) -> str | None:
    """The name of the first question of a DNS message, as sent, without the final dot; "." for the root.

    Bytes that are no printable ASCII, dots within a label and backslashes are escaped (RFC 4343).
    """
    data = bytes(message[:512])
    if len(data) < 17 or data[4:6] == b"\0\0" or data[2] & 0x78 not in (0, 0x20, 0x28):
        return None
    labels, at = [], 12
    while at < len(data) and data[at]:
        size = data[at]
        if size > 63 or at + 1 + size >= len(data) or at + 1 + size - 12 > 255:
            return None
        labels.append(_label(data[at + 1 : at + 1 + size]))
        at += 1 + size
    if at + 5 > len(data):
        return None
    return ".".join(labels) or "."


def _label(raw: bytes) -> str:
    if raw.isalnum():
        return raw.decode("ascii")
    return "".join(
        chr(b) if 32 < b < 127 and b not in b".\\" else f"\\{chr(b)}" if b in b".\\" else f"\\{b:03d}"
        for b in raw
    )


class Hellos:
    """Puts ClientHellos together from the first segments of TCP streams, each in order.

    At most MOST_PENDING streams wait, for at most MOST_SEGMENTS segments and MOST_HELLO bytes each; the oldest
    makes room.
    """

    def __init__(self) -> None:
        self._pending: OrderedDict[object, tuple[int, int, bytes]] = OrderedDict()

    def feed(self, stream: object, sequence: int, payload: memoryview) -> ClientHello | None:
        """The ClientHello that this segment completes. `stream` names one direction of a connection."""
        waiting = self._pending.pop(stream, None)
        if waiting is not None and waiting[0] == sequence:
            _, count, sofar = waiting
            together: bytes | memoryview = sofar + bytes(payload)
        elif len(payload) and payload[0] in (0x14, 0x16):
            count, together = 0, payload
        else:
            if waiting is not None:  # a segment out of order, or sent again
                self._pending[stream] = waiting
            return None
        try:
            return client_hello(together)
        except Incomplete:
            if count + 1 < MOST_SEGMENTS and len(together) < MOST_HELLO:
                following = (sequence + len(payload)) & 0xFFFF_FFFF
                self._pending[stream] = (following, count + 1, bytes(together))
                if len(self._pending) > MOST_PENDING:
                    self._pending.popitem(last=False)
            return None
