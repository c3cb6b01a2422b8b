"""The published deny list: what the journal says is refused, for those who may not read the journal.

The authorisation endpoint and the accounts helper read the file (`daemon/denied.py`). It is derived from the journal
alone and decides nothing: a failure to write it is said and mended later, and hinders neither journal nor kernel.

One JSON array a line, in ASCII, after a line that says of which boot and entry it is: `["+", kind, name, ends]` where
`ends` is CLOCK_BOOTTIME in nanoseconds (0: until taken back), and `["-", kind, name]`. A change is a line that is
appended by one write(2); a new file replaces the old one by rename(2).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .journal import Journal
from .state import Moment, Restriction

DENIED = "run/denied"
"""Where it is, inside the state folder."""
MODE = 0o640
_LONGEST_WAIT_S = 60.0
_MOST_SPARE = 1_000  # lines above twice what is in force, before a new file is written
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class DenyList:
    """The file `path`, kept up to what `journal` says from its first `write` on.

    `gid`: the group that may read it; None leaves it to the group that the present file has. `complain` is told once
    when it cannot be written any more. `problem` says why, and is empty where the file is right.
    """

    def __init__(
        self,
        path: str,
        journal: Journal,
        now: Callable[[], Moment],
        *,
        gid: int | None = 0,
        complain: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.path = path
        self.problem = "not written yet"
        self._journal = journal
        self._now = now
        self._gid = gid
        self._complain = complain
        self._file = -1
        self._bytes = self._lines = self._group = 0
        self._complained = False
        self._wait_s, self._try_at = 0.0, float("inf")  # after a failure: each wait twice as long as the last
        journal.told = self._follow

    @property
    def grown(self) -> bool:
        """Whether so much of it is out of date that a new file is due."""
        state = self._journal.state
        in_force = len(state.blocks) + len(state.users) + len(state.kills) + len(state.restrictions)
        return not self.problem and self._lines > 2 * in_force + _MOST_SPARE

    def write(self) -> None:
        """Write it anew. A failure is kept in `problem`."""
        moment, fresh = self._now(), f"{self.path}.new"
        first = {"denied": 1, "boot_id": moment.boot_id, "sequence": self._journal.sequence}
        lines = [json.dumps(first), *map(json.dumps, self._in_force(moment))]
        data = "".join(f"{line}\n" for line in lines).encode("ascii")
        file = -1
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            gid = self._gid if self._gid is not None else self._former_gid()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            file = os.open(fresh, _FLAGS, 0o600)
            _write(file, data)
            os.fchown(file, -1, gid)
            os.fchmod(file, MODE)
            os.replace(fresh, self.path)
        except OSError as error:
            if file >= 0:
                os.close(file)
                with contextlib.suppress(OSError):
                    os.unlink(fresh)
            self._failed(error)
            return
        if self._file >= 0:
            os.close(self._file)
        self._file, self._bytes, self._lines, self._group = file, len(data), len(lines), gid
        self.problem, self._complained = "", False
        self._wait_s, self._try_at = 0.0, float("inf")

    def next_try_s(self) -> float:
        """Seconds until it is worth to `mend` what failed; infinite where nothing did."""
        return self._try_at - time.monotonic()

    def mend(self) -> list[str]:
        """Write it anew where it is not what was written last; what was mended, in words."""
        was = self.problem or self._changed()
        if not was:
            return []
        self.write()
        return [] if self.problem else [f"the deny list {self.path}: {was}"]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _follow(self, entry: dict[str, Any]) -> None:
        """Append what an entry changed."""
        if self._file < 0 or self.problem:
            return
        lines = [json.dumps(line) for line in self._of(entry)]
        if not lines:
            return
        data = "".join(f"{line}\n" for line in lines).encode("ascii")
        try:
            _write(self._file, data)
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn line is nobody's: the reader waits for its end
                os.ftruncate(self._file, self._bytes)
            self._failed(error)
            return
        self._bytes, self._lines = self._bytes + len(data), self._lines + len(lines)

    def _of(self, entry: dict[str, Any]) -> Iterator[list[Any]]:
        """The lines that say how what an entry names is now."""
        state, boot_ns = self._journal.state, int(entry["boot"])
        blocked_ns, killed_ns = boot_ns - state.elapsed_ns, boot_ns - state.awake_ns
        do = entry["do"]
        if do in ("block", "unblock", "import"):
            for address in (a for a, _ in entry["blocks"]) if do == "import" else (entry["address"],):
                block = state.blocks.get(address)
                yield _line("address", address, block and blocked_ns + block.ends_ns)
        elif do in ("block_user", "unblock_user"):
            block = state.users.get(f"{entry['kind']}:{entry['user']}")
            yield _line(entry["kind"], entry["user"], block and blocked_ns + block.ends_ns)
        elif do in ("kill", "release"):
            for name in entry["endpoints"]:
                kill = state.kills.get(name)
                yield _line("killed", name, kill and (killed_ns + kill.ends_ns if kill.ends_ns else 0))
        elif do in ("restrict", "adjust", "lift"):
            for name in entry["endpoints"]:
                yield _restricted(name, state.restrictions.get(name), blocked_ns)

    def _in_force(self, moment: Moment) -> Iterable[list[Any]]:
        state = self._journal.state
        blocked_ns = moment.boot_ns - state.elapsed_at(moment)
        killed_ns = moment.boot_ns - state.awake_at(moment)
        for address, block in state.blocks.items():
            yield _line("address", address, blocked_ns + block.ends_ns)
        for principal, block in state.users.items():
            kind, _, name = principal.partition(":")
            yield _line(kind, name, blocked_ns + block.ends_ns)
        for name, kill in state.kills.items():
            yield _line("killed", name, killed_ns + kill.ends_ns if kill.ends_ns else 0)
        for name, restriction in state.restrictions.items():
            yield _restricted(name, restriction, blocked_ns)

    def _changed(self) -> str:
        """How the file differs from what was written, at a glance."""
        try:
            there, ours = os.stat(self.path, follow_symlinks=False), os.fstat(self._file)
        except OSError as error:
            return error.strerror or "is gone"
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            return "was replaced"
        if there.st_size != self._bytes:
            return "was changed"
        allowed = (there.st_mode & 0o7777, there.st_uid, there.st_gid)
        return "" if allowed == (MODE, ours.st_uid, self._group) else "had other permissions"

    def _former_gid(self) -> int:
        with contextlib.suppress(OSError):
            return os.stat(self.path, follow_symlinks=False).st_gid
        return 0

    def _failed(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self._complain(f"the deny list {self.path} cannot be written: {error.strerror}")
        self.problem = error.strerror or "cannot be written"
        self._wait_s = min(2 * self._wait_s or 1.0, _LONGEST_WAIT_S)
        self._try_at = time.monotonic() + self._wait_s


def _line(kind: str, name: str, ends_ns: int | None) -> list[Any]:
    """An end that is past already is still an end."""
    if ends_ns is None:
        return ["-", kind, name]
    return ["+", kind, name, max(1, ends_ns) if ends_ns else 0]


def _restricted(name: str, restriction: Restriction | None, clock_ns: int) -> list[Any]:
    """With those who pass as the fifth item; `clock_ns`: CLOCK_BOOTTIME less the journal's clock."""
    if restriction is None:
        return _line("restricted", name, None)
    line = _line("restricted", name, restriction.ends_ns and clock_ns + restriction.ends_ns)
    return [*line, list(dict.fromkeys(map(str, (*restriction.allowed, *restriction.always))))]


def _write(file: int, data: bytes) -> None:
    if os.write(file, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
