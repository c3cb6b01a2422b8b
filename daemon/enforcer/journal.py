"""The enforcer's journal: the one authority on what is blocked and cut off, and the audit log of who wanted it.

Append-only, one JSON object a line, each sealed with SHA-256 over the previous seal and itself. An entry is
on disk before the kernel is told. Whoever writes holds the lock, the enforcer or the command as root.

A torn last line (power lost while writing) is cut off. A chain that is broken, an end that is missing or a file
that is gone mean that somebody or something changed the journal: that is said in every status from then on, no
release after a break counts, and what the second copy has as engaged stays engaged (`witness`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any

from ..errors import EnforcerError
from . import witness
from .chain import START, Point, Reader, seal
from .protocol import principal
from .rails import PREFIXES
from .state import NS_PER_S, Moment, State

MOST_FILE_BYTES = 16 << 20
"""A journal that grew longer than this, and than four times what its state needs, is begun anew."""
KEPT_FILES = 16
MOST_REMEMBERED = 2_000
"""Notable entries that are kept at hand for who follows the journal."""
UNREMARKABLE = frozenset({"tick", "state", "restore", "head"})
OWN_WORK = frozenset({"block", "unblock", "block_user", "unblock_user"})
_BLOCKS_AN_ENTRY = 500
_LONGEST_BLOCK_S = 31_536_000  # the most that the rails can allow
_WIDER = {version: tuple(map(str, lengths[1:])) for version, lengths in PREFIXES.items()}


class LockedError(EnforcerError):
    """Another process holds the journal, or it was opened for reading."""


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
        self.sequence, self.head = START  # of the last entry
        self.first = 1  # sequence of the first entry that this file holds
        self.told: Callable[[dict[str, Any]], None] = lambda entry: None
        """Is given each entry that was written and has taken effect, before anybody is answered; raises nothing."""
        self._now = now
        self._file = -1
        self._lock = -1
        self._witness: witness.Head | None = None
        self._unsynced = False
        self._uncopied = False  # the kill switches changed since the second copy was written
        self._wrong = ""  # a damage that no new file has been begun for yet
        self._bytes = self._base_bytes = 0
        try:
            if not read_only:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                self._take_lock(wait_s)
            torn = self._read()
            if not read_only:
                self._open(torn)
        except OSError as error:
            self.close()
            raise EnforcerError(f"journal {self.path}: {error.strerror}", remedy="run as root") from None

    @property
    def writable(self) -> bool:
        """Whether entries are taken: this process holds the lock, and the file."""
        return self._file >= 0

    def close(self) -> None:
        """Let go of the file and the lock, once everything is on disk."""
        with contextlib.suppress(OSError):
            self.sync()
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        if self._witness is not None:
            self._witness.close()
        self._file, self._lock, self._witness = -1, -1, None

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
                self._to_disk()
        except OSError as error:
            self._take_back()
            raise EnforcerError(
                f"journal {self.path}: {error.strerror}", remedy="make room on that disk"
            ) from None
        self.head, self.sequence, self._bytes = digest, self.sequence + 1, self._bytes + len(line)
        former = self.state.kills.copy()
        self.state.apply(entry)
        self._uncopied = self._uncopied or former != self.state.kills
        self._remember(entry, digest)
        self.told(entry)
        if sync:
            with contextlib.suppress(OSError):  # the entry counts; the second copy follows with the next one
                self.sync()
        return entry

    def awake_ns(self) -> int:
        """The clock of kills that end by themselves, now."""
        return self.state.awake_at(self._now())

    def sync(self) -> None:
        """Wait until everything written is on disk, the second copy of the kill switches too. Raises OSError."""
        self._to_disk()
        try:
            if self._uncopied and self._file >= 0:
                witness.write_engaged(self.folder, self._engaged())
                self._uncopied = False
        finally:
            if self._witness is not None and not self._wrong:
                self._witness.write(Point(self.sequence, self.head))

    def maintain(self) -> None:
        """Begin a new file where this one has grown or is damaged. Raises EnforcerError; then the old one goes on."""
        if self._wrong:
            self._begin_after_damage()
        elif self._bytes > max(MOST_FILE_BYTES, 4 * self._base_bytes):
            self._begin_anew(f"journal-{self.sequence}", "")

    def _to_disk(self) -> None:
        if self._unsynced:
            os.fdatasync(self._file)
            self._unsynced = False

    def _remember(self, entry: dict[str, Any], digest: str) -> None:
        """Keep what a person or a SIEM wants to know; what the analyser did itself, it knows."""
        own = entry.get("by") == "analyser" and entry.get("do") in OWN_WORK
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

    def _read(self) -> int:
        """Fold what there is into `state`; bytes of a last line without its end. Raises OSError where it may not."""
        head, head_why = witness.read_head(self.folder)  # before the journal, which another process may write
        reader = Reader(self.path, head)
        wrong = self._fold(reader)
        verdict = reader.verdict
        there = reader.good_bytes > 0 or verdict.torn_bytes > 0 or bool(wrong)
        if head is not None:
            wrong += [why] if (why := witness.end_wrong(reader, head)) else []
        copy, copy_why = witness.read_engaged(self.folder)
        unsure = verdict.torn_bytes > 0 or head is None or not reader.met
        if wrong or unsure:
            wrong += self._keep_engaged(copy, bool(wrong))
        notes = []
        if there and not wrong and (head is None or not reader.met):
            notes.append(f"the file head {head_why or 'is too old'}: cannot tell whether the end is cut off")
        if copy_why and (copy_why != "is missing" or (head is not None and head != START)):
            notes.append(f"the second copy of the engaged kill switches {copy_why}")
        self._drop_nonsense()
        self._mend_names()
        self._wrong = "; ".join(wrong)
        self.note = "; ".join(filter(None, (*wrong, *notes, self.state.broken)))
        resume = Point(verdict.sequence, verdict.head)
        if head is not None and wrong and head.sequence > resume.sequence:
            resume = head  # no sequence is given twice: others may hold copies of what is missing
        self.sequence, self.head, self._bytes = *resume, reader.good_bytes
        self._uncopied = copy is None or copy.get("kills") != self.state.said()["kills"]
        return verdict.torn_bytes

    def _fold(self, reader: Reader) -> list[str]:
        """Let every entry take effect; what is wrong, in words."""
        wrong: list[str] = []
        try:
            for number, (entry, good) in enumerate(reader):
                sound = good and not wrong
                try:
                    self.state.apply(entry, trusted=sound)
                except Exception:  # whatever a damaged or forged entry makes of it: it does not count
                    wrong += [f"entry {entry.get('seq')} makes no sense"] if sound else []
                    continue
                if number == 0:
                    self.first = _number(entry.get("seq"))
                if sound:
                    self._remember(entry, reader.seal)
        except FileNotFoundError:
            return []
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise
            wrong.append(f"it cannot be read to its end: {error.strerror}")
        return [reader.verdict.note, *wrong] if reader.verdict.note else wrong

    def _keep_engaged(self, copy: dict[str, Any] | None, damaged: bool) -> list[str]:
        """Where the journal alone does not count: engaged is what it or the second copy has. In words, what that
        changed."""
        kills = self.state.kills
        copied = State()
        with contextlib.suppress(Exception):  # a forged copy is none
            written = copy or {}
            moment = Moment(int(written["wall"]), int(written["boot"]), str(written["boot_id"]))
            copied.awake_ns = self.state.awake_at(moment)  # what remains is counted from there
            copied.apply(written)
        said = []
        for name, kill in copied.kills.items():
            former = kills.get(name)
            if former is None:
                kills[name] = kill
                said.append(f"the kill switch of {name!r} is kept engaged from the second copy")
            elif damaged:  # neither ends sooner than it would have
                ends_ns = max(kill.ends_ns, former.ends_ns) if kill.ends_ns and former.ends_ns else 0
                services = tuple(dict.fromkeys((*former.services, *kill.services)))
                kills[name] = former._replace(services=services, ends_ns=ends_ns)
        if damaged and copy is not None:
            said += [
                f"the kill switch of {name!r} is engaged: its release, if there was one, is not in what is left"
                for name in kills
                if name not in copied.kills
            ]
        return said

    def _drop_nonsense(self) -> None:
        """Forget what a damaged entry blocked that the kernel would not take (it takes all or nothing), and whom
        nobody can be named."""
        blocks, latest_ns = self.state.blocks, self.state.elapsed_ns + _LONGEST_BLOCK_S * NS_PER_S
        for address in [a for a, b in blocks.items() if b.ends_ns > latest_ns or not _blockable(a)]:
            del blocks[address]
        users = self.state.users
        for user in [u for u, b in users.items() if b.ends_ns > latest_ns or not _is_principal(u)]:
            del users[user]

    def _mend_names(self) -> None:
        """A damaged name is engaged or restricted under one that the kernel takes."""
        both: tuple[dict[str, Any], ...] = (self.state.kills, self.state.restrictions)
        for closed in both:
            for name in [n for n in closed if _plain(n) != n]:
                closed.setdefault(_plain(name), closed.pop(name))

    def _open(self, torn: int) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._witness = witness.Head(self.folder)
        if self.sequence == 0 and not self._wrong:
            self._witness.write(START)
        if torn and not self._wrong:
            os.ftruncate(self._file, self._bytes)
        try:
            if self._wrong:
                self._begin_after_damage()
            elif torn:
                self.append("torn", bytes=torn)
        except EnforcerError as error:  # a full disk must not keep the enforcer from what is in force
            self.note = self.note or error.message
            if torn:
                os.ftruncate(self._file, self._bytes)  # what is appended all the same begins its own line

    def _begin_after_damage(self) -> None:
        """Keep the damaged file, and begin one that says so. Raises EnforcerError."""
        wrong, note = self._wrong, self.note
        self._begin_anew(f"journal.broken-{self.sequence}-{self._now().wall_ns}", wrong)
        self.note = note
        self.append("damaged", what=wrong)

    def _engaged(self) -> dict[str, Any]:
        """What the second copy has to say: a `state` entry of the kill switches alone."""
        return {"do": "state", "broken": "", **self._now().fields(), "kills": self.state.said()["kills"]}

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
        users = state.users_said()
        entries += [
            {**stamp, "do": "restore", "blocks": [], "users": users[at : at + _BLOCKS_AN_ENTRY]}
            for at in range(0, len(users), _BLOCKS_AN_ENTRY)
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
            if not broken:
                self.sync()
                self._sync_head()
            for name in os.listdir(self.folder):  # what a crash between link and replace left
                if name.startswith("journal") and name != "journal" and self._is_this(name):
                    os.unlink(f"{self.folder}/{name}")
            if os.path.getsize(self.path):
                os.link(self.path, f"{self.folder}/{old_name}")
            os.replace(f"{self.path}.new", self.path)
        except OSError as error:
            if fresh >= 0:
                os.close(fresh)
            raise EnforcerError(
                f"journal {self.path}: {error.strerror}", remedy="make room on that disk"
            ) from None
        os.close(self._file)
        self._file, self.head, self.first, self.sequence = fresh, head, self.sequence + 1, sequence
        self._bytes = self._base_bytes = len(data)
        self.note = state.broken = broken
        self._wrong, self._unsynced = "", False
        with contextlib.suppress(OSError):  # the new file is in force already
            witness.sync_folder(self.folder)
            self.sync()
            self._sync_head()
            for name in self._kept()[:-KEPT_FILES]:
                os.unlink(f"{self.folder}/{name}")

    def _kept(self) -> list[str]:
        """The files that this one continues, oldest first."""
        names = [f for f in os.listdir(self.folder) if f.startswith("journal-") and f[8:].isdecimal()]
        return sorted(names, key=lambda f: int(f[8:]))

    def _is_this(self, name: str) -> bool:
        return os.path.samefile(f"{self.folder}/{name}", self.path)

    def _sync_head(self) -> None:
        if self._witness is not None:
            self._witness.sync()


def _blockable(network: str) -> bool:
    """Whether it is written as `address_text` does, and is a network of a length that can be blocked; in a tenth of the
    time that an ip_network takes."""
    address, slash, length = network.partition("/")
    version, family = (6, AF_INET6) if ":" in address else (4, AF_INET)
    if slash and length not in _WIDER[version]:
        return False
    try:
        packed = inet_pton(family, address)
    except (OSError, ValueError):
        return False
    if slash and int.from_bytes(packed, "big") & ((1 << 8 * len(packed) - int(length)) - 1):
        return False
    return address == inet_ntop(family, packed) or address == str(ip_address(packed))


def _is_principal(text: str) -> bool:
    try:
        kind, name = principal(text)
    except ValueError:
        return False
    return f"{kind}:{name}" == text


def _plain(name: str) -> str:
    """An endpoint's name, as the rails allow it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)[:64] or "-"


def _number(value: object) -> int:
    return value if type(value) is int else 0
