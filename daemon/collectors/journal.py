"""Follows the systemd journal through `journalctl`, and tells what the journal vouches for from what anyone wrote.

An entry becomes a line as syslog would have written it, so that one parser reads both. journald adds fields that the
sender cannot choose (systemd.journal-fields(7)): those decide whether an entry is trusted. It must never let a message
or an identifier forge another line or field, nor let a dying journalctl stop the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import uniform
from typing import Any

import msgspec

from .lines import LineCutter

COMMANDS = ("sshd", "sshd-session", "sshd-auth")
"""What sshd calls itself: since OpenSSH 9.8 sessions, and since 10.0 authentication, are programs of their own."""

_FIELDS = (
    "MESSAGE,_UID,_PID,_COMM,_SYSTEMD_UNIT,_SYSTEMD_CGROUP,_HOSTNAME,_TRANSPORT,SYSLOG_IDENTIFIER,SYSLOG_PID"
)
_SOCKET = "/run/systemd/journal/socket"
_LONGEST_ENTRY = 1 << 20  # bytes of JSON; journalctl leaves out fields above 4 KiB
_READ_BYTES = 1 << 17
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.2, 30.0
_STABLE_S = 60.0
_FORGING = re.compile(rb"[\x00-\x1f\x7f]")
_UNUSUAL = re.compile(r"[^A-Za-z0-9_./@+-]")


@dataclass(frozen=True)
class JournalChunk:
    """Consecutive entries of one trust, as syslog lines in RFC 3339 format.

    `first_cursor` and `cursor` are those of the first and the last entry. `existing` says that the entries were made
    before the follower was, so that they are timed as in replay. `first_line` counts the entries given, from 1.
    """

    data: bytes
    entries: int
    first_line: int
    first_cursor: str
    cursor: str
    receive_ns: int
    trusted: bool
    existing: bool


@dataclass
class JournalCounters:
    in_bytes: int = 0
    entries: int = 0
    trusted: int = 0
    dropped: int = 0  # not JSON, or without a message that journalctl would give
    restarts: int = 0


class _Entry(msgspec.Struct):
    cursor: str = msgspec.field(name="__CURSOR")
    realtime: str = msgspec.field(name="__REALTIME_TIMESTAMP")  # microseconds
    message: Any = msgspec.field(name="MESSAGE", default=None)
    uid: Any = msgspec.field(name="_UID", default=None)
    pid: Any = msgspec.field(name="_PID", default=None)
    command: Any = msgspec.field(name="_COMM", default=None)
    unit: Any = msgspec.field(name="_SYSTEMD_UNIT", default=None)
    cgroup: Any = msgspec.field(name="_SYSTEMD_CGROUP", default=None)
    host: Any = msgspec.field(name="_HOSTNAME", default=None)
    transport: Any = msgspec.field(name="_TRANSPORT", default=None)
    identifier: Any = msgspec.field(name="SYSLOG_IDENTIFIER", default=None)
    syslog_pid: Any = msgspec.field(name="SYSLOG_PID", default=None)


class JournalFollower:
    """Follows the entries of `units`, and those of `commands`, after `cursor`.

    Parameters
    ----------
    units: systemd units, such as `ssh.service`.
    cursor: the last entry that was taken, or None to start with what comes from now on.
    commands: programs whose entries are taken too, wherever they run: once a session is open, sshd logs from the
        session's scope. Entries that only claim such a name are given as well, untrusted.
    options: for journalctl, such as `--namespace=NAME` or `--directory=PATH`.
    clock: nanoseconds since the epoch.
    notice: is told what a person should know.
    """

    def __init__(
        self,
        units: Sequence[str],
        cursor: str | None = None,
        *,
        commands: Sequence[str] = COMMANDS,
        options: Sequence[str] = (),
        clock: Callable[[], int] = time.time_ns,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.counters = JournalCounters()
        self.cursor = cursor
        self._units = frozenset(units)
        self._commands = frozenset(commands)
        self._options = list(options)
        self._clock = clock
        self._notice = notice
        self._started_ns = clock()
        self._cursor_works = True
        self._decoder = msgspec.json.Decoder(_Entry)

    async def chunks(self) -> AsyncIterator[JournalChunk]:
        """The entries as they come; ends only by cancellation. Starts journalctl again whenever it ends."""
        pause_s, said = _FIRST_PAUSE_S, ""
        while True:
            began_s, taken = time.monotonic(), self.counters.entries
            why = "it could not be started"
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=_environment(),
                )
            except OSError as error:
                why = error.strerror or str(error)
            else:
                assert process.stdout is not None and process.stderr is not None
                complaint = asyncio.create_task(_last_words(process.stderr))
                try:
                    cutter = LineCutter(longest=_LONGEST_ENTRY)
                    while data := await process.stdout.read(_READ_BYTES):
                        self.counters.in_bytes += len(data)
                        for chunk in self._take(cutter.feed(data)):
                            self.cursor = chunk.cursor
                            self._cursor_works = True
                            yield chunk
                    why = await complaint or f"it ended with code {await process.wait()}"
                finally:
                    await _end(process)
                    complaint.cancel()
                    await asyncio.gather(complaint, return_exceptions=True)
            self.counters.restarts += 1
            if self.counters.entries > taken or time.monotonic() - began_s > _STABLE_S:
                pause_s, said = _FIRST_PAUSE_S, ""
            elif "cursor" in why.lower():
                self._cursor_works = False
            if why != said:
                self._notice(f"journal: journalctl ended: {why}; it is started again")
                said = why
            await asyncio.sleep(pause_s * uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def read_range(self, first_cursor: str, cursor: str, limit_s: float = 10.0) -> bytes | None:
        """The lines from one entry to another, both included, again; None where the journal has them no more."""
        command = [*self._base(), "--no-tail", f"--cursor={first_cursor}", *self._matches()]
        with (
            contextlib.suppress(OSError),
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            ) as process,
        ):
            assert process.stdout is not None
            ends_s = time.monotonic() + limit_s
            lines: list[bytes] = []
            try:
                for raw in process.stdout:
                    entry = self._decoded(raw)
                    # A cursor that is gone seeks to what comes next.
                    if entry is None or (not lines and entry.cursor != first_cursor):
                        if entry is None:
                            continue
                        return None
                    lines.append(_line(entry))
                    if entry.cursor == cursor:
                        return b"".join(lines)
                    if time.monotonic() > ends_s:
                        return None
            finally:
                process.kill()
        return None

    def _command(self) -> list[str]:
        command = [*self._base(), "--follow"]
        if self.cursor is None:
            # Without the cursor of an entry, a journalctl that was started again goes on at the follower's beginning.
            command.append(f"--since=@{self._started_ns / 1e9:.6f}")
        elif self._cursor_works:
            command.append(f"--after-cursor={self.cursor}")
        else:
            command.append(f"--since=@{_cursor_us(self.cursor, self._started_ns) / 1e6:.6f}")
        return [*command, "--no-tail", *self._matches()]

    def _base(self) -> list[str]:
        return [
            "journalctl",
            "--output=json",
            f"--output-fields={_FIELDS}",
            "--no-pager",
            "--quiet",
            *self._options,
        ]

    def _matches(self) -> list[str]:
        matches = [f"_SYSTEMD_UNIT={unit}" for unit in sorted(self._units)]
        for command in sorted(self._commands):
            matches += (f"_COMM={command}", f"SYSLOG_IDENTIFIER={command}")
        return [part for match in matches for part in (match, "+")][:-1]

    def _decoded(self, raw: bytes) -> _Entry | None:
        try:
            entry = self._decoder.decode(raw)
            int(entry.realtime)
        except (msgspec.MsgspecError, ValueError):
            return None
        return entry if entry.message is not None else None

    def _take(self, whole: bytes) -> Iterator[JournalChunk]:
        """Entries of JSON, one a line, as chunks of equal trust and time."""
        receive_ns = self._clock()
        lines: list[bytes] = []
        first, last, kind = "", "", (False, False)
        for raw in whole.splitlines():
            entry = self._decoded(raw)
            if entry is None:
                self.counters.dropped += 1
                continue
            this = (self._trusts(entry), int(entry.realtime) * 1000 < self._started_ns)
            if lines and this != kind:
                yield self._chunk(lines, first, last, receive_ns, kind)
                lines = []
            if not lines:
                first, kind = entry.cursor, this
            lines.append(_line(entry))
            last = entry.cursor
        if lines:
            yield self._chunk(lines, first, last, receive_ns, kind)

    def _chunk(
        self, lines: list[bytes], first: str, last: str, receive_ns: int, kind: tuple[bool, bool]
    ) -> JournalChunk:
        line = self.counters.entries + 1
        self.counters.entries += len(lines)
        trusted, existing = kind
        self.counters.trusted += len(lines) if trusted else 0
        return JournalChunk(b"".join(lines), len(lines), line, first, last, receive_ns, trusted, existing)

    def _trusts(self, entry: _Entry) -> bool:
        """Whether root wrote it, from one of the units, or as one of the commands in a login session."""
        if entry.uid != "0" or entry.transport not in ("syslog", "journal", "stdout"):
            return False
        unit = entry.unit
        if unit is None:
            # No systemd to name units: what runs in a container has a control group of its own.
            return entry.command in self._commands and entry.cgroup in (None, "/")
        if not isinstance(unit, str):
            return False
        if unit in self._units or f"{unit.partition('@')[0]}.service" in self._units:
            return True
        return entry.command in self._commands and re.fullmatch(r"session-\w+\.scope", unit) is not None


def probe(options: Sequence[str] = ()) -> str | None:
    """Why the journal cannot be followed, with what to do; None where it can. Takes some milliseconds."""
    if shutil.which("journalctl") is None:
        return "there is no journalctl; install systemd, or name log files under collectors.logs"
    if not options:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
            try:
                journald.connect(_SOCKET)
            except PermissionError:
                pass  # Somebody listens; reading is what matters.
            except OSError:
                return "systemd-journald is not running; name log files under collectors.logs"
    try:
        done = subprocess.run(
            [
                "journalctl",
                "--lines=1",
                "--output=cat",
                "--output-fields=_UID",
                "--no-pager",
                "--system",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5.0,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"journalctl does not work ({error}); name log files under collectors.logs"
    said = done.stderr.decode("utf-8", "replace").strip()
    # Without the right to the system's journal, journalctl hints at it and shows the user's own.
    if "permission" in said.lower() or "not seeing messages" in said:
        return (
            "no permission to read the journal; add the user to the group systemd-journal, or start as root"
        )
    if done.returncode != 0:
        return f"journalctl failed ({said.splitlines()[-1] if said else done.returncode}); see journalctl --verify"
    if not done.stdout:
        return "the journal is empty (Storage=none?); name log files under collectors.logs"
    return None


def _line(entry: _Entry) -> bytes:
    seconds, micros = divmod(int(entry.realtime), 1_000_000)
    program = _word(entry.identifier) or _word(entry.command) or "unknown"
    number = _word(entry.pid) or _word(entry.syslog_pid)
    tag = f"{program}[{number}]" if number.isdigit() else program
    head = f"{_second(seconds)}.{micros:06d}+00:00 {_word(entry.host) or '-'} {tag}: "
    # Control characters as rsyslog writes them: #012 for a newline.
    message = _FORGING.sub(lambda found: b"#%03o" % found[0][0], _bytes(entry.message))
    return head.encode() + message + b"\n"


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    """RFC 3339 without fraction and zone; a time past the year 9999 is held there."""
    return f"{datetime.fromtimestamp(min(seconds, 253402300799), UTC):%Y-%m-%dT%H:%M:%S}"


def _word(value: Any) -> str:
    """A field that stands before the message: nothing in it can end it early."""
    return _UNUSUAL.sub("_", value[:64]) if isinstance(value, str) else ""


def _bytes(value: Any) -> bytes:
    """A field of journalctl's JSON: text, an array of numbers where it is no UTF-8, or an array of those where the
    field occurs more than once (systemd.io/JOURNAL_EXPORT_FORMATS)."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, list):
        if all(isinstance(v, int) and 0 <= v < 256 for v in value):
            return bytes(value)
        return b" ".join(_bytes(v) for v in value if isinstance(v, str | list))
    return b""


def _cursor_us(cursor: str, otherwise_ns: int) -> int:
    """The wall-clock time in a cursor (`t=`, hexadecimal microseconds)."""
    found = re.search(r"(?:^|;)t=([0-9a-f]{1,15})(?:;|$)", cursor)
    return int(found[1], 16) if found else otherwise_ns // 1000


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


async def _last_words(stream: asyncio.StreamReader) -> str:
    """The last line of what comes, however much that is."""
    kept = b""
    while data := await stream.read(4096):
        kept = (kept + data)[-4096:]
    lines = kept.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
