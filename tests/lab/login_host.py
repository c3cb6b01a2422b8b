"""A machine to log in to: a real sshd with PAM, accounts and processes of its own, in namespaces of its own.

Accounts, PAM, /run, /var/log, the process list and the network are those of the namespaces: what is blocked or ended
here is nobody of the machine, and no other test's either.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gatewatch.daemon.enforcer.accounts import FILE
from gatewatch.daemon.enforcer.pamstack import rule

from .hosts import program
from .lab import Text, read, wait_for
from .services import MOUNTS, OWN_ETC, PAM_SSHD, SSHD, authorise, write_accounts

MASTER = ["-o", "ControlMaster=auto", "-o", "ControlPersist=yes"]
OPTIONS = (
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
    "ConnectTimeout=10",
    "NumberOfPasswordPrompts=1",
)


class LoginHost:
    """`with LoginHost() as host:` builds it; all of its processes end with it.

    `file` is the one of the denied accounts, which PAM asks, as it is seen from outside; `log` is what sshd says.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self.file = Path()
        self.log = Path()
        self._holder: subprocess.Popen[str] | None = None
        self._init = 0
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> LoginHost:
        self.folder = Path(tempfile.mkdtemp(prefix="gatewatch-logins-"))
        self.folder.chmod(0o755)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"sshd said:\n{read(self.log)[-3000:]}")
        self.close()

    def close(self) -> None:
        for process in [*self._processes, *([self._holder] if self._holder else [])]:
            process.kill()  # with the first process of the namespace the kernel ends all the others
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _build(self) -> None:
        (self.folder / "log").mkdir()
        gatewatch = self.folder / "gatewatch"
        (gatewatch / "run").mkdir(parents=True)
        self.file = self.folder / "own-etc" / Path(FILE).relative_to("/etc")
        self.log = self.folder / "sshd.log"
        write_accounts(self.folder)
        authorise(self.folder, "alice", "bob")
        lines = [rule(stack, FILE) for stack in ("auth", "account")]
        (self.folder / "etc" / "pam-sshd").write_text("\n".join([*lines, PAM_SSHD]))
        (self.folder / "sshd_config").write_text(SSHD.format(folder=self.folder) + "MaxStartups 100\n")
        self._hold()
        self.run(["ip", "link", "set", "lo", "up"])
        # Terminals of its own, which everybody may open there: tmux asks for one.
        self.run(
            ["mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620,gid=5", "pts", "/dev/pts"]
        )
        sshd = program("sshd") or "sshd"
        self.popen([sshd, "-D", "-E", self.log, "-f", self.folder / "sshd_config"])
        wait_for("sshd", lambda: "Server listening" in read(self.log))

    def _hold(self) -> None:
        flags = ["--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = (OWN_ETC + MOUNTS).format(folder=self.folder)
        words = ["unshare", *flags, "--propagation", "private", "sh", "-c", script]
        self._holder = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError("the login host's namespaces could not be made")
        pid = self._holder.pid
        self._init = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """`command` wrapped so that it runs there."""
        enter = ["nsenter", "-t", str(self._init), "--mount", "--uts", "--net", "--pid"]
        return [*enter, *map(str, command)]

    def run(self, command: Sequence[str | Path], *, check: bool = True, **options: Any) -> Text:
        options = {"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 60, **options}
        return subprocess.run(self.inside(command), text=True, check=check, **options)

    def popen(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start and go on; what it says lands in `folder`/NAME.out unless told otherwise. Ends with the host."""
        with open(self.folder / f"{Path(str(command[0])).name}.out", "ab") as said:
            options = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, **options}
            process = subprocess.Popen(self.inside(command), start_new_session=True, **options)
        self._processes.append(process)
        return process

    def ssh(self, user: str, password: str = "", *words: str, options: Sequence[str] = ()) -> list[str]:
        """The command of a connection, by `password` or without one by the key; to be run inside."""
        way = "password" if password else "publickey"
        settings = [
            word for option in (*OPTIONS, f"PreferredAuthentications={way}") for word in ("-o", option)
        ]
        before = ["sshpass", "-p", password] if password else []
        key = [] if password else ["-i", str(self.folder / "operator_ed25519")]
        return [*before, "ssh", "-F", "/dev/null", *settings, *key, *options, f"{user}@127.0.0.1", *words]

    def logs_in(self, user: str, password: str = "") -> bool:
        """Whether somebody gets in, by `password` or without one by the key."""
        done = self.run(self.ssh(user, password, "echo in"), check=False)
        return done.returncode == 0 and done.stdout == "in\n"

    def processes(self) -> dict[int, tuple[str, str]]:
        """The user and the command line of every process there that has not ended, by its id there."""
        listed = self.run(["ps", "-ww", "-eo", "pid=,stat=,user:20=,args="]).stdout.splitlines()
        words = [line.split(None, 3) for line in listed]
        return {int(w[0]): (w[2], w[3]) for w in words if len(w) == 4 and w[1][0] != "Z"}

    def of_user(self, user: str) -> list[str]:
        """The command lines of a user's processes."""
        return [line for name, line in self.processes().values() if name == user]
