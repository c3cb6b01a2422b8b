"""Reads the deny list that the enforcer publishes, and answers who is refused at this moment.

The file is derived from the enforcer's journal and says the same: whoever reads it must not change it, and does not
need to ask. It is followed as it grows and as it is replaced. What cannot be read or believed is *unknown*: what was
known before stays in force, and the reader is told. It must import nothing heavy, and never raise for what a file
holds: the authorisation endpoint asks it on every request.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

USER_KINDS = ("account", "key", "subject", "certificate", "any")
KINDS = ("address", *USER_KINDS, "killed", "restricted")
VERSION = 1
CHUNK_BYTES = 1 << 18  # some 4,000 entries: a few milliseconds
_LEAST_READ_BYTES = 1 << 16
_MOST_LINE_BYTES = 1 << 22  # a restriction names as many networks as the rails have room for
_MOST_NAME = 256
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_IN_MODIFY, _IN_ATTRIB, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x4, 0x80, 0x100, 0x200  # inotify(7)
_IN_IGNORED, _IN_ONLYDIR = 0x8000, 0x01000000
_WATCHED = _IN_MODIFY | _IN_ATTRIB | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_ONLYDIR
_EVENT = struct.Struct("@iIII")


class DenyList:
    """The deny list in the file `path`, as far as `refresh` has read it.

    Attributes: `known`: the file is that of this boot, can be believed, and was read to its end. `problem`: why not,
    in words; empty where it is known. `sequence`: the journal's at the time when the file was written.
    """

    def __init__(self, path: str | os.PathLike[str], boot_id: str | None = None) -> None:
        """`boot_id`: of this machine where it is not the one that proc(5) gives."""
        self.path = os.fspath(path)
        self.known = False
        self.problem = f"{self.path}: not read yet"
        self._boot_id = _this_boot() if boot_id is None else boot_id
        self._tables = _Tables()
        self._file: _File | None = None
        self._inotify = -1
        self._watch = -1
        self._watched = (-1, -1)

    @property
    def sequence(self) -> int:
        return self._tables.sequence

    @property
    def behind(self) -> bool:
        """Whether a `refresh` with a limit has left something to read."""
        return self._file is not None and self._file.more

    def refresh(self, most_bytes: int | None = None) -> bool:
        """Reads what is new, at most about `most_bytes` (then `behind` says whether there is more); True where
        anything has changed. A file that replaces another counts from when it was read to its end."""
        before = self.known, self.problem
        self._look_again()
        changed = False
        try:
            changed = self._read(most_bytes)
        except OSError as error:
            self._unknown(error.strerror or str(error))
        except ValueError as error:
            self._unknown(str(error))
        return changed or before != (self.known, self.problem)

    def denied_user(self, kind: str, name: str) -> bool:
        """Whether the principal `kind`:`name` is refused; a name that is blocked for `any` kind is."""
        users = self._tables.users
        ends = users[kind].get(name)
        if ends is not None and _lasts(ends):
            return True
        ends = users["any"].get(name)
        return ends is not None and _lasts(ends)

    def denied_address(self, address: Address | str) -> bool:
        """Whether `address` or a network around it is refused. Raises ValueError for a text that is no address."""
        if isinstance(address, str):
            version, _, value = _network(address)
        else:
            version, _, value = _unmapped(address.version, address.max_prefixlen, int(address))
        for shift, networks in self._tables.networks[version].items():
            ends = networks.get(value >> shift)
            if ends is not None and _lasts(ends):
                return True
        return False

    def killed(self, endpoint: str) -> bool:
        """Whether a kill switch is engaged on `endpoint`."""
        ends = self._tables.killed.get(endpoint)
        return ends is not None and _lasts(ends)

    def restricted(self, endpoint: str) -> tuple[Network, ...] | None:
        """The only networks that may reach `endpoint`; None where it is not restricted."""
        entry = self._tables.restricted.get(endpoint)
        return entry[1] if entry is not None and _lasts(entry[0]) else None

    def entries(self, kinds: Collection[str] = KINDS) -> Iterator[tuple[str, str, int]]:
        """Each entry of these kinds in force: kind, name, and when it ends (nanoseconds of CLOCK_BOOTTIME; 0 = not
        by itself)."""
        yield from [entry for entry in self._tables.entries(kinds) if _lasts(entry[2])]

    def counts(self) -> dict[str, int]:
        """How many entries of each kind there are; those that ended and were not yet taken back count."""
        return {kind: number for kind, number in self._tables.counts().items() if number}

    def fileno(self) -> int:
        """A descriptor that becomes readable when something happens in the file's folder, until `refresh`.

        Raises OSError where the kernel gives none: then only asking again tells."""
        if self._inotify < 0:
            self._inotify = _check(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            self._look_again()
        return self._inotify

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = self._watch = -1

    def _unknown(self, why: str) -> None:
        self.known = False
        self.problem = f"{self.path}: {why}"

    def _read(self, most_bytes: int | None) -> bool:
        there = os.stat(self.path, follow_symlinks=False)
        file = self._file
        if file is None or not file.same(there):
            opened = _File(self.path)
            if file is not None:
                file.close()
            file = self._file = opened
        _believable(os.fstat(file.fd))
        if file.broken:
            raise ValueError(file.broken)
        changed = file.read(self._boot_id, most_bytes)
        if file.more and file.tables is not self._tables:
            return False
        if file.tables.sequence < 0:
            raise ValueError("has no first line")
        changed |= file.tables is not self._tables
        self._tables = file.tables
        if not file.more:
            self.known, self.problem = True, ""
        return changed

    def _look_again(self) -> None:
        """Empties the inotify queue, and sets the watch where there is none (the folder may have been replaced)."""
        if self._inotify < 0:
            return
        try:
            while data := os.read(self._inotify, 1 << 16):
                at = 0
                while at < len(data):
                    _, mask, _, length = _EVENT.unpack_from(data, at)
                    at += _EVENT.size + length
                    if mask & _IN_IGNORED:
                        self._watch = -1
        except BlockingIOError:
            pass
        folder = self._folder()
        if self._watch < 0 or folder != self._watched:
            if self._watch >= 0:
                _libc().inotify_rm_watch(self._inotify, self._watch)
            self._watched = folder
            path = os.path.dirname(self.path) or "."
            self._watch = _libc().inotify_add_watch(self._inotify, os.fsencode(path), _WATCHED)

    def _folder(self) -> tuple[int, int]:
        """Device and inode of the folder that the path leads to now."""
        try:
            status = os.stat(os.path.dirname(self.path) or ".")
        except OSError:
            return -1, -1
        return status.st_dev, status.st_ino


class _Tables:
    """What one file says, by what is looked up."""

    def __init__(self) -> None:
        self.sequence = -1
        self.users: dict[str, dict[str, int]] = {kind: {} for kind in USER_KINDS}
        self.networks: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        """By version, then by the bits right of the prefix, the prefix: when it ends."""
        self.killed: dict[str, int] = {}
        self.restricted: dict[str, tuple[int, tuple[Network, ...]]] = {}

    def first(self, line: bytes, boot_id: str) -> None:
        head = json.loads(line)
        if type(head) is not dict or head.get("denied") != VERSION:
            raise ValueError(f"is no deny list of version {VERSION}")
        if head.get("boot_id") != boot_id:
            raise ValueError("was written before this machine started; the enforcer writes it anew")
        sequence = head.get("sequence")
        if type(sequence) is not int or sequence < 0:
            raise ValueError("the first line has no sequence")
        self.sequence = sequence

    def apply(self, line: bytes) -> None:
        """Raises ValueError for anything but an entry."""
        entry = json.loads(line)
        if type(entry) is not list or len(entry) < 3:
            raise ValueError("no entry")
        sign, kind, name, *rest = entry
        if type(name) is not str or not 0 < len(name) <= _MOST_NAME:
            raise ValueError("no name")
        if sign == "-" and not rest:
            self._remove(kind, name)
        elif sign == "+" and rest and type(rest[0]) is int and rest[0] >= 0:
            self._add(kind, name, rest[0], rest[1:])
        else:
            raise ValueError("no entry")

    def _add(self, kind: object, name: str, ends: int, rest: list[object]) -> None:
        if kind == "restricted":
            if len(rest) != 1 or type(rest[0]) is not list:
                raise ValueError("no networks")
            self.restricted[name] = ends, tuple(_ip_network(text) for text in rest[0])
        elif rest:
            raise ValueError("more than an entry")
        elif kind == "address":
            version, shift, value = _network(name)
            self.networks[version].setdefault(shift, {})[value >> shift] = ends
        elif kind == "killed":
            self.killed[name] = ends
        elif isinstance(kind, str) and kind in self.users:
            self.users[kind][name] = ends
        else:
            raise ValueError(f"unknown kind {kind!r:.40}")

    def _remove(self, kind: object, name: str) -> None:
        if kind == "restricted":
            self.restricted.pop(name, None)
        elif kind == "address":
            version, shift, value = _network(name)
            networks = self.networks[version].get(shift, {})
            networks.pop(value >> shift, None)
            if not networks:
                self.networks[version].pop(shift, None)
        elif kind == "killed":
            self.killed.pop(name, None)
        elif isinstance(kind, str) and kind in self.users:
            self.users[kind].pop(name, None)
        else:
            raise ValueError(f"unknown kind {kind!r:.40}")

    def counts(self) -> dict[str, int]:
        made = {kind: len(names) for kind, names in self.users.items()}
        made["address"] = sum(len(ends) for lengths in self.networks.values() for ends in lengths.values())
        return made | {"killed": len(self.killed), "restricted": len(self.restricted)}

    def entries(self, kinds: Collection[str]) -> Iterator[tuple[str, str, int]]:
        for kind in (kind for kind in self.users if kind in kinds):
            for name, ends in self.users[kind].items():
                yield kind, name, ends
        for version, lengths in self.networks.items() if "address" in kinds else ():
            of, bits = (IPv4Network, 32) if version == 4 else (IPv6Network, 128)
            for shift, networks in lengths.items():
                for value, ends in networks.items():
                    network = of((value << shift, bits - shift))
                    yield "address", str(network if shift else network.network_address), ends
        for name, ends in self.killed.items() if "killed" in kinds else ():
            yield "killed", name, ends
        for name, (ends, _) in self.restricted.items() if "restricted" in kinds else ():
            yield "restricted", name, ends


class _File:
    """One file, from when it was opened: `tables` say what was read of it so far."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self.tables = _Tables()
        self.more = True
        self.broken = ""
        self._opened = os.fstat(self.fd)
        self._offset = 0
        self._line = 0
        self._least = _LEAST_READ_BYTES  # to be read at once; more where a line is longer

    def same(self, there: os.stat_result) -> bool:
        """Whether the file that is `there` now is this one, and has not been cut."""
        return (
            there.st_ino == self._opened.st_ino
            and there.st_dev == self._opened.st_dev
            and there.st_size >= self._offset
        )

    def read(self, boot_id: str, most_bytes: int | None) -> bool:
        """Whole lines, to the end or about `most_bytes`; True where there was one. Raises ValueError."""
        start = self._offset
        while True:
            left = CHUNK_BYTES if most_bytes is None else most_bytes - (self._offset - start)
            if left <= 0:
                break
            wanted = max(min(left, CHUNK_BYTES), self._least)
            data = os.pread(self.fd, wanted, self._offset)
            self.more = len(data) == wanted
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) >= _MOST_LINE_BYTES:
                    raise self._break("a line without an end")
                if not self.more:
                    break
                self._least = 4 * wanted
                continue
            self._least = _LEAST_READ_BYTES
            self._apply(data[:end], boot_id)
            if not self.more:
                break
        return self._offset > start

    def _apply(self, data: bytes, boot_id: str) -> None:
        at = 0
        while at < len(data):
            end = data.index(b"\n", at)
            line = data[at:end]
            self._line += 1
            try:
                if self.tables.sequence < 0:
                    self.tables.first(line, boot_id)
                else:
                    self.tables.apply(line)
            except (ValueError, RecursionError, OverflowError) as error:
                text = "is no JSON" if isinstance(error, json.JSONDecodeError) else str(error)
                raise self._break(text) from None
            self._offset += end + 1 - at
            at = end + 1

    def _break(self, why: str) -> ValueError:
        """Nothing more of this file is believed; another one may replace it."""
        self.more = False
        self.broken = f"line {max(self._line, 1)}: {why}"
        return ValueError(self.broken)

    def close(self) -> None:
        os.close(self.fd)


