"""Opened log files, plain or compressed, and where the content of one is found after a rotation.

A file is known by its inode and by its content: what it begins with, and what stands before the offset that was
reached. Names are only where to look: logrotate moves them. It must never take one file for another where
their contents differ, and it writes nothing.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, cast

HEAD_BYTES = 256
TAIL_BYTES = 64
_MOST_ATTEMPTS = 3

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a log can raise; the last three come of a damaged compressed file."""

# Magic numbers: RFC 1952 section 2.3.1, bzip2's "BZh", the .xz file format section 2.1.1.1.
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")

# auth.log.1, auth.log.2.gz, auth.log-20261124, auth.log-20261124-1795500000.xz, auth.log.old, access-20261124.log
_SUFFIX = re.compile(r"[.-](?:(?P<number>\d{1,3})|(?P<date>\d[\d.T_:-]{3,30})|old|0)(?:\.(?:gz|bz2|xz))?")


class NotAFileError(OSError):
    """What stands at the path is a directory, a pipe or a device."""


@dataclass(frozen=True)
class Checkpoint:
    """How far a log was read. Offsets are bytes of the (decompressed) content.

    `line` counts the lines before `offset`. `fingerprint` is `count:head:tail`: hashes of the first `count` (at
    most 256) bytes and of the last 64 before `offset`.
    """

    device: int
    inode: int
    offset: int
    line: int
    fingerprint: str


def fingerprint(head: bytes, tail: bytes) -> str:
    return f"{len(head)}:{_hash(head)}:{_hash(tail)}"


