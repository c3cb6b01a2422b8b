"""The bytes of a capture file, as much of them at a time as a batch needs.

A regular file is mapped into memory whole. What is compressed, or comes through a pipe, is read through a
window of bounded size that moves forward. It must never hold more than MOST_RECORD beyond one step.
"""

from __future__ import annotations

import gzip
import mmap
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

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
        self.base = 0
        self.problem = None
        self._map: mmap.mmap | None = None
        self._stream: BinaryIO | None = None
        self._path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
            self._open()
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}", remedy="name a capture that can be read"
            ) from error

    def _open(self) -> None:
        status = os.fstat(self._file.fileno())
        self.bytes_total = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self._stream = self._file
        elif self._file.read(2) == GZIP_MAGIC:
            self._file.seek(0)
            self._stream = gzip.GzipFile(fileobj=self._file, mode="rb")  # type: ignore[assignment]
        elif status.st_size:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._map.madvise(mmap.MADV_SEQUENTIAL)
            self.data = np.frombuffer(self._map, np.uint8)
            return
        self.data = np.zeros(0, np.uint8)
        if self._stream is not None:
            self.more(0)

    def more(self, at: int) -> bool:
        """Moves the window so that it starts at `data[at]` and reads on; False where nothing is left to read.

        A new array is made: what was given out of the old one stays valid.
        """
        if self._stream is None:
            return False
        kept = self.data[at:]
        try:
            read = self._stream.read(max(STEP, len(kept)))
        except (OSError, EOFError, zlib.error) as error:
            self.problem = f"the compressed stream is damaged ({error})"
            read = b""
        if not read:
            return False
        self.base += at
        fresh = np.frombuffer(read, np.uint8)
        self.data = np.concatenate([kept, fresh]) if len(kept) else fresh
        return True

    def done(self, at: int) -> int:
        """How many bytes of the file have been worked through when reading stands at `data[at]`."""
        return at if self._stream is None else self._file.tell() if self._file.seekable() else self.base + at

    def close(self) -> None:
        """Batches that were given out keep the map alive for as long as they are held."""
        self.data = np.zeros(0, np.uint8)
        self._map = None
        if self._stream is not None:
            self._stream.close()
        self._file.close()
