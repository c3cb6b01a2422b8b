"""The chain of the journal: how an entry is sealed, and how a file of entries is read and checked.

It only reads. Whatever stands in a file, reading raises nothing but OSError: a line that is no entry breaks the
chain, and what comes after a break is given as doubtful.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from ..errors import EnforcerError

_SEAL = b',"hash":"'
_SEAL_BYTES = len(_SEAL) + 64 + len(b'"}')
_MOST_DIGITS = (
    19  # a signed 64-bit number; nothing in an entry is larger, and the kernel takes nothing larger
)


class Point(NamedTuple):
    """A place in the chain: an entry's sequence and its seal."""

    sequence: int
    seal: str


GENESIS = "0" * 64
START = Point(0, GENESIS)


class Verdict(NamedTuple):
    """What reading a journal showed."""

    entries: int
    head: str  # the last good seal
    sequence: int  # of the last good entry
    intact: bool
    torn_bytes: int  # of a last line without its end
    note: str  # what is wrong, in words; empty where nothing is


def seal(entry: dict[str, Any], previous: str) -> tuple[bytes, str]:
    """The line of `entry` in a chain whose last seal is `previous`, and its own seal."""
    body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode("ascii")
    digest = _digest(previous, body)
    return body[:-1] + _SEAL + digest.encode("ascii") + b'"}\n', digest


def unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str, bool]:
    """The entry in `line` (empty where it is none), the seal that it bears, and whether that is the right one."""
    try:
        entry = _decode(line.decode("ascii"))
    except (ValueError, RecursionError):
        return {}, "", False
    if type(entry) is not dict:
        return {}, "", False
    digest = entry.pop("hash", "")
    if type(digest) is not str:
        return entry, "", False
    return entry, digest, digest == _digest(previous, line[: -_SEAL_BYTES - 1] + b"}")


class Reader:
    """Reads a journal from its start; iterate over it, then ask for the rest.

    It gives (entry, good): entries after a break are given as well, as far as they are JSON at all, with
    `good` false. `head` is a place that is known to have been written; `met` says whether the file has it.
    """

    def __init__(self, path: str, head: Point | None = None) -> None:
        self.path = path
        self.good_bytes = 0
        self.seal = GENESIS  # of the entry that was given last
        self.before = START  # what the first entry continues
        self.claimed = 0  # the highest sequence that any entry bears, good or not
        self.met = head == START
        self.verdict = Verdict(0, GENESIS, 0, True, 0, "")
        self._head = head or Point(-1, "")

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bool]]:
        entries, torn, note, last, known = 0, 0, "", START, self._head
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        torn = len(line)
                        break
                    if self.good_bytes == 0:
                        last = self.before = _before(line)
                        self.met = last == known
                    entry, digest, right = unseal(line, last.seal)
                    number = entry.get("seq")
                    if not note and not (right and number == last.sequence + 1):
                        note = f"the chain is broken after entry {last.sequence}"
                    if not note:
                        last, entries = Point(last.sequence + 1, digest), entries + 1
                        if last.sequence == known.sequence:
                            self.met = last == known
                    if type(number) is int and number > self.claimed:
                        self.claimed = number
                    self.good_bytes += len(line)
                    self.seal = digest
                    if entry:
                        yield entry, not note
        finally:
            self.verdict = Verdict(entries, last.seal, last.sequence, not note, torn, note)


def verify(path: str | os.PathLike[str]) -> Verdict:
    """Check the chain of the one file `path` from its first entry. Raises EnforcerError where it cannot be read."""
    reader = Reader(os.fspath(path))
    try:
        for _ in reader:
            pass
    except OSError as error:
        raise EnforcerError(f"journal {reader.path}: {error.strerror}") from None
    return reader.verdict


def _before(first_line: bytes) -> Point:
    """What the first entry of a file continues: another file, as it says itself, or nothing."""
    entry = unseal(first_line, GENESIS)[0]
    previous, sequence = entry.get("previous"), entry.get("seq")
    if entry.get("do") != "state" or type(previous) is not str or type(sequence) is not int:
        return START
    return Point(sequence - 1, previous) if unseal(first_line, previous)[2] else START


def _digest(previous: str, body: bytes) -> str:
    return sha256(previous.encode("utf-8", "replace") + body).hexdigest()


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number too large")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number too large")
    return number


def _nothing(name: str) -> None:
    raise ValueError(f"{name} is no number")


_decode = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_nothing).decode
