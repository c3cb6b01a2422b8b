"""The little of netlink that the enforcer needs: ask, and read the answers. It knows no family of messages.

Formats: linux/netlink.h; numbers are in host order but where a family says otherwise.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_MULTI, _DUMP_INTERRUPTED = 0x2, 0x10
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_SOL_NETLINK, _CAP_ACK = 270, 10  # linux/netlink.h
_NESTED = 0x8000
_TYPE = 0x3FFF
_BATCH = 64
"""Requests sent before their answers are read: each answer takes its share of the receive buffer."""
_SEND_BYTES = 65_536
"""What any socket may send at once."""


class Netlink:
    """A socket of one netlink family (`NETLINK_ROUTE` 0, `NETLINK_SOCK_DIAG` 4, `NETLINK_NETFILTER` 12)."""

    def __init__(self, family: int, made: socket.socket | None = None) -> None:
        """`made`: a socket from another network namespace, which then acts there."""
        self._socket = made or socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.bind((0, 0))
        self._socket.setsockopt(
            _SOL_NETLINK, _CAP_ACK, 1
        )  # an error does not repeat the message that it is about
        self._socket.settimeout(5.0)
        self._sequence = 0
        self.interrupted = False  # whether what the last answer lists was changed while it was read

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, payload: bytes, flags: int = DUMP) -> Iterator[tuple[int, bytes]]:
        """(type, payload) of every message of the answer, which is read to its end first: until then a socket takes no
        other question for a list. Raises OSError with the kernel's error."""
        return iter([*self._answers(kind, payload, flags)])

    def _answers(self, kind: int, payload: bytes, flags: int) -> Iterator[tuple[int, bytes]]:
        self._send([(kind, flags, payload)])
        self.interrupted = False
        while True:
            for answer, flagged, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                self.interrupted |= bool(flagged & _DUMP_INTERRUPTED)
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if answer == _DONE:  # of a dump; since Linux 4.14 with its error, if any
                    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if code > 0:
                        raise OSError(code, os.strerror(code))
                    return
                yield answer, body
                if not flagged & _MULTI:  # a single answer has no end mark
                    return

    def tell(self, kind: int, payloads: Sequence[bytes]) -> list[int]:
        """Send every payload as a request of its own; the error number of each (0: done), in order."""
        errors: list[int] = []
        for at in range(0, len(payloads), _BATCH):
            errors += self._tell([(kind, ACK, payload) for payload in payloads[at : at + _BATCH]])
        return errors

    def together(self, messages: Sequence[tuple[int, int, bytes]]) -> int:
        """Send (type, flags, payload) in one datagram, of which the last that the kernel acts on bears `ACK`; the
        first error number that comes, 0 where all is done.

        The kernel refuses the datagram as a whole in the name of its first message. Answers to what was sent before
        and given up are passed over.
        """
        first = self._send(messages)
        last = max(n for n, (_, flags, _) in enumerate(messages) if flags & ACK)
        failed = 0
        while True:
            for answer, _, sequence, body in self._receive():
                number = sequence - first
                if answer == _ERROR and 0 <= number < len(messages):
                    code = -int(struct.unpack_from("=i", body)[0])
                    failed = failed or code
                    if number == last or (number == 0 and code):
                        return failed

    def _tell(self, batch: list[tuple[int, int, bytes]]) -> list[int]:
        first = self._send(batch)
        errors = [-1] * len(batch)
        left = len(batch)
        while left:
            for answer, _, sequence, body in self._receive():
                if answer == _ERROR and first <= sequence < first + len(batch):
                    errors[sequence - first] = -struct.unpack_from("=i", body)[0]
                    left -= 1
        return errors

    def _send(self, messages: Sequence[tuple[int, int, bytes]]) -> int:
        """The sequence number of the first; the others follow."""
        parts = []
        first = self._sequence + 1
        for kind, flags, payload in messages:
            self._sequence += 1
            length = _HEADER.size + len(payload)
            parts.append(_HEADER.pack(length, kind, REQUEST | flags, self._sequence, 0))
            parts.append(payload + b"\0" * (-length % 4))
        data = b"".join(parts)
        if len(data) > _SEND_BYTES:
            self._socket.setsockopt(socket.SOL_SOCKET, 32, 2 * len(data))  # SO_SNDBUFFORCE
        self._socket.sendto(data, (0, 0))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                return
            yield kind, flags, sequence, data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3


def attribute(kind: int, value: bytes, *, nested: bool = False) -> bytes:
    """One nlattr, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind | (_NESTED if nested else 0)) + value + b"\0" * (-length % 4)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes in `data` from offset `at`, by type."""
    return dict(listed(data, at))


def listed(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute in `data` from offset `at`, as they follow each other."""
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
