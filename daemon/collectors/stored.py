"""What a collector of files gives, and the reading of stored logs for replay.

It must never give half a line, save the last of a file, nor hold more than a chunk.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .lines import LineCutter, count_lines
from .rotated import HEAD_BYTES, READ_ERRORS, Checkpoint, NotAFileError, decompressed, fingerprint, last_bytes


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one file.

    `start` and `end` are offsets of the (decompressed) content; `data` is shorter than the range where a long line
    was cut. `first_line` is the number of the first line, from 1. `checkpoint` stands after this chunk. `existing`
    says that the lines were there when the file was opened, so that they are timed as in replay.
    """

    path: str
    data: bytes
    first_line: int
    start: int
    end: int
    checkpoint: Checkpoint
    receive_ns: int
    existing: bool


def unreadable(path: Path | str, error: OSError) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(
            f"{path}: no permission to read it",
            remedy="add the user that Gatewatch runs as to the group that owns the file (adm on Debian), "
            "or start as root",
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputError(f"{path}: no such file", remedy="check the path")
    if isinstance(error, NotAFileError | IsADirectoryError):
        return InputError(
            f"{path}: not a regular file", remedy="name a log file, plain or compressed, or - for stdin"
        )
    return InputError(f"{path}: cannot be opened ({error.strerror or error})", remedy="check the path")


def read_chunks(
    path: Path | str, chunk_bytes: int = 1 << 20, clock: Callable[[], int] = time.time_ns
) -> Iterator[Chunk]:
    """The lines of a stored log, plain or compressed (gzip, bzip2, xz), or of standard input for `-`.

    A last line without newline is given with one. Raises InputError where the file is missing, unreadable, damaged
    or neither a file nor a pipe.
    """
    if str(path) == "-":
        yield from _stream_chunks("-", sys.stdin.buffer, (0, 0), chunk_bytes, clock)
        return
    try:
        raw = io.FileIO(path)
    except OSError as error:
        raise unreadable(path, error) from error
    with raw:
        status = os.fstat(raw.fileno())
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise unreadable(path, NotAFileError())
        stream = decompressed(raw) if stat.S_ISREG(status.st_mode) else None
        yield from _stream_chunks(
            str(path), stream or raw, (status.st_dev, status.st_ino), chunk_bytes, clock
        )


def _stream_chunks(
    name: str,
    stream: BinaryIO | io.RawIOBase | io.BufferedIOBase,
    identity: tuple[int, int],
    chunk_bytes: int,
    clock: Callable[[], int],
) -> Iterator[Chunk]:
    cutter, line, head, tail = LineCutter(), 0, b"", b""
    ended = False
    while not ended:
        try:
            data = stream.read(chunk_bytes)
        except READ_ERRORS as error:
            raise InputError(
                f"{name}: damaged or unreadable after offset {cutter.position} ({error})",
                remedy="what came before it was read; repair the file, or replay a copy",
            ) from error
        ended = not data
        start = cutter.start
        whole = cutter.flush() if ended else cutter.feed(data)
        if len(head) < HEAD_BYTES:
            head = (head + data[:HEAD_BYTES])[:HEAD_BYTES]
        within = len(data) - (cutter.position - cutter.start)
        if whole:
            lines = count_lines(whole)
            before = last_bytes(tail, data, within)
            at = Checkpoint(*identity, cutter.start, line + lines, fingerprint(head[: cutter.start], before))
            yield Chunk(name, whole, line + 1, start, cutter.start, at, clock(), True)
            line += lines
        tail = last_bytes(tail, data, len(data))