def _believable(status: os.stat_result) -> None:
    """Raises ValueError for a file that another than root (or this process's user) can have written."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"is owned by uid {status.st_uid}, not by root")
    if status.st_mode & 0o022:
        raise ValueError("may be written by others than its owner")


def _lasts(ends_ns: int) -> bool:
    return ends_ns == 0 or time.clock_gettime_ns(time.CLOCK_BOOTTIME) < ends_ns


def _network(text: str) -> tuple[int, int, int]:
    """Version, bits right of the prefix, and the first address as a number. Raises ValueError."""
    address, slash, length = text.partition("/")
    version, family, bits = (6, socket.AF_INET6, 128) if ":" in address else (4, socket.AF_INET, 32)
    try:
        value = int.from_bytes(socket.inet_pton(family, address), "big")
    except (OSError, UnicodeError):
        raise ValueError(f"no address: {text!r:.60}") from None
    prefix = bits
    if slash:
        if not (length.isascii() and length.isdigit() and len(length) < 4 and int(length) <= bits):
            raise ValueError(f"no network: {text!r:.60}")
        prefix = int(length)
    if value & ((1 << bits - prefix) - 1):
        raise ValueError(f"host bits are set: {text!r:.60}")
    return _unmapped(version, prefix, value)


def _unmapped(version: int, prefix: int, value: int) -> tuple[int, int, int]:
    """The same with IPv4-mapped IPv6 (RFC 4291, 2.5.5.2) as IPv4, and the bits right of the prefix."""
    if version == 4:
        return 4, 32 - prefix, value
    if prefix >= 96 and value >> 32 == 0xFFFF:
        return 4, 128 - prefix, value & 0xFFFFFFFF
    return 6, 128 - prefix, value


def _ip_network(text: object) -> Network:
    if not isinstance(text, str):
        raise ValueError("a network that is no text")
    return ip_network(text)


def _this_boot() -> str:
    try:
        with open(_BOOT_ID) as file:
            return file.read().strip()
    except OSError:
        return ""


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
    return result
