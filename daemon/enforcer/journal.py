"""The enforcer's journal: the one authority on what is blocked and cut off, and the audit log of who wanted it.

Append-only, one JSON object a line, each sealed with SHA-256 over the previous seal and itself. An entry is
on disk before the kernel is told. Whoever writes holds the lock, the enforcer or the command as root.

A torn last line (power lost while writing) is cut off. A chain that is broken in the middle means that
somebody or something changed the file: that is said in every status from then on, and no release after the
break counts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from ..errors import EnforcerError
from .state import Moment, State

GENESIS = "0" * 64
MOST_FILE_BYTES = 16 << 20
"""A journal that grew longer than this, and than four times what its state needs, is begun anew."""
KEPT_FILES = 16
MOST_REMEMBERED = 2_000
"""Notable entries that are kept at hand for who follows the journal."""
UNREMARKABLE = frozenset({"tick", "state", "restore", "head"})
_SEAL = b',"hash":"'
_SEAL_BYTES = len(_SEAL) + 64 + len(b'"}')
_BLOCKS_AN_ENTRY = 500


class Verdict(NamedTuple):
    """What reading a journal showed."""

    entries: int
    head: str  # the last good seal
    sequence: int  # of the last good entry
    intact: bool
    torn_bytes: int  # of a last line without its end
    note: str  # what is wrong, in words; empty where nothing is


class LockedError(EnforcerError):
    """Another process holds the journal, or it was opened for reading."""


def seal(entry: dict[str, Any], previous: str) -> tuple[bytes, str]:
    """The line of `entry` in a chain whose last seal is `previous`, and its own seal."""
    body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode("ascii")
    digest = sha256(previous.encode("ascii") + body).hexdigest()
    return body[:-1] + _SEAL + digest.encode("ascii") + b'"}\n', digest


class Reader:
    """Reads a journal from its start; iterate over it, then ask for `verdict`.

    It gives (entry, good): entries after a break are given as well, as far as they are JSON at all, with
    `good` false.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.good_bytes = 0
        self.seal = GENESIS  # of the entry that was given last
        self.verdict = Verdict(0, GENESIS, 0, True, 0, "")

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bool]]:
        entries, head, sequence, torn, note = 0, GENESIS, 0, 0, ""
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    torn = len(line)
                    break
                entry, digest = _unseal(line)
                if entries == 0 and entry.get("do") == "state":
                    head, sequence = str(entry.get("previous", "")), _number(entry.get("seq")) - 1
                right = digest == sha256(head.encode("utf-8", "replace") + _body(line)).hexdigest()
                if not note and not (right and entry.get("seq") == sequence + 1):
                    note = f"the chain is broken after entry {sequence}"
                if not note:
                    head, sequence, entries = digest, sequence + 1, entries + 1
                self.good_bytes += len(line)
                self.seal = digest
                if entry:
                    yield entry, not note
        self.verdict = Verdict(entries, head, sequence, not note, torn, note)


def verify(path: str | os.PathLike[str]) -> Verdict:
    """Check the chain of the journal `path` from its first entry. Raises EnforcerError where it cannot be read."""
    reader = Reader(os.fspath(path))
    try:
        for _ in reader:
            pass
    except OSError as error:
        raise EnforcerError(f"journal {reader.path}: {error.strerror}") from None
    return reader.verdict


