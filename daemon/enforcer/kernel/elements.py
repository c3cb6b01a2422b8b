"""Elements of nftables' sets by the kernel's own messages, and what a table is made of but for its elements.

libnftables 1.0.6 asks the kernel for every element of a set before it lists a table, and for every table and set
before it adds one element. This module must never decide what belongs into a set.

Formats: linux/netfilter/nfnetlink.h, nf_tables.h. Numbers in attributes are big-endian.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping

from ...errors import EnforcerError
from .netlink import ACK, DUMP, Netlink, attribute, attributes, listed

_NETFILTER = 12  # NETLINK_NETFILTER
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_BATCH = struct.pack("!BBH", 0, 0, _SUBSYSTEM)  # nfgenmsg: family, version, resource
INET = 1  # NFPROTO_INET
_INET = struct.pack("!BBH", INET, 0, 0)
_ANY = bytes(4)  # every family
_NEW, _GET, _DELETE = (_SUBSYSTEM << 8 | kind for kind in (12, 13, 14))  # NFT_MSG_*SETELEM
_CREATE = 0x400  # NLM_F_CREATE; without NLM_F_EXCL one that is there already is no error
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_ITEM = 1  # NFTA_LIST_ELEM
_KEY, _TIMEOUT, _EXPIRATION = 1, 4, 5  # NFTA_SET_ELEM_*, milliseconds
_VALUE = 1  # NFTA_DATA_VALUE
_CHUNK = 1_000
_TRIES = 3
_TIMEOUT_HEAD, _EXPIRATION_HEAD = struct.pack("=HH", 12, _TIMEOUT), struct.pack("=HH", 12, _EXPIRATION)
_LAYOUTS = {32 + size: struct.Struct(f"!12s{size}s4sQ4sQ") for size in (4, 16)}
"""By the length of an element: heads and key, head and timeout, head and what remains of it."""

_GET_TABLE = _SUBSYSTEM << 8 | 1
_TABLE_NAME, _TABLE_FLAGS = 1, 2  # NFTA_TABLE_*
_PARTS: dict[int, tuple[int, ...]] = {
    _SUBSYSTEM << 8 | 4: (3, 4, 5, 7, 10),  # chains: name, hook, policy, type, flags
    _SUBSYSTEM << 8 | 7: (2, 4),  # rules: chain, expressions
    _SUBSYSTEM << 8 | 10: (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15),  # sets: name to object type, but for ids
    _SUBSYSTEM << 8 | 19: (2, 3),  # objects: name, type
}
"""NFT_MSG_GET*, and the attributes that say what a part is; the others are handles, uses and counts."""


class MissingError(EnforcerError):
    """The table or the set is not there (any more)."""


class Elements:
    """Sets in tables of the family inet, by one socket that stays open: closing one waits until the kernel has freed
    what was deleted last, some 7 ms. Every method raises EnforcerError with the kernel's reason."""

    def __init__(self) -> None:
        try:
            self._netlink = Netlink(_NETFILTER)
        except OSError as error:
            raise _failed(error, "netlink") from None

    def put(self, table: str, wanted: Mapping[str, Mapping[bytes, int]]) -> None:
        """Let each key be in its set for so many milliseconds from now on, whether it is there or not: add, delete,
        add, in one transaction. The kernel fails one that deletes what is missing, and before Linux 6.12 adding
        alone does not change the timeout of what is there."""
        messages = []
        for name, keys in wanted.items():
            there = [_element(key) for key in keys]
            lasting = [_element(key, timeout_ms) for key, timeout_ms in keys.items()]
            messages += _messages(_NEW, table, name, there) + _messages(_DELETE, table, name, there)
            messages += _messages(_NEW, table, name, lasting)
        self._transact(table, messages)

    def remove(self, table: str, name: str, key: bytes) -> None:
        """Let `key` not be in the set, whether it is there or not."""
        there = [_element(key)]
        self._transact(table, _messages(_NEW, table, name, there) + _messages(_DELETE, table, name, there))

    def dump(self, table: str, name: str) -> list[tuple[bytes, int]]:
        """(key, milliseconds that remain; 0: it has no end) of what is in the set. One that ends meanwhile may hide
        another."""
        found: list[tuple[bytes, int]] = []
        for body in self._dump(table, name):
            found += read(body)
        return found

    def parts(self, table: str, fixed: Iterable[str]) -> list[str] | None:
        """What the table is made of, equal while nobody changes it: its flags, chains, rules, sets and objects, and
        the elements of the `fixed` sets. None where there is no table of that name."""
        named = attribute(_LIST_TABLE, table.encode("ascii") + b"\0")
        try:
            (body,) = self._ask(_GET_TABLE, named, 0)
        except MissingError:
            return None
        found = [f"flags {attributes(body, 4).get(_TABLE_FLAGS, b'').hex()}"]
        for kind, kept in _PARTS.items():
            for body in self._ask(kind, named, DUMP):
                given = attributes(body, 4)
                if given.get(_LIST_TABLE, b"").rstrip(b"\0") == table.encode("ascii"):
                    found.append(f"{kind & 255} {[given[k].hex() for k in kept if k in given]}")
        for name in fixed:
            items = sorted(item.hex() for body in self._dump(table, name) for _, item in listed(body))
            found.append(f"{name} {items}")
        return found

    def flagged(self) -> set[tuple[int, str]]:
        """(family, name) of every table that bears flags, anybody's."""
        found = set()
        for body in self._ask(_GET_TABLE, b"", DUMP, _ANY):
            given = attributes(body, 4)
            if any(given.get(_TABLE_FLAGS, b"")):
                found.add((body[0], given.get(_TABLE_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")))
        return found

    def _dump(self, table: str, name: str) -> Iterator[bytes]:
        for body in self._ask(_GET, _list(table, name), DUMP):
            yield attributes(body, 4).get(_LIST_ELEMENTS, b"")

    def _ask(self, kind: int, payload: bytes, flags: int, header: bytes = _INET) -> list[bytes]:
        """The bodies of the answer; asked again, a few times, where somebody changed any table meanwhile. Where that
        one was ours, the monitor hears of it."""
        bodies: list[bytes] = []
        for _ in range(_TRIES):
            try:
                bodies = [body for _, body in self._netlink.ask(kind, header + payload, flags)]
            except OSError as error:
                raise _failed(error, "nftables") from None
            if not self._netlink.interrupted:
                break
        return bodies

    def _transact(self, table: str, messages: list[tuple[int, int, bytes]]) -> None:
        """All or nothing; the last is acknowledged, and any that fails."""
        if not messages:
            return
        *others, (kind, flags, payload) = messages
        try:
            code = self._netlink.together(
                [(_BEGIN, 0, _BATCH), *others, (kind, flags | ACK, payload), (_END, 0, _BATCH)]
            )
        except OSError as error:
            raise _failed(error, f"table inet {table}") from None
        if code:
            raise _failed(OSError(code, os.strerror(code)), f"table inet {table}")


def _failed(error: OSError, what: str) -> EnforcerError:
    kind = MissingError if error.errno == errno.ENOENT else EnforcerError
    remedy = "run as root" if error.errno == errno.EPERM else "see `nft list ruleset`"
    return kind(f"{what}: {error.strerror or 'the kernel did not answer'}", remedy=remedy)


def _list(table: str, name: str) -> bytes:
    return attribute(_LIST_TABLE, table.encode("ascii") + b"\0") + attribute(
        _LIST_SET, name.encode("ascii") + b"\0"
    )


def _messages(kind: int, table: str, name: str, elements: list[bytes]) -> list[tuple[int, int, bytes]]:
    """As many as it takes: an attribute has no more than 64 KiB."""
    head, flags = _INET + _list(table, name), _CREATE if kind == _NEW else 0
    return [
        (kind, flags, head + attribute(_LIST_ELEMENTS, b"".join(elements[at : at + _CHUNK]), nested=True))
        for at in range(0, len(elements), _CHUNK)
    ]


def _element(key: bytes, timeout_ms: int = 0) -> bytes:
    inside = attribute(_KEY, attribute(_VALUE, key), nested=True)
    if timeout_ms:
        inside += attribute(_TIMEOUT, struct.pack("!Q", timeout_ms))
    return attribute(_ITEM, inside, nested=True)


def read(data: bytes) -> Iterable[tuple[bytes, int]]:
    """(key, milliseconds that remain) of each element in a list. Those of one set with timeouts are all of one layout,
    which is checked, not trusted; what looks different is read attribute by attribute."""
    items = listed(data)
    _, first = next(items, (0, b""))
    layout = _LAYOUTS.get(len(first))
    if layout is not None and len(data) % layout.size == 0:
        heads, keys, timeouts, _, ends, remains = zip(*layout.iter_unpack(data), strict=True)
        fixed = {*timeouts} == {_TIMEOUT_HEAD} and {*ends} == {_EXPIRATION_HEAD}
        if fixed and len({*heads}) == 1 and (keys[0], remains[0]) == _one(first):
            return zip(keys, remains, strict=True)
    return [_one(item) for _, item in listed(data)]


def _one(item: bytes) -> tuple[bytes, int]:
    given = attributes(item)
    key = attributes(given.get(_KEY, b"")).get(_VALUE, b"")
    return key, int.from_bytes(given.get(_EXPIRATION, b""), "big")
