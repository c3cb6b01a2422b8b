"""Whole lines out of a stream of bytes, with the offsets at which they stand.

It must never hold more than one line of bounded length, whatever is fed, and what it gives must not depend on
how the bytes were divided: the same range of a file, read again after a crash, gives the same lines.
"""

from __future__ import annotations

import numpy as np

LONGEST_LINE = 64 * 1024
"""Bytes of a line that are kept (without its newline); what follows up to the newline is skipped."""


def count_lines(data: bytes) -> int:
    """The number of newlines."""
    # bytes.count calls memchr once for each newline, which for log lines costs ten times as much.
    return (
        int(np.count_nonzero(np.frombuffer(data, np.uint8) == 10)) if len(data) > 2048 else data.count(b"\n")
    )


class LineCutter:
    """Takes bytes in any division and gives whole lines.

    `start` is the offset of the first byte that was not yet given out as part of a whole line, `position` the
    offset after the last byte fed, `cut` the number of lines that were longer than `longest` bytes.
    """

    __slots__ = ("_pending", "_skipping", "cut", "longest", "position", "start")

    def __init__(self, start: int = 0, longest: int = LONGEST_LINE) -> None:
        self.start = start
        self.position = start
        self.cut = 0
        self.longest = longest
        self._pending = b""
        self._skipping = False

    @property
    def partial(self) -> bool:
        """Whether a line has begun that has no newline yet."""
        return self.position > self.start

    def feed(self, data: bytes) -> bytes:
        """The whole lines that `data` completes, each with its newline; `b""` where it completes none."""
        self.position += len(data)
        if not self._skipping:
            return self._whole(self._pending + data if self._pending else data)
        newline = data.find(b"\n")
        if newline < 0:
            return b""
        long_line = self._pending + b"\n"
        self._skipping = False
        return long_line + self._whole(data[newline + 1 :])

    def flush(self) -> bytes:
        """The last line, which has no newline in the file, with one added; `b""` where there is none."""
        rest = self._pending
        self._pending, self._skipping = b"", False
        self.start = self.position
        return rest + b"\n" if rest else b""

    def _whole(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        whole, pending = (data, b"") if end == len(data) else (data[:end], data[end:])
        self.start = self.position - len(pending)
        if len(pending) > self.longest:
            pending = pending[: self.longest]
            self._skipping = True
            self.cut += 1
        self._pending = pending
        return whole if len(whole) <= self.longest + 1 else self._shorten(whole)

    def _shorten(self, whole: bytes) -> bytes:
        """`whole` with every long line cut; looks at one newline in each `longest` bytes where none is long."""
        longest, at, kept_from = self.longest, 0, 0
        kept: list[bytes] = []
        while len(whole) - at > longest + 1:
            newline = whole.rfind(b"\n", at, at + longest + 1)
            if newline >= 0:
                at = newline + 1
                continue
            kept += (whole[kept_from : at + longest], b"\n")
            at = kept_from = whole.index(b"\n", at) + 1
            self.cut += 1
        if not kept:
            return whole
        kept.append(whole[kept_from:])
        return b"".join(kept)
