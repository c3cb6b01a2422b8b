# mypy: disable-error-code="untyped-decorator"
"""Paths of requests: the loop that picks those worth a look, compiled where there was a C compiler, and what a path
comes to once everything is undone by which the same endpoint can be written in another way.

Gateway and server need not agree on what a path means, and the log has it as the client sent it. So this takes the
reading that finds most: whoever wants to be found by none has to write a path that no server takes for it either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import cython
import numpy as np

from ...daemon.events import I32, U8, U16

SIZE = 1 << 14
_PLACES = cython.declare(cython.ulonglong, SIZE - 1)
_BASIS = cython.declare(cython.ulonglong, 0xCBF29CE484222325)
_PRIME = cython.declare(cython.ulonglong, 0x100000001B3)
_WHOLE = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
_WORD = (1 << 64) - 1
_SHORT = 256
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_ESCAPED = re.compile(rb"\\x([0-9A-Fa-f]{2})")
_SLASHES = re.compile(rb"[/\\]+(?:\.[/\\]+)*")
_DECODED_AT_MOST = 3


def table_of(segments: Iterable[str]) -> U8:
    """What `pick` looks for: segments, in small letters."""
    table: U8 = np.zeros(SIZE, np.uint8)
    for segment in segments:
        found = 0xCBF29CE484222325  # FNV-1a, 64 bits (Fowler, Noll, Vo)
        for letter in segment.encode():
            found = (found ^ letter) * 0x100000001B3 & _WORD
        table[found >> 32 & SIZE - 1] = 1
    return table


@cython.locals(
    text="const unsigned char[::1]",
    spans="const int[:, ::1]",
    status="const unsigned short[::1]",
    table="const unsigned char[::1]",
    out="unsigned char[::1]",
)
def pick(text: U8, spans: I32, status: U16, table: U8, out: U8) -> None:
    """Sets `out` to 1 for each request whose path has a segment of the table, or is not written plainly.

    `spans` (`int32[n, 2]`) are of the paths in `text`; a row without a status is no request.
    """
    i: cython.Py_ssize_t
    at: cython.Py_ssize_t
    found: cython.ulonglong
    letter: cython.ulonglong
    before: cython.ulonglong
    for i in range(status.shape[0]):
        if status[i] == 0 or spans[i, 0] < 0 or spans[i, 1] > text.shape[0]:
            continue
        found = _BASIS
        before = 0
        for at in range(spans[i, 0], spans[i, 1]):
            letter = cython.cast(cython.ulonglong, text[at])
            if letter == 47:
                if before == 47 or table[(found >> 32) & _PLACES]:
                    out[i] = 1
                    break
                found = _BASIS
            elif letter == 37 or letter == 59 or letter == 92 or (letter == 46 and before == 47):
                out[i] = 1  # % ; \ and a segment that begins with a dot
                break
            else:
                if 65 <= letter <= 90:
                    letter += 32
                found = ((found ^ letter) * _PRIME) & _WHOLE
            before = letter
        if table[(found >> 32) & _PLACES]:
            out[i] = 1


def canonical(path: bytes) -> tuple[str, ...]:
    """Its segments in small letters: without scheme and host, without escapes (of nginx's log, and of percent, up to
    three times over), without parameters (`;x`), empty segments and dots."""
    return _canonical(path) if len(path) <= _SHORT else _canonical.__wrapped__(path)


@lru_cache(maxsize=4096)
def _canonical(path: bytes) -> tuple[str, ...]:
    absolute = _ABSOLUTE.match(path)
    if absolute:
        path = path[absolute.end() :]
    path = _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), path)
    for _ in range(_DECODED_AT_MOST):
        decoded = unquote_to_bytes(path)
        if decoded == path:
            break
        path = decoded
    path = re.split(rb"[?#\x00]", path, maxsplit=1)[0]
    segments: list[str] = []
    for part in _SLASHES.sub(b"/", path).split(b"/"):
        segment = part.partition(b";")[0].strip().decode("utf-8", "replace").lower()
        if segment == "..":
            if segments:
                segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return tuple(segments)