def same_head(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two checkpoints say the same of what their content begins with."""
    return one.fingerprint.rpartition(":")[0] == other.fingerprint.rpartition(":")[0]


def last_bytes(before: bytes, data: bytes, end: int) -> bytes:
    """The last TAIL_BYTES of `before + data[:end]`."""
    if end >= TAIL_BYTES:
        return data[end - TAIL_BYTES : end]
    return (before + data[:end])[-TAIL_BYTES:]


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


class Source:
    """One opened log file. Raises OSError where it cannot be opened, NotAFileError where it is no regular file."""

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self._stream: io.BufferedIOBase | None = None
        # The last offset that `holds` was asked about, the head and what stands before the offset: of a compressed
        # file, which is then positioned there, they cannot be read again without beginning anew.
        self.checked: tuple[int, bytes, bytes] | None = None
        # A pipe without a writer would make a blocking open wait for ever.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotAFileError(f"{path} is not a regular file")
            self.path = path
            self.device, self.inode = status.st_dev, status.st_ino
            self._stream = decompressed(io.FileIO(self.fd, closefd=False))
        except BaseException:
            self.close()
            raise

    @property
    def compressed(self) -> bool:
        return self._stream is not None

    def size(self) -> int:
        """Bytes that it holds now; of a compressed file, which grows no more, only that they are many."""
        return os.fstat(self.fd).st_size if self._stream is None else 1 << 62

    def modified_ns(self) -> int:
        return os.fstat(self.fd).st_mtime_ns

    def first_data(self) -> int:
        """Where the content begins behind a hole, which a writer leaves that goes on at its old offset after
        a truncation."""
        if self._stream is not None:
            return 0
        try:
            return os.lseek(self.fd, 0, os.SEEK_DATA)
        except OSError:  # ENXIO: there is no data yet
            return 0

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes of the content from `offset`. Raises one of READ_ERRORS."""
        if self._stream is None:
            return os.pread(self.fd, count, offset)
        if self._stream.tell() != offset:
            self._stream.seek(offset)
        return self._stream.read(count)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the content before the checkpoint's offset looks the same here."""
        if checkpoint.offset == 0:
            return True
        try:
            count = int(checkpoint.fingerprint.partition(":")[0])
            if not 0 < count <= HEAD_BYTES or self.size() < checkpoint.offset:
                return False
            head = self.read(0, count)
            if fingerprint(head, b"").rpartition(":")[0] != checkpoint.fingerprint.rpartition(":")[0]:
                return False
            before = min(TAIL_BYTES, checkpoint.offset)
            tail = self.read(checkpoint.offset - before, before)
        except (ValueError, *READ_ERRORS):
            return False
        self.checked = (checkpoint.offset, head, tail)
        return fingerprint(head, tail) == checkpoint.fingerprint

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def decompressed(raw: IO[bytes]) -> io.BufferedIOBase | None:
    """A stream of what the gzip, bzip2 or xz file `raw` (told by its magic number) holds; None for any other."""
    magic = os.pread(raw.fileno(), 6, 0)
    if magic.startswith(_MAGIC[0]):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if magic.startswith(_MAGIC[1]):
        return cast(io.BufferedIOBase, bz2.BZ2File(raw))
    if magic.startswith(_MAGIC[2]):
        return cast(io.BufferedIOBase, lzma.LZMAFile(raw))
    return None


def siblings(path: Path) -> list[tuple[Path, int]]:
    """The rotated files of the log `path` and their inodes, oldest first.

    Numbered names age as their number rises (logrotate's default), dated ones (`dateext`) as it falls; where a
    directory has both kinds, by the time of their last change.
    """
    real = Path(os.path.realpath(path))
    found: list[tuple[str, int, int, str, int]] = []
    try:
        with os.scandir(real.parent) as entries:
            for entry in entries:
                matched = _rotated_name(real, entry.name)
                if matched is not None and entry.is_file(follow_symlinks=False):
                    kind = matched.lastgroup or "old"
                    age = -int(matched["number"]) if kind == "number" else 0
                    changed_ns = entry.stat(follow_symlinks=False).st_mtime_ns
                    found.append((kind, age, changed_ns, entry.name, entry.inode()))
    except OSError:
        return []
    if len({kind for kind, *_ in found}) > 1:
        found.sort(key=lambda f: (f[2], f[1], f[3]))
    elif found and found[0][0] == "number":
        found.sort(key=lambda f: (f[1], f[2]))
    else:
        found.sort(key=lambda f: f[3])
    return [(real.parent / name, inode) for *_, name, inode in found]


def _rotated_name(path: Path, name: str) -> re.Match[str] | None:
    if name.startswith(path.name):
        return _SUFFIX.fullmatch(name, len(path.name))
    # logrotate's `extension`: access.log becomes access-20261124.log
    if path.suffix and name.startswith(path.stem):
        end = name.rfind(path.suffix)
        if end > len(path.stem):
            bare = name[:end] + name[end + len(path.suffix) :]
            return _SUFFIX.fullmatch(bare, len(path.stem))
    return None


def open_siblings(path: Path) -> list[Source]:
    """The rotated files, opened, oldest first; those that cannot be read are left out."""
    for attempt in range(_MOST_ATTEMPTS):
        sources, moved = [], False
        for name, inode in siblings(path):
            try:
                sources.append(Source(name))
            except FileNotFoundError:
                moved = True
            except OSError:
                continue
            else:
                moved = moved or sources[-1].inode != inode
        if not moved or attempt == _MOST_ATTEMPTS - 1:
            break
        # logrotate was renaming them just then; their order must be that of one moment.
        for source in sources:
            source.close()
    return sources


def same_file(one: Source, other: Source) -> bool:
    return (one.device, one.inode) == (other.device, other.inode)


def files_before(source: Source | None, files: list[Source]) -> list[Source]:
    """Those of `files` that stand before `source`, which may be among them; closes the others."""
    for at, other in enumerate(files):
        if source is not None and same_file(source, other):
            for unused in files[at:]:
                unused.close()
            return files[:at]
    return files


@dataclass
class Found:
    """What `find` found; whoever gets it closes the sources.

    `source` has the content up to the checkpoint (`intact`), or is the file that had it and was written anew since;
    None where neither is there. `later` are the rotated files that came after it, oldest first, without the one
    that stands at the path.
    """

    source: Source | None
    intact: bool
    later: list[Source]


def find(path: Path, checkpoint: Checkpoint) -> Found:
    """Where the content that `checkpoint` belongs to is now.

    The same inode is looked for first, then a copy (copytruncate), then a compressed one, then a file of the same
    content that now stands at `path`. Reads what it must to be certain, a compressed file up to the offset, so it
    is called in a thread.
    """
    older = open_siblings(path)
    try:
        current = [Source(path)]
    except OSError:
        current = []
    everything = [*current, *reversed(older)]
    chosen = _intact(everything, current, checkpoint)
    intact = chosen is not None
    if chosen is None:
        plain = (s for s in everything if s.inode == checkpoint.inode and not s.compressed)
        chosen = next(plain, None)
    at = older.index(chosen) if chosen in older else len(older)
    here = {(s.device, s.inode) for s in current}
    later = [s for s in older[at + 1 :] if (s.device, s.inode) not in here]
    for source in everything:
        if source is not chosen and source not in later:
            source.close()
    return Found(chosen, intact, later)


def _intact(everything: list[Source], current: list[Source], checkpoint: Checkpoint) -> Source | None:
    for admits in (_same_inode, _plain_copy, _compressed_copy, _same_content):
        for source in everything:
            if admits(source, checkpoint, source in current) and source.holds(checkpoint):
                return source
    return None


def _same_inode(source: Source, checkpoint: Checkpoint, _: bool) -> bool:
    # The device's number may change when the machine is started again; the content is compared anyway.
    return source.inode == checkpoint.inode


def _plain_copy(source: Source, checkpoint: Checkpoint, current: bool) -> bool:
    return checkpoint.offset > 0 and not current and not source.compressed


def _compressed_copy(source: Source, checkpoint: Checkpoint, current: bool) -> bool:
    return checkpoint.offset > 0 and not current and source.compressed


def _same_content(source: Source, checkpoint: Checkpoint, current: bool) -> bool:
    return checkpoint.offset > 0 and current
