"""The little of netlink that the enforcer needs: ask, and read the answers. It knows no family of messages.

Formats: linux/netlink.h; numbers are in host order but where a family says otherwise.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_NESTED = 0x8000
_TYPE = 0x3FFF
_BATCH = 64
"""Requests sent before their answers are read: each answer takes its share of the receive buffer."""


class Netlink:
    """A socket of one netlink family (`NETLINK_ROUTE` 0, `NETLINK_SOCK_DIAG` 4, `NETLINK_NETFILTER` 12)."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.bind((0, 0))
        self._socket.settimeout(5.0)
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, payload: bytes, flags: int = DUMP) -> Iterator[tuple[int, bytes]]:
        """(type, payload) of every message of the answer. Raises OSError with the kernel's error."""
        self._send([(kind, payload)], flags)
        while True:
            for answer, flagged, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if answer == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if answer == _DONE:
                    return
                yield answer, body
                if not flagged & 0x2:  # NLM_F_MULTI: a single answer has no end mark
                    return

    def tell(self, kind: int, payloads: Sequence[bytes]) -> list[int]:
        """Send every payload as a request of its own; the error number of each (0: done), in order."""
        errors: list[int] = []
        for at in range(0, len(payloads), _BATCH):
            errors += self._tell([(kind, payload) for payload in payloads[at : at + _BATCH]])
        return errors

    def _tell(self, batch: list[tuple[int, bytes]]) -> list[int]:
        first = self._sequence + 1
        self._send(batch, ACK)
        errors = [-1] * len(batch)
        left = len(batch)
        while left:
            for answer, _, sequence, body in self._receive():
                if answer == _ERROR and first <= sequence < first + len(batch):
                    errors[sequence - first] = -struct.unpack_from("=i", body)[0]
                    left -= 1
        return errors

    def _send(self, messages: list[tuple[int, bytes]], flags: int) -> None:
        parts = []
        for kind, payload in messages:
            self._sequence += 1
            length = _HEADER.size + len(payload)
            parts.append(_HEADER.pack(length, kind, REQUEST | flags, self._sequence, 0))
            parts.append(payload + b"\0" * (-length % 4))
        self._socket.sendto(b"".join(parts), (0, 0))

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
    found = {}
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found
