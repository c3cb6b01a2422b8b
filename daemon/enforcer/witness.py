"""The two small files beside the journal that bear witness when it was damaged.

`head` has the place of the last entry that is on disk, so that a journal whose end was cut off is known by it. It
is written after the journal and without waiting for the disk: it may be behind, never ahead. `engaged` is a second
copy of the kill switches that are engaged, for the day when the journal cannot be trusted. Neither counts while
the journal is whole.
"""

from __future__ import annotations

import contextlib
import os
from hashlib import sha256
from typing import Any

from .chain import GENESIS, Point, Reader, seal, unseal

HEAD, ENGAGED = "head", "engaged"
_HEAD_BYTES = 20 + 1 + 64 + 1 + 16 + 1  # sequence, seal, checksum; within one sector, so written as a whole
_MOST_BYTES = 16 << 20
_TRIES = 5  # it may be written at this moment


class Head:
    """The file `head` in `folder`, opened for writing. Raises OSError."""

    def __init__(self, folder: str) -> None:
        self._file = os.open(f"{folder}/{HEAD}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size > _HEAD_BYTES:
            os.ftruncate(self._file, _HEAD_BYTES)

    def write(self, point: Point) -> None:
        """Note that everything up to `point` is on disk. A disk that refuses leaves it behind, which is allowed."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _said(point), 0)

    def sync(self) -> None:
        """Wait until it is on disk. Raises OSError."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read_head(folder: str) -> tuple[Point | None, str]:
    """The noted place, or none and why. Raises PermissionError."""
    for _ in range(_TRIES):
        data, why = _read(f"{folder}/{HEAD}")
        if why:
            return None, why
        with contextlib.suppress(ValueError):
            number, digest, *_rest = data.decode("ascii").split()
            point = Point(int(number), digest)
            if data == _said(point):
                return point, ""
    return None, "is damaged"


def end_wrong(reader: Reader, head: Point) -> str:
    """What `head` shows to be wrong with the end of a journal that was read; empty where it is as written.

    Nothing is said of a head that is older than the file's first entry: it cannot tell.
    """
    verdict = reader.verdict
    if head.sequence > 0 and not reader.good_bytes:
        return f"nothing is left of the journal, entry {head.sequence} was written"
    last = verdict.sequence if verdict.intact else max(verdict.sequence, reader.claimed)
    if head.sequence > last:
        missing = head.sequence - last
        entries = "1 entry is" if missing == 1 else f"{missing} entries are"
        return f"the journal ends at entry {last}, entry {head.sequence} was written: {entries} missing"
    if verdict.intact and not reader.met and head.sequence >= reader.before.sequence:
        return f"entry {head.sequence} is not the one that was written: the journal was replaced"
    return ""


def read_engaged(folder: str) -> tuple[dict[str, Any] | None, str]:
    """The second copy, as an entry that `State.apply` takes; or none and why. Raises PermissionError."""
    line, why = _read(f"{folder}/{ENGAGED}")
    if why:
        return None, why
    entry, _, right = unseal(line, GENESIS)
    return (entry, "") if right and line.endswith(b"}\n") else (None, "is damaged")


def write_engaged(folder: str, entry: dict[str, Any]) -> None:
    """Put `entry` in place of the second copy, and wait until it is on disk. Raises OSError."""
    path = f"{folder}/{ENGAGED}"
    fresh = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fresh, "wb") as file:
        file.write(seal(entry, GENESIS)[0])
        file.flush()
        os.fsync(fresh)
    os.replace(f"{path}.new", path)
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Wait until the names in `folder` are on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: str) -> tuple[bytes, str]:
    try:
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES), ""
    except FileNotFoundError:
        return b"", "is missing"
    except PermissionError:
        raise
    except OSError as error:
        return b"", f"cannot be read ({error.strerror})"


def _said(point: Point) -> bytes:
    text = f"{point.sequence:020d} {point.seal}"
    return f"{text} {sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}\n".encode("utf-8", "replace")
