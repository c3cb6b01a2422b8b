"""Alerts as JSON, one object a line, appended to a file.

Each line is the document with two fields added: `outbox` (the row's id) and `key` (its stable name). The sink reads
its own tail when it opens the file, so that what was written before a kill and not acknowledged is not written twice,
and takes a torn last line away. It must never acknowledge a line that is not on the disk.
"""

from __future__ import annotations

import asyncio

# asyncio would load it with the first thread, when this process may have lost the right to read it.
import concurrent.futures.thread  # noqa: F401
import contextlib
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .contract import WINDOW, RejectedError, Row, SinkError

FILE_MODE = 0o640
_REMEMBERED = 8 * WINDOW  # rows; more than can have been sent without an acknowledgement
_BLOCK = 1 << 16
_MOST_TAIL = 64 << 20  # bytes of the file's end that are read for what was written already


class JsonlSink:
    """Appends to `path`.

    Parameters
    ----------
    path: the file; made with mode 0640 where it is missing. Its directory must be there.
    rotate_bytes: the size from which the file is renamed to `path.1` and a new one begun; 0 = never. A file that
        another program (logrotate) renames is left at once, too.
    keep: how many rotated files are kept.
    """

    def __init__(self, path: Path | str, rotate_bytes: int = 0, keep: int = 5) -> None:
        self.path = Path(path)
        self._rotate_bytes = rotate_bytes
        self._keep = max(1, keep)
        self._fd = -1
        self._written: OrderedDict[tuple[int, str], None] = OrderedDict()

    async def write(self, rows: Sequence[Row]) -> None:
        await asyncio.to_thread(self._write, rows)

    async def close(self) -> None:
        self._close()

    def _write(self, rows: Sequence[Row]) -> None:
        try:
            self._prepare()
            rejected = self._append(rows)
        except OSError as error:
            self._close()
            raise SinkError(f"{self.path}: {error.strerror or error}", remedy=_remedy(error)) from error
        if rejected is not None:
            raise rejected

    def _append(self, rows: Sequence[Row]) -> RejectedError | None:
        lines: list[bytes] = []
        new: list[tuple[int, str]] = []
        rejected = None
        for row in rows:
            if (row.id, row.key) in self._written:
                continue
            try:
                lines.append(encode(row))
            except (msgspec.MsgspecError, RecursionError) as error:
                rejected = RejectedError(row.id, f"not a JSON object: {error}")
                break
            new.append((row.id, row.key))
        before = os.fstat(self._fd).st_size
        try:
            data = memoryview(b"".join(lines))
            while data:
                data = data[os.write(self._fd, data) :]
            os.fdatasync(self._fd)
        except OSError:
            # What the kernel could not write it may have forgotten: the lines go away and are written again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)
            raise
        self._remember(new)
        return rejected

    def _remember(self, rows: Sequence[tuple[int, str]]) -> None:
        self._written.update(dict.fromkeys(rows))
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    def _prepare(self) -> None:
        """Opens the file where it is not open, was renamed by another, or has grown too large."""
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            try:
                there = self.path.stat()
                moved = (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino)
            except FileNotFoundError:
                moved = True
            if not moved and self._rotate_bytes and mine.st_size >= self._rotate_bytes:
                self._rotate()
                moved = True
            if not moved:
                return
            self._close()
        self._open()

    def _open(self) -> None:
        made = not self.path.exists()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = os.open(self.path, flags, FILE_MODE)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        # Two writers would not see what the other has written.
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if made:
            os.fchmod(self._fd, FILE_MODE)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        _mend(self._fd)
        # Rows sent before a rotation may not be acknowledged yet.
        older: list[tuple[int, str]] = []
        here = _tail(self._fd)
        if len(here) < _REMEMBERED:
            with contextlib.suppress(OSError), open(self._rotated(1), "rb") as file:
                older = _tail(file.fileno())
        self._remember([*older, *here][-_REMEMBERED:])

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._rotated(number).rename(self._rotated(number + 1))
        self.path.rename(self._rotated(1))

    def _rotated(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def encode(row: Row) -> bytes:
    """The line of a row. Raises msgspec.MsgspecError where the document is no JSON object."""
    document = msgspec.json.decode(row.document, type=dict[str, msgspec.Raw])
    document["outbox"] = msgspec.Raw(b"%d" % row.id)
    document["key"] = msgspec.Raw(msgspec.json.encode(row.key))
    line = msgspec.json.encode(document)
    # Values are copied as they came, and white space between them may be a newline.
    if b"\n" in line or b"\r" in line:
        line = msgspec.json.encode(msgspec.json.decode(line))
    return line + b"\n"


def _mend(fd: int) -> None:
    """Takes away what stands after the last newline: a line that a kill or a full disk has torn."""
    size = end = os.fstat(fd).st_size
    while end > 0:
        block = os.pread(fd, min(_BLOCK, end), max(0, end - _BLOCK))
        newline = block.rfind(b"\n")
        if newline >= 0:
            end += newline + 1 - len(block)
            break
        end -= len(block)
    if end != size:
        os.ftruncate(fd, end)
        os.fdatasync(fd)


class _Written(msgspec.Struct):
    outbox: int
    key: str


def _tail(fd: int) -> list[tuple[int, str]]:
    """The last rows in a file, oldest first; lines of others are passed over."""
    start = size = os.fstat(fd).st_size
    blocks: list[bytes] = []
    lines = 0
    while start > 0 and lines <= _REMEMBERED and size - start < _MOST_TAIL:
        length = min(_BLOCK, start)
        start -= length
        blocks.append(os.pread(fd, length, start))
        lines += blocks[-1].count(b"\n")
    rows = []
    decoder = msgspec.json.Decoder(_Written)
    for line in b"".join(reversed(blocks)).split(b"\n")[-_REMEMBERED - 1 :]:
        try:
            written = decoder.decode(line)
        except msgspec.MsgspecError:
            continue
        rows.append((written.outbox, written.key))
    return rows


def _remedy(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "free space; alerts wait in the store until then"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "let the user that runs the sinks write there"
        case errno.ENOENT | errno.ENOTDIR:
            return "make its directory"
        case errno.EAGAIN:
            return "another process holds the file; stop it, or give each its own"
        case _:
            return "it is tried again"
