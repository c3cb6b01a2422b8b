"""The helper `gatewatch-accounts`: keeps denied Unix accounts out, by a file that PAM reads, and ends their sessions.

Whom, the deny list of the enforcer says and nobody else; this process takes no request. It knows for itself whom it
must never keep out: uid 0, system accounts, those that the rails never block, and the last one that can become root.
It never touches /etc/shadow, and where the list cannot be believed, or this process ends, the file stays as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..denied import DenyList
from ..errors import ConfigError, GatewatchError, PrivilegeError
from . import pamstack, sessions
from . import rails as rails_file
from .admins import admins
from .client import plain
from .rails import Rails
from .sessions import Account

FILE = "/etc/gatewatch/denied-accounts"
MOST_NAMES = 10_000
GRACE_S = 2.0
"""How long a session has between SIGTERM and SIGKILL."""
AGAIN_S = (0.1, 0.3, 1.0)
"""When the sessions of who was just denied are looked at again: sshd opens one a while after it said that it would."""
LOOK_S = 5.0
"""How often the file and the sessions of who is denied are looked at: for one who was logging in at that moment."""

_DEFAULT_FIRST_UID = 1000  # UID_MIN of login.defs(5)
_NS_PER_S = 1_000_000_000


class Places(NamedTuple):
    """The files that the helper reads and writes."""

    denied: str
    status: str
    rails: str
    file: str = FILE
    passwd: str = "/etc/passwd"
    group: str = "/etc/group"
    login_defs: str = "/etc/login.defs"
    pam: str = pamstack.FOLDER
    sshd: str = pamstack.SSHD


class Accounts:
    """`step` brings the file and the sessions to what the deny list says, as often as it is called."""

    def __init__(self, places: Places, say: Callable[[str], None]) -> None:
        self.places = places
        self.denied = DenyList(places.denied)
        self.first_uid = _first_uid(places.login_defs)
        self._say = say
        self._rails = Rails()
        self._said: dict[str, str] = {}
        self._names: list[str] | None = None
        self._refused: dict[str, str] = {}
        self._listed: dict[str, tuple[int, bool]] = {}
        self._ended = 0
        self._ending: dict[Account, set[int]] = {}  # the sessions that were asked to end
        self._kill_at: dict[Account, float] = {}
        self._again: list[tuple[float, Account]] = []
        self._looked = 0.0
        self._pam = ""
        self._status = ""

    def load_rails(self) -> None:
        """Raises ConfigError where they are wrong, or do not want this helper."""
        rails = rails_file.load(self.places.rails)
        if not rails.accounts_helper:
            raise ConfigError(
                f"rails {rails.path} do not want the accounts helper",
                remedy="accounts_helper = true there; docs/accounts.md says what else it needs",
            )
        self._rails = rails

    def step(self) -> float:
        """Do what is due; in how many seconds something is due again at the latest."""
        self.denied.refresh()
        now = time.monotonic()
        look = now >= self._looked + LOOK_S
        if self.denied.known:
            wanted = self._wanted()
            if look or wanted != self._listed or self._names is None:
                self._listed = wanted
                self._reconcile(wanted)
        self._notice("list", "" if self.denied.known else f"{self.denied.problem}; who is denied stays so")
        due, self._again = [a for at, a in self._again if at <= now], [a for a in self._again if a[0] > now]
        for account in set(due).intersection(self._accounts()):
            self._end(account)
        for account in [account for account, at in self._kill_at.items() if at <= now]:
            del self._kill_at[account]
            left = sessions.kill(account, self.first_uid)
            what = f"{plain(account.name)}: {len(left)} sessions do not end" if left else ""
            self._notice(f"left {account.name}", what)
        if look:
            self._looked = now
            self._pam = pamstack.summary(self.places.file, self.places.pam, self.places.sshd)
            for account in self._accounts():
                if account not in self._kill_at:
                    self._end(account)
        self._write_status()
        return self._patience()

    def _wanted(self) -> dict[str, tuple[int, bool]]:
        """The names on the list: when each ends, and whether it is one of an account and of nothing else."""
        wanted: dict[str, tuple[int, bool]] = {}
        for kind, name, end in self.denied.entries(("account", "any")):
            other, only = wanted.get(name, (end, True))
            wanted[name] = 0 if 0 in (end, other) else max(end, other), only and kind == "account"
        return wanted

    def _reconcile(self, wanted: Mapping[str, tuple[int, bool]]) -> None:
        try:
            self.load_rails()
        except GatewatchError as error:
            self._notice("rails", f"{error}; the former ones hold")
        else:
            self._notice("rails", "")
        former = self._names if self._names is not None else _names_in(self.places.file)
        try:
            names, refused = self._judge(wanted, former)
        except OSError as error:
            self._notice("administrators", f"{error.filename}: {error.strerror}; who is denied stays so")
            return
        self._notice("administrators", "")
        try:
            _write(self.places.file, "".join(f"{name}\n" for name in sorted(names)))
        except OSError as error:
            self._notice("file", f"{self.places.file} cannot be written: {error.strerror or error}")
        else:
            self._notice("file", "")
        for name in names:
            if name not in former:
                self._say(f"{plain(name)}: denied {_until(wanted[name][0])}")
        for name in former:
            if name not in names:
                self._say(f"{plain(name)}: no longer denied")
        for name, why in refused.items():
            if self._refused.get(name) != why:
                self._say(f"{plain(name)}: not denied: {why}")
        self._names, self._refused = names, refused
        accounts = self._accounts()
        self._ending = {account: self._ending[account] for account in accounts if account in self._ending}
        for account in accounts:
            if account.name not in former:
                self._end(account)
                now = time.monotonic()
                self._again += [(now + wait_s, account) for wait_s in AGAIN_S]

    def _judge(
        self, wanted: Mapping[str, tuple[int, bool]], former: Collection[str]
    ) -> tuple[list[str], dict[str, str]]:
        """Whom of `wanted` to deny, and why the others not. Who is denied already stays so before another is.

        Raises OSError where it cannot be told who can become root.
        """
        names: list[str] = []
        refused: dict[str, str] = {}
        every = pwd.getpwall() if wanted else []
        can_become_root = admins(self.places.group, self.places.passwd, (self._rails.operators,))
        for name in sorted(wanted, key=lambda name: name not in former):
            account = _account(name)
            if account is None:
                why = "there is no such account here" if wanted[name][1] else None
            else:
                why = self._protection(account, every)
                if not why and name in can_become_root and not can_become_root - {*names, name}:
                    why = "it is the last account that can become root (last_admin)"
                if not why and len(names) >= MOST_NAMES:
                    why = f"{MOST_NAMES} are denied already"
            if why:
                refused[name] = why
            elif account is not None:
                names.append(name)
        return names, refused

    def _protection(self, account: Account, every: Sequence[pwd.struct_passwd]) -> str | None:
        """Why an account is never denied; None where nothing protects it."""
        name = account.name
        if account.uid == 0:
            return "it is uid 0"
        never = {whom for kind, whom in self._rails.never_block_users if kind in ("account", "any")}
        for other in (name, *(entry.pw_name for entry in every if entry.pw_uid == account.uid)):
            if other in never:
                return "the rails never block it" if other == name else f"it shares its uid with {other}"
        if account.uid < self.first_uid:
            return f"it is a system account (uid {account.uid} is below UID_MIN, {self.first_uid})"
        return None

    def _accounts(self) -> list[Account]:
        found = [_account(name) for name in self._names or ()]
        return [a for a in found if a is not None and a.uid >= self.first_uid]

    def _end(self, account: Account) -> None:
        """Ask the account's sessions to end, and see to it after a moment."""
        every = sessions.processes()
        found = sessions.of_account(account, every, self.first_uid, sessions.own(every))
        if not found:
            return
        sessions.tell(found, every, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT)
        sessions.by_logind(account)
        self._kill_at.setdefault(account, time.monotonic() + GRACE_S)
        new = set(found.values()) - self._ending.get(account, set())
        self._ending[account] = set(found.values())
        if new:
            self._ended += len(new)
            self._say(f"{plain(account.name)}: ends {len(new)} sessions of {len(found)} processes")

    def _patience(self) -> float:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        waits = [LOOK_S, *((end - now) / _NS_PER_S for end, _ in self._listed.values() if end > now)]
        waits += [at - time.monotonic() for at in self._kill_at.values()]
        waits += [at - time.monotonic() for at, _ in self._again]
        return max(0.0, min(waits))

    def _notice(self, what: str, problem: str) -> None:
        """Say a problem once, and that it is over."""
        if problem and self._said.get(what) != problem:
            self._say(problem)
        elif not problem and self._said.get(what):
            self._say(f"over: {self._said[what]}")
        self._said[what] = problem

    def _write_status(self) -> None:
        names = self._names if self._names is not None else sorted(_names_in(self.places.file))
        said = {
            "denied": sorted(names),
            "refused": self._refused,
            "sessions_ended": self._ended,
            "pam": self._pam,
            "problems": [problem for problem in self._said.values() if problem],
        }
        text = json.dumps(said) + "\n"
        if text == self._status:
            return
        with contextlib.suppress(OSError):
            _write(self.places.status, text)
            self._status = text