class Journal:
    """The journal in `folder`, opened for writing unless `read_only`; `state` is what it says is in force.

    Raises LockedError where another process writes it, EnforcerError where it cannot be read.
    """

    def __init__(
        self, folder: str, now: Callable[[], Moment], *, read_only: bool = False, wait_s: float = 0.0
    ):
        self.folder = folder
        self.path = f"{folder}/journal"
        self.state = State()
        self.note = ""
        self.remembered: deque[tuple[dict[str, Any], str]] = deque(maxlen=MOST_REMEMBERED)
        self.first = 1  # sequence of the first entry that this file holds
        self._now = now
        self._file = -1
        self._lock = -1
        self._unsynced = False
        self._base_bytes = 0
        try:
            if not read_only:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                self._take_lock(wait_s)
            verdict, good_bytes = self._read()
            self.head, self.sequence, self._bytes = verdict.head, verdict.sequence, good_bytes
            self.note = verdict.note or self.state.broken
            if not read_only:
                self._open(verdict)
        except OSError as error:
            self.close()
            raise EnforcerError(f"journal {self.path}: {error.strerror}", remedy="run as root") from None

    def close(self) -> None:
        """Let go of the file and the lock."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def append(self, do: str, *, sync: bool = True, **fields: Any) -> dict[str, Any]:
        """Write one entry, wait until it is on disk, and let it take effect in `state`.

        With `sync` false the caller has to call `sync()` before it tells anyone. Raises EnforcerError; then
        nothing was written and nothing took effect.
        """
        if self._file < 0:
            raise LockedError(f"journal {self.path} is held by another process")
        entry = {"seq": self.sequence + 1, **self._now().fields(), "do": do, **fields}
        line, digest = seal(entry, self.head)
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unsynced = True
            if sync:
                self.sync()
        except OSError as error:
            self._take_back()
            raise EnforcerError(
                f"journal {self.path}: {error.strerror}", remedy="make room on that disk"
            ) from None
        self.head, self.sequence, self._bytes = digest, self.sequence + 1, self._bytes + len(line)
        self.state.apply(entry)
        self._remember(entry, digest)
        return entry

    def sync(self) -> None:
        """Wait until everything written is on disk. Raises OSError."""
        if self._unsynced:
            os.fdatasync(self._file)
            self._unsynced = False

    def maintain(self) -> None:
        """Begin a new file where this one has grown. Raises EnforcerError; then the old file goes on."""
        if self._bytes > max(MOST_FILE_BYTES, 4 * self._base_bytes):
            self._begin_anew(f"journal-{self.sequence}", "")

    def _remember(self, entry: dict[str, Any], digest: str) -> None:
        """Keep what a person or a SIEM wants to know; what the analyser did itself, it knows."""
        own = entry.get("by") == "analyser" and entry.get("do") in ("block", "unblock")
        if entry.get("do") not in UNREMARKABLE and not own:
            self.remembered.append((entry, digest))

    def _take_lock(self, wait_s: float) -> None:
        self._lock = os.open(f"{self.folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    self.close()
                    raise LockedError(f"journal {self.path} is held by another process") from None
                time.sleep(0.01)

    def _read(self) -> tuple[Verdict, int]:
        if not os.path.exists(self.path):
            return Verdict(0, GENESIS, 0, True, 0, ""), 0
        reader = Reader(self.path)
        for number, (entry, good) in enumerate(reader):
            self.state.apply(entry, trusted=good)
            if number == 0:
                self.first = _number(entry.get("seq"))
            if good:
                self._remember(entry, reader.seal)
        return reader.verdict, reader.good_bytes

    def _open(self, verdict: Verdict) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if verdict.torn_bytes:
            os.ftruncate(self._file, self._bytes)
        try:
            if not verdict.intact:
                self._begin_anew(f"journal.broken-{verdict.sequence}-{self._now().wall_ns}", verdict.note)
            if verdict.torn_bytes:
                self.append("torn", bytes=verdict.torn_bytes)
        except EnforcerError as error:  # a full disk must not keep the enforcer from what is in force
            self.note = self.note or error.message

    def _take_back(self) -> None:
        """Undo a write that failed half-way, so that the chain goes on from the last good entry."""
        try:
            os.ftruncate(self._file, self._bytes)
            self._unsynced = True
        except OSError:
            os.close(self._file)
            self._file = -1  # nothing more is accepted; the next start cuts the torn line off

    def _begin_anew(self, old_name: str, broken: str) -> None:
        """A new file whose first entries hold the whole state and carry the old head; the old file is kept."""
        now, state = self._now(), self.state
        state.advance(now)
        state.expire()
        stamp = now.fields()
        entries: list[dict[str, Any]] = [
            {
                **stamp,
                "do": "state",
                "previous": self.head,
                "broken": broken,
                **state.said(),
            }
        ]
        blocks = state.blocks_said()
        entries += [
            {**stamp, "do": "restore", "blocks": blocks[at : at + _BLOCKS_AN_ENTRY]}
            for at in range(0, len(blocks), _BLOCKS_AN_ENTRY)
        ]
        head, sequence, lines = self.head, self.sequence, []
        for entry in entries:
            sequence += 1
            line, head = seal({"seq": sequence, **entry}, head)
            lines.append(line)
        data = b"".join(lines)
        fresh = -1
        try:
            fresh = os.open(
                f"{self.path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            if os.write(fresh, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fresh)
            os.link(self.path, f"{self.folder}/{old_name}")
            os.replace(f"{self.path}.new", self.path)
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            if fresh >= 0:
                os.close(fresh)
            raise EnforcerError(
                f"journal {self.path}: {error.strerror}", remedy="make room on that disk"
            ) from None
        os.close(self._file)
        self._file, self.head, self.sequence = fresh, head, sequence
        self._bytes = self._base_bytes = len(data)
        self.note = state.broken = broken
        kept = sorted(
            (f for f in os.listdir(self.folder) if f.startswith("journal-")), key=lambda f: int(f[8:])
        )
        for name in kept[:-KEPT_FILES]:
            os.unlink(f"{self.folder}/{name}")


def _unseal(line: bytes) -> tuple[dict[str, Any], str]:
    """The entry (empty where it is none) and the seal that the line bears."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}, ""
    if type(entry) is not dict:
        return {}, ""
    return entry, str(entry.pop("hash", ""))


def _body(line: bytes) -> bytes:
    return line[: -_SEAL_BYTES - 1] + b"}"


def _number(value: object) -> int:
    return value if type(value) is int else 0
