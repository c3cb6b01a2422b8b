"""The bytes of a capture file, as much of them at a time as a batch needs: a window that moves forward.

The window is small enough that what was read is still in the processor's cache when it is decoded: on the machine
that this was measured on that took half the time of decoding a memory map, and a map ends the process where
somebody shortens the file. It must never hold much more than MOST_RECORD.
"""

from __future__ import annotations

import gzip
import os
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..events import U8

MOST_RECORD = 1 << 26
"""The longest record or block, in bytes, that is read; whatever says more is taken for damage."""

STEP = 1 << 22
GZIP_MAGIC = b"\x1f\x8b"


class Window:
    """`data` is what can be read now and `base` the offset of its first byte in the (decompressed) capture."""

    data: U8
    base: int
    bytes_total: int
    problem: str | None
    """What ended the stream before its end, where something did."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file cannot be opened."""
        self.data = np.zeros(0, np.uint8)
        self.base = 0
        self.problem = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
            self.bytes_total = os.fstat(self._file.fileno()).st_size
            compressed = self._file.peek(2)[:2] == GZIP_MAGIC
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}", remedy="name a capture that can be read"
            ) from error
        self._stream: BufferedIOBase = gzip.GzipFile(fileobj=self._file) if compressed else self._file
        self.more(0)

    def more(self, at: int) -> bool:
        """Moves the window so that it starts at `data[at]` and reads on; False where nothing is left to read.

        A new array is made: what was given out of the old one stays valid.
        """
        kept = len(self.data) - at
        fresh = np.empty(kept + max(STEP, kept), np.uint8)
        fresh[:kept] = self.data[at:]
        filled = kept
        try:
            while filled < len(fresh) and (count := self._stream.readinto1(fresh.data[filled:])):
                filled += count
        except (OSError, EOFError, zlib.error) as error:
            self.problem = f"reading stopped: {error}"
        if filled == kept:
            return False
        self.base += at
        self.data = fresh[:filled]
        return True

    def done(self, at: int) -> int:
        """How many bytes of the file have been worked through when reading stands at `data[at]`."""
        if self._stream is self._file:
            return self.base + at
        return self._file.tell()

    def close(self) -> None:
        self.data = np.zeros(0, np.uint8)
        self._stream.close()
        self._file.close()