def main(arguments: list[str]) -> int:
    """Follow the deny list until a signal comes; the file stays then. Exit code 2 for wrong rails or options."""
    places = _options(arguments)
    accounts = Accounts(places, _say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if os.geteuid() != 0:
            raise PrivilegeError("the accounts helper decides who may log in", remedy="start it as root")
        accounts.load_rails()
        with _only_one(places.file):
            poll = select.poll()
            poll.register(accounts.denied.fileno(), select.POLLIN)
            while True:
                poll.poll(1 + 1e3 * accounts.step())
    except KeyboardInterrupt:
        return 0
    except GatewatchError as error:
        _say(str(error))
        return error.exit_code
    except OSError as error:
        where = error.filename or f"the folder of {places.denied}"
        _say(
            f"{where}: {error.strerror}; the folders of the list and of the file have to be there, root's own"
        )
        return 1


def _write(path: str, text: str) -> None:
    """Put a file of root's that everybody may read in the place of `path`, in a step; not where it is that already.

    Raises OSError, for a folder in which others than its owner may write as well.
    """
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name = os.path.basename(path)
    try:
        status = os.fstat(folder)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise OSError(f"others than root may write in {os.path.dirname(path)}")
        if _holds(folder, name, text):
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f".{name}.new", dir_fd=folder)
        new = os.open(
            f".{name}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(new, 0o644)
            os.fsync(new)
        os.rename(f".{name}.new", name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


def _holds(folder: int, name: str, text: str) -> bool:
    """Whether the file there is root's own, a plain one, and says this."""
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as file:
            status = os.fstat(file.fileno())
            return (
                stat.S_ISREG(status.st_mode)
                and stat.S_IMODE(status.st_mode) == 0o644
                and (status.st_uid, status.st_nlink) == (os.geteuid(), 1)
                and file.read(len(text) * 4 + 1) == text.encode()
            )
    except OSError:
        return False


def _names_in(path: str) -> list[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        return file.read().splitlines()
    return []


def _account(name: str) -> Account | None:
    """The account of this name, which has to be one that a line of the file can hold."""
    if not name.isprintable() or name.split() != [name] or ":" in name:
        return None
    try:
        return Account(name, pwd.getpwnam(name).pw_uid)
    except (KeyError, OSError, ValueError):
        return None


def _first_uid(path: str) -> int:
    with contextlib.suppress(OSError, UnicodeDecodeError, ValueError), open(path, encoding="utf-8") as file:
        for line in file:
            words = line.split()
            if words[:1] == ["UID_MIN"]:
                return max(1, int(words[1]))
    return _DEFAULT_FIRST_UID


def _until(end_ns: int) -> str:
    if end_ns == 0:
        return "until it is taken back"
    left = end_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return f"for {max(0, round(left / _NS_PER_S))} s"


@contextlib.contextmanager
def _only_one(path: str) -> Iterator[None]:
    """Two of them would undo each other's work: the second waits until the first has ended."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another one keeps {path}; waits until it has ended")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _options(arguments: Sequence[str]) -> Places:
    import argparse

    parser = argparse.ArgumentParser(
        prog="gatewatch-accounts", description="Keeps denied Unix accounts out, and ends their sessions."
    )
    parser.add_argument("--state", required=True, help="the state folder, in whose run/ the deny list is")
    parser.add_argument("--rails", required=True, help="the root-owned rails.toml")
    parser.add_argument("--file", default=FILE, help="the file that pam_listfile reads (%(default)s)")
    given = parser.parse_args(arguments)
    run = os.path.join(given.state, "run")
    return Places(
        os.path.join(run, "denied"),
        os.path.join(run, "accounts.json"),
        given.rails,
        os.path.abspath(given.file),
    )


def _say(what: str) -> None:
    with contextlib.suppress(OSError):
        print(f"gatewatch-accounts: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
